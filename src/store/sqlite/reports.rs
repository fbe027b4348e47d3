//! Sums and a payer's own records, on SQLite.
//!
//! Invariant: sums have a connection of their own, so that nobody's key waits for them, and are
//! interrupted in time. A bucket is one range of an index.

use crate::models::ids::{AccountId, RequestId};
use crate::models::report::{Adjustment, CreditTotals, Question, Span, UsageLine, UsageSum};
use crate::models::timestamp::Timestamp;
use crate::store::reports::statements::{
    Dialect, groups, ids_of, line_names, lines, sum_names, totals,
};
use crate::store::reports::{GROUPS_MAX, ReportStore, STATEMENT_WAIT};
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::rows::classify;
use crate::store::table::parse;
use crate::store::{PAGE_ROWS_MAX, StoreError};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Sqlite, Transaction};
use std::sync::Arc;
use std::time::{Duration, Instant};

const DIALECT: Dialect = Dialect {
    from: "$2",
    until: "$3",
    is_asked: "($4 IS NULL OR u.model IN (SELECT value FROM json_each($4))) \
               AND ($5 IS NULL OR u.api_key_id IN (SELECT value FROM json_each($5))) \
               AND ($6 IS NULL OR u.user_id IN (SELECT value FROM json_each($6)))",
    no_text: "NULL",
    no_id: "NULL",
};

/// Instructions of SQLite's machine between two looks at the clock: some microseconds.
const STEPS_PER_LOOK: i32 = 10_000;

#[async_trait]
impl ReportStore for SqliteStore {
    async fn usage_sums(&self, question: &Question) -> Result<Vec<UsageSum>, StoreError> {
        let statement: Arc<str> = sums_of_bucket(question).into();
        let models = question.models.as_ref().map(serde_json::to_string).transpose()?;
        let keys = question.keys.as_ref().map(serde_json::to_string).transpose()?;
        let users = question.users.as_ref().map(serde_json::to_string).transpose()?;
        let mut tx = self.bounded(STATEMENT_WAIT).await?;
        let mut sums = Vec::new();
        // SQLite groups by sorting: a bucket at a time, there is less to sort and to hold.
        for (bucket, span) in question.buckets.iter().enumerate() {
            let (from, until) = ids_of(span);
            let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement.clone()))
                .bind(question.account_id.to_string())
                .bind(from.to_string())
                .bind(until.to_string())
                .bind(models.as_ref())
                .bind(keys.as_ref())
                .bind(users.as_ref())
                .bind(i64::try_from(bucket).unwrap_or(i64::MAX))
                .fetch_all(&mut *tx)
                .await
                .map_err(classify)?;
            sums.append(&mut parse(&rows)?);
            if sums.len() > GROUPS_MAX {
                break;
            }
        }
        Ok(sums)
    }

    async fn adjustments(
        &self,
        account: AccountId,
        buckets: &[Span],
    ) -> Result<Vec<Adjustment>, StoreError> {
        let spans: Vec<[String; 2]> =
            buckets.iter().map(|span| [span.from.to_string(), span.until.to_string()]).collect();
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT json_object('bucket', b.key, 'amount_nusd', SUM(e.amount_nusd)) \
             FROM json_each($2) b CROSS JOIN ledger_entries e \
             WHERE e.account_id = $1 AND e.request_id IS NULL AND e.kind = 'correction' \
             AND COALESCE(e.reference, '') NOT LIKE 'stripe:%' \
             AND e.created_at >= b.value ->> 0 AND e.created_at < b.value ->> 1 GROUP BY b.key",
        )
        .bind(account.to_string())
        .bind(serde_json::to_string(&spans)?)
        .fetch_all(&self.readers)
        .await
        .map_err(classify)?;
        parse(&rows)
    }

    async fn credit_totals(&self, account: AccountId) -> Result<Option<CreditTotals>, StoreError> {
        let row: Option<String> = sqlx::query_scalar(
            "SELECT json_object('balance_nusd', a.balance_nusd, 'credited_nusd', \
              (SELECT COALESCE(SUM(e.amount_nusd), 0) FROM ledger_entries e \
               WHERE e.account_id = a.id AND e.request_id IS NULL \
               AND (e.kind = 'credit' OR e.reference LIKE 'stripe:%'))) \
             FROM accounts a WHERE a.id = $1",
        )
        .bind(account.to_string())
        .fetch_optional(&self.readers)
        .await
        .map_err(classify)?;
        Ok(row.map(|row| serde_json::from_str(&row)).transpose()?)
    }

    async fn usage_lines(
        &self,
        account: AccountId,
        after: RequestId,
        before: Timestamp,
    ) -> Result<Vec<UsageLine>, StoreError> {
        let statement = format!("SELECT {} FROM ({}) r", object(line_names()), lines());
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(account.to_string())
            .bind(after.to_string())
            .bind(RequestId::floor(before).to_string())
            .bind(PAGE_ROWS_MAX)
            .fetch_all(&self.readers)
            .await
            .map_err(classify)?;
        parse(&rows)
    }
}

/// The sums of the bucket from `$2` until `$3`, which is number `$7`.
fn sums_of_bucket(question: &Question) -> String {
    let names = ["bucket", "model", "api_key_id", "user_id"].into_iter().chain(sum_names());
    format!(
        "SELECT {} FROM (SELECT $7 AS bucket, s.model, s.api_key_id, s.user_id, {} FROM ({}) s \
         GROUP BY s.model, s.api_key_id, s.user_id LIMIT {}) r",
        object(names),
        totals(),
        groups(question, &DIALECT),
        GROUPS_MAX + 1,
    )
}

/// The named columns of `r` as one JSON object.
pub(super) fn object<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let members: Vec<String> = names.map(|name| format!("'{name}', r.{name}")).collect();
    format!("json_object({})", members.join(", "))
}

impl SqliteStore {
    /// A transaction that only reads, sees one state of the books, and ends in time.
    pub(super) async fn bounded(
        &self,
        wait: Duration,
    ) -> Result<Transaction<'static, Sqlite>, StoreError> {
        let mut tx = self.reporters.begin().await.map_err(classify)?;
        let deadline = Instant::now() + wait;
        // Stays on the connection, whose next user sets another one.
        let mut handle = tx.lock_handle().await.map_err(classify)?;
        handle.set_progress_handler(STEPS_PER_LOOK, move || Instant::now() < deadline);
        drop(handle);
        Ok(tx)
    }
}
