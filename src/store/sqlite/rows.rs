//! Rows in and out of SQLite as JSON, and what its errors mean.

use crate::models::ids::RequestId;
use crate::store::StoreError;
use crate::store::table::parse;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::AssertSqlSafe;
use sqlx::SqliteConnection;
use std::collections::BTreeSet;
use std::sync::Arc;

pub async fn ids(
    conn: &mut SqliteConnection,
    statement: &'static str,
    among: String,
) -> Result<BTreeSet<RequestId>, StoreError> {
    let found = texts(conn, statement, among).await?;
    Ok(found.iter().filter_map(|id| id.parse().ok()).collect())
}

pub async fn texts(
    conn: &mut SqliteConnection,
    statement: &'static str,
    among: String,
) -> Result<BTreeSet<String>, StoreError> {
    let found: Vec<String> =
        sqlx::query_scalar(statement).bind(among).fetch_all(conn).await.map_err(classify)?;
    Ok(found.into_iter().collect())
}

pub async fn select<T: DeserializeOwned>(
    conn: &mut SqliteConnection,
    statement: &Arc<str>,
    key: String,
) -> Result<Vec<T>, StoreError> {
    let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement.clone()))
        .bind(key)
        .fetch_all(conn)
        .await
        .map_err(classify)?;
    parse(&rows)
}

pub async fn write_rows<'a, T: Serialize + 'a>(
    conn: &mut SqliteConnection,
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

/// Only an error in the data itself is final (too big, a constraint, a type, a parameter): whatever
/// else is the matter may be mended while the statement waits. The low byte of the code is its
/// class. <https://www.sqlite.org/rescode.html>
pub fn classify(error: sqlx::Error) -> StoreError {
    let is_final = match &error {
        sqlx::Error::Database(inner) => inner
            .code()
            .and_then(|code| code.parse::<i32>().ok())
            .is_some_and(|code| matches!(code & 0xff, 18 | 19 | 20 | 25)),
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => false,
        _ => true,
    };
    if is_final { StoreError::Refused(error) } else { StoreError::Unavailable(error) }
}
