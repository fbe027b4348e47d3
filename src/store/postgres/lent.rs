//! A connection of a pool, lent for a statement or for a transaction.
//!
//! Invariant: it is back, or closed, within a bounded time after whoever had it let it go,
//! whatever the other end does. The pool asks each connection that comes back whether it lives, and
//! would ask one whose machine is gone without a word for as long as TCP goes on trying: a quarter
//! of an hour, in which nobody else has its place.

use super::rows::classify;
use crate::store::StoreError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgTransactionManager;
use sqlx::{PgConnection, PgPool, Postgres, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

pub struct Lent {
    connection: PoolConnection<Postgres>,
    /// A BEGIN that is given up half way leaves a transaction that sqlx does not know of. What is
    /// written in it next would wait for another's COMMIT, or go with its ROLLBACK: such a
    /// connection is closed.
    is_beginning: bool,
}

/// For a rollback and the question whether the other end is there.
const RETURN_WAIT: Duration = Duration::from_secs(5);

impl Lent {
    pub async fn of(pool: &PgPool) -> Result<Self, StoreError> {
        let connection = pool.acquire().await.map_err(classify)?;
        Ok(Self { connection, is_beginning: false })
    }

    /// In a transaction, which is rolled back unless it is committed.
    pub async fn begin(pool: &PgPool, statement: &'static str) -> Result<Self, StoreError> {
        let mut lent = Self::of(pool).await?;
        lent.is_beginning = true;
        let begin = Some(statement.into_sql_str());
        PgTransactionManager::begin(&mut lent.connection, begin).await.map_err(classify)?;
        lent.is_beginning = false;
        Ok(lent)
    }

    pub async fn commit(mut self) -> Result<(), StoreError> {
        PgTransactionManager::commit(&mut self.connection).await.map_err(classify)
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.is_beginning {
            self.connection.close_on_drop();
            return;
        }
        PgTransactionManager::start_rollback(&mut self.connection);
        // What `drop` of the pool's own would do, but for the bound: given up, it is closed.
        tokio::spawn(tokio::time::timeout(RETURN_WAIT, self.connection.return_to_pool()));
    }
}
