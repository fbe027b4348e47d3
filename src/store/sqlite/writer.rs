//! The one writing connection.
//!
//! A pool of one would do, but that pings a connection when it is given back: a wake-up of SQLite's
//! thread, and one of ours, for each commit.
//!
//! Invariants: one at a time has it, in the order of asking; a transaction that was left unfinished
//! is rolled back before the next has it, by a new connection where that does not work; what is
//! known of the books is kept from one batch to the next, and forgotten for anybody else.

use super::known::Known;
use super::rows::classify;
use crate::store::StoreError;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Sqlite, SqliteConnection};
use std::ops::{Deref, DerefMut};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// How long a caller waits for the connection.
const WAIT: Duration = Duration::from_secs(10);
/// The first statement of the first text of a transaction.
pub const BEGIN: &str = "BEGIN IMMEDIATE";
/// The last statement of the last text of a transaction whose statements go in texts.
pub const COMMIT: &str = "COMMIT";

/// What moves when another connection has written.
/// <https://www.sqlite.org/pragma.html#pragma_data_version>
pub const VERSION: &str = "PRAGMA data_version";

pub struct Writer {
    options: SqliteConnectOptions,
    line: Mutex<Line>,
}

struct Line {
    conn: SqliteConnection,
    /// In a transaction that sqlx knows nothing of.
    is_in_texts: bool,
    known: Known,
}

/// The connection, for one caller.
pub struct Writing<'a>(MutexGuard<'a, Line>);

/// A transaction whose BEGIN and COMMIT go in the texts of its statements: on their own, each is
/// two switches between threads. sqlx does not know of it.
#[must_use]
pub struct InTexts<'a>(Writing<'a>);

impl Writer {
    /// # Errors
    /// The database's.
    pub async fn open(options: SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let conn = options.connect().await?;
        let line = Line { conn, is_in_texts: false, known: Known::default() };
        Ok(Self { options, line: Mutex::new(line) })
    }

    /// The connection, when nobody else has it. What it is used for is not looked at: nothing is
    /// known of the books after it.
    ///
    /// # Errors
    /// When it is not free in time, or cannot be opened again.
    pub async fn acquire(&self) -> Result<Writing<'_>, StoreError> {
        let mut line = self.line().await?;
        line.known = Known::default();
        Ok(Writing(line))
    }

    /// What is another after another connection has written: one of another process, since the
    /// others of this one only read.
    ///
    /// # Errors
    /// Those of [`Writer::acquire`], and the database's.
    pub async fn version(&self) -> Result<i64, StoreError> {
        let mut line = self.line().await?;
        sqlx::query_scalar(VERSION).fetch_one(&mut line.conn).await.map_err(classify)
    }

    async fn line(&self) -> Result<MutexGuard<'_, Line>, StoreError> {
        let mut line = tokio::time::timeout(WAIT, self.line.lock())
            .await
            .map_err(|_| classify(sqlx::Error::PoolTimedOut))?;
        if line.is_unfinished().await {
            line.conn = self.options.connect().await.map_err(classify)?;
            line.is_in_texts = false;
            line.known = Known::default();
        }
        Ok(line)
    }

    /// The connection, for a transaction in texts, and what is known before it.
    ///
    /// # Errors
    /// Those of [`Writer::acquire`].
    pub async fn in_texts(&self) -> Result<(InTexts<'_>, Known), StoreError> {
        let mut line = self.line().await?;
        line.is_in_texts = true;
        let known = std::mem::take(&mut line.known);
        Ok((InTexts(Writing(line)), known))
    }
}

impl Line {
    async fn is_unfinished(&mut self) -> bool {
        if !self.is_in_texts && self.conn.is_in_transaction() {
            // One that was dropped is rolled back before anything else. A disk that is full ends it
            // unasked: then ROLLBACK fails, and sqlx goes on counting it.
            // <https://www.sqlite.org/lang_transaction.html> (response to errors within one)
            let _ = self.conn.ping().await;
        }
        self.is_in_texts || self.conn.is_in_transaction()
    }
}

impl Writing<'_> {
    /// # Errors
    /// The database's.
    pub async fn begin(&mut self) -> Result<sqlx::Transaction<'_, Sqlite>, StoreError> {
        self.0.conn.begin_with(BEGIN).await.map_err(classify)
    }
}

impl Deref for Writing<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.0.conn
    }
}

impl DerefMut for Writing<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.0.conn
    }
}

impl InTexts<'_> {
    pub fn conn(&mut self) -> &mut SqliteConnection {
        &mut self.0
    }

    /// After its last text has been run; this is known then.
    pub fn ended(mut self, known: Known) {
        self.0.0.is_in_texts = false;
        self.0.0.known = known;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    async fn insert(conn: &mut SqliteConnection) {
        sqlx::query("INSERT INTO numbers VALUES (1)").execute(conn).await.unwrap();
    }

    async fn count(writer: &Writer) -> i64 {
        let mut writing = writer.acquire().await.unwrap();
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM numbers");
        count.fetch_one(&mut *writing).await.unwrap()
    }

    #[tokio::test]
    async fn what_was_left_unfinished_is_not_there_and_not_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("t.db").display());
        let options = SqliteConnectOptions::from_str(&url).unwrap();
        let writer = Writer::open(options).await.unwrap();
        let mut writing = writer.acquire().await.unwrap();
        sqlx::query("CREATE TABLE numbers (number)").execute(&mut *writing).await.unwrap();
        insert(&mut writing).await;

        insert(&mut writing.begin().await.unwrap()).await;
        drop(writing);
        assert_eq!(count(&writer).await, 1, "as before");

        let (mut in_texts, _) = writer.in_texts().await.unwrap();
        sqlx::query(BEGIN).execute(in_texts.conn()).await.unwrap();
        insert(in_texts.conn()).await;
        drop(in_texts);
        assert_eq!(count(&writer).await, 1, "as before");

        let (mut in_texts, _) = writer.in_texts().await.unwrap();
        sqlx::query(BEGIN).execute(in_texts.conn()).await.unwrap();
        insert(in_texts.conn()).await;
        sqlx::query(COMMIT).execute(in_texts.conn()).await.unwrap();
        in_texts.ended(Known::default());
        assert_eq!(count(&writer).await, 2);
    }
}
