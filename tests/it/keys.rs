//! API keys, accounts and credit, by the commands that work beside a running server.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::admin::Admin;
use crate::app::{Setup, Store, TestApp, address_of, both_stores, eventually, question, streamed};
use crate::client::{Answered, Ask, Exchange};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{FREE_MODEL, MODEL, OLD_MODEL};
use crate::upstream::script::Gate;

both_stores!(
    a_key_is_created_used_and_revoked,
    without_credit_there_is_no_call,
    credit_granted_beside_the_server_counts,
    accounts_are_shown,
);

/// What is remembered of a key ages in so long.
const REMEMBERED: Duration = Duration::from_secs(10);

/// A request whose answer only matters for being allowed or not.
async fn try_chat(app: &TestApp, key: &str, model: &str) -> Answered {
    app.upstream.script(Answer::openrouter().model(model).plain());
    app.ask(&app.chat_ask(&question(model)).bearer(key)).await
}

async fn a_key_is_created_used_and_revoked(store: Store) {
    let app = TestApp::start(store).await;
    let key = app.create_key("test", &["--name", "second"]).await;
    assert!(key.starts_with("sk-tg-"), "{key}");
    assert_eq!(key.lines().count(), 1, "the key stands alone on stdout");
    assert_ne!(key, app.key);
    try_chat(&app, &key, MODEL).await.ok();

    let keys = app.list(&["key", "list", "--account", "test"]).await;
    assert_eq!(keys.len(), 2, "{keys:?}");
    let printed = json!(keys).to_string();
    assert!(!printed.contains(&key) && !printed.contains("secret"), "shown once only: {printed}");
    let row = keys.iter().find(|row| row["name"] == json!("second")).expect("the new key");
    let id = row["id"].as_str().expect("an id");
    assert_eq!(app.record().await.api_key_id.as_deref(), Some(id));
    let stored = app.books.rows("SELECT secret_hash, hint FROM api_keys").await;
    assert!(!json!(stored).to_string().contains(&key), "the key itself is nowhere");

    app.cli(&["key", "revoke", id]).await;
    let refused = eventually("the running server notices", async || {
        let got = try_chat(&app, &key, MODEL).await;
        (got.status == 401).then_some(got)
    })
    .await;
    assert_eq!(refused.json()["error"]["code"], json!("invalid_api_key"));
    try_chat(&app, &app.key, MODEL).await.ok();
    app.finish().await;
}

#[tokio::test]
async fn a_revoked_key_is_noticed_within_seconds() {
    let app = TestApp::start(Store::Sqlite).await;
    let key = app.create_key("test", &[]).await;
    let ask = Ask::get("/v1/models").bearer(&key);
    let asked = Instant::now();
    assert_eq!(app.ask(&ask).await.status, 200);
    let keys = app.list(&["key", "list", "--account", "test"]).await;
    // Ids are UUIDv7: the newest key has the greatest.
    let ids = keys.iter().filter_map(|row| row["id"].as_str());
    app.cli(&["key", "revoke", ids.max().expect("two keys")]).await;
    eventually("it is noticed", async || (app.ask(&ask).await.status == 401).then_some(())).await;
    let took = asked.elapsed();
    assert!(took < REMEMBERED, "after {took:?} it is only not remembered any more");
    app.finish().await;
}

async fn without_credit_there_is_no_call(store: Store) {
    let app = Setup::new(store).credit("0").start().await;
    for body in [question(MODEL), streamed(MODEL)] {
        let got = app.chat(&body).await;
        assert_eq!(got.status, 429, "{}", got.text());
        assert_eq!(got.header("x-should-retry"), Some("false"), "SDKs retry a 429 otherwise");
        let error = got.json()["error"].clone();
        assert_eq!(error["type"], json!("insufficient_quota"));
        assert_eq!(error["code"], json!("insufficient_quota"));
    }
    app.assert_untouched().await;
    app.finish().await;
}

async fn credit_granted_beside_the_server_counts(store: Store) {
    let app = Setup::new(store).credit("0").start().await;
    assert_eq!(app.chat(&question(MODEL)).await.status, 429);
    app.cli(&["credit", "grant", "--account", "test", "--usd", "0.5", "--reason", "thanks"]).await;
    eventually("the grant is noticed", async || {
        app.upstream.script(Answer::openrouter().plain());
        (app.chat(&question(MODEL)).await.status == 200).then_some(())
    })
    .await;
    app.settled().await;
    let account = app.books.accounts().await.remove(0);
    assert_eq!(account.balance_nusd, 500_000_000 - 147_600);
    app.finish().await;
}

async fn accounts_are_shown(store: Store) {
    let app = TestApp::start(store).await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    app.record().await;
    for name in ["test", app.account.as_str()] {
        let shown = app.list(&["account", "show", "--account", name]).await.remove(0);
        assert_eq!(shown["balance_nusd"], json!(10_000_000_000_i64 - 147_600), "{shown}");
        assert_eq!(shown["id"], json!(app.account));
    }
    app.create_account("second", &["--postpaid"]).await;
    let accounts = app.list(&["account", "list"]).await;
    let names: Vec<_> = accounts.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["test", "second"]);
    app.finish().await;
}

#[tokio::test]
async fn a_key_may_be_for_some_models_only() {
    let app = TestApp::start(Store::Sqlite).await;
    let key = app.create_key("test", &["--models", "openai/gpt-4o*,vendor/family/*"]).await;
    for model in [MODEL, FREE_MODEL] {
        try_chat(&app, &key, model).await.ok();
    }
    let calls = app.upstream.chats().len();
    let got = try_chat(&app, &key, OLD_MODEL).await;
    assert!([403, 404].contains(&got.status), "{}", got.text());
    assert_eq!(got.json()["error"]["param"], json!("model"), "{}", got.text());
    assert_eq!(app.upstream.chats().len(), calls, "a refused model is not called");
    app.finish().await;
}

#[tokio::test]
async fn commands_say_what_is_wrong() {
    let app = TestApp::start(Store::Sqlite).await;
    let cases: [&[&str]; 7] = [
        &["account", "create", "--name", "test"],
        &["key", "create", "--account", "nobody"],
        &["key", "revoke", "0199a0b0-0000-7000-8000-000000000000"],
        &["credit", "grant", "--account", "nobody", "--usd", "1", "--reason", "x"],
        &["credit", "grant", "--account", "test", "--usd", "lots", "--reason", "x"],
        &["account", "create", "--name", "poor", "--credit", "-5"],
        &["account", "show", "--account", "nobody"],
    ];
    for arguments in cases {
        let ended = app.try_cli(arguments).await;
        assert!(!ended.status.success(), "{arguments:?} succeeded: {ended:?}");
        assert!(!ended.stderr.trim().is_empty(), "{arguments:?} says nothing");
        assert!(ended.stdout.trim().is_empty(), "{arguments:?}: {ended:?}");
        assert!(!ended.stderr.contains("panicked"), "{arguments:?}: {ended:?}");
    }
    let credit: i64 = app.books.entries().await.iter().map(|entry| entry.amount_nusd).sum();
    assert_eq!(credit, 10_000_000_000, "a refused command changes nothing");
    app.finish().await;
}

/// The books had told that a key is good when it was ended, and their answer came after.
#[tokio::test]
async fn a_key_that_ends_while_it_is_asked_for_is_refused() {
    let app = Setup::new(Store::Postgres).proxied().start().await;
    let admin = Admin::of(&app).await;
    let proxy = app.proxy.as_ref().expect("it was asked for");
    let new = json!({"name": "asked for"});
    let made = admin.done(201, "POST", &format!("/accounts/{}/keys", app.account), Some(new)).await;
    let [id, key] = ["id", "secret"].map(|member| made[member].as_str().expect("a text"));
    let ask = Ask::get("/v1/models").bearer(key);
    let gate = Gate::new();
    proxy.keep("asked for", &gate);
    let begun = Exchange::open(address_of(&app.base_url), &ask.bytes()).await;
    eventually("it is told of", async || proxy.has_kept().then_some(())).await;
    admin.done(200, "DELETE", &format!("/keys/{id}"), None).await;
    gate.open();
    assert_eq!(begun.finish().await.status, 401, "it was asked for anew");
    assert_eq!(app.ask(&ask).await.status, 401);
    app.finish().await;
}
