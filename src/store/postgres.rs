//! PostgreSQL: for more than one machine. Batches go in as JSON arrays, one statement a table.
//!
//! Invariant: a batch locks its accounts in the order of their ids before it reads anything else,
//! so two writers or replicas wait for each other and never deadlock.

mod batch;
mod rows;

use super::books::Changes;
use batch::Sql;
use rows::{classify, select, unique, write_rows};

use super::table::{
    ACCOUNTS, API_KEYS, BILLING_EVENTS, HOLDS, KEY_BUDGETS, LEDGER_ENTRIES, Table,
    USAGE_CORRECTIONS, USAGE_RECORDS, parse, postgres as sql, price_rows,
};
use super::{BillingEvent, KnownKey, LedgerOp, Outcome, PAGE_ROWS_MAX, Store, StoreError};
use crate::models::account::{Account, ApiKey, KeyBudget};
use crate::models::hold::{Hold, PendingLookup};
use crate::models::ids::{AccountId, ApiKeyId, InstanceId, RequestId};
use crate::models::ledger::LedgerEntry;
use crate::models::price::Price;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{UsageCorrection, UsageRecord};
use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool, Postgres};
use std::sync::Arc;
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

    async fn commit(&self, batch: &[LedgerOp], now: Timestamp) -> Result<Vec<Outcome>, StoreError> {
        let mut tx = self.pool.begin().await.map_err(classify)?;
        let books = self.load(&mut tx, batch).await?;
        let (outcomes, changes) = books.apply(batch, now);
        if changes != Changes::default() {
            self.write(&mut tx, changes).await?;
        }
        tx.commit().await.map_err(classify)?;
        Ok(outcomes)
    }

    async fn create_account(&self, account: &Account) -> Result<(), StoreError> {
        self.insert(sql::insert(&ACCOUNTS), account, "an account of this name").await
    }

    async fn account(&self, id: AccountId) -> Result<Option<Account>, StoreError> {
        self.one(sql::select(&ACCOUNTS, "WHERE id = $1"), id.0).await
    }

    async fn account_by_name(&self, name: &str) -> Result<Option<Account>, StoreError> {
        self.one(sql::select(&ACCOUNTS, "WHERE name = $1"), name.to_owned()).await
    }

    async fn accounts_after(&self, after: Option<AccountId>) -> Result<Vec<Account>, StoreError> {
        self.page(&ACCOUNTS, "id", after.map(|id| id.0)).await
    }

    async fn create_key(&self, key: &ApiKey, budget: &KeyBudget) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await.map_err(classify)?;
        write_rows(&mut tx, &sql::insert(&API_KEYS).into(), [key].into_iter()).await?;
        write_rows(&mut tx, &sql::insert(&KEY_BUDGETS).into(), [budget].into_iter()).await?;
        tx.commit().await.map_err(classify)
    }

    async fn key_budgets_after(
        &self,
        after: Option<ApiKeyId>,
    ) -> Result<Vec<KeyBudget>, StoreError> {
        self.page(&KEY_BUDGETS, "api_key_id", after.map(|id| id.0)).await
    }

    async fn key_by_hash(&self, secret_hash: &str) -> Result<Option<KnownKey>, StoreError> {
        let row: Option<(String, String, String)> = sqlx::query_as(
            "SELECT row_to_json(k)::text, row_to_json(a)::text, row_to_json(b)::text \
             FROM api_keys k JOIN accounts a ON a.id = k.account_id \
             JOIN key_budgets b ON b.api_key_id = k.id WHERE k.secret_hash = $1",
        )
        .bind(secret_hash)
        .fetch_optional(&self.pool)
        .await
        .map_err(classify)?;
        let Some((key, account, budget)) = row else {
            return Ok(None);
        };
        let budget = serde_json::from_str(&budget)?;
        Ok(Some((serde_json::from_str(&key)?, serde_json::from_str(&account)?, budget)))
    }

    async fn keys_of(&self, account: AccountId) -> Result<Vec<ApiKey>, StoreError> {
        let statement = sql::select(&API_KEYS, "WHERE account_id = $1 ORDER BY id");
        let mut conn = self.pool.acquire().await.map_err(classify)?;
        select(&mut conn, &statement.into(), account.0).await
    }

    async fn revoke_key(&self, id: ApiKeyId, at: Timestamp) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE api_keys SET revoked_at = coalesce(revoked_at, $2::timestamptz) WHERE id = $1",
        )
        .bind(id.0)
        .bind(at.to_string())
        .execute(&self.pool)
        .await
        .map_err(classify)?;
        Ok(done.rows_affected() > 0)
    }

    async fn put_prices(&self, prices: &[Arc<Price>], at: Timestamp) -> Result<(), StoreError> {
        let rows = serde_json::to_string(&price_rows(prices))?;
        let mut tx = self.pool.begin().await.map_err(classify)?;
        sqlx::query(
            "INSERT INTO prices (id, model, terms) SELECT r ->> 0, r ->> 1, r ->> 3 \
             FROM json_array_elements($1::json) r ON CONFLICT (id) DO NOTHING",
        )
        .bind(&rows)
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        // Another replica may write the same change at the same time.
        sqlx::query(
            "INSERT INTO price_changes (model, plan, effective_at, price_id) \
             SELECT r ->> 1, r ->> 2, $2::timestamptz, r ->> 0 \
             FROM json_array_elements($1::json) r WHERE r ->> 0 IS DISTINCT FROM \
             (SELECT c.price_id FROM price_changes c WHERE c.model = r ->> 1 \
              AND c.plan = r ->> 2 ORDER BY c.effective_at DESC LIMIT 1) \
             ON CONFLICT DO NOTHING",
        )
        .bind(&rows)
        .bind(at.to_string())
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        tx.commit().await.map_err(classify)
    }

    async fn price(&self, id: &str) -> Result<Option<Price>, StoreError> {
        let terms: Option<String> = sqlx::query_scalar("SELECT terms FROM prices WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(classify)?;
        Ok(terms.map(|terms| serde_json::from_str(&terms)).transpose()?.map(Price::new))
    }

    async fn renew_leases(&self, owner: InstanceId, until: Timestamp) -> Result<(), StoreError> {
        sqlx::query("UPDATE holds SET lease_expires_at = $2::timestamptz WHERE owner = $1")
            .bind(owner.0)
            .bind(until.to_string())
            .execute(&self.pool)
            .await
            .map_err(classify)?;
        Ok(())
    }

    async fn claim_orphans(
        &self,
        owner: InstanceId,
        except: InstanceId,
        now: Timestamp,
        until: Timestamp,
        limit: i64,
    ) -> Result<Vec<Hold>, StoreError> {
        let rows: Vec<String> = sqlx::query_scalar(
            "UPDATE holds t SET owner = $1, lease_expires_at = $3::timestamptz WHERE request_id IN \
             (SELECT request_id FROM holds \
              WHERE lease_expires_at < $2::timestamptz AND owner <> $5 \
              ORDER BY request_id LIMIT $4 FOR UPDATE SKIP LOCKED) RETURNING row_to_json(t)::text",
        )
        .bind(owner.0)
        .bind(now.to_string())
        .bind(until.to_string())
        .bind(limit)
        .bind(except.0)
        .fetch_all(&self.pool)
        .await
        .map_err(classify)?;
        parse(&rows)
    }

    async fn abandon_hold(&self, request: RequestId) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE holds SET owner = '00000000-0000-0000-0000-000000000000', \
             lease_expires_at = 'epoch' WHERE request_id = $1",
        )
        .bind(request.0)
        .execute(&self.pool)
        .await
        .map_err(classify)?;
        Ok(())
    }

    async fn expire_leases_of_others(&self, _owner: InstanceId) -> Result<(), StoreError> {
        // Replicas share this store: only time tells that an owner is dead.
        Ok(())
    }

    async fn claim_lookups(
        &self,
        now: Timestamp,
        next: Timestamp,
        limit: i64,
    ) -> Result<Vec<PendingLookup>, StoreError> {
        let rows: Vec<String> = sqlx::query_scalar(
            "UPDATE lookups t SET attempts = attempts + 1, next_attempt_at = $2::timestamptz \
             WHERE request_id IN (SELECT request_id FROM lookups \
              WHERE next_attempt_at <= $1::timestamptz ORDER BY next_attempt_at LIMIT $3 \
              FOR UPDATE SKIP LOCKED) RETURNING row_to_json(t)::text",
        )
        .bind(now.to_string())
        .bind(next.to_string())
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(classify)?;
        parse(&rows)
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

    async fn usage_record(&self, id: RequestId) -> Result<Option<UsageRecord>, StoreError> {
        self.one(sql::select(&USAGE_RECORDS, "WHERE id = $1"), id.0).await
    }

    async fn corrections_after(
        &self,
        after: Option<RequestId>,
    ) -> Result<Vec<UsageCorrection>, StoreError> {
        self.page(&USAGE_CORRECTIONS, "request_id", after.map(|id| id.0)).await
    }

    async fn billing_events_after(&self, after: &str) -> Result<Vec<BillingEvent>, StoreError> {
        self.page(&BILLING_EVENTS, "id", Some(after.to_owned())).await
    }

    async fn holds_after(&self, after: Option<RequestId>) -> Result<Vec<Hold>, StoreError> {
        self.page(&HOLDS, "request_id", after.map(|id| id.0)).await
    }

    async fn ledger_after(
        &self,
        account: AccountId,
        seq: i64,
    ) -> Result<Vec<LedgerEntry>, StoreError> {
        let statement = sql::select(
            &LEDGER_ENTRIES,
            "WHERE account_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(account.0)
            .bind(seq)
            .bind(PAGE_ROWS_MAX)
            .fetch_all(&self.pool)
            .await
            .map_err(classify)?;
        parse(&rows)
    }

    async fn usage_after(&self, after: Option<RequestId>) -> Result<Vec<UsageRecord>, StoreError> {
        self.page(&USAGE_RECORDS, "id", after.map(|id| id.0)).await
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

    async fn insert<T: Serialize>(
        &self,
        statement: String,
        row: &T,
        what: &'static str,
    ) -> Result<(), StoreError> {
        sqlx::query(AssertSqlSafe(statement))
            .bind(serde_json::to_string(&[row])?)
            .execute(&self.pool)
            .await
            .map_err(|error| unique(error, what))?;
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
