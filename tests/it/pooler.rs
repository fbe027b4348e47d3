//! A pooler in front of PostgreSQL: one that keeps sessions works, one that does not is refused
//! with words that say what to set, whatever its size and whoever else uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::future::join_all;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection};

use crate::app::pgbouncer::PgBouncer;
use crate::app::process::{Ended, Environment, Process, run};
use crate::app::programs::free_port;
use crate::app::store::{Database, server_of};
use crate::app::{Setup, Store, TestApp, eventually, streamed};
use crate::client::{Ask, Exchange};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

/// A database without tables, and the program's environment.
struct Fresh {
    database: Database,
    environment: Environment,
}

impl Fresh {
    async fn new() -> Self {
        let database = Database::create(Store::Postgres, None).await;
        let environment = [
            ("TOLLGATE_LISTEN", "127.0.0.1:0"),
            ("UPSTREAM_KIND", "openai"),
            ("UPSTREAM_BASE_URL", "http://127.0.0.1:1/v1"),
        ];
        let environment = environment.map(|(name, value)| (name.to_string(), value.to_string()));
        Self { database, environment: environment.into() }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_string(), value.to_string());
    }

    async fn behind(&mut self, settings: &str) -> PgBouncer {
        let pooler = PgBouncer::start(&self.database.url, settings).await;
        self.set("DATABASE_URL", &pooler.url(&self.database.url));
        pooler
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        run(arguments, &self.environment, self.database.folder.path()).await
    }

    /// On a busy machine the database may not answer in the five seconds that it has.
    async fn answered(&self, arguments: &[&str]) -> Ended {
        for _ in 0..5 {
            let ended = self.run(arguments).await;
            if !ended.stderr.contains("the database is unavailable") {
                return ended;
            }
        }
        panic!("tollgate {arguments:?}: the database never answers");
    }

    /// The command is refused for the pooler, and the database is as it was.
    async fn assert_refused(&self, arguments: &[&str]) {
        assert_says_what_to_set(arguments, &self.answered(arguments).await);
        let mut direct = PgConnection::connect(&self.database.url).await.expect("the server");
        let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
        let tables: i64 = sqlx::query_scalar(tables).fetch_one(&mut direct).await.expect("a count");
        assert_eq!(tables, 0, "{arguments:?} made tables");
        direct.close().await.expect("an open connection");
    }
}

fn assert_says_what_to_set(arguments: &[&str], ended: &Ended) {
    assert!(!ended.status.success(), "tollgate {arguments:?} went on: {ended:?}");
    for word in ["DATABASE_URL", "session", "5432", "direct"] {
        assert!(ended.stderr.contains(word), "{arguments:?}, {word:?} is not said: {ended:?}");
    }
    assert!(!ended.stderr.contains("sqlx_s"), "{arguments:?} got as far as statements: {ended:?}");
}

#[tokio::test]
async fn transaction_and_statement_mode_are_refused() {
    let poolers = [
        "pool_mode = transaction\ndefault_pool_size = 1",
        "pool_mode = transaction\ndefault_pool_size = 5",
        "pool_mode = transaction\nserver_round_robin = 1\ndefault_pool_size = 2",
        "pool_mode = transaction\nserver_round_robin = 1\ndefault_pool_size = 3",
        "pool_mode = statement\ndefault_pool_size = 1",
        "pool_mode = statement\ndefault_pool_size = 5",
    ];
    let mut fresh = Fresh::new().await;
    for settings in poolers {
        println!("{settings}");
        let pooler = fresh.behind(settings).await;
        fresh.assert_refused(&["serve"]).await;
        drop(pooler);
    }
    fresh.database.drop_database().await;
}

#[tokio::test]
async fn commands_are_refused_as_the_server_is() {
    let mut fresh = Fresh::new().await;
    let _pooler = fresh.behind("pool_mode = transaction").await;
    fresh.assert_refused(&["migrate"]).await;
    fresh.assert_refused(&["account", "create", "--name", "a"]).await;
    fresh.set("TOLLGATE_MIGRATE", "off");
    fresh.assert_refused(&["serve"]).await;
    fresh.assert_refused(&["verify"]).await;
    fresh.database.drop_database().await;
}

/// Servers change hands all the time, as they do in a pool that other programs use.
#[tokio::test]
async fn a_busy_pool_is_refused() {
    let mut fresh = Fresh::new().await;
    for settings in ["default_pool_size = 2", "default_pool_size = 5"] {
        let settings = format!("pool_mode = transaction\n{settings}");
        let pooler = fresh.behind(&settings).await;
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicUsize::new(0));
        let url = pooler.url(&fresh.database.url);
        let others = (0..8).map(|_| use_until(stop.clone(), asked.clone(), url.clone()));
        let others = tokio::spawn(join_all(others));
        eventually("others use the pool", async || {
            (asked.load(Ordering::SeqCst) > 100).then_some(())
        })
        .await;
        for _ in 0..4 {
            fresh.assert_refused(&["migrate"]).await;
        }
        stop.store(true, Ordering::SeqCst);
        others.await.expect("no other panics");
    }
    fresh.database.drop_database().await;
}

async fn use_until(stop: Arc<AtomicBool>, asked: Arc<AtomicUsize>, url: String) {
    let options: PgConnectOptions = url.parse().expect("an address");
    let options = options.extra_float_digits(None);
    let mut connection = PgConnection::connect_with(&options).await.expect("the pooler");
    while !stop.load(Ordering::SeqCst) {
        let work = sqlx::raw_sql("SELECT count(*) FROM generate_series(1, 1000)");
        connection.execute(work).await.expect("a count");
        asked.fetch_add(1, Ordering::SeqCst);
    }
}

/// Two that share a port and have a pool each, as PgBouncer is run on more than one processor.
#[tokio::test]
async fn poolers_side_by_side_are_refused() {
    let mut fresh = Fresh::new().await;
    let settings = "pool_mode = transaction\nso_reuseport = 1";
    let mut first = fresh.behind(settings).await;
    let mut second = PgBouncer::spawn(&fresh.database.url, settings, first.port());
    assert!(second.accepts(&fresh.database.url).await && first.accepts(&fresh.database.url).await);
    for _ in 0..4 {
        fresh.assert_refused(&["migrate"]).await;
    }
    fresh.database.drop_database().await;
}

#[tokio::test]
async fn session_mode_works() {
    let setup = Setup::new(Store::Postgres).pooled("pool_mode = session");
    let app = setup.start().await;
    app.upstream.script(Answer::openrouter().stream());
    app.chat(&streamed(MODEL)).await.ok();
    assert_eq!(app.record().await.charge_nusd, 147_600);
    // Notifications come: the server forgets a key that a command has revoked beside it.
    let keys = app.list(&["key", "list", "--account", "test"]).await;
    let id = keys[0]["id"].as_str().expect("an id");
    app.cli(&["key", "revoke", id]).await;
    eventually("the key is refused", async || {
        (app.get("/v1/models").await.status == 401).then_some(())
    })
    .await;
    app.finish().await;
}

/// A server that does not migrate starts without its database; it looks when that comes.
#[tokio::test]
async fn a_pooler_that_comes_later_is_refused_then() {
    let mut fresh = Fresh::new().await;
    let port = free_port();
    let server = server_of(&fresh.database.url).to_string();
    let url = fresh.database.url.replace(&server, &format!("127.0.0.1:{port}"));
    fresh.set("DATABASE_URL", &url);
    fresh.set("TOLLGATE_MIGRATE", "off");
    let mut process = Process::serve(&fresh.environment, fresh.database.folder.path());
    process.base_url().await;
    assert_eq!(process.status(), None, "no database is no reason to end");
    let _pooler = PgBouncer::spawn(&fresh.database.url, "pool_mode = transaction", port);
    assert_says_what_to_set(&["serve"], &process.end().await);
    fresh.database.drop_database().await;
}

#[tokio::test]
async fn a_database_that_is_away_is_told_as_such() {
    let app = TestApp::start(Store::Postgres).await;
    let mut away = app.environment.clone();
    let url = format!("postgres://tollgate@127.0.0.1:{}/books", free_port());
    away.insert("DATABASE_URL".to_string(), url);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ended = run(&["migrate"], &away, folder.path()).await;
    assert!(!ended.status.success() && ended.stderr.contains("unavailable"), "{ended:?}");
    assert!(!ended.stderr.contains("pooler"), "{ended:?}");

    away.insert("TOLLGATE_MIGRATE".to_string(), "off".to_string());
    let mut process = Process::serve(&away, folder.path());
    let url = process.base_url().await;
    let address = crate::app::address_of(&url);
    let ask = Ask::get("/v1/models").bearer(&app.key);
    let got = Exchange::open(address, &ask.bytes()).await.finish().await;
    assert_eq!(got.status, 503, "{got:?}");
    app.finish().await;
}
