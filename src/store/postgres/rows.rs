//! Rows in and out of PostgreSQL as JSON, and what its errors mean.

use crate::models::ids::RequestId;
use crate::store::StoreError;
use crate::store::table::parse;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::AssertSqlSafe;
use sqlx::{PgConnection, Postgres};
use std::collections::BTreeSet;
use std::sync::Arc;
use uuid::Uuid;

pub async fn ids(
    conn: &mut PgConnection,
    statement: &'static str,
    among: Vec<Uuid>,
) -> Result<BTreeSet<RequestId>, StoreError> {
    let found: Vec<Uuid> =
        sqlx::query_scalar(statement).bind(among).fetch_all(conn).await.map_err(classify)?;
    Ok(found.into_iter().map(RequestId).collect())
}

pub async fn texts(
    conn: &mut PgConnection,
    statement: &'static str,
    among: Vec<String>,
) -> Result<BTreeSet<String>, StoreError> {
    let found: Vec<String> =
        sqlx::query_scalar(statement).bind(among).fetch_all(conn).await.map_err(classify)?;
    Ok(found.into_iter().collect())
}

pub async fn select<T, K>(
    conn: &mut PgConnection,
    statement: &Arc<str>,
    key: K,
) -> Result<Vec<T>, StoreError>
where
    T: DeserializeOwned,
    K: sqlx::Type<Postgres> + for<'q> sqlx::Encode<'q, Postgres> + Send + 'static,
{
    let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement.clone()))
        .bind(key)
        .fetch_all(conn)
        .await
        .map_err(classify)?;
    parse(&rows)
}

pub async fn write_rows<'a, T: Serialize + 'a>(
    conn: &mut PgConnection,
    statement: &Arc<str>,
    rows: impl Iterator<Item = &'a T>,
) -> Result<(), StoreError> {
    let rows: Vec<&T> = rows.collect();
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(AssertSqlSafe(statement.clone()))
        .bind(serde_json::to_string(&rows)?)
        .execute(conn)
        .await
        .map_err(classify)?;
    Ok(())
}

pub fn unique(error: sqlx::Error, what: &'static str) -> StoreError {
    match &error {
        sqlx::Error::Database(inner) if inner.is_unique_violation() => StoreError::Exists(what),
        _ => classify(error),
    }
}

/// Two accounts at once with one reference: the second finds it when it writes.
pub fn one_reference(error: StoreError) -> StoreError {
    match &error {
        StoreError::Refused(sqlx::Error::Database(inner))
            if inner.constraint() == Some("ledger_entries_one_reference") =>
        {
            StoreError::Exists("an entry of this reference")
        }
        _ => error,
    }
}

/// A lock was waited for as long as allowed.
/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>
pub fn is_locked(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|inner| inner.code().as_deref() == Some("55P03"))
}

/// Only an error in the data itself (classes 22 and 23) is final: whatever else is the matter, a
/// connection, a role, a disk, may be mended while the statement waits.
/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>
pub fn classify(error: sqlx::Error) -> StoreError {
    let is_final = match &error {
        sqlx::Error::Database(inner) => {
            inner.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => false,
        _ => true,
    };
    if is_final { StoreError::Refused(error) } else { StoreError::Unavailable(error) }
}
