//! Which store a test runs on, and a fresh database in it.

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::process::{self, Environment};

/// The variable that `tests/run.sh` sets to the throwaway cluster's URL.
const CLUSTER_VARIABLE: &str = "TOLLGATE_TEST_POSTGRES";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Store {
    Sqlite,
    Postgres,
}

/// Runs each named test on both stores, as `name::sqlite` and `name::postgres`.
///
/// The list stands at the top of a file as its table of contents; a test left out of it is dead
/// code, which the lints refuse.
macro_rules! both_stores {
    ($($name:ident),+ $(,)?) => { $(
        mod $name {
            #[tokio::test]
            async fn sqlite() {
                Box::pin(super::$name($crate::app::Store::Sqlite)).await;
            }

            #[tokio::test]
            async fn postgres() {
                Box::pin(super::$name($crate::app::Store::Postgres)).await;
            }
        }
    )+ };
}
pub(crate) use both_stores;

/// A database of one test's own.
pub struct Database {
    pub url: String,
    pub store: Store,
    /// The test's files: the SQLite database, price tables, and the program's working directory.
    pub folder: TempDir,
    name: String,
    /// Any address of its server.
    cluster: String,
}

impl Database {
    /// An empty one, on the server of the test command, or on that at `cluster`.
    pub async fn create(store: Store, cluster: Option<&str>) -> Self {
        let cluster = match (store, cluster) {
            (Store::Sqlite, _) => String::new(),
            (Store::Postgres, Some(cluster)) => cluster.to_string(),
            (Store::Postgres, None) => test_cluster(),
        };
        Self::copy(store, cluster, "template1").await
    }

    /// One with today's tables, on the server of the test command: a copy costs less than all the
    /// migrations do.
    pub async fn prepared(store: Store) -> Self {
        match store {
            Store::Sqlite => Self::create(store, None).await,
            Store::Postgres => Self::copy(store, test_cluster(), migrated().await).await,
        }
    }

    async fn copy(store: Store, cluster: String, template: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let name = format!("tollgate_{}", Uuid::now_v7().simple());
        let url = match store {
            Store::Sqlite => format!("sqlite://{}", folder.path().join("books.db").display()),
            Store::Postgres => {
                execute(&cluster, &format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
                database_url(&cluster, &name)
            }
        };
        Self { url, store, folder, name, cluster }
    }

    /// Gives the cluster its room back. A failed test leaves its database for whoever looks.
    pub async fn drop_database(&self) {
        if self.store == Store::Postgres {
            let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
            execute(&self.cluster, &drop).await;
        }
    }
}

fn test_cluster() -> String {
    std::env::var(CLUSTER_VARIABLE).unwrap_or_else(|_| {
        panic!("{CLUSTER_VARIABLE} is not set: run tests/run.sh, which starts a PostgreSQL")
    })
}

/// A database that the program has made the tables of, once for all tests of this process. It stays
/// behind, like that of a failed test.
async fn migrated() -> &'static str {
    static MADE: OnceCell<String> = OnceCell::const_new();
    let make = async || {
        let database = Database::create(Store::Postgres, None).await;
        let settings = [
            ("DATABASE_URL", database.url.as_str()),
            ("UPSTREAM_BASE_URL", "http://127.0.0.1:1/v1"),
        ];
        let environment: Environment =
            settings.map(|(name, value)| (name.to_string(), value.to_string())).into();
        let ended = process::run(&["migrate"], &environment, database.folder.path()).await;
        assert!(ended.status.success(), "{ended:?}");
        database.name
    };
    MADE.get_or_init(make).await
}

/// Host and port of an address.
pub fn server_of(url: &str) -> &str {
    url.split(['@', '/']).nth(3).expect("postgres://user@host:port/database")
}

fn database_url(cluster: &str, database: &str) -> String {
    let base = cluster.rsplit_once('/').map_or(cluster, |(base, _)| base);
    format!("{base}/{database}")
}

async fn execute(cluster: &str, statement: &str) {
    let pool: PgPool = PgPoolOptions::new()
        .max_connections(1)
        .connect(&database_url(cluster, "postgres"))
        .await
        .expect("the cluster of the test accepts connections");
    let statement = AssertSqlSafe(statement.to_string());
    sqlx::query(statement).execute(&pool).await.expect("a statement on the test cluster");
    pool.close().await;
}
