//! Readiness follows the database and liveness does not: a restart would not bring it back. Who has
//! a key is told that it is away, never that the key is wrong.
//!
//! PostgreSQL only: SQLite is in the process.

use sqlx::{Connection, PgConnection};

use crate::app::cluster::Cluster;
use crate::app::{Setup, Store, TestApp, eventually};
use crate::bad_input::assert_refused;
use crate::client::Ask;

async fn status_of(app: &TestApp, path: &str) -> u16 {
    app.ask(&Ask::get(path)).await.status
}

async fn becomes(app: &TestApp, readiness: u16) {
    eventually(&format!("readiness is {readiness}"), async || {
        (status_of(app, "/readyz").await == readiness).then_some(())
    })
    .await;
    assert_eq!(status_of(app, "/healthz").await, 200, "it is alive all the time");
}

/// Every connection that PostgreSQL still has to give.
async fn take_all(cluster: &Cluster) -> Vec<PgConnection> {
    let mut taken = Vec::new();
    while let Ok(connection) = PgConnection::connect(&cluster.url()).await {
        taken.push(connection);
    }
    assert!(taken.len() > 20, "{}", taken.len());
    taken
}

#[tokio::test]
async fn it_follows_a_database_that_falls_silent() {
    let cluster = Cluster::start().await;
    let app = Setup::new(Store::Postgres).cluster(&cluster).start().await;
    becomes(&app, 200).await;
    cluster.pause();
    becomes(&app, 503).await;
    cluster.resume();
    becomes(&app, 200).await;
    app.finish().await;
}

#[tokio::test]
async fn a_database_without_a_free_connection_is_away_until_it_has_one() {
    let cluster = Cluster::start().await;
    let setup = Setup::new(Store::Postgres).cluster(&cluster);
    let mut app = setup.env("TOLLGATE_DATABASE_SECONDS", "1").start().await;
    app.kill9();
    // Else it would be the start that waits.
    app.environment.insert("TOLLGATE_MIGRATE".to_string(), "off".to_string());
    // What the dead program still has would be free again afterwards.
    assert!(app.books.left_holds().await.is_empty());
    let taken = take_all(&cluster).await;
    app.restart().await;
    becomes(&app, 503).await;
    let got = app.get("/v1/models").await;
    assert_refused(&got, "no connection", 503, "database_unavailable", "");
    assert!(got.header("retry-after").is_some(), "worth another try");
    let ended = app.try_cli(&["verify"]).await;
    assert!(!ended.status.success() && ended.stderr.contains("unavailable"), "{ended:?}");
    drop(taken);
    becomes(&app, 200).await;
    app.get("/v1/models").await.ok();
    app.finish().await;
}
