//! A user's key reaches nothing of another account: every path and method of the table of routes is
//! tried, with another's ids.

use serde_json::json;

use super::{Admin, NOBODY, chat, text};
use crate::app::{Setup, Store, TestApp, both_stores, question};
use crate::bad_input::assert_refused;
use crate::client::{Answered, Ask};
use crate::openapi::{Operation, routed};
use crate::source::read;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

both_stores!(a_users_key_sees_its_own_account_only, nobody_without_a_key_gets_in);

/// An operation with the ids put into its path.
fn ask_of((method, path): &Operation, account: &str, key: &str) -> Ask {
    let is_key = path.starts_with("/admin/v1/keys/") || path.starts_with("/v1/keys/");
    let first = if is_key { key } else { account };
    let first = if path.starts_with("/v1/models/") { MODEL } else { first };
    let path = path.replacen("{}", first, 1).replacen("{}", NOBODY, 1);
    // Views of usage want to know since when.
    let path = match path.as_str() {
        "/v1/usage.csv" => format!("{path}?start_time=0&end_time=86400"),
        view if view.starts_with("/v1/organization/") || view == "/v1/latency" => {
            format!("{path}?start_time=0")
        }
        _ => path,
    };
    let ask = Ask::new(&method.to_uppercase(), &path);
    let body = match (method.as_str(), path.as_str()) {
        ("get" | "delete", _) => return ask,
        (_, "/v1/chat/completions") => question(MODEL),
        _ => json!({}),
    };
    ask.header("Content-Type", "application/json").body(body.to_string())
}

/// But for what Stripe sends, which is believed by its signature and not by a key, and the
/// console's files, which are everybody's.
fn operations() -> Vec<Operation> {
    let operations = routed(&read("src/routes.rs")).into_iter();
    let has_key = |path: &str| path != "/webhooks/stripe" && !path.starts_with("/console");
    let operations: Vec<_> = operations.filter(|(_, path)| has_key(path)).collect();
    let of_admins = operations.iter().filter(|(_, path)| path.starts_with("/admin/"));
    assert!(of_admins.count() >= 18, "the table of routes was not understood: {operations:?}");
    operations
}

async fn a_users_key_sees_its_own_account_only(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let victim = admin.account("victim-of-leaks").await;
    let new = json!({"name": "victims-key", "day_limit_nusd": 123_456_789});
    let (key, secret) = admin.create_key(&victim, new).await;
    let key = text(&key["id"]);
    let theirs = chat(&app, &secret, MODEL).await;
    theirs.ok();
    app.record().await;
    let before = admin.audit().await;
    let words = [&victim, "victim", &key, "123456789", &theirs.request_id(), &secret[10..40]];

    for operation in operations() {
        let (method, path) = &operation;
        app.upstream.script(Answer::openrouter().plain());
        let got: Answered = app.ask(&ask_of(&operation, &victim, &key).bearer(&app.key)).await;
        let kept = ["/admin/", "/v1/billing/", "/v1/keys", "/metrics"];
        let is_open = !kept.iter().any(|start| path.starts_with(start));
        if is_open {
            assert_eq!(got.status, 200, "{method} {path}: {}", got.text());
        } else {
            let what = format!("{method} {path}");
            assert_refused(&got, &what, 403, "insufficient_permissions", "");
        }
        let said = format!("{:?} {}", got.headers, got.text());
        for word in words {
            assert!(!said.contains(word), "{method} {path} tells {word}: {said}");
        }
    }
    // Its own account is no exception: that is not this API's to show to users.
    let own = app.get(&format!("/admin/v1/accounts/{}", app.account)).await;
    assert_refused(&own, "its own", 403, "insufficient_permissions", "");
    // The very same requests of an admin's key are answered otherwise: the paths are right.
    for operation in operations() {
        let got = app.ask(&ask_of(&operation, &victim, &key).bearer(&admin.key)).await;
        assert!(![401, 403, 405].contains(&got.status), "{operation:?}: {}", got.text());
    }
    assert_ne!(admin.audit().await, before, "the admin's requests did something");
    assert_eq!(app.books.entries().await.iter().filter(|e| e.account_id == victim).count(), 2);
    app.finish().await;
}

async fn nobody_without_a_key_gets_in(store: Store) {
    let patient = Setup::new(store).env("TOLLGATE_AUTH_FAILURES_PER_MINUTE", "1000000");
    let app = patient.start().await;
    let admin = Admin::of(&app).await;
    let (key, secret) = admin.create_key(&app.account, json!({"name": "k", "role": "admin"})).await;
    let key = text(&key["id"]);
    let before = admin.audit().await;
    assert_eq!(admin.get("/audit?limit=100").await["data"], json!(before));
    let made = app.ask(&Ask::get("/admin/v1/accounts").bearer(&secret)).await;
    assert_eq!(made.status, 200, "an admin's key is as good as a service's: {}", made.text());
    admin.done(200, "DELETE", &format!("/keys/{key}"), None).await;
    let before = admin.audit().await;
    for operation in operations() {
        let (method, path) = &operation;
        if path.ends_with('z') {
            continue;
        }
        let what = format!("{method} {path}");
        let ask = ask_of(&operation, &app.account, &key);
        let got = app.ask(&ask).await;
        assert_refused(&got, &what, 401, "", "");
        assert_eq!(got.json()["error"]["code"], json!(null), "{what}");
        for wrong in [secret.as_str(), "sk-tg-wrong", "eyJhbGciOiJub25lIn0.e30."] {
            let got = app.ask(&ask.clone().bearer(wrong)).await;
            assert_eq!(got.status, 401, "{what}: {}", got.text());
            assert!(!got.text().contains(&app.account), "{what}: {}", got.text());
        }
    }
    assert_eq!(admin.audit().await, before, "nothing was changed");
    app.assert_untouched().await;
    app.finish().await;
}
