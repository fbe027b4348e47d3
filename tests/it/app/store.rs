//! Which store a test runs on, and a fresh database in it.

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tempfile::TempDir;
use uuid::Uuid;

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
}

impl Database {
    pub async fn create(store: Store) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let name = format!("tollgate_{}", Uuid::now_v7().simple());
        let url = match store {
            Store::Sqlite => format!("sqlite://{}", folder.path().join("books.db").display()),
            Store::Postgres => {
                cluster_execute(&format!("CREATE DATABASE {name}")).await;
                cluster_url(&name)
            }
        };
        Self { url, store, folder, name }
    }

    /// Gives the cluster its room back. A failed test leaves its database for whoever looks.
    pub async fn drop_database(&self) {
        if self.store == Store::Postgres {
            cluster_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
        }
    }
}

fn cluster_url(database: &str) -> String {
    let Ok(cluster) = std::env::var(CLUSTER_VARIABLE) else {
        panic!("{CLUSTER_VARIABLE} is not set: run tests/run.sh, which starts a PostgreSQL");
    };
    let base = cluster.rsplit_once('/').map_or(cluster.as_str(), |(base, _)| base);
    format!("{base}/{database}")
}

async fn cluster_execute(statement: &str) {
    let cluster: PgPool = PgPoolOptions::new()
        .max_connections(1)
        .connect(&cluster_url("postgres"))
        .await
        .expect("the cluster of tests/run.sh accepts connections");
    let statement = AssertSqlSafe(statement.to_string());
    sqlx::query(statement).execute(&cluster).await.expect("a statement on the test cluster");
    cluster.close().await;
}
