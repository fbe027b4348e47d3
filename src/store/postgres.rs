//! PostgreSQL: for more than one machine. Rows go in as JSON arrays, those of every call as an
//! array for each column.
//!
//! Invariant: a batch locks its accounts in the order of their ids before it reads anything else,
//! so two writers or replicas wait for each other and never deadlock.

mod archives;
mod arrays;
mod batch;
mod directory;
mod exports;
mod ledger;
mod lent;
mod outbox;
mod overview;
mod payments;
mod pooler;
mod prices;
mod reconcile;
mod records;
mod reports;
mod rows;
mod script;
mod verify;
mod watch;

use arrays::Inserts;
use batch::Sql;
use lent::Lent;
use rows::{classify, is_locked, select};

use super::payments::EVENTS_KEPT;
use super::table::{Table, parse, postgres as sql};
use super::{PAGE_ROWS_MAX, Store, StoreError, WINDOW_UNUSED_FOR, within};
use crate::models::billing::EventTerms;
use crate::models::ids::AccountId;
use crate::models::timestamp::Timestamp;
use async_trait::async_trait;
use futures::TryFutureExt;
use serde::de::DeserializeOwned;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor, PgPool, Postgres};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::OnceCell;

pub struct PostgresStore {
    /// For the ledger's writer and its leases alone: who looks up keys or reads reports, however
    /// many and however long, keeps nobody's hold waiting.
    books: PgPool,
    /// For all else.
    pool: PgPool,
    /// For the listener, which has a connection of its own.
    options: PgConnectOptions,
    events: Arc<EventTerms>,
    sql: Sql,
    /// Made for the first batch.
    inserts: OnceLock<Inserts>,
    /// Set once the connections are known to be sessions.
    checked: OnceCell<()>,
}

/// Connections of one process, beside the listener's. Few, because a session pooler counts them
/// (Supabase's smallest: 15 in all).
const BOOKS_CONNECTIONS_MAX: u32 = 2;
const CONNECTIONS_MAX: u32 = 3;
/// How long a caller waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a transaction that looks rows up by keys. While the database has no statistics of a table, as
/// of each month's new one, it would rather read the whole of it, for as long as the plan is kept.
/// Told not to, it counts a plan that reads a small table as very dear, and would compile it.
/// Not a setting of the session, which a pooler might lend to others.
/// <https://www.postgresql.org/docs/15/runtime-config-query.html#GUC-ENABLE-SEQSCAN>
/// Whoever stands still within it (a process that is frozen, a machine that is gone without a word)
/// must not keep its rows from all others: nothing in it waits for anything but the database.
const BEGIN: &str = "BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL jit = off; \
                     SET LOCAL idle_in_transaction_session_timeout = '5s'";
/// Replicas tell each other about changed accounts and keys here.
const CHANNEL: &str = "tollgate_changed";
/// A session whose connection was given up ends, also while it waits for a lock: else each of them
/// would be one more. Not a parameter of the connection, which poolers refuse; older servers do not
/// know it. <https://www.postgresql.org/docs/15/runtime-config-connection.html>
const LET_GO: &str = "SELECT set_config(name, '5s', false) FROM pg_settings \
                      WHERE name = 'client_connection_check_interval'";
/// A listener that has heard nothing for so long asks whether anybody is there.
const LISTEN_FOR: Duration = Duration::from_secs(10);

impl PostgresStore {
    /// Connects lazily: the database may come up after this.
    ///
    /// # Errors
    /// [`StoreError::Setup`] when the URL does not parse.
    pub fn open(url: &str, events: EventTerms) -> Result<Self, StoreError> {
        let options: PgConnectOptions = url
            .parse()
            .map_err(|_| StoreError::Setup("DATABASE_URL is not a PostgreSQL address".into()))?;
        // PgBouncer refuses the parameter, and there is no float that it could be for.
        let options = options.application_name("tollgate").extra_float_digits(None);
        Ok(Self {
            books: pool(BOOKS_CONNECTIONS_MAX, options.clone()),
            pool: pool(CONNECTIONS_MAX, options.clone()),
            options,
            events: Arc::new(events),
            sql: Sql::new(),
            inserts: OnceLock::new(),
            checked: OnceCell::new(),
        })
    }

    /// Refuses a database without tables of ours.
    ///
    /// # Errors
    /// [`StoreError::Setup`] when there are none; those of [`Store::check`].
    pub async fn check_is_begun(&self) -> Result<(), StoreError> {
        self.check().await?;
        let is_begun = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL");
        if is_begun.fetch_one(&mut *self.lend().await?).await.map_err(classify)? {
            return Ok(());
        }
        Err(StoreError::Setup(
            "there are no books in the database that DATABASE_URL names: `tollgate migrate` makes \
             them"
                .to_owned(),
        ))
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn check(&self) -> Result<(), StoreError> {
        let check = || pooler::refuse_shared_sessions([&self.books, &self.pool, &self.pool]);
        self.checked.get_or_try_init(check).await.copied()
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        self.check().await?;
        sqlx::migrate!("migrations/postgres").run(&self.pool).await?;
        self.ensure_partitions().await?;
        self.grant_supabase().await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&mut *self.lend().await?).await.map_err(classify)?;
        Ok(())
    }

    async fn sweep(&self, now: Timestamp) -> Result<(), StoreError> {
        let unused =
            "DELETE FROM rate_windows WHERE open_requests = 0 AND seen_at < $1::timestamptz";
        for (statement, until) in [
            ("DELETE FROM lookups WHERE give_up_at < $1::timestamptz", now),
            ("DELETE FROM idempotency_keys WHERE expires_at < $1::timestamptz", now),
            (unused, now.minus(WINDOW_UNUSED_FOR)),
            (payments::OLD_EVENTS, now.minus(EVENTS_KEPT)),
            (payments::STRAY_REVERSALS, now.minus(EVENTS_KEPT)),
        ] {
            sqlx::query(statement)
                .bind(until.to_string())
                .execute(&mut *self.lend().await?)
                .await
                .map_err(classify)?;
        }
        self.ensure_partitions().await
    }

    async fn follow_changes(&self, changed: &(dyn Fn() + Sync)) -> Result<(), StoreError> {
        // Whoever hears no more is replaced, and takes nobody's place until TCP gives it up.
        let own = pool(1, self.options.clone());
        let mut listener = PgListener::connect_with(&own).await.map_err(classify)?;
        // Whoever has lost the connection, and perhaps some news, begins anew.
        listener.eager_reconnect(false);
        within(ACQUIRE_TIMEOUT, listener.listen(CHANNEL).map_err(classify)).await?;
        changed();
        loop {
            match tokio::time::timeout(LISTEN_FOR, listener.try_recv()).await {
                Ok(news) => match news.map_err(classify)? {
                    Some(_) => changed(),
                    None => return Ok(()),
                },
                Err(_) => is_heard(&mut listener).await?,
            }
        }
    }

    async fn announce_change(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT pg_notify($1, '')")
            .bind(CHANNEL)
            .execute(&mut *self.lend().await?)
            .await
            .map_err(classify)?;
        Ok(())
    }
}

impl PostgresStore {
    async fn lend(&self) -> Result<Lent, StoreError> {
        Lent::of(&self.pool).await
    }

    /// A transaction that looks rows up by keys.
    async fn begin(&self) -> Result<Lent, StoreError> {
        Lent::begin(&self.pool, BEGIN).await
    }

    async fn begin_books(&self) -> Result<Lent, StoreError> {
        Lent::begin(&self.books, BEGIN).await
    }

    async fn begin_with(&self, statement: &'static str) -> Result<Lent, StoreError> {
        Lent::begin(&self.pool, statement).await
    }

    /// A new one needs the whole table for a moment, and whoever comes meanwhile waits behind that:
    /// where somebody reads for long, rather at the next sweep. There are months of time.
    async fn ensure_partitions(&self) -> Result<(), StoreError> {
        let begin = "BEGIN; SET LOCAL lock_timeout = '2s'; \
                     SET LOCAL idle_in_transaction_session_timeout = '5s'";
        let mut tx = self.begin_with(begin).await?;
        let ensure = sqlx::query("SELECT tollgate_ensure_partitions(now())");
        let made = ensure.execute(&mut *tx).await;
        if made.as_ref().is_err_and(is_locked) {
            tracing::warn!("no table yet for a month ahead: usage_records is in use");
            return Ok(());
        }
        made.map_err(classify)?;
        tx.commit().await
    }

    /// At each start, because the roles may have come since the last one.
    async fn grant_supabase(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT tollgate_grant_supabase()")
            .execute(&mut *self.lend().await?)
            .await
            .map_err(classify)?;
        Ok(())
    }

    async fn one<T, K>(&self, statement: String, key: K) -> Result<Option<T>, StoreError>
    where
        T: DeserializeOwned,
        K: sqlx::Type<Postgres> + for<'q> sqlx::Encode<'q, Postgres> + Send + 'static,
    {
        let mut conn = self.lend().await?;
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
        let mut conn = self.lend().await?;
        select(&mut conn, &sql::select(table, &condition).into(), after).await
    }

    /// An account's rows after `after` in the order of `key`, from the first where there is none.
    async fn page_of<T, K>(
        &self,
        table: &Table,
        key: &str,
        account: AccountId,
        after: Option<K>,
    ) -> Result<Vec<T>, StoreError>
    where
        T: DeserializeOwned,
        K: sqlx::Type<Postgres> + for<'q> sqlx::Encode<'q, Postgres> + Send + 'static,
    {
        let condition = format!(
            "WHERE account_id = $2 AND ($1 IS NULL OR {key} > $1) \
             ORDER BY {key} LIMIT {PAGE_ROWS_MAX}"
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql::select(table, &condition)))
            .bind(after)
            .bind(account.0)
            .fetch_all(&mut *self.lend().await?)
            .await
            .map_err(classify)?;
        parse(&rows)
    }
}

fn pool(connections_max: u32, options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(|connection, _| {
            Box::pin(async { connection.execute(LET_GO).await.map(drop) })
        })
        .connect_lazy_with(options)
}

/// Fails when the other end is gone.
async fn is_heard(listener: &mut PgListener) -> Result<(), StoreError> {
    let asked = sqlx::query("SELECT 'LISTEN'").execute(listener);
    within(ACQUIRE_TIMEOUT, asked.map_ok(drop).map_err(classify)).await
}
