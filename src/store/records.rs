//! What was written down: usage records, corrections, ledger entries, and the look-ups that may
//! still correct them.
//!
//! Invariant: pages are in the order of their key and no longer than `PAGE_ROWS_MAX`.

use crate::models::hold::PendingLookup;
use crate::models::ids::{AccountId, RequestId};
use crate::models::ledger::LedgerEntry;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{UsageCorrection, UsageRecord};
use crate::store::StoreError;
use async_trait::async_trait;

#[async_trait]
pub trait RecordStore: Send + Sync {
    /// An account's usage records, oldest first.
    async fn usage_of(
        &self,
        account: AccountId,
        after: Option<RequestId>,
    ) -> Result<Vec<UsageRecord>, StoreError>;
    async fn usage_after(&self, after: Option<RequestId>) -> Result<Vec<UsageRecord>, StoreError>;

    async fn corrections_after(
        &self,
        after: Option<RequestId>,
    ) -> Result<Vec<UsageCorrection>, StoreError>;

    async fn ledger_after(
        &self,
        account: AccountId,
        seq: i64,
    ) -> Result<Vec<LedgerEntry>, StoreError>;

    /// Takes look-ups that are due, at most `limit`; they are due again at `next`.
    async fn claim_lookups(
        &self,
        now: Timestamp,
        next: Timestamp,
        limit: i64,
    ) -> Result<Vec<PendingLookup>, StoreError>;
}
