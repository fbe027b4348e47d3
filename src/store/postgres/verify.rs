//! Rows that belong to rows, on PostgreSQL.

use crate::models::billing::BillingEvent;
use crate::models::ids::RequestId;
use crate::models::ledger::EntryKind;
use crate::models::usage::{Outline, UsageCorrection, UsageRecord};
use crate::store::StoreError;
use crate::store::postgres::PostgresStore;
use crate::store::postgres::rows::{ids, select};
use crate::store::table::{
    BILLING_EVENTS, Table, USAGE_CORRECTIONS, USAGE_RECORDS, postgres as sql,
};
use crate::store::verify::{GroupSum, OUTLINES, VerifyStore, group_sums};
use async_trait::async_trait;
use sqlx::PgConnection;
use uuid::Uuid;

#[async_trait]
impl VerifyStore for PostgresStore {
    async fn records_of(&self, requests: &[RequestId]) -> Result<Vec<UsageRecord>, StoreError> {
        records_of(&mut *self.begin().await?, requests).await
    }

    async fn outlines_of(&self, requests: &[RequestId]) -> Result<Vec<Outline>, StoreError> {
        let Table { name, columns } = &OUTLINES;
        let statement = format!(
            "SELECT row_to_json(t)::text FROM (SELECT {} FROM {name} WHERE id = ANY($1)) t",
            columns.join(", ")
        );
        let mut conn = self.begin().await?;
        select(&mut conn, &statement.into(), uuids(requests)).await
    }

    async fn corrections_of(
        &self,
        requests: &[RequestId],
    ) -> Result<Vec<UsageCorrection>, StoreError> {
        let statement = sql::select(&USAGE_CORRECTIONS, "WHERE t.request_id = ANY($1)");
        let mut conn = self.begin().await?;
        select(&mut conn, &statement.into(), uuids(requests)).await
    }

    async fn entered(
        &self,
        kind: EntryKind,
        requests: &[RequestId],
    ) -> Result<Vec<RequestId>, StoreError> {
        let statement = match kind {
            EntryKind::Charge => {
                "SELECT request_id FROM ledger_entries \
                 WHERE kind = 'charge' AND request_id = ANY($1)"
            }
            EntryKind::Correction | EntryKind::Credit => {
                "SELECT request_id FROM ledger_entries \
                 WHERE kind = 'correction' AND request_id = ANY($1)"
            }
        };
        let mut conn = self.begin().await?;
        Ok(ids(&mut conn, statement, uuids(requests)).await?.into_iter().collect())
    }

    async fn events_of(&self, ids: &[String]) -> Result<Vec<BillingEvent>, StoreError> {
        let statement = sql::select(&BILLING_EVENTS, "WHERE t.id = ANY($1)");
        let mut conn = self.begin().await?;
        select(&mut conn, &statement.into(), ids.to_vec()).await
    }

    async fn group_sums(&self, groups: &[String]) -> Result<Vec<GroupSum>, StoreError> {
        let statement = format!("SELECT row_to_json(r)::text FROM ({}) r", group_sums("= ANY($1)"));
        let mut conn = self.begin().await?;
        select(&mut conn, &statement.into(), groups.to_vec()).await
    }
}

/// The usage records of these requests.
pub(super) async fn records_of(
    conn: &mut PgConnection,
    requests: &[RequestId],
) -> Result<Vec<UsageRecord>, StoreError> {
    let statement = sql::select(&USAGE_RECORDS, "WHERE t.id = ANY($1)");
    select(conn, &statement.into(), uuids(requests)).await
}

fn uuids(requests: &[RequestId]) -> Vec<Uuid> {
    requests.iter().map(|id| id.0).collect()
}
