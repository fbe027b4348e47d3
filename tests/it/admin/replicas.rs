//! Two processes on one PostgreSQL: what one is told, the other does; and a database that falls
//! silent is said to be away.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Admin, chat, text};
use crate::app::cluster::Cluster;
use crate::app::{Setup, Store, TestApp, address_of, eventually, question};
use crate::bad_input::assert_refused;
use crate::client::{Ask, Exchange};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

/// Asks another process by this key; the status.
async fn status_at(base_url: &str, key: &str) -> u16 {
    let ask = Ask::get("/v1/models").bearer(key).bytes();
    Exchange::open(address_of(base_url), &ask).await.finish().await.status
}

/// What is remembered of a key ages in so long: sooner than this it was the news.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Waits until the key, of which nothing was remembered before `asked`, is none any more.
async fn ended(what: &str, base_url: &str, key: &str, asked: Instant) {
    let is_over = async || (status_at(base_url, key).await == 401).then_some(());
    eventually(what, is_over).await;
    let took = asked.elapsed();
    eprintln!("{what}: after {took:?}");
    assert!(took < REMEMBERED, "{what}: after {took:?}, not by the news");
}

/// Waits until all prices are of this rule. Without the news that would take five minutes.
async fn priced_by(what: &str, admin: &Admin, rule: &str) {
    eventually(what, async || {
        let prices = admin.all("/prices", 100).await;
        prices.iter().all(|price| price["rule"] == json!(rule)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replica_does_what_the_other_was_told() {
    let mut app = TestApp::start(Store::Postgres).await;
    // A suspended account's call may have left before the books refuse its hold.
    app.drops_calls = true;
    let admin = Admin::of(&app).await;
    let (_replica, there) = app.replica().await;
    let (key, first) = admin.create_key(&app.account, json!({"name": "k"})).await;
    let path = format!("/keys/{}", text(&key["id"]));
    let asked = Instant::now();
    assert_eq!(status_at(&there, &first).await, 200, "a new key needs no news");

    let second = admin.rotate(&text(&key["id"]), 0).await;
    ended("a rotated key's old secret ends on the other replica", &there, &first, asked).await;
    let asked = Instant::now();
    assert_eq!(status_at(&there, &second).await, 200);
    admin.done(200, "DELETE", &path, None).await;
    ended("a revoked key ends on the other replica", &there, &second, asked).await;

    let account = format!("/accounts/{}", app.account);
    let ask = app.chat_ask(&question(MODEL)).bytes();
    let chat_there = async || {
        app.upstream.script(Answer::openrouter().plain());
        Exchange::open(address_of(&there), &ask).await.finish().await
    };
    chat_there().await.ok();
    admin.patch(&account, json!({"status": "suspended"})).await;
    let refused = chat_there().await;
    assert_refused(
        &refused,
        "the books decide, not what is remembered",
        403,
        "account_suspended",
        "",
    );
    admin.patch(&account, json!({"status": "active"})).await;
    chat_there().await.ok();
    app.settled().await;
    app.finish().await;
}

#[tokio::test]
async fn a_table_of_prices_is_every_replicas() {
    let app = TestApp::start(Store::Postgres).await;
    let admin = Admin::of(&app).await;
    let (_replica, there) = app.replica().await;
    let other = Admin { key: admin.key.clone(), base_url: there.clone() };
    let table =
        "[[price]]\nmodel = \"*\"\nprompt_usd_per_mtok = \"1\"\ncompletion_usd_per_mtok = \"2\"";
    admin.done(200, "PUT", "/price-table", Some(json!({"text": table}))).await;
    priced_by("a table of prices is in force on the other replica", &other, "list").await;
    app.upstream.script(Answer::openrouter().plain());
    let ask = app.chat_ask(&question(MODEL)).bytes();
    Exchange::open(address_of(&there), &ask).await.finish().await.ok();
    assert_eq!(app.record().await.charge_nusd, 12 * 1_000 + 7 * 2_000);
    // Set on either, the newest counts on both.
    let back: Value = other.done(200, "PUT", "/price-table", Some(json!({"text": ""}))).await;
    assert_eq!(back["table"]["version"], json!(2));
    priced_by("and taken back on the first one", &admin, "cost_plus").await;
    chat(&app, &app.key, MODEL).await.ok();
    assert_eq!(app.records(2).await[1].charge_nusd, super::ORDINARY_NUSD);
    app.finish().await;
}

#[tokio::test]
async fn a_silent_database_is_said_to_be_away() {
    let cluster = Cluster::start().await;
    let app = Setup::new(Store::Postgres).cluster(&cluster).start().await;
    let admin = Admin::of(&app).await;
    // The key is remembered; what it asks for is not.
    admin.get("/accounts").await;
    cluster.pause();
    let got = admin.send("GET", "/accounts", None).await;
    cluster.resume();
    assert_refused(&got, "silent", 503, "database_unavailable", "");
    admin.get("/accounts").await;
    app.finish().await;
}
