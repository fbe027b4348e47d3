//! What was written down, on SQLite.

use crate::models::hold::PendingLookup;
use crate::models::ids::{AccountId, RequestId};
use crate::models::ledger::LedgerEntry;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{UsageCorrection, UsageRecord};
use crate::store::records::RecordStore;
use crate::store::sqlite::rows::{classify, select};
use crate::store::sqlite::{SqliteStore, text};
use crate::store::table::{
    LEDGER_ENTRIES, LOOKUPS, USAGE_CORRECTIONS, USAGE_RECORDS, parse, sqlite as sql,
};
use crate::store::{PAGE_ROWS_MAX, StoreError};
use async_trait::async_trait;
use sqlx::AssertSqlSafe;

#[async_trait]
impl RecordStore for SqliteStore {
    async fn usage_of(
        &self,
        account: AccountId,
        after: Option<RequestId>,
    ) -> Result<Vec<UsageRecord>, StoreError> {
        self.page_of(&USAGE_RECORDS, "id", account, text(after)).await
    }

    async fn usage_after(&self, after: Option<RequestId>) -> Result<Vec<UsageRecord>, StoreError> {
        self.page(&USAGE_RECORDS, "id", text(after)).await
    }

    async fn corrections_after(
        &self,
        after: Option<RequestId>,
    ) -> Result<Vec<UsageCorrection>, StoreError> {
        self.page(&USAGE_CORRECTIONS, "request_id", text(after)).await
    }

    async fn ledger_after(
        &self,
        account: AccountId,
        seq: i64,
    ) -> Result<Vec<LedgerEntry>, StoreError> {
        let statement = sql::select(
            &LEDGER_ENTRIES,
            "WHERE account_id = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(account.to_string())
            .bind(seq)
            .bind(PAGE_ROWS_MAX)
            .fetch_all(&self.readers)
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
        let claimed: Vec<String> = sqlx::query_scalar(
            "UPDATE lookups SET attempts = attempts + 1, next_attempt_at = ?2 WHERE request_id IN \
             (SELECT request_id FROM lookups WHERE next_attempt_at <= ?1 \
              ORDER BY next_attempt_at LIMIT ?3) RETURNING request_id",
        )
        .bind(now.to_string())
        .bind(next.to_string())
        .bind(limit)
        .fetch_all(&mut *self.writer.acquire().await?)
        .await
        .map_err(classify)?;
        let statement =
            sql::select(&LOOKUPS, "WHERE request_id IN (SELECT value FROM json_each(?1))");
        let mut conn = self.writer.acquire().await?;
        select(&mut conn, &statement.into(), serde_json::to_string(&claimed)?).await
    }
}
