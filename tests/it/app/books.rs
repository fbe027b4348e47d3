//! Reads the books of either store with SQL, and checks that they add up.
//!
//! Rows come as JSON, so that both stores are read by the same code and a failure can print them.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteRow};
use sqlx::{AssertSqlSafe, Column, PgPool, Row, SqlitePool, TypeInfo, ValueRef};

use super::store::{Database, Store};
use super::wait::eventually;

pub struct Books {
    pub pool: Pool,
    tampered: AtomicBool,
}

pub enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

#[derive(Clone, Debug, Deserialize)]
pub struct Account {
    pub id: String,
    pub name: String,
    pub balance_nusd: i64,
    pub held_nusd: i64,
    pub ledger_seq: i64,
    pub ledger_hash: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Hold {
    pub request_id: String,
    pub account_id: String,
    pub amount_nusd: i64,
    pub generation_id: Option<String>,
    pub model: String,
    pub upstream: String,
    pub prompt_tokens_estimate: i64,
    pub completion_tokens_seen: i64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct UsageRecord {
    pub id: String,
    pub account_id: String,
    pub api_key_id: Option<String>,
    pub user_id: Option<String>,
    pub upstream: String,
    pub model: String,
    pub model_served: Option<String>,
    pub provider: Option<String>,
    pub generation_id: Option<String>,
    #[serde(deserialize_with = "boolean")]
    pub streamed: bool,
    pub ending: String,
    pub finish_reason: Option<String>,
    pub upstream_status: Option<i64>,
    pub source: String,
    pub prompt_tokens: i64,
    pub cached_tokens: i64,
    pub cache_write_tokens: i64,
    pub completion_tokens: i64,
    pub reasoning_tokens: i64,
    pub counted_prompt_tokens: Option<i64>,
    pub counted_completion_tokens: Option<i64>,
    pub counter: Option<String>,
    #[serde(deserialize_with = "boolean")]
    pub counter_exact: bool,
    pub upstream_cost_pusd: Option<i64>,
    pub charge_nusd: i64,
    pub shortfall_nusd: i64,
    pub hold_nusd: i64,
    pub price_id: String,
    pub attempts: i64,
    pub started_at: String,
    pub first_byte_at: Option<String>,
    pub ended_at: String,
    /// JSON.
    pub tried: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct LedgerEntry {
    pub account_id: String,
    pub seq: i64,
    pub kind: String,
    pub amount_nusd: i64,
    pub balance_nusd: i64,
    pub request_id: Option<String>,
    pub previous_hash: String,
    pub hash: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct BillingEvent {
    pub id: String,
    pub sink: String,
    pub kind: String,
    pub request_id: String,
    pub account_id: String,
    pub state: String,
    pub reason: Option<String>,
}

/// SQLite has no booleans.
fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let boolean = value.as_bool().or_else(|| value.as_i64().map(|number| number != 0));
    boolean.ok_or_else(|| serde::de::Error::custom(format!("not a boolean: {value}")))
}

impl Books {
    pub fn open(database: &Database) -> Self {
        Self::at(database, false)
    }

    /// Also where there is no file yet.
    pub fn create(database: &Database) -> Self {
        Self::at(database, true)
    }

    fn at(database: &Database, may_create: bool) -> Self {
        let pool = match database.store {
            Store::Sqlite => {
                let options: SqliteConnectOptions = database.url.parse().expect("a SQLite address");
                let options = options.create_if_missing(may_create);
                Pool::Sqlite(SqlitePoolOptions::new().max_connections(1).connect_lazy_with(options))
            }
            Store::Postgres => Pool::Postgres(
                PgPoolOptions::new()
                    .max_connections(1)
                    .connect_lazy(&database.url)
                    .expect("a PostgreSQL address"),
            ),
        };
        Self { pool, tampered: AtomicBool::new(false) }
    }

    pub async fn close(&self) {
        match &self.pool {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => pool.close().await,
        }
    }

    /// The rows of a query, each as a JSON object.
    pub async fn rows(&self, sql: &str) -> Vec<Value> {
        match &self.pool {
            Pool::Sqlite(pool) => {
                let rows = sqlx::query(AssertSqlSafe(sql.to_string())).fetch_all(pool).await;
                rows.unwrap_or_else(|error| panic!("{sql}: {error}")).iter().map(json_of).collect()
            }
            Pool::Postgres(pool) => {
                let sql = format!("SELECT row_to_json(r)::TEXT FROM ({sql}) r");
                let query = sqlx::query_scalar::<_, String>(AssertSqlSafe(sql.clone()));
                let rows = query.fetch_all(pool).await;
                let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error}"));
                rows.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
            }
        }
    }

    /// Changes the books behind the program's back. Only for tests of what then notices.
    pub async fn tamper(&self, sql: &str) {
        self.tampered.store(true, Ordering::SeqCst);
        let sql = AssertSqlSafe(sql.to_string());
        match &self.pool {
            Pool::Sqlite(pool) => sqlx::query(sql).execute(pool).await.map(|_| ()),
            Pool::Postgres(pool) => sqlx::query(sql).execute(pool).await.map(|_| ()),
        }
        .expect("a statement on the books");
    }

    pub fn is_tampered(&self) -> bool {
        self.tampered.load(Ordering::SeqCst)
    }

    async fn typed<T: DeserializeOwned>(&self, sql: &str) -> Vec<T> {
        let rows = self.rows(sql).await;
        rows.into_iter()
            .map(|row| {
                let text = row.to_string();
                serde_json::from_value(row).unwrap_or_else(|error| panic!("{error}: {text}"))
            })
            .collect()
    }

    pub async fn accounts(&self) -> Vec<Account> {
        self.typed("SELECT * FROM accounts ORDER BY id").await
    }

    pub async fn holds(&self) -> Vec<Hold> {
        self.typed("SELECT * FROM holds ORDER BY request_id").await
    }

    /// The holds of a program that was killed, once nothing that it had sent off is under way.
    pub async fn left_holds(&self) -> Vec<Hold> {
        if let Pool::Postgres(_) = self.pool {
            let others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
                AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
            let is_over = async || self.rows(others).await.is_empty().then_some(());
            eventually("the killed program's transactions are over", is_over).await;
        }
        self.holds().await
    }

    /// The program on PostgreSQL hears of what other processes change.
    pub async fn is_listened_to(&self) {
        let listening = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
            AND query ~ '^(LISTEN |SELECT ''LISTEN'')'";
        eventually("it listens", async || self.rows(listening).await.pop()).await;
    }

    pub async fn records(&self) -> Vec<UsageRecord> {
        self.typed("SELECT * FROM usage_records ORDER BY id").await
    }

    /// The record of one request.
    pub async fn record(&self, id: &str) -> Option<UsageRecord> {
        let sql = format!("SELECT * FROM usage_records WHERE id = '{id}'");
        self.typed(&sql).await.pop()
    }

    pub async fn entries(&self) -> Vec<LedgerEntry> {
        self.typed("SELECT * FROM ledger_entries ORDER BY account_id, seq").await
    }

    pub async fn events(&self) -> Vec<BillingEvent> {
        self.typed("SELECT * FROM billing_events ORDER BY request_id, sink").await
    }
}

/// The tables are STRICT, so that a column is text, an integer or NULL.
fn json_of(row: &SqliteRow) -> Value {
    let columns = row.columns().iter().map(|column| {
        let raw = row.try_get_raw(column.ordinal()).expect("a column of this row");
        let value = match raw.type_info().name() {
            _ if raw.is_null() => Value::Null,
            "INTEGER" => Value::from(row.get::<i64, _>(column.ordinal())),
            _ => Value::from(row.get::<String, _>(column.ordinal())),
        };
        (column.name().to_string(), value)
    });
    Value::Object(columns.collect::<Map<_, _>>())
}
