//! The rows that a page of something else is for: usage records and corrections.
//!
//! Invariant: as many as the page names, never all.

use crate::models::ids::{AccountId, ApiKeyId, RequestId};
use crate::models::ledger::record_hash;
use crate::models::money::NanoUsd;
use crate::models::usage::{UsageCorrection, UsageRecord};
use crate::store::{Store, StoreError};
use std::collections::HashMap;

pub const CHARGE: &str = "charge";
pub const CORRECTION: &str = "correction";

#[derive(Default)]
pub struct Rows {
    records: HashMap<RequestId, UsageRecord>,
    corrections: HashMap<RequestId, UsageCorrection>,
}

/// What an entry of a row must say.
pub struct Expected {
    pub hash: String,
    pub amount: NanoUsd,
}

impl Rows {
    /// Those of these requests. Corrections are looked for where they are asked for.
    pub async fn of(
        store: &dyn Store,
        records: &[RequestId],
        corrections: &[RequestId],
    ) -> Result<Self, StoreError> {
        let mut rows = Self::default();
        if !records.is_empty() {
            let found = store.records_of(records).await?;
            rows.records = found.into_iter().map(|row| (row.id, row)).collect();
        }
        if !corrections.is_empty() {
            let found = store.corrections_of(corrections).await?;
            rows.corrections = found.into_iter().map(|row| (row.request_id, row)).collect();
        }
        Ok(rows)
    }

    pub fn expected(&self, request: RequestId, kind: &str) -> Option<Expected> {
        if kind == CORRECTION {
            let row = self.corrections.get(&request)?;
            return Some(Expected { hash: record_hash(row), amount: row.difference_nusd });
        }
        let row = self.records.get(&request)?;
        let amount = NanoUsd(row.charge_nusd.0.saturating_neg());
        Some(Expected { hash: record_hash(row), amount })
    }

    /// Whose budget a request counts in.
    pub fn key(&self, request: RequestId) -> Option<ApiKeyId> {
        self.records.get(&request)?.api_key_id
    }

    pub fn account(&self, request: RequestId, kind: &str) -> Option<AccountId> {
        if kind == CORRECTION {
            return self.corrections.get(&request).map(|row| row.account_id);
        }
        self.records.get(&request).map(|row| row.account_id)
    }
}
