//! The life of a key: made, used, renamed, given another secret, ended.

use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Admin, NOBODY, ORDINARY_NUSD, chat, status_of, text};
use crate::app::{Store, TestApp, both_stores, eventually};
use crate::bad_input::assert_refused;
use crate::upstream::catalog::{FREE_MODEL, MODEL, OLD_MODEL};

both_stores!(
    a_keys_life,
    an_old_secret_works_for_the_overlap_only,
    a_rotated_key_keeps_its_budget_and_what_it_has_spent,
    a_key_expires,
    when_a_key_was_last_used_is_written_down,
);

async fn a_keys_life(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let account = admin.account("acme").await;
    let new = json!({"name": "ci", "models": "openai/gpt-4o*,vendor/family/*", "day_limit_nusd": 9_000_000});
    let (key, secret) = admin.create_key(&account, new).await;
    let id = text(&key["id"]);
    let path = format!("/keys/{id}");
    assert_eq!((&key["role"], &key["account_id"]), (&json!("user"), &json!(account)));
    assert_eq!(key["budget"]["day_limit_nusd"], json!(9_000_000));
    assert!(text(&key["created_by"]).starts_with("key:"), "{key}");

    for model in [MODEL, FREE_MODEL] {
        chat(&app, &secret, model).await.ok();
    }
    let refused = chat(&app, &secret, OLD_MODEL).await;
    assert_refused(&refused, "not on the list", 403, "model_not_allowed", "model");
    let changed = admin.patch(&path, json!({"name": "build", "models": null})).await;
    assert_eq!((&changed["name"], &changed["models"]), (&json!("build"), &json!(null)));
    chat(&app, &secret, OLD_MODEL).await.ok();
    admin.patch(&path, json!({"models": OLD_MODEL})).await;
    let refused = chat(&app, &secret, MODEL).await;
    assert_refused(&refused, "not on the list any more", 403, "model_not_allowed", "model");
    app.records(3).await;
    let shown = admin.get(&path).await;
    assert_eq!(shown["budget"]["day_nusd"], json!(3 * ORDINARY_NUSD), "{shown}");
    assert_eq!(shown["budget"]["held_nusd"], json!(0), "{shown}");

    let ended = admin.done(200, "DELETE", &path, None).await;
    assert!(ended["revoked_at"].is_string(), "{ended}");
    assert_eq!(status_of(&app, &secret).await, 401, "a revoked key ends at once");
    assert_eq!(admin.done(200, "DELETE", &path, None).await, ended, "ending it again is no change");
    let rotated = admin.send("POST", &format!("{path}/rotate"), Some(&json!({}))).await;
    assert_refused(&rotated, "it has ended", 400, "", "key");
    for (method, path) in [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")] {
        for id in [NOBODY, "no-id"] {
            let path = format!("/keys/{id}{path}");
            let body = json!({});
            let missing = admin.send(method, &path, Some(&body)).await;
            assert_refused(&missing, &path, 404, "not_found", "");
        }
    }
    let revocations = admin.audit().await;
    let revocations = revocations.iter().filter(|entry| entry["action"] == json!("key.revoke"));
    assert_eq!(revocations.count(), 1);
    app.finish().await;
}

async fn an_old_secret_works_for_the_overlap_only(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let (key, first) = admin.create_key(&app.account, json!({"name": "k"})).await;
    let id = text(&key["id"]);
    let second = admin.rotate(&id, 3_600).await;
    let shown = admin.get(&format!("/keys/{id}")).await;
    assert!(shown["previous_expires_at"].is_string(), "{shown}");
    assert_ne!(shown["hint"], key["hint"]);
    for secret in [&first, &second] {
        chat(&app, secret, MODEL).await.ok();
    }
    let records = app.records(2).await;
    assert!(records.iter().all(|record| record.api_key_id.as_deref() == Some(&id)), "one key");

    // Another rotation ends the eldest; one without an overlap all but the newest.
    let third = admin.rotate(&id, 3_600).await;
    assert_eq!(states(&app, &[&first, &second, &third]).await, [401, 200, 200]);
    let fourth = admin.rotate(&id, 0).await;
    assert_eq!(states(&app, &[&second, &third, &fourth]).await, [401, 401, 200]);
    let fifth = admin.rotate(&id, 1).await;
    eventually("the overlap ends by itself", async || {
        (status_of(&app, &fourth).await == 401).then_some(())
    })
    .await;
    assert_eq!(status_of(&app, &fifth).await, 200);

    let sixth = app.cli(&["key", "rotate", &id, "--overlap-seconds", "3600"]).await;
    assert_eq!(sixth.lines().count(), 1, "the secret alone: {sixth}");
    eventually("the command's secret works", async || {
        (status_of(&app, &sixth).await == 200).then_some(())
    })
    .await;
    assert_eq!(status_of(&app, &fifth).await, 200);
    // Who the key is, is over for both of its secrets.
    admin.done(200, "DELETE", &format!("/keys/{id}"), None).await;
    assert_eq!(states(&app, &[&fifth, &sixth]).await, [401, 401]);
    app.finish().await;
}

async fn states(app: &TestApp, secrets: &[&String]) -> Vec<u16> {
    futures::future::join_all(secrets.iter().map(|secret| status_of(app, secret))).await
}

async fn a_rotated_key_keeps_its_budget_and_what_it_has_spent(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    // Enough for one answer, and not for the hold of another.
    let new = json!({"name": "k", "total_limit_nusd": ORDINARY_NUSD + 2_000});
    let (key, first) = admin.create_key(&app.account, new).await;
    let path = format!("/keys/{}", text(&key["id"]));
    let other = admin.create_key(&app.account, json!({"name": "other"})).await.1;
    chat(&app, &first, MODEL).await.ok();
    app.record().await;
    let spent = admin.get(&path).await["budget"].clone();
    assert_eq!(spent["total_nusd"], json!(ORDINARY_NUSD));
    let second = admin.rotate(&text(&key["id"]), 3_600).await;
    assert_eq!(admin.get(&path).await["budget"], spent);
    for secret in [&first, &second] {
        let refused = chat(&app, secret, MODEL).await;
        assert_refused(&refused, "spent", 429, "key_budget_exceeded", "");
    }
    chat(&app, &other, MODEL).await.ok();
    let raised = admin.patch(&path, json!({"total_limit_nusd": 1_000_000_000})).await;
    assert_eq!(raised["budget"]["total_nusd"], json!(ORDINARY_NUSD));
    chat(&app, &second, MODEL).await.ok();
    app.settled().await;
    assert_eq!(admin.get(&path).await["budget"]["total_nusd"], json!(2 * ORDINARY_NUSD));
    app.finish().await;
}

async fn a_key_expires(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let (key, secret) = admin
        .create_key(&app.account, json!({"name": "k", "expires_at": "2999-01-01T00:00:00+02:00"}))
        .await;
    assert_eq!(key["expires_at"], json!("2998-12-31T22:00:00.000000Z"));
    let path = format!("/keys/{}", text(&key["id"]));
    assert_eq!(status_of(&app, &secret).await, 200);
    admin.patch(&path, json!({"expires_at": soon()})).await;
    eventually("the key expires", async || (status_of(&app, &secret).await == 401).then_some(()))
        .await;
    let rotated = admin.send("POST", &format!("{path}/rotate"), Some(&json!({}))).await;
    assert_refused(&rotated, "it has ended", 400, "", "key");
    admin.patch(&path, json!({"expires_at": null})).await;
    assert_eq!(status_of(&app, &secret).await, 200);
    // An old secret does not outlive its key.
    let rotated = admin.rotate(&text(&key["id"]), 3_600).await;
    admin.patch(&path, json!({"expires_at": soon()})).await;
    eventually("both secrets expire", async || {
        (states(&app, &[&secret, &rotated]).await == [401, 401]).then_some(())
    })
    .await;
    let made = app.create_key("test", &["--expires-in-days", "30"]).await;
    let keys = app.list(&["key", "list", "--account", "test"]).await;
    assert!(keys.last().expect("a key")["expires_at"].is_string(), "{keys:?}");
    assert_eq!(status_of(&app, &made).await, 200);
    app.finish().await;
}

/// A second from now.
fn soon() -> Value {
    let at = OffsetDateTime::now_utc() + Duration::from_secs(1);
    json!(at.format(&Rfc3339).expect("a time of this age"))
}

async fn when_a_key_was_last_used_is_written_down(store: Store) {
    let mut app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let (key, secret) = admin.create_key(&app.account, json!({"name": "used"})).await;
    admin.create_key(&app.account, json!({"name": "unused"})).await;
    let id = text(&key["id"]);
    chat(&app, &secret, MODEL).await.ok();
    assert_eq!(status_of(&app, &secret).await, 200);
    app.settled().await;
    app.sigterm();
    app.stopped().await;
    let keys = app.list(&["key", "list", "--account", "test"]).await;
    let of = |name: &str| keys.iter().find(|key| key["name"] == json!(name)).expect("a key");
    let used = text(&of("used")["last_used_at"]);
    assert_eq!(text(&of("used")["id"]), id);
    assert!(used.ends_with(":00.000000Z"), "to the minute: {used}");
    assert!(used.as_str() >= &text(&key["created_at"])[..16], "{used} {key}");
    assert_eq!(of("unused")["last_used_at"], json!(null));
    app.restart().await;
    app.finish().await;
}
