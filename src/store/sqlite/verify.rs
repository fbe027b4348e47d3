//! Rows that belong to rows, on SQLite.

use crate::models::billing::BillingEvent;
use crate::models::ids::RequestId;
use crate::models::ledger::EntryKind;
use crate::models::usage::{Outline, UsageCorrection, UsageRecord};
use crate::store::StoreError;
use crate::store::sqlite::native::LISTED;
use crate::store::sqlite::reports::object;
use crate::store::sqlite::rows::{classify, ids, select};
use crate::store::sqlite::{SqliteStore, native};
use crate::store::table::{BILLING_EVENTS, Table, USAGE_CORRECTIONS, USAGE_RECORDS};
use crate::store::verify::{GROUP_SUM, GroupSum, OUTLINES, VerifyStore, group_sums};
use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[async_trait]
impl VerifyStore for SqliteStore {
    async fn records_of(&self, requests: &[RequestId]) -> Result<Vec<UsageRecord>, StoreError> {
        self.listed(&USAGE_RECORDS, "id", requests).await
    }

    async fn outlines_of(&self, requests: &[RequestId]) -> Result<Vec<Outline>, StoreError> {
        self.listed(&OUTLINES, "id", requests).await
    }

    async fn corrections_of(
        &self,
        requests: &[RequestId],
    ) -> Result<Vec<UsageCorrection>, StoreError> {
        self.listed(&USAGE_CORRECTIONS, "request_id", requests).await
    }

    async fn entered(
        &self,
        kind: EntryKind,
        requests: &[RequestId],
    ) -> Result<Vec<RequestId>, StoreError> {
        let statement = match kind {
            EntryKind::Charge => {
                "SELECT request_id FROM ledger_entries WHERE kind = 'charge' \
                 AND request_id IN (SELECT value FROM json_each(?1))"
            }
            EntryKind::Correction | EntryKind::Credit => {
                "SELECT request_id FROM ledger_entries WHERE kind = 'correction' \
                 AND request_id IN (SELECT value FROM json_each(?1))"
            }
        };
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        let found = ids(&mut conn, statement, serde_json::to_string(requests)?).await?;
        Ok(found.into_iter().collect())
    }

    async fn events_of(&self, ids: &[String]) -> Result<Vec<BillingEvent>, StoreError> {
        self.listed(&BILLING_EVENTS, "id", ids).await
    }

    async fn group_sums(&self, groups: &[String]) -> Result<Vec<GroupSum>, StoreError> {
        let names = object(GROUP_SUM.into_iter());
        let statement = format!("SELECT {names} FROM ({}) r", group_sums(LISTED));
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        select(&mut conn, &statement.into(), serde_json::to_string(groups)?).await
    }
}

impl SqliteStore {
    async fn listed<T: DeserializeOwned, K: Serialize>(
        &self,
        table: &Table,
        key: &str,
        keys: &[K],
    ) -> Result<Vec<T>, StoreError> {
        // The server looks at all that it settles: as JSON that was 2 % of its time (measured).
        let statement = native::select(table, &format!("WHERE {key} {LISTED}"));
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        native::read(&mut conn, &statement.into(), serde_json::to_string(keys)?).await
    }
}
