//! Sums by day, on PostgreSQL.

use crate::models::ids::RequestId;
use crate::models::reconcile::{Call, CallSum, ExportSum, FailedSum, SinkSum};
use crate::models::report::Span;
use crate::store::postgres::PostgresStore;
use crate::store::postgres::rows::classify;
use crate::store::reconcile::{
    Dialect, NAMED_CALLS, ReconcileStore, SUMS_MAX, SUMS_WAIT, Statement, call_sums, calls,
    calls_at, export_sums, failed_sums, sink_sums, whole,
};
use crate::store::reports::statements::ids_of;
use crate::store::table::parse;
use crate::store::{PAGE_ROWS_MAX, StoreError};
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

pub(super) const DIALECT: Dialect = Dialect {
    day: |column| format!("to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD')"),
    time: |parameter| format!("{parameter}::timestamptz"),
    attempts: "jsonb_array_elements(u.tried::jsonb) AS a(value)",
    member: |name| format!("(a.value->>'{name}')"),
};

#[async_trait]
impl ReconcileStore for PostgresStore {
    async fn call_sums(&self, upstream: &str, span: Span) -> Result<Vec<CallSum>, StoreError> {
        self.sums_of_calls(call_sums(), upstream, span).await
    }

    async fn calls(
        &self,
        upstream: &str,
        span: Span,
        after: Option<RequestId>,
    ) -> Result<Vec<Call>, StoreError> {
        let (from, until) = ids_of(&span);
        let mut tx = self.bounded(SUMS_WAIT).await?;
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(as_json(calls())))
            .bind(upstream)
            .bind(from.0)
            .bind(until.0)
            .bind(after.map_or(Uuid::nil(), |id| id.0))
            .bind(PAGE_ROWS_MAX)
            .fetch_all(&mut *tx)
            .await
            .map_err(classify)?;
        parse(&rows)
    }

    async fn calls_at(
        &self,
        upstream: &str,
        span: Span,
        places: &[i64],
    ) -> Result<Vec<Call>, StoreError> {
        let (from, until) = ids_of(&span);
        let mut tx = self.bounded(SUMS_WAIT).await?;
        let rows: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(as_json(calls_at("place = ANY($4)"))))
                .bind(upstream)
                .bind(from.0)
                .bind(until.0)
                .bind(places)
                .fetch_all(&mut *tx)
                .await
                .map_err(classify)?;
        parse(&rows)
    }

    async fn named_calls(&self, upstream: &str, span: Span) -> Result<i64, StoreError> {
        let (from, until) = ids_of(&span);
        let mut tx = self.bounded(SUMS_WAIT).await?;
        sqlx::query_scalar(NAMED_CALLS)
            .bind(upstream)
            .bind(from.0)
            .bind(until.0)
            .fetch_one(&mut *tx)
            .await
            .map_err(classify)
    }

    async fn failed_sums(&self, upstream: &str, span: Span) -> Result<Vec<FailedSum>, StoreError> {
        self.sums_of_calls(failed_sums(&DIALECT), upstream, span).await
    }

    async fn sink_sums(&self, sink: &str, span: Span) -> Result<Vec<SinkSum>, StoreError> {
        self.sums_of_times(sink_sums(&DIALECT), sink, span).await
    }

    async fn export_sums(&self, sink: &str, span: Span) -> Result<Vec<ExportSum>, StoreError> {
        self.sums_of_times(export_sums(&DIALECT), sink, span).await
    }
}

fn as_json((statement, _): Statement) -> String {
    format!("SELECT row_to_json(r)::text FROM ({statement}) r")
}

impl PostgresStore {
    async fn sums_of_calls<T: DeserializeOwned>(
        &self,
        statement: Statement,
        upstream: &str,
        span: Span,
    ) -> Result<Vec<T>, StoreError> {
        let (from, until) = ids_of(&span);
        let mut tx = self.bounded(SUMS_WAIT).await?;
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(as_json(statement)))
            .bind(upstream)
            .bind(from.0)
            .bind(until.0)
            .bind(SUMS_MAX + 1)
            .fetch_all(&mut *tx)
            .await
            .map_err(classify)?;
        whole(parse(&rows)?)
    }

    async fn sums_of_times<T: DeserializeOwned>(
        &self,
        statement: Statement,
        sink: &str,
        span: Span,
    ) -> Result<Vec<T>, StoreError> {
        let mut tx = self.bounded(SUMS_WAIT).await?;
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(as_json(statement)))
            .bind(sink)
            .bind(span.from.to_string())
            .bind(span.until.to_string())
            .bind(SUMS_MAX + 1)
            .fetch_all(&mut *tx)
            .await
            .map_err(classify)?;
        whole(parse(&rows)?)
    }
}
