//! What was written down, on PostgreSQL.

use crate::models::hold::PendingLookup;
use crate::models::ids::{AccountId, RequestId};
use crate::models::ledger::LedgerEntry;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{UsageCorrection, UsageRecord};
use crate::store::postgres::PostgresStore;
use crate::store::postgres::rows::classify;
use crate::store::records::RecordStore;
use crate::store::table::{
    LEDGER_ENTRIES, USAGE_CORRECTIONS, USAGE_RECORDS, parse, postgres as sql,
};
use crate::store::{PAGE_ROWS_MAX, StoreError};
use async_trait::async_trait;
use sqlx::AssertSqlSafe;

#[async_trait]
impl RecordStore for PostgresStore {
    async fn usage_of(
        &self,
        account: AccountId,
        after: Option<RequestId>,
    ) -> Result<Vec<UsageRecord>, StoreError> {
        self.page_of(&USAGE_RECORDS, "id", account, after.map(|id| id.0)).await
    }

    async fn usage_after(&self, after: Option<RequestId>) -> Result<Vec<UsageRecord>, StoreError> {
        self.page(&USAGE_RECORDS, "id", after.map(|id| id.0)).await
    }

    async fn corrections_after(
        &self,
        after: Option<RequestId>,
    ) -> Result<Vec<UsageCorrection>, StoreError> {
        self.page(&USAGE_CORRECTIONS, "request_id", after.map(|id| id.0)).await
    }

    async fn ledger_after(
        &self,
        account: AccountId,
        seq: i64,
    ) -> Result<Vec<LedgerEntry>, StoreError> {
        let statement = sql::select(
            &LEDGER_ENTRIES,
            "WHERE account_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(account.0)
            .bind(seq)
            .bind(PAGE_ROWS_MAX)
            .fetch_all(&mut *self.lend().await?)
            .await
            .map_err(classify)?;
        parse(&rows)
    }

    async fn claim_lookups(
        &self,
        now: Timestamp,
        next: Timestamp,
        limit: i64,
    ) -> Result<Vec<PendingLookup>, StoreError> {
        let rows: Vec<String> = sqlx::query_scalar(
            // Materialized: read again for each row, it would be another so many each time.
            "WITH due AS MATERIALIZED (SELECT request_id FROM lookups \
              WHERE next_attempt_at <= $1::timestamptz ORDER BY next_attempt_at LIMIT $3 \
              FOR UPDATE SKIP LOCKED) \
             UPDATE lookups t SET attempts = attempts + 1, next_attempt_at = $2::timestamptz \
             WHERE request_id IN (SELECT request_id FROM due) RETURNING row_to_json(t)::text",
        )
        .bind(now.to_string())
        .bind(next.to_string())
        .bind(limit)
        .fetch_all(&mut *self.lend().await?)
        .await
        .map_err(classify)?;
        parse(&rows)
    }
}
