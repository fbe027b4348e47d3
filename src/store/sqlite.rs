//! SQLite: for one machine. WAL, `synchronous=FULL`, one writing connection.
//!
//! Invariant: everything that changes the books goes through that one connection, in `BEGIN
//! IMMEDIATE`, so a command that runs beside the server waits instead of failing.

mod archives;
mod batch;
mod directory;
mod exports;
mod known;
mod ledger;
mod native;
mod outbox;
mod overview;
mod payments;
mod prices;
mod reconcile;
mod records;
mod reports;
mod rows;
mod verify;
mod watch;
mod writer;

use batch::Sql;
use rows::{classify, select};
use writer::Writer;

use super::payments::EVENTS_KEPT;
use super::table::{Table, parse, sqlite as sql};
use super::{IfMissing, PAGE_ROWS_MAX, Store, StoreError, WINDOW_UNUSED_FOR};
use crate::models::billing::EventTerms;
use crate::models::ids::AccountId;
use crate::models::timestamp::Timestamp;
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, SqlitePool};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub struct SqliteStore {
    writer: Writer,
    readers: SqlitePool,
    /// For sums, which may take seconds.
    reporters: SqlitePool,
    events: Arc<EventTerms>,
    sql: Sql,
}

/// Look-ups of keys are short; more readers than cores only wait for each other.
const READERS_MAX: u32 = 2;
/// Sums are work for a processor each.
const REPORTERS_MAX: u32 = 2;
/// Statements that stay prepared: a batch has one for each table and power of two of its rows.
const STATEMENTS_MAX: usize = 256;
/// Rows of a result that wait for us: as many as a batch loads, so that SQLite need not wait.
const ROWS_WAITING_MAX: usize = 1_024;
/// The log is copied into the file when it has so many pages (16 MiB; SQLite's own choice is a
/// quarter of that): every request changes the same few pages, and each is copied once.
const WAL_PAGES: &str = "4000";
/// How long a writer waits for another process (a command beside the server).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for a connection of ours.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the file is looked at for changes by another process: they show within a second.
const CHANGE_POLL: Duration = Duration::from_millis(400);

impl SqliteStore {
    /// Opens the file, and makes it when it is missing.
    ///
    /// # Errors
    /// [`StoreError::Setup`] when the URL does not parse or the file cannot be opened.
    pub async fn open(url: &str, events: EventTerms) -> Result<Self, StoreError> {
        Self::open_or(IfMissing::Make, url, events).await
    }

    /// The file that an address means, by one name however it is spelt: so it is made when it is
    /// missing, because only what is there has one.
    ///
    /// # Errors
    /// [`StoreError::Setup`] when the address does not parse.
    pub fn file(url: &str) -> Result<PathBuf, StoreError> {
        let file = options(url)?.get_filename().to_owned();
        make(&file);
        Ok(std::fs::canonicalize(&file).unwrap_or(file))
    }

    /// Opens the file.
    ///
    /// # Errors
    /// Those of [`SqliteStore::open`], and when the file is missing and is not to be made.
    pub async fn open_or(
        if_missing: IfMissing,
        url: &str,
        events: EventTerms,
    ) -> Result<Self, StoreError> {
        let options = options(url)?;
        match if_missing {
            IfMissing::Make => make(options.get_filename()),
            IfMissing::Refuse => check_is_there(options.get_filename())?,
        }
        let options = options
            .create_if_missing(if_missing == IfMissing::Make)
            .journal_mode(SqliteJournalMode::Wal)
            // NORMAL may lose the last commits when the power fails; these commits are money.
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", WAL_PAGES)
            .statement_cache_capacity(STATEMENTS_MAX)
            .row_buffer_size(ROWS_WAITING_MAX)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = Writer::open(options.clone())
            .await
            .map_err(|error| StoreError::Setup(format!("cannot open the SQLite file: {error}")))?;
        let readers = pool(READERS_MAX).connect_lazy_with(options.clone());
        let reporters = pool(REPORTERS_MAX).connect_lazy_with(options);
        Ok(Self { writer, readers, reporters, events: Arc::new(events), sql: Sql::new() })
    }
}

fn options(url: &str) -> Result<SqliteConnectOptions, StoreError> {
    let parsed = url.parse();
    parsed.map_err(|_| StoreError::Setup("DATABASE_URL is not a SQLite address".into()))
}

/// A file that only its owner reads; its log becomes like it. Where it cannot be made, opening it
/// says why.
/// <https://www.sqlite.org/src/file/src/os_unix.c> (`findCreateFileMode`)
fn make(file: &Path) {
    let _ = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
}

/// An empty file is a database that nobody has begun.
fn check_is_there(file: &Path) -> Result<(), StoreError> {
    if std::fs::metadata(file).is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    // Whoever is in the wrong folder sees which one that is.
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    Err(StoreError::Setup(format!(
        "there is no database at {}: DATABASE_URL says where it is, and `tollgate migrate` makes one",
        file.display()
    )))
}

fn pool(connections_max: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // The file is in this process: there is no other end that may have hung up.
        .test_before_acquire(false)
}

#[async_trait]
impl Store for SqliteStore {
    async fn check(&self) -> Result<(), StoreError> {
        // The file is in this process, and nothing stands in between.
        Ok(())
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        sqlx::migrate!("migrations/sqlite").run(&self.readers).await?;
        Ok(())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.readers).await.map_err(classify)?;
        Ok(())
    }

    async fn sweep(&self, now: Timestamp) -> Result<(), StoreError> {
        let unused = "DELETE FROM rate_windows WHERE open_requests = 0 AND seen_at < ?1";
        for (statement, until) in [
            ("DELETE FROM lookups WHERE give_up_at < ?1", now),
            ("DELETE FROM idempotency_keys WHERE expires_at < ?1", now),
            (unused, now.minus(WINDOW_UNUSED_FOR)),
            (payments::OLD_EVENTS, now.minus(EVENTS_KEPT)),
            (payments::STRAY_REVERSALS, now.minus(EVENTS_KEPT)),
        ] {
            sqlx::query(statement)
                .bind(until.to_string())
                .execute(&mut *self.writer.acquire().await?)
                .await
                .map_err(classify)?;
        }
        Ok(())
    }

    async fn follow_changes(&self, changed: &(dyn Fn() + Sync)) -> Result<(), StoreError> {
        let mut before = None;
        loop {
            let version = self.writer.version().await?;
            if before.replace(version) != Some(version) {
                changed();
            }
            tokio::time::sleep(CHANGE_POLL).await;
        }
    }

    async fn announce_change(&self) -> Result<(), StoreError> {
        // The write itself is the announcement.
        Ok(())
    }
}

impl SqliteStore {
    async fn one<T: DeserializeOwned>(
        &self,
        statement: String,
        key: String,
    ) -> Result<Option<T>, StoreError> {
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        Ok(select(&mut conn, &statement.into(), key).await?.pop())
    }

    /// The rows after `after` in the order of `key`, from the first where there is none.
    async fn page<T: DeserializeOwned>(
        &self,
        table: &Table,
        key: &str,
        after: Option<String>,
    ) -> Result<Vec<T>, StoreError> {
        let condition = format!("WHERE t.{key} > ?1 ORDER BY t.{key} LIMIT {PAGE_ROWS_MAX}");
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        select(&mut conn, &sql::select(table, &condition).into(), after.unwrap_or_default()).await
    }

    /// An account's rows after `after` in the order of `key`, from the first where there is none.
    async fn page_of<T: DeserializeOwned>(
        &self,
        table: &Table,
        key: &str,
        account: AccountId,
        after: Option<String>,
    ) -> Result<Vec<T>, StoreError> {
        let condition =
            format!("WHERE account_id = ?1 AND {key} > ?2 ORDER BY {key} LIMIT {PAGE_ROWS_MAX}");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql::select(table, &condition)))
            .bind(account.to_string())
            .bind(after.unwrap_or_default())
            .fetch_all(&self.readers)
            .await
            .map_err(classify)?;
        parse(&rows)
    }
}

fn text<T: ToString>(id: Option<T>) -> Option<String> {
    id.map(|id| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_commit_is_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("t.db").display());
        let store = SqliteStore::open(&url, EventTerms::default()).await.unwrap();
        let mut writing = store.writer.acquire().await.unwrap();
        let full: i64 =
            sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *writing).await.unwrap();
        assert_eq!(full, 2, "FULL");
        let mode: String =
            sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *writing).await.unwrap();
        assert_eq!(mode, "wal");
    }
}
