//! Sums by day, on SQLite.

use crate::models::ids::RequestId;
use crate::models::reconcile::{Call, CallSum, ExportSum, FailedSum, SinkSum};
use crate::models::report::Span;
use crate::store::reconcile::{
    Dialect, NAMED_CALLS, ReconcileStore, SUMS_MAX, SUMS_WAIT, Statement, call_sums, calls,
    calls_at, export_sums, failed_sums, sink_sums, whole,
};
use crate::store::reports::statements::ids_of;
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::reports::object;
use crate::store::sqlite::rows::classify;
use crate::store::table::parse;
use crate::store::{PAGE_ROWS_MAX, StoreError};
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use sqlx::AssertSqlSafe;

/// Times are text of fixed width.
pub(super) const DIALECT: Dialect = Dialect {
    day: |column| format!("substr({column}, 1, 10)"),
    time: str::to_owned,
    attempts: "json_each(u.tried) a",
    member: |name| format!("json_extract(a.value, '$.{name}')"),
};

#[async_trait]
impl ReconcileStore for SqliteStore {
    async fn call_sums(&self, upstream: &str, span: Span) -> Result<Vec<CallSum>, StoreError> {
        let (from, until) = ids_of(&span);
        whole(self.sums(call_sums(), upstream, [from.to_string(), until.to_string()]).await?)
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
            .bind(from.to_string())
            .bind(until.to_string())
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
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
        let statement = as_json(calls_at("place IN (SELECT value FROM json_each($4))"));
        let mut tx = self.bounded(SUMS_WAIT).await?;
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(upstream)
            .bind(from.to_string())
            .bind(until.to_string())
            .bind(serde_json::to_string(places)?)
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
            .bind(from.to_string())
            .bind(until.to_string())
            .fetch_one(&mut *tx)
            .await
            .map_err(classify)
    }

    async fn failed_sums(&self, upstream: &str, span: Span) -> Result<Vec<FailedSum>, StoreError> {
        let (from, until) = ids_of(&span);
        let ids = [from.to_string(), until.to_string()];
        whole(self.sums(failed_sums(&DIALECT), upstream, ids).await?)
    }

    async fn sink_sums(&self, sink: &str, span: Span) -> Result<Vec<SinkSum>, StoreError> {
        let times = [span.from.to_string(), span.until.to_string()];
        whole(self.sums(sink_sums(&DIALECT), sink, times).await?)
    }

    async fn export_sums(&self, sink: &str, span: Span) -> Result<Vec<ExportSum>, StoreError> {
        let times = [span.from.to_string(), span.until.to_string()];
        whole(self.sums(export_sums(&DIALECT), sink, times).await?)
    }
}

fn as_json((statement, names): Statement) -> String {
    format!("SELECT {} FROM ({statement}) r", object(names.iter().copied()))
}

impl SqliteStore {
    async fn sums<T: DeserializeOwned>(
        &self,
        statement: Statement,
        of: &str,
        [from, until]: [String; 2],
    ) -> Result<Vec<T>, StoreError> {
        let mut tx = self.bounded(SUMS_WAIT).await?;
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(as_json(statement)))
            .bind(of)
            .bind(from)
            .bind(until)
            .bind(SUMS_MAX + 1)
            .fetch_all(&mut *tx)
            .await
            .map_err(classify)?;
        parse(&rows)
    }
}
