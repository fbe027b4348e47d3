//! What owners and operators look at, on PostgreSQL.

use crate::models::hold::Hold;
use crate::models::ids::AccountId;
use crate::models::overview::{DriftSum, LatencySum, MarginQuestion, MarginSum};
use crate::models::report::Span;
use crate::store::StoreError;
use crate::store::overview::{
    Dialect, OverviewStore, Statement, drift, holds_of, latencies, margins, parameter,
};
use crate::store::postgres::PostgresStore;
use crate::store::postgres::{reconcile, rows::classify};
use crate::store::reports::STATEMENT_WAIT;
use crate::store::table::{HOLDS, parse, postgres as sql};
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use sqlx::AssertSqlSafe;

const DIALECT: Dialect = Dialect {
    buckets: |json| format!("json_array_elements({json}::json) WITH ORDINALITY AS b(value, n)"),
    bucket: "b.n - 1",
    from: "(b.value ->> 0)::uuid",
    until: "(b.value ->> 1)::uuid",
    millis: |from, until| format!("CAST(EXTRACT(EPOCH FROM ({until} - {from})) * 1000 AS BIGINT)"),
    holds: str::to_owned,
    attempts: reconcile::DIALECT,
};

#[async_trait]
impl OverviewStore for PostgresStore {
    async fn latencies(
        &self,
        account: AccountId,
        buckets: &[Span],
    ) -> Result<Vec<LatencySum>, StoreError> {
        self.seen(latencies(&DIALECT), Some(buckets), Some(account)).await
    }

    async fn holds_of(&self, account: AccountId) -> Result<Vec<Hold>, StoreError> {
        let statement = sql::select(&HOLDS, &holds_of());
        let mut tx = self.bounded(STATEMENT_WAIT).await?;
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(account.0)
            .fetch_all(&mut *tx)
            .await
            .map_err(classify)?;
        parse(&rows)
    }

    async fn margins(&self, question: &MarginQuestion) -> Result<Vec<MarginSum>, StoreError> {
        let statement = margins(&DIALECT, question.by);
        self.seen(statement, Some(&question.buckets), None).await
    }

    async fn drift(&self, span: Span) -> Result<Vec<DriftSum>, StoreError> {
        self.seen(drift(&DIALECT), Some(&[span]), None).await
    }
}

impl PostgresStore {
    async fn seen<T: DeserializeOwned>(
        &self,
        (statement, _): Statement,
        buckets: Option<&[Span]>,
        account: Option<AccountId>,
    ) -> Result<Vec<T>, StoreError> {
        let statement = format!("SELECT row_to_json(r)::text FROM ({statement}) r");
        let mut query = sqlx::query_scalar(AssertSqlSafe(statement));
        if let Some(buckets) = buckets {
            query = query.bind(parameter(buckets)?);
        }
        if let Some(account) = account {
            query = query.bind(account.0);
        }
        let mut tx = self.bounded(STATEMENT_WAIT).await?;
        let rows: Vec<String> = query.fetch_all(&mut *tx).await.map_err(classify)?;
        parse(&rows)
    }
}
