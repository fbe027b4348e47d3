//! Users of Supabase: who is let in, what a first login makes, and what happens while the auth
//! server or the database is away.

mod bad_tokens;
mod first_login;
mod outages;
pub mod server;
pub mod sign;

use serde_json::json;
use uuid::Uuid;

use crate::admin::Admin;
use crate::app::{Setup, Store, TestApp, address_of, both_stores, eventually, question, streamed};
use crate::client::{Answered, Ask, Exchange};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use server::AuthServer;
use sign::{Key, claims, encoded, with};

both_stores!(
    a_user_signs_in_asks_and_pays,
    every_algorithm_of_a_project_is_accepted,
    without_sign_up_a_user_needs_an_account,
    members_share_an_account,
    a_suspended_account_is_refused,
);

/// The secret of Supabase's local stack.
const SECRET: &str = "super-secret-jwt-token-with-at-least-32-characters-long";

pub fn setup(store: Store, server: &AuthServer) -> Setup {
    Setup::new(store).env("SUPABASE_URL", server.url())
}

async fn models(app: &TestApp, token: &str) -> Answered {
    app.ask(&Ask::get("/v1/models").bearer(token)).await
}

/// The same of another process.
async fn models_at(base_url: &str, token: &str) -> Answered {
    let ask = Ask::get("/v1/models").bearer(token);
    Exchange::open(address_of(base_url), &ask.bytes()).await.finish().await
}

pub async fn chat(app: &TestApp, token: &str) -> Answered {
    app.ask(&app.chat_ask(&question(MODEL)).bearer(token)).await
}

#[track_caller]
fn assert_refused(got: &Answered, status: u16, code: &str) {
    assert_eq!(got.status, status, "{}", got.text());
    let body = got.json();
    assert_eq!(body["error"]["code"], json!(code), "{body}");
    let members: Vec<_> = body["error"].as_object().expect("an envelope").keys().collect();
    assert_eq!(members.len(), 4, "{body}");
    let retry = got.header("retry-after").and_then(|text| text.parse::<u64>().ok());
    assert_eq!(retry.is_some(), [429, 503].contains(&status), "{:?}", got.headers);
}

async fn a_user_signs_in_asks_and_pays(store: Store) {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(store, &server).env("TOLLGATE_SIGNUP_CREDIT", "1.50").start().await;
    let user = Uuid::new_v4();
    let token = key.token(&claims(&server.issuer(), user));
    app.upstream.script(Answer::openrouter().plain());
    let got = chat(&app, &token).await;
    got.ok();
    let record = app.record_of(&got).await;
    assert_eq!(record.user_id, Some(user.to_string()));
    assert_eq!(record.api_key_id, None);

    // Another token of the same user.
    let token = key.token(&claims(&server.issuer(), user));
    app.upstream.script(Answer::openrouter().stream());
    app.ask(&app.chat_ask(&streamed(MODEL)).bearer(&token)).await.ok();
    app.records(2).await;
    let accounts = app.books.accounts().await;
    let own = accounts.iter().find(|account| account.id == record.account_id);
    let own = own.expect("the user's account");
    assert_eq!(own.name, format!("user:{user}"));
    assert!(own.balance_nusd < 1_500_000_000, "it pays: {own:?}");
    assert_eq!(accounts.len(), 2, "{accounts:?}");
    let audit = app.books.rows("SELECT actor, action FROM audit_log ORDER BY id").await;
    let by_user = audit.iter().filter(|row| row["actor"] == json!(own.name));
    let actions: Vec<_> = by_user.filter_map(|row| row["action"].as_str()).collect();
    assert_eq!(actions.len(), 3, "{audit:?}");
    for action in ["account.create", "member.create", "credit.enter"] {
        assert!(actions.contains(&action), "{audit:?}");
    }
    // A key's record has no user.
    app.upstream.script(Answer::openrouter().plain());
    let got = app.chat(&question(MODEL)).await;
    assert_eq!(app.record_of(&got).await.user_id, None);
    app.finish().await;
}

async fn every_algorithm_of_a_project_is_accepted(store: Store) {
    let keys = [Key::es256("new"), Key::rs256("old")];
    let legacy = Key::hs256(SECRET);
    let server = AuthServer::with(&[&keys[0], &keys[1]]).await;
    let app = setup(store, &server).env("SUPABASE_JWT_SECRET", SECRET).start().await;
    let user = claims(&server.issuer(), Uuid::new_v4());
    for key in keys.iter().chain([&legacy]) {
        models(&app, &key.token(&user)).await.ok();
    }
    // Tokens of the legacy secret may have no key id.
    let bare = legacy.signed(&json!({"alg": "HS256", "typ": "JWT"}), &user.to_string());
    models(&app, &bare).await.ok();
    let several = with(user, &json!({"aud": ["other", "authenticated"], "iat": null}));
    models(&app, &keys[0].token(&several)).await.ok();
    app.finish().await;
}

async fn without_sign_up_a_user_needs_an_account(store: Store) {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(store, &server).env("TOLLGATE_SIGNUP", "off").start().await;
    let user = Uuid::new_v4();
    let token = key.token(&claims(&server.issuer(), user));
    assert_refused(&models(&app, &token).await, 403, "no_account");
    add_member(&app, user).await;
    // Another process has changed the members: a token that was not seen before at once, the
    // other one when it is asked after again.
    eventually("the member is let in", async || {
        (models(&app, &token).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(app.books.accounts().await.len(), 1);
    app.finish().await;
}

/// Into the test's account, as an operator's tool would.
pub async fn add_member(app: &TestApp, user: Uuid) {
    let account = &app.account;
    app.books
        .tamper(&format!(
            "INSERT INTO members (user_id, account_id, created_at) \
             VALUES ('{user}', '{account}', '2026-11-24T12:00:00.000000Z')"
        ))
        .await;
}

async fn members_share_an_account(store: Store) {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(store, &server).env("TOLLGATE_SIGNUP_CREDIT", "1").start().await;
    let users = [Uuid::new_v4(), Uuid::new_v4()];
    for user in users {
        add_member(&app, user).await;
    }
    for user in users {
        app.upstream.script(Answer::openrouter().plain());
        chat(&app, &key.token(&claims(&server.issuer(), user))).await.ok();
    }
    let records = app.records(2).await;
    let by: Vec<_> = records.iter().filter_map(|record| record.user_id.clone()).collect();
    assert_eq!(by, users.map(|user| user.to_string()), "{records:?}");
    assert!(records.iter().all(|record| record.account_id == app.account), "{records:?}");
    let credits = app.books.entries().await.into_iter().filter(|entry| entry.kind == "credit");
    assert_eq!(credits.count(), 1, "who has an account signs up for none");
    app.finish().await;
}

async fn a_suspended_account_is_refused(store: Store) {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(store, &server).start().await;
    let user = Uuid::new_v4();
    add_member(&app, user).await;
    app.books.tamper("UPDATE accounts SET status = 'suspended'").await;
    let got = chat(&app, &key.token(&claims(&server.issuer(), user))).await;
    assert_refused(&got, 403, "account_suspended");
    app.assert_untouched().await;
    app.finish().await;
}

#[tokio::test]
async fn another_audience_may_be_asked_for() {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(Store::Sqlite, &server).env("SUPABASE_AUDIENCE", "tollgate").start().await;
    let user = claims(&server.issuer(), Uuid::new_v4());
    let of =
        |audience: serde_json::Value| key.token(&with(user.clone(), &json!({"aud": audience})));
    assert_refused(&models(&app, &of(json!("authenticated"))).await, 401, "invalid_token");
    models(&app, &of(json!("tollgate"))).await.ok();
    models(&app, &of(json!(["authenticated", "tollgate"]))).await.ok();
    app.finish().await;
}

#[tokio::test]
async fn too_many_failures_are_refused_and_who_is_known_goes_on() {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(Store::Sqlite, &server)
        .env("TOLLGATE_AUTH_FAILURES_PER_MINUTE", "3")
        .env("TOLLGATE_TRUSTED_PROXIES", "127.0.0.0/8")
        .start()
        .await;
    let ask = async |token: &str, said: &str| {
        let ask = Ask::get("/v1/models").bearer(token).header("X-Forwarded-For", said);
        app.ask(&ask).await
    };
    let (bad, here) = (format!("{0}.{0}.{0}", encoded("{}")), "192.0.2.1");
    ask(&app.key, here).await.ok();
    for _ in 0..3 {
        assert_refused(&ask(&bad, here).await, 401, "invalid_token");
    }
    let refused = ask(&bad, here).await;
    assert_refused(&refused, 429, "too_many_failures");
    let good = key.token(&claims(&server.issuer(), Uuid::new_v4()));
    assert_refused(&ask(&good, here).await, 429, "too_many_failures");
    // What the client itself put before the proxy's word counts for nothing.
    assert_refused(&ask(&good, &format!("192.0.2.9, {here}")).await, 429, "too_many_failures");
    ask(&app.key, here).await.ok();
    ask(&good, "192.0.2.2").await.ok();
    ask(&good, here).await.ok();
    // Also when everybody is asked after again.
    let admin = Admin::of(&app).await;
    admin.done(201, "POST", "/accounts", Some(json!({"name": "news"}))).await;
    ask(&app.key, here).await.ok();
    assert_refused(&ask(&bad, here).await, 429, "too_many_failures");
    app.finish().await;
}

#[tokio::test]
async fn nobody_but_a_trusted_proxy_chooses_the_address() {
    let app = Setup::new(Store::Sqlite).env("TOLLGATE_AUTH_FAILURES_PER_MINUTE", "3").start().await;
    for attempt in 0..6 {
        let said = format!("192.0.2.{attempt}");
        let ask = Ask::get("/v1/models").bearer("sk-tg-wrong").header("X-Forwarded-For", &said);
        let got = app.ask(&ask).await;
        assert_eq!(got.status, if attempt < 3 { 401 } else { 429 }, "{}", got.text());
    }
    app.finish().await;
}

#[tokio::test]
async fn nothing_secret_is_logged() {
    let keys = [Key::es256("one"), Key::es256("stranger")];
    let server = AuthServer::with(&[&keys[0]]).await;
    let app = setup(Store::Sqlite, &server)
        .env("SUPABASE_JWT_SECRET", SECRET)
        .env("TOLLGATE_LOG", "debug")
        .start()
        .await;
    let claims = claims(&server.issuer(), Uuid::new_v4());
    let mut tokens: Vec<String> = keys.iter().map(|key| key.token(&claims)).collect();
    tokens.push(keys[0].token(&with(claims.clone(), &json!({"exp": 1}))));
    tokens.push(Key::hs256("another secret that is long enough").token(&claims));
    let statuses = [200, 401, 401, 401];
    for (token, status) in tokens.iter().zip(statuses) {
        assert_eq!(models(&app, token).await.status, status);
    }
    let log = app.process.stderr();
    assert!(log.contains("request refused"), "the log tells of it: {log}");
    for token in &tokens {
        for part in token.split('.') {
            assert!(!log.contains(part), "a part of a token is in the log");
        }
    }
    for secret in [SECRET, "user@example.com", app.key.as_str()] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    let shown = app.cli(&["config"]).await;
    assert!(shown.contains("SUPABASE_JWT_SECRET=***"), "{shown}");
    app.finish().await;
}

#[tokio::test]
async fn what_cannot_work_stops_the_start() {
    let mut app = TestApp::start(Store::Sqlite).await;
    for (name, value) in [
        ("SUPABASE_URL", "http://project.example"),
        ("SUPABASE_JWKS_URL", "https://project.example/keys"),
        ("SUPABASE_JWT_SECRET", SECRET),
        ("SUPABASE_ISSUER", "https://project.example/auth/v1"),
        ("TOLLGATE_SIGNUP_CREDIT", "lots"),
        ("TOLLGATE_SIGNUP_CREDIT", "-1"),
        ("TOLLGATE_SIGNUP", "maybe"),
        ("TOLLGATE_TRUSTED_PROXIES", "everybody"),
    ] {
        let ended = app.try_cli_with(&["config"], name, value).await;
        assert!(!ended.status.success(), "{name}={value}: {ended:?}");
        assert!(ended.stderr.contains(name), "{name}={value}: {ended:?}");
    }
    // The file belongs to one server.
    app.kill9();
    let ended = app.try_cli_with(&["serve"], "TOLLGATE_SIGNUP_PLAN", "nowhere").await;
    assert!(ended.stderr.contains("TOLLGATE_SIGNUP_PLAN"), "{ended:?}");
    app.finish().await;
}
