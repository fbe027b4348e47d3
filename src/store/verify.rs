//! Rows that belong to rows: what `verify` holds against each other, a page at a time.
//!
//! Invariant: reads only, by keys that have an index, so that verifying needs no more memory for a
//! million entries than for a thousand. Entries of corrections have none; they are few.

use crate::models::billing::BillingEvent;
use crate::models::ids::RequestId;
use crate::models::ledger::EntryKind;
use crate::models::money::NanoUsd;
use crate::models::usage::{Outline, UsageCorrection, UsageRecord};
use crate::store::StoreError;
use crate::store::table::Table;
use async_trait::async_trait;
use serde::Deserialize;

/// What is read of usage records where not all of them is needed.
pub(super) const OUTLINES: Table = Table {
    name: "usage_records",
    columns: &["id", "account_id", "prompt_tokens", "completion_tokens", "charge_nusd", "ended_at"],
};

/// What the members of a group of merged events were charged.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct GroupCharge {
    pub event_group: String,
    pub charge_nusd: NanoUsd,
}

/// The names in [`group_charges`].
pub(super) const GROUP_CHARGE: [&str; 2] = ["event_group", "charge_nusd"];

/// `listed`: whether the group is one of those asked for.
pub(super) fn group_charges(listed: &str) -> String {
    format!(
        "SELECT e.export_group AS event_group, CAST(SUM(CASE e.kind WHEN 'usage' \
         THEN u.charge_nusd ELSE COALESCE(-c.difference_nusd, 0) END) AS BIGINT) AS charge_nusd \
         FROM billing_events e JOIN usage_records u ON u.id = e.request_id \
         LEFT JOIN usage_corrections c ON c.request_id = e.request_id AND e.kind = 'correction' \
         WHERE e.kind IN ('usage', 'correction') AND e.export_group {listed} GROUP BY e.export_group"
    )
}

#[async_trait]
pub trait VerifyStore: Send + Sync {
    async fn records_of(&self, requests: &[RequestId]) -> Result<Vec<UsageRecord>, StoreError>;

    /// Of the same rows, less: the server looks at all that it settles.
    async fn outlines_of(&self, requests: &[RequestId]) -> Result<Vec<Outline>, StoreError>;

    async fn corrections_of(
        &self,
        requests: &[RequestId],
    ) -> Result<Vec<UsageCorrection>, StoreError>;

    /// Those of the requests that have an entry of this kind.
    async fn entered(
        &self,
        kind: EntryKind,
        requests: &[RequestId],
    ) -> Result<Vec<RequestId>, StoreError>;

    async fn events_of(&self, ids: &[String]) -> Result<Vec<BillingEvent>, StoreError>;

    async fn group_charges(&self, groups: &[String]) -> Result<Vec<GroupCharge>, StoreError>;
}
