//! Sums and a payer's own records, on PostgreSQL.
//!
//! Invariant: a statement runs in a transaction that ends it in time. Buckets are
//! ranges of ids, so that months without them are pruned and each is one range of an index.

use crate::models::ids::{AccountId, RequestId};
use crate::models::report::{Adjustment, CreditTotals, Question, Span, UsageLine, UsageSum};
use crate::models::timestamp::Timestamp;
use crate::store::postgres::PostgresStore;
use crate::store::postgres::lent::Lent;
use crate::store::postgres::rows::classify;
use crate::store::reports::statements::{Dialect, groups, ids_of, lines, totals};
use crate::store::reports::{GROUPS_MAX, ReportStore, STATEMENT_WAIT};
use crate::store::table::parse;
use crate::store::{PAGE_ROWS_MAX, StoreError};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, PgPool};
use std::time::Duration;
use uuid::Uuid;

const DIALECT: Dialect = Dialect {
    from: "b.from_id",
    until: "b.until_id",
    is_asked: "($4 IS NULL OR u.model = ANY($4)) AND ($5 IS NULL OR u.api_key_id = ANY($5)) \
               AND ($6 IS NULL OR u.user_id = ANY($6))",
    no_text: "NULL::text",
    no_id: "NULL::uuid",
};

#[async_trait]
impl ReportStore for PostgresStore {
    async fn usage_sums(&self, question: &Question) -> Result<Vec<UsageSum>, StoreError> {
        let (from, until): (Vec<Uuid>, Vec<Uuid>) =
            question.buckets.iter().map(ids_of).map(|(from, until)| (from.0, until.0)).unzip();
        let keys: Option<Vec<Uuid>> =
            question.keys.as_ref().map(|keys| keys.iter().map(|id| id.0).collect());
        let users: Option<Vec<Uuid>> =
            question.users.as_ref().map(|users| users.iter().map(|id| id.0).collect());
        let statement = format!(
            "SELECT row_to_json(r)::text FROM \
             (SELECT b.n - 1 AS bucket, s.model, s.api_key_id, s.user_id, {} \
              FROM unnest($2, $3) WITH ORDINALITY AS b (from_id, until_id, n) \
              CROSS JOIN LATERAL ({}) s \
              GROUP BY b.n, s.model, s.api_key_id, s.user_id LIMIT {}) r",
            totals(),
            groups(question, &DIALECT),
            GROUPS_MAX + 1,
        );
        let mut tx = self.bounded(STATEMENT_WAIT).await?;
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(question.account_id.0)
            .bind(from)
            .bind(until)
            .bind(question.models.as_ref())
            .bind(keys)
            .bind(users)
            .fetch_all(&mut *tx)
            .await
            .map_err(classify)?;
        parse(&rows)
    }

    async fn adjustments(
        &self,
        account: AccountId,
        buckets: &[Span],
    ) -> Result<Vec<Adjustment>, StoreError> {
        let (from, until): (Vec<String>, Vec<String>) =
            buckets.iter().map(|span| (span.from.to_string(), span.until.to_string())).unzip();
        let mut tx = self.bounded(STATEMENT_WAIT).await?;
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT row_to_json(r)::text FROM \
             (SELECT b.n - 1 AS bucket, SUM(e.amount_nusd)::bigint AS amount_nusd \
              FROM unnest($2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY \
              AS b (from_at, until_at, n) \
              JOIN ledger_entries e ON e.account_id = $1 AND e.request_id IS NULL \
              AND e.kind = 'correction' AND COALESCE(e.reference, '') NOT LIKE 'stripe:%' \
              AND e.created_at >= b.from_at AND e.created_at < b.until_at \
              GROUP BY b.n) r",
        )
        .bind(account.0)
        .bind(from)
        .bind(until)
        .fetch_all(&mut *tx)
        .await
        .map_err(classify)?;
        parse(&rows)
    }

    async fn credit_totals(&self, account: AccountId) -> Result<Option<CreditTotals>, StoreError> {
        let mut tx = self.bounded(STATEMENT_WAIT).await?;
        let row: Option<String> = sqlx::query_scalar(
            "SELECT row_to_json(r)::text FROM \
             (SELECT a.balance_nusd, (SELECT COALESCE(SUM(e.amount_nusd), 0)::bigint \
               FROM ledger_entries e WHERE e.account_id = a.id AND e.request_id IS NULL \
               AND (e.kind = 'credit' OR e.reference LIKE 'stripe:%')) AS credited_nusd \
              FROM accounts a WHERE a.id = $1) r",
        )
        .bind(account.0)
        .fetch_optional(&mut *tx)
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
        let statement = format!("SELECT row_to_json(r)::text FROM ({}) r", lines());
        let mut tx = self.bounded(STATEMENT_WAIT).await?;
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(account.0)
            .bind(after.0)
            .bind(RequestId::floor(before).0)
            .bind(PAGE_ROWS_MAX)
            .fetch_all(&mut *tx)
            .await
            .map_err(classify)?;
        parse(&rows)
    }
}

impl PostgresStore {
    /// A transaction that only reads, and whose statements end in time.
    pub(super) async fn bounded(&self, wait: Duration) -> Result<Lent, StoreError> {
        bounded(&self.pool, wait).await
    }
}

pub(super) async fn bounded(pool: &PgPool, wait: Duration) -> Result<Lent, StoreError> {
    let mut tx = Lent::begin(pool, "BEGIN").await?;
    sqlx::query("SELECT set_config('statement_timeout', $1, true)")
        .bind(wait.as_millis().to_string())
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
    Ok(tx)
}
