//! PostgreSQL: for more than one machine. Batches go in as JSON arrays, one statement a table.
//!
//! Invariant: a batch locks its accounts in the order of their ids before it reads anything else,
//! so two writers or replicas wait for each other and never deadlock.

mod batch;
mod directory;
mod exports;
mod ledger;
mod outbox;
mod prices;
mod records;
mod rows;

use batch::Sql;
use rows::{classify, select};

use super::table::{Table, postgres as sql};
use super::{PAGE_ROWS_MAX, Store, StoreError};
use crate::models::timestamp::Timestamp;
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{PgPool, Postgres};
use std::time::Duration;

pub struct PostgresStore {
    pool: PgPool,
    sinks: Vec<String>,
    sql: Sql,
}

/// Connections of one process: the ledger writer, look-ups and the listener. Small, because a
/// session pooler counts them (Supabase's smallest: 15 in all).
const CONNECTIONS_MAX: u32 = 6;
/// A connection that is not to be had in this time is not to be had.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Replicas tell each other about changed accounts and keys here.
const CHANNEL: &str = "tollgate_changed";

impl PostgresStore {
    /// Connects lazily: the database may come up after this.
    ///
    /// # Errors
    /// [`StoreError::Setup`] when the URL does not parse.
    pub fn open(url: &str, sinks: Vec<String>) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url
            .parse()
            .map_err(|_| StoreError::Setup("DATABASE_URL is not a PostgreSQL address".into()))?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(options.application_name("tollgate"));
        Ok(Self { pool, sinks, sql: Sql::new() })
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn migrate(&self) -> Result<(), StoreError> {
        sqlx::migrate!("migrations/postgres").run(&self.pool).await?;
        self.ensure_partitions().await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await.map_err(classify)?;
        Ok(())
    }

    async fn sweep(&self, now: Timestamp) -> Result<(), StoreError> {
        for statement in [
            "DELETE FROM lookups WHERE give_up_at < $1::timestamptz",
            "DELETE FROM idempotency_keys WHERE expires_at < $1::timestamptz",
        ] {
            sqlx::query(statement)
                .bind(now.to_string())
                .execute(&self.pool)
                .await
                .map_err(classify)?;
        }
        self.ensure_partitions().await
    }

    async fn follow_changes(&self, changed: &(dyn Fn() + Sync)) -> Result<(), StoreError> {
        let mut listener = PgListener::connect_with(&self.pool).await.map_err(classify)?;
        listener.listen(CHANNEL).await.map_err(classify)?;
        loop {
            changed();
            // `None`: the connection was lost for a while, and with it perhaps some news.
            listener.try_recv().await.map_err(classify)?;
        }
    }

    async fn announce_change(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT pg_notify($1, '')")
            .bind(CHANNEL)
            .execute(&self.pool)
            .await
            .map_err(classify)?;
        Ok(())
    }
}

impl PostgresStore {
    async fn ensure_partitions(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT tollgate_ensure_partitions(now())")
            .execute(&self.pool)
            .await
            .map_err(classify)?;
        Ok(())
    }

    async fn one<T, K>(&self, statement: String, key: K) -> Result<Option<T>, StoreError>
    where
        T: DeserializeOwned,
        K: sqlx::Type<Postgres> + for<'q> sqlx::Encode<'q, Postgres> + Send + 'static,
    {
        let mut conn = self.pool.acquire().await.map_err(classify)?;
        Ok(select(&mut conn, &statement.into(), key).await?.pop())
    }

    /// The rows after `after` in the order of `key`, from the first where there is none.
    async fn page<T, K>(
        &self,
        table: &Table,
        key: &str,
        after: Option<K>,
    ) -> Result<Vec<T>, StoreError>
    where
        T: DeserializeOwned,
        K: sqlx::Type<Postgres> + for<'q> sqlx::Encode<'q, Postgres> + Send + 'static,
    {
        let condition =
            format!("WHERE $1 IS NULL OR t.{key} > $1 ORDER BY t.{key} LIMIT {PAGE_ROWS_MAX}");
        let mut conn = self.pool.acquire().await.map_err(classify)?;
        select(&mut conn, &sql::select(table, &condition).into(), after).await
    }
}
