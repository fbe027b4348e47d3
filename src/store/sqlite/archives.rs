//! Months that are kept in files, on SQLite: rows go a batch at a time, so that a server beside
//! never waits long.

use crate::models::archive::{Archive, ArchivedSpending, Month, Unfinished};
use crate::store::StoreError;
use crate::store::archives::{ArchiveStore, Counted, check, counted, is_late, unfinished};
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::rows::{classify, select, write_rows};
use crate::store::table::{ARCHIVED_SPENDING, ARCHIVES, sqlite as sql};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqliteConnection};

/// Rows removed in one transaction: some milliseconds.
const BATCH_ROWS: i64 = 2_000;
/// Copies first: while there is a record, it is as it was. By indexes: an event's id begins with
/// its request's.
const TABLES: [(&str, &str); 3] =
    [("billing_events", "id"), ("usage_corrections", "request_id"), ("usage_records", "id")];

#[async_trait]
impl ArchiveStore for SqliteStore {
    async fn archives(&self) -> Result<Vec<Archive>, StoreError> {
        let statement = sql::select(&ARCHIVES, "WHERE ?1 = '' ORDER BY t.month");
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        select(&mut conn, &statement.into(), String::new()).await
    }

    async fn archived_spending(&self) -> Result<Vec<ArchivedSpending>, StoreError> {
        let statement = sql::select(&ARCHIVED_SPENDING, "WHERE ?1 = ''");
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        select(&mut conn, &statement.into(), String::new()).await
    }

    async fn unfinished(&self, month: Month) -> Result<Unfinished, StoreError> {
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        open(&mut conn, month).await
    }

    async fn begin_archive(
        &self,
        archive: &Archive,
        spending: &[ArchivedSpending],
    ) -> Result<(), StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let (from, until) = archive.month.ids();
        let found: Counted = sqlx::query_as(AssertSqlSafe(counted("?1", "?2")))
            .bind(from.to_string())
            .bind(until.to_string())
            .fetch_one(&mut *tx)
            .await
            .map_err(classify)?;
        check(archive, found, open(&mut tx, archive.month).await?)?;
        write_rows(&mut tx, &sql::insert(&ARCHIVES).into(), std::iter::once(archive)).await?;
        write_rows(&mut tx, &sql::insert(&ARCHIVED_SPENDING).into(), spending.iter()).await?;
        tx.commit().await.map_err(classify)
    }

    async fn remove_archived(&self, month: Month) -> Result<bool, StoreError> {
        let (from, until) = month.ids();
        for (table, id) in TABLES {
            let statement = format!(
                "DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} \
                 WHERE {id} >= ?1 AND {id} < ?2 AND NOT {} LIMIT {BATCH_ROWS})",
                is_late(table, "?3")
            );
            let done = sqlx::query(AssertSqlSafe(statement))
                .bind(from.to_string())
                .bind(until.to_string())
                .bind(month.to_string())
                .execute(&mut *self.writer.acquire().await?)
                .await
                .map_err(classify)?;
            if done.rows_affected() > 0 {
                return Ok(false);
            }
        }
        sqlx::query("UPDATE archives SET state = 'removed' WHERE month = ?1")
            .bind(month.to_string())
            .execute(&mut *self.writer.acquire().await?)
            .await
            .map_err(classify)?;
        Ok(true)
    }
}

async fn open(conn: &mut SqliteConnection, month: Month) -> Result<Unfinished, StoreError> {
    let (from, until) = month.ids();
    let (holds, lookups, events) = sqlx::query_as(AssertSqlSafe(unfinished("?1", "?2")))
        .bind(from.to_string())
        .bind(until.to_string())
        .fetch_one(conn)
        .await
        .map_err(classify)?;
    Ok(Unfinished { holds, lookups, events })
}
