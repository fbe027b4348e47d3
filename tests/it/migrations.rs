//! Migrations that cannot be done: it is said, the exit status says it too, nothing is half done,
//! and nothing is served.

use std::fs::File;

use crate::app::books::Books;
use crate::app::process::{Ended, Environment, run};
use crate::app::store::Database;
use crate::app::{Setup, Store, both_stores};

both_stores!(one_that_fails_changes_nothing, a_newer_programs_database_is_left_alone);

/// A database that the program has not seen yet.
struct Fresh {
    database: Database,
    environment: Environment,
    books: Books,
}

impl Fresh {
    async fn new(store: Store) -> Self {
        let database = Database::create(store, None).await;
        if store == Store::Sqlite {
            File::create(database.folder.path().join("books.db")).expect("a temporary file");
        }
        let mut environment = Setup::new(store).environment();
        environment.insert("DATABASE_URL".to_string(), database.url.clone());
        environment.insert("UPSTREAM_BASE_URL".to_string(), "http://127.0.0.1:1/v1".to_string());
        let books = Books::open(&database);
        Self { database, environment, books }
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        run(arguments, &self.environment, self.database.folder.path()).await
    }

    /// By commands and by the server, which ends.
    async fn assert_refused(&self, words: &str) {
        for arguments in [&["migrate"][..], &["serve"], &["account", "create", "--name", "a"]] {
            let ended = self.run(arguments).await;
            assert!(!ended.status.success(), "{arguments:?}: {ended:?}");
            assert!(ended.stderr.contains(words), "{arguments:?}: {ended:?}");
            assert!(!ended.stdout.contains("listening"), "{arguments:?}: {ended:?}");
        }
    }

    async fn versions(&self) -> Vec<i64> {
        let sql = "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version";
        let rows = self.books.rows(sql).await;
        rows.iter().map(|row| row["version"].as_i64().expect("a number")).collect()
    }
}

async fn one_that_fails_changes_nothing(store: Store) {
    let fresh = Fresh::new(store).await;
    // Another program's, and in the way of the second.
    fresh.books.tamper("CREATE TABLE audit_log (theirs TEXT)").await;
    fresh.assert_refused("audit_log").await;
    assert_eq!(fresh.versions().await, [1], "what is said to be done, and no more");
    fresh.books.tamper("DROP TABLE audit_log").await;
    let done = fresh.run(&["migrate"]).await;
    assert!(done.status.success(), "none of it was half done: {done:?}");
    assert!(fresh.run(&["verify"]).await.status.success());
    fresh.database.drop_database().await;
}

async fn a_newer_programs_database_is_left_alone(store: Store) {
    let fresh = Fresh::new(store).await;
    assert!(fresh.run(&["migrate"]).await.status.success());
    let newer = match store {
        Store::Sqlite => "TRUE, X'00'",
        Store::Postgres => "TRUE, '\\x00'::bytea",
    };
    let sql = format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'of a newer program', {newer}, 0)"
    );
    fresh.books.tamper(&sql).await;
    fresh.assert_refused("9999").await;
    fresh.database.drop_database().await;
}
