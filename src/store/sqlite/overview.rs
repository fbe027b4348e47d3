//! What owners and operators look at, on SQLite.

use crate::models::hold::Hold;
use crate::models::ids::AccountId;
use crate::models::overview::{DriftSum, LatencySum, MarginQuestion, MarginSum};
use crate::models::report::Span;
use crate::store::StoreError;
use crate::store::overview::{
    Dialect, OverviewStore, Statement, drift, holds_of, latencies, margins, parameter,
};
use crate::store::reports::STATEMENT_WAIT;
use crate::store::sqlite::reports::object;
use crate::store::sqlite::rows::{classify, select};
use crate::store::sqlite::{SqliteStore, reconcile};
use crate::store::table::{HOLDS, parse, sqlite as sql};
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use sqlx::AssertSqlSafe;

/// CROSS JOIN keeps the buckets outside, each one range of an index. A Julian day is a float, whose
/// error is some hundredths of a millisecond.
const DIALECT: Dialect = Dialect {
    buckets: |json| format!("json_each({json}) b CROSS"),
    bucket: "b.key",
    from: "(b.value ->> 0)",
    until: "(b.value ->> 1)",
    millis: |from, until| {
        format!("CAST(ROUND((julianday({until}) - julianday({from})) * 86400000) AS INTEGER)")
    },
    holds: str::to_owned,
    attempts: reconcile::DIALECT,
};

#[async_trait]
impl OverviewStore for SqliteStore {
    async fn latencies(
        &self,
        account: AccountId,
        buckets: &[Span],
    ) -> Result<Vec<LatencySum>, StoreError> {
        self.seen(latencies(&DIALECT), Some(buckets), Some(account)).await
    }

    async fn holds_of(&self, account: AccountId) -> Result<Vec<Hold>, StoreError> {
        let statement = sql::select(&HOLDS, &holds_of());
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        select(&mut conn, &statement.into(), account.to_string()).await
    }

    async fn margins(&self, question: &MarginQuestion) -> Result<Vec<MarginSum>, StoreError> {
        let statement = margins(&DIALECT, question.by);
        self.seen(statement, Some(&question.buckets), None).await
    }

    async fn drift(&self, span: Span) -> Result<Vec<DriftSum>, StoreError> {
        self.seen(drift(&DIALECT), Some(&[span]), None).await
    }
}

impl SqliteStore {
    async fn seen<T: DeserializeOwned>(
        &self,
        (statement, names): Statement,
        buckets: Option<&[Span]>,
        account: Option<AccountId>,
    ) -> Result<Vec<T>, StoreError> {
        let names = object(names.iter().copied());
        let statement = format!("SELECT {names} FROM ({statement}) r");
        let mut query = sqlx::query_scalar(AssertSqlSafe(statement));
        if let Some(buckets) = buckets {
            query = query.bind(parameter(buckets)?);
        }
        if let Some(account) = account {
            query = query.bind(account.to_string());
        }
        let mut tx = self.bounded(STATEMENT_WAIT).await?;
        let rows: Vec<String> = query.fetch_all(&mut *tx).await.map_err(classify)?;
        parse(&rows)
    }
}
