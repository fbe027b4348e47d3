//! A transaction whose BEGIN and COMMIT go in the texts of its statements: on their own, each is
//! two switches between threads.
//!
//! Invariant: a connection whose transaction has not ended well is closed, which rolls it back; it
//! never goes back to the pool. sqlx does not know of the transaction.

use super::rows::classify;
use crate::store::StoreError;
use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqliteConnection, SqlitePool};

/// The first statement of its first text.
pub const BEGIN: &str = "BEGIN IMMEDIATE";
/// The last statement of its last text.
pub const COMMIT: &str = "COMMIT";

pub struct Transaction {
    conn: PoolConnection<Sqlite>,
    has_ended: bool,
}

impl Transaction {
    /// A connection for one.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn on(pool: &SqlitePool) -> Result<Self, StoreError> {
        Ok(Self { conn: pool.acquire().await.map_err(classify)?, has_ended: false })
    }

    pub fn conn(&mut self) -> &mut SqliteConnection {
        &mut self.conn
    }

    /// After its last text has been run.
    pub fn ended(mut self) {
        self.has_ended = true;
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.has_ended {
            self.conn.close_on_drop();
        }
    }
}
