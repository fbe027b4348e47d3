//! SQLite: for one machine. WAL, `synchronous=FULL`, one writing connection.
//!
//! Invariant: everything that changes the books goes through that one connection, in `BEGIN
//! IMMEDIATE`, so a command that runs beside the server waits instead of failing.

mod batch;
mod rows;

use super::books::Changes;
use batch::Sql;
use rows::{classify, select, unique, write_rows};

use super::table::{
    ACCOUNTS, API_KEYS, BILLING_EVENTS, HOLDS, KEY_BUDGETS, LEDGER_ENTRIES, LOOKUPS, Table,
    USAGE_CORRECTIONS, USAGE_RECORDS, parse, price_rows, sqlite as sql,
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
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, SqlitePool};
use std::sync::Arc;
use std::time::Duration;

pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    sinks: Vec<String>,
    sql: Sql,
}

/// Look-ups of keys are short; more readers than cores only wait for each other.
const READERS_MAX: u32 = 2;
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
    pub async fn open(url: &str, sinks: Vec<String>) -> Result<Self, StoreError> {
        let options: SqliteConnectOptions = url
            .parse::<SqliteConnectOptions>()
            .map_err(|_| StoreError::Setup("DATABASE_URL is not a SQLite address".into()))?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // NORMAL may lose the last commits when the power fails; these commits are money.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = pool(1)
            .connect_with(options.clone())
            .await
            .map_err(|error| StoreError::Setup(format!("cannot open the SQLite file: {error}")))?;
        let readers = pool(READERS_MAX).connect_lazy_with(options);
        Ok(Self { writer, readers, sinks, sql: Sql::new() })
    }
}

fn pool(connections_max: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new().max_connections(connections_max).acquire_timeout(ACQUIRE_TIMEOUT)
}

#[async_trait]
impl Store for SqliteStore {
    async fn migrate(&self) -> Result<(), StoreError> {
        sqlx::migrate!("migrations/sqlite").run(&self.writer).await?;
        Ok(())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.readers).await.map_err(classify)?;
        Ok(())
    }

    async fn commit(&self, batch: &[LedgerOp], now: Timestamp) -> Result<Vec<Outcome>, StoreError> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
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
        self.one(sql::select(&ACCOUNTS, "WHERE id = ?1"), id.to_string()).await
    }

    async fn account_by_name(&self, name: &str) -> Result<Option<Account>, StoreError> {
        self.one(sql::select(&ACCOUNTS, "WHERE name = ?1"), name.to_owned()).await
    }

    async fn accounts_after(&self, after: Option<AccountId>) -> Result<Vec<Account>, StoreError> {
        self.page(&ACCOUNTS, "id", text(after)).await
    }

    async fn create_key(&self, key: &ApiKey, budget: &KeyBudget) -> Result<(), StoreError> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
        write_rows(&mut tx, &sql::insert(&API_KEYS).into(), [key].into_iter()).await?;
        write_rows(&mut tx, &sql::insert(&KEY_BUDGETS).into(), [budget].into_iter()).await?;
        tx.commit().await.map_err(classify)
    }

    async fn key_budgets_after(
        &self,
        after: Option<ApiKeyId>,
    ) -> Result<Vec<KeyBudget>, StoreError> {
        self.page(&KEY_BUDGETS, "api_key_id", text(after)).await
    }

    async fn key_by_hash(&self, secret_hash: &str) -> Result<Option<KnownKey>, StoreError> {
        let statement = sql::select(&API_KEYS, "WHERE secret_hash = ?1");
        let Some(key) = self.one::<ApiKey>(statement, secret_hash.to_owned()).await? else {
            return Ok(None);
        };
        let account = self.account(key.account_id).await?;
        let budget = sql::select(&KEY_BUDGETS, "WHERE api_key_id = ?1");
        let budget = self.one(budget, key.id.to_string()).await?;
        Ok(account.zip(budget).map(|(account, budget)| (key, account, budget)))
    }

    async fn keys_of(&self, account: AccountId) -> Result<Vec<ApiKey>, StoreError> {
        let statement = sql::select(&API_KEYS, "WHERE account_id = ?1 ORDER BY id");
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        select(&mut conn, &statement.into(), account.to_string()).await
    }

    async fn revoke_key(&self, id: ApiKeyId, at: Timestamp) -> Result<bool, StoreError> {
        let done =
            sqlx::query("UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1")
                .bind(id.to_string())
                .bind(at.to_string())
                .execute(&self.writer)
                .await
                .map_err(classify)?;
        Ok(done.rows_affected() > 0)
    }

    async fn put_prices(&self, prices: &[Arc<Price>], at: Timestamp) -> Result<(), StoreError> {
        let rows = serde_json::to_string(&price_rows(prices))?;
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(classify)?;
        sqlx::query(
            "INSERT INTO prices (id, model, terms) SELECT value ->> 0, value ->> 1, value ->> 3 \
             FROM json_each(?1) WHERE true ON CONFLICT (id) DO NOTHING",
        )
        .bind(&rows)
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        sqlx::query(
            "INSERT INTO price_changes (model, plan, effective_at, price_id) \
             SELECT r.value ->> 1, r.value ->> 2, ?2, r.value ->> 0 FROM json_each(?1) r \
             WHERE r.value ->> 0 IS NOT \
             (SELECT c.price_id FROM price_changes c WHERE c.model = r.value ->> 1 \
              AND c.plan = r.value ->> 2 ORDER BY c.effective_at DESC LIMIT 1)",
        )
        .bind(&rows)
        .bind(at.to_string())
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        tx.commit().await.map_err(classify)
    }

    async fn price(&self, id: &str) -> Result<Option<Price>, StoreError> {
        let terms: Option<String> = sqlx::query_scalar("SELECT terms FROM prices WHERE id = ?1")
            .bind(id)
            .fetch_optional(&self.readers)
            .await
            .map_err(classify)?;
        Ok(terms.map(|terms| serde_json::from_str(&terms)).transpose()?.map(Price::new))
    }

    async fn renew_leases(&self, owner: InstanceId, until: Timestamp) -> Result<(), StoreError> {
        sqlx::query("UPDATE holds SET lease_expires_at = ?2 WHERE owner = ?1")
            .bind(owner.to_string())
            .bind(until.to_string())
            .execute(&self.writer)
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
        let claimed: Vec<String> = sqlx::query_scalar(
            "UPDATE holds SET owner = ?1, lease_expires_at = ?3 WHERE request_id IN \
             (SELECT request_id FROM holds WHERE lease_expires_at < ?2 AND owner <> ?5 \
              ORDER BY request_id LIMIT ?4) RETURNING request_id",
        )
        .bind(owner.to_string())
        .bind(now.to_string())
        .bind(until.to_string())
        .bind(limit)
        .bind(except.to_string())
        .fetch_all(&self.writer)
        .await
        .map_err(classify)?;
        let mut conn = self.writer.acquire().await.map_err(classify)?;
        select(&mut conn, &self.sql.load_holds, serde_json::to_string(&claimed)?).await
    }

    async fn abandon_hold(&self, request: RequestId) -> Result<(), StoreError> {
        sqlx::query("UPDATE holds SET owner = ?3, lease_expires_at = ?2 WHERE request_id = ?1")
            .bind(request.to_string())
            .bind(Timestamp::from_unix_seconds(0).to_string())
            .bind(uuid::Uuid::nil().to_string())
            .execute(&self.writer)
            .await
            .map_err(classify)?;
        Ok(())
    }

    async fn expire_leases_of_others(&self, owner: InstanceId) -> Result<(), StoreError> {
        sqlx::query("UPDATE holds SET lease_expires_at = ?2 WHERE owner <> ?1")
            .bind(owner.to_string())
            .bind(Timestamp::from_unix_seconds(0).to_string())
            .execute(&self.writer)
            .await
            .map_err(classify)?;
        Ok(())
    }

    async fn claim_lookups(
        &self,
        now: Timestamp,
        next: Timestamp,
        limit: i64,
    ) -> Result<Vec<PendingLookup>, StoreError> {
        let claimed: Vec<String> = sqlx::query_scalar(
            "UPDATE lookups SET attempts = attempts + 1, next_attempt_at = ?2 WHERE request_id IN \
             (SELECT request_id FROM lookups WHERE next_attempt_at <= ?1 \
              ORDER BY next_attempt_at LIMIT ?3) RETURNING request_id",
        )
        .bind(now.to_string())
        .bind(next.to_string())
        .bind(limit)
        .fetch_all(&self.writer)
        .await
        .map_err(classify)?;
        let statement =
            sql::select(&LOOKUPS, "WHERE request_id IN (SELECT value FROM json_each(?1))");
        let mut conn = self.writer.acquire().await.map_err(classify)?;
        select(&mut conn, &statement.into(), serde_json::to_string(&claimed)?).await
    }

    async fn sweep(&self, now: Timestamp) -> Result<(), StoreError> {
        for statement in [
            "DELETE FROM lookups WHERE give_up_at < ?1",
            "DELETE FROM idempotency_keys WHERE expires_at < ?1",
        ] {
            sqlx::query(statement)
                .bind(now.to_string())
                .execute(&self.writer)
                .await
                .map_err(classify)?;
        }
        Ok(())
    }

    async fn usage_record(&self, id: RequestId) -> Result<Option<UsageRecord>, StoreError> {
        self.one(sql::select(&USAGE_RECORDS, "WHERE id = ?1"), id.to_string()).await
    }

    async fn corrections_after(
        &self,
        after: Option<RequestId>,
    ) -> Result<Vec<UsageCorrection>, StoreError> {
        self.page(&USAGE_CORRECTIONS, "request_id", text(after)).await
    }

    async fn billing_events_after(&self, after: &str) -> Result<Vec<BillingEvent>, StoreError> {
        self.page(&BILLING_EVENTS, "id", Some(after.to_owned())).await
    }

    async fn holds_after(&self, after: Option<RequestId>) -> Result<Vec<Hold>, StoreError> {
        self.page(&HOLDS, "request_id", text(after)).await
    }

    async fn ledger_after(
        &self,
        account: AccountId,
        seq: i64,
    ) -> Result<Vec<LedgerEntry>, StoreError> {
        let statement = sql::select(
            &LEDGER_ENTRIES,
            "WHERE account_id = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(account.to_string())
            .bind(seq)
            .bind(PAGE_ROWS_MAX)
            .fetch_all(&self.readers)
            .await
            .map_err(classify)?;
        parse(&rows)
    }

    async fn usage_after(&self, after: Option<RequestId>) -> Result<Vec<UsageRecord>, StoreError> {
        self.page(&USAGE_RECORDS, "id", text(after)).await
    }

    async fn follow_changes(&self, changed: &(dyn Fn() + Sync)) -> Result<(), StoreError> {
        // `data_version` moves when another connection has written; asked of the writer, that
        // means another process. <https://www.sqlite.org/pragma.html#pragma_data_version>
        let mut before = None;
        loop {
            let version = self.data_version().await?;
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
    async fn data_version(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("PRAGMA data_version").fetch_one(&self.writer).await.map_err(classify)
    }

    async fn insert<T: Serialize>(
        &self,
        statement: String,
        row: &T,
        what: &'static str,
    ) -> Result<(), StoreError> {
        sqlx::query(AssertSqlSafe(statement))
            .bind(serde_json::to_string(&[row])?)
            .execute(&self.writer)
            .await
            .map_err(|error| unique(error, what))?;
        Ok(())
    }

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
}

fn text<T: ToString>(id: Option<T>) -> Option<String> {
    id.map(|id| id.to_string())
}
