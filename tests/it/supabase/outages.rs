//! The auth server away, its keys changing, and the database away: who is known goes on, and who
//! cannot be told is asked to come back.

use serde_json::json;
use uuid::Uuid;

use super::server::{AuthServer, Manner, published};
use super::sign::{Key, claims};
use super::{assert_refused, models, setup};
use crate::admin::Admin;
use crate::app::{Store, TestApp, both_stores, eventually};

both_stores!(keys_rotate, an_auth_server_that_is_away_takes_nobody_out);

fn token(key: &Key, server: &AuthServer) -> String {
    key.token(&claims(&server.issuer(), Uuid::new_v4()))
}

async fn keys_rotate(store: Store) {
    let (old, new) = (Key::es256("old"), Key::es256("new"));
    let server = AuthServer::with(&[&old]).await;
    let app = setup(store, &server).start().await;
    models(&app, &token(&old, &server)).await.ok();
    assert_eq!(server.fetches(), 1);
    server.publish(&[&new]);
    models(&app, &token(&old, &server)).await.ok();
    assert_eq!(server.fetches(), 1, "a known key asks nothing");
    models(&app, &token(&new, &server)).await.ok();
    assert_eq!(server.fetches(), 2, "an unknown key does");
    // The old one is not in the new set: it was revoked.
    assert_refused(&models(&app, &token(&old, &server)).await, 401, "invalid_token");
    for _ in 0..5 {
        let stranger = Key::es256("stranger");
        assert_refused(&models(&app, &token(&stranger, &server)).await, 401, "invalid_token");
    }
    assert_eq!(server.fetches(), 2, "strangers cannot make us ask again and again");
    app.finish().await;
}

async fn an_auth_server_that_is_away_takes_nobody_out(store: Store) {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(store, &server).start().await;
    models(&app, &token(&key, &server)).await.ok();
    for manner in [Manner::Answers(500, "no".to_string()), Manner::HangsUp] {
        server.now(manner);
        models(&app, &token(&key, &server)).await.ok();
    }
    // It may be a new key of the project: that can only be told when the server is back.
    let unknown = token(&Key::es256("unknown"), &server);
    assert_refused(&models(&app, &unknown).await, 503, "auth_server_unavailable");
    models(&app, &token(&key, &server)).await.ok();
    app.finish().await;
}

/// Without a set of keys nobody can be told from anybody.
#[tokio::test]
async fn an_auth_server_that_was_never_there_is_a_503() {
    let key = Key::es256("one");
    for manner in [
        Manner::Answers(503, "{}".to_string()),
        Manner::Answers(200, "<html>".to_string()),
        Manner::Answers(200, "{\"keys\": 7}".to_string()),
        Manner::Answers(200, format!("{{\"keys\": [], \"x\": \"{}\"}}", "x".repeat(1 << 20))),
        Manner::Answers(302, String::new()),
        Manner::HangsUp,
        Manner::Stalls,
    ] {
        let server = AuthServer::start(manner).await;
        let app = setup(Store::Sqlite, &server).start().await;
        let token = token(&key, &server);
        assert_refused(&models(&app, &token).await, 503, "auth_server_unavailable");
        app.get("/v1/models").await.ok();
        server.publish(&[&key]);
        eventually("the server is back", async || {
            (models(&app, &token).await.status == 200).then_some(())
        })
        .await;
        app.finish().await;
    }
}

/// A project that signs with a secret publishes no key; that is no outage.
#[tokio::test]
async fn an_empty_set_is_not_an_outage() {
    let server = AuthServer::start(published(&[])).await;
    let app = setup(Store::Sqlite, &server).env("SUPABASE_JWT_SECRET", super::SECRET).start().await;
    models(&app, &token(&Key::hs256(super::SECRET), &server)).await.ok();
    let got = models(&app, &token(&Key::es256("one"), &server)).await;
    assert_refused(&got, 401, "invalid_token");
    app.finish().await;
}

/// Requests at the same time wait for one fetch.
#[tokio::test]
async fn many_first_requests_make_one_fetch() {
    let key = Key::es256("one");
    let server = AuthServer::start(Manner::Answers(500, String::new())).await;
    let app = setup(Store::Sqlite, &server).start().await;
    let before = server.fetches();
    server.now(Manner::Stalls);
    let asked: Vec<String> = (0..10).map(|_| token(&key, &server)).collect();
    let asked = asked.iter().map(|token| models(&app, token));
    for got in futures::future::join_all(asked).await {
        assert_refused(&got, 503, "auth_server_unavailable");
    }
    assert!(server.fetches() <= before + 2, "{} fetches", server.fetches() - before);
    app.finish().await;
}

async fn revoked_key(app: &TestApp) -> String {
    let key = app.create_key("test", &[]).await;
    models(app, &key).await.ok();
    let keys = app.list(&["key", "list", "--account", "test"]).await;
    let ids = keys.iter().filter_map(|row| row["id"].as_str());
    app.cli(&["key", "revoke", ids.max().expect("two keys")]).await;
    eventually("the running server notices", async || {
        (models(app, &key).await.status == 401).then_some(())
    })
    .await;
    key
}

/// Known, and then ended by the running server, which nobody has asked for it since.
async fn ended_key(app: &TestApp) -> String {
    let key = app.create_key("test", &[]).await;
    models(app, &key).await.ok();
    let keys = app.list(&["key", "list", "--account", "test"]).await;
    let id = keys.iter().filter_map(|row| row["id"].as_str()).max().expect("some keys");
    Admin::of(app).await.done(200, "DELETE", &format!("/keys/{id}"), None).await;
    key
}

#[tokio::test]
async fn who_is_known_goes_on_without_the_database() {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(Store::Postgres, &server)
        .env("TOLLGATE_DATABASE_SECONDS", "3")
        .env("TOLLGATE_AUTH_FAILURES_PER_MINUTE", "0")
        .proxied()
        .start()
        .await;
    let revoked = revoked_key(&app).await;
    let ended = ended_key(&app).await;
    let unseen = app.create_key("test", &[]).await;
    let (known, stranger) = (token(&key, &server), token(&key, &server));
    models(&app, &known).await.ok();
    app.get("/v1/models").await.ok();
    let proxy = app.proxy.as_ref().expect("a proxy");
    proxy.cut();
    for who in [&app.key, &known] {
        let before = said(&app);
        eventually("it is let in when it is asked after again", async || {
            models(&app, who).await.ok();
            (said(&app) > before).then_some(())
        })
        .await;
    }
    for unknown in [&unseen, &stranger] {
        assert_refused(&models(&app, unknown).await, 503, "database_unavailable");
    }
    assert_refused(&models(&app, &ended).await, 503, "database_unavailable");
    let got = models(&app, &revoked).await;
    assert!([401, 503].contains(&got.status), "never let in again: {}", got.text());
    assert_refused(&models(&app, "sk-tg-wrong").await, 401, "invalid_api_key");
    let forged = Key::es256("one").token(&claims(&server.issuer(), Uuid::new_v4()));
    assert_refused(&models(&app, &forged).await, 401, "invalid_token");
    proxy.mend();
    for unknown in [&unseen, &stranger] {
        eventually("the database is back", async || {
            (models(&app, unknown).await.status == 200).then_some(())
        })
        .await;
    }
    app.finish().await;
}

/// Who was known so far: by a secret that a second rotation has ended, or as a member.
#[tokio::test]
async fn who_was_ended_lately_does_not_go_on_without_the_database() {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(Store::Postgres, &server)
        .env("TOLLGATE_DATABASE_SECONDS", "3")
        .proxied()
        .start()
        .await;
    let admin = Admin::of(&app).await;
    let first = app.create_key("test", &[]).await;
    let keys = app.list(&["key", "list", "--account", "test"]).await;
    let id = keys.iter().filter_map(|row| row["id"].as_str()).max().expect("some keys");
    let rotate = async || {
        let path = format!("/keys/{id}/rotate");
        let body = json!({"overlap_seconds": 3_600});
        let rotated = admin.done(200, "POST", &path, Some(body)).await;
        rotated["secret"].as_str().expect("a secret").to_string()
    };
    let user = Uuid::new_v4();
    app.cli(&["member", "add", "--account", "test", "--user", &user.to_string()]).await;
    let member = key.token(&claims(&server.issuer(), user));
    let second = rotate().await;
    for who in [&first, &second, &member, &app.key] {
        models(&app, who).await.ok();
    }
    let third = rotate().await;
    let path = format!("/accounts/{}/members/{user}", app.account);
    admin.done(204, "DELETE", &path, None).await;
    models(&app, &third).await.ok();
    app.get("/v1/models").await.ok();
    let proxy = app.proxy.as_ref().expect("a proxy");
    proxy.cut();
    for who in [&app.key, &third] {
        models(&app, who).await.ok();
    }
    for who in [&first, &member] {
        assert_refused(&models(&app, who).await, 503, "database_unavailable");
    }
    proxy.mend();
    app.finish().await;
}

/// How often somebody was let in without being asked after.
fn said(app: &TestApp) -> usize {
    app.process.stderr().matches("goes on without the database").count()
}

#[tokio::test]
async fn nobody_goes_on_without_the_database_for_ever() {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(Store::Postgres, &server)
        .env("TOLLGATE_DATABASE_SECONDS", "3")
        .env("TOLLGATE_STALE_IDENTITY_SECONDS", "2")
        .proxied()
        .start()
        .await;
    let known = token(&key, &server);
    models(&app, &known).await.ok();
    app.get("/v1/models").await.ok();
    let proxy = app.proxy.as_ref().expect("a proxy");
    proxy.cut();
    for who in [&app.key, &known] {
        let refused = eventually("its time is over", async || {
            let got = models(&app, who).await;
            (got.status != 200).then_some(got)
        })
        .await;
        assert_refused(&refused, 503, "database_unavailable");
    }
    proxy.mend();
    app.finish().await;
}
