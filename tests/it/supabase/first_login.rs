//! First logins at the same time: one account and one credit, whatever happens in between.

use futures::future::join_all;
use serde_json::json;
use uuid::Uuid;

use super::server::AuthServer;
use super::sign::{Key, claims};
use super::{assert_refused, models, models_at, setup};
use crate::admin::Admin;
use crate::app::process::Process;
use crate::app::{Setup, Store, TestApp, both_stores, eventually, question};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

both_stores!(
    first_logins_race,
    a_removed_user_stays_out,
    a_removed_member_makes_no_account,
    a_plan_is_given_at_sign_up,
    a_plan_is_given_as_it_is_now,
);

const USERS: usize = 4;
const LOGINS_EACH: usize = 6;

async fn first_logins_race(store: Store) {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(store, &server).env("TOLLGATE_SIGNUP_CREDIT", "0.25").start().await;
    // A SQLite file belongs to one server; PostgreSQL has three here.
    let mut replicas: Vec<(Process, String)> = Vec::new();
    if store == Store::Postgres {
        replicas = vec![app.replica().await, app.replica().await];
    }
    let addresses: Vec<&str> = std::iter::once(app.base_url.as_str())
        .chain(replicas.iter().map(|(_, url)| url.as_str()))
        .collect();
    let users: Vec<Uuid> = (0..USERS).map(|_| Uuid::new_v4()).collect();
    let mut logins = Vec::new();
    for _ in 0..LOGINS_EACH {
        for address in &addresses {
            for user in &users {
                // Each with a token of its own, so that no look-up is shared.
                let token = key.token(&claims(&server.issuer(), *user));
                logins.push(async move { models_at(address, &token).await });
            }
        }
    }
    for got in join_all(logins).await {
        got.ok();
    }
    assert_signed_up_once(&app, &users).await;
    println!(
        "{} first logins of {USERS} users at {} processes: {} accounts, {} credits",
        LOGINS_EACH * USERS * addresses.len(),
        addresses.len(),
        count(&app, "SELECT id FROM accounts WHERE name LIKE 'user:%'").await,
        count(&app, "SELECT seq FROM ledger_entries WHERE reference LIKE 'signup:%'").await,
    );
    app.finish().await;
}

async fn count(app: &TestApp, query: &str) -> usize {
    app.books.rows(query).await.len()
}

async fn assert_signed_up_once(app: &TestApp, users: &[Uuid]) {
    for user in users {
        let account = format!("SELECT id FROM accounts WHERE name = 'user:{user}'");
        assert_eq!(count(app, &account).await, 1, "{user}");
        let member = format!("SELECT account_id FROM members WHERE user_id = '{user}'");
        let members = app.books.rows(&member).await;
        assert_eq!(members.len(), 1, "{user}");
        assert_eq!(members[0]["account_id"], app.books.rows(&account).await[0]["id"]);
        let credit = format!(
            "SELECT amount_nusd, account_id FROM ledger_entries WHERE reference = 'signup:{user}'"
        );
        let credits = app.books.rows(&credit).await;
        assert_eq!(credits.len(), 1, "{user}");
        assert_eq!(credits[0]["amount_nusd"], json!(250_000_000));
        assert_eq!(credits[0]["account_id"], members[0]["account_id"]);
    }
    let all = count(app, "SELECT id FROM accounts").await;
    assert_eq!(all, users.len() + 1, "nothing is left behind by those that came second");
}

/// The answer to a first login's COMMIT is lost: it stands, and the next login finds it.
#[tokio::test]
async fn a_first_login_whose_commit_is_not_told_of_is_not_repeated() {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let setup = setup(Store::Postgres, &server).env("TOLLGATE_SIGNUP_CREDIT", "0.25");
    let app = setup.env("TOLLGATE_DATABASE_SECONDS", "4").proxied().start().await;
    let proxy = app.proxy.as_ref().expect("a proxy");
    let mut users = Vec::new();
    // Another commit may be the one, such as that of the sweep at the start.
    let (refused, token) = loop {
        let user = Uuid::new_v4();
        let token = key.token(&claims(&server.issuer(), user));
        users.push(user);
        proxy.lose(1);
        let got = models(&app, &token).await;
        if got.status != 200 {
            break (got, token);
        }
        assert!(users.len() < 10, "it is never that of a login");
    };
    assert_refused(&refused, 503, "database_unavailable");
    let is_lost = async || (proxy.lost() == users.len()).then_some(());
    eventually("as many answers are lost as were to be", is_lost).await;
    eventually("the user is let in", async || {
        (models(&app, &token).await.status == 200).then_some(())
    })
    .await;
    assert_signed_up_once(&app, &users).await;
    app.finish().await;
}

/// A process that dies in the middle of first logins leaves all or nothing of each.
#[tokio::test]
async fn a_killed_process_leaves_whole_first_logins() {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let mut app = setup(Store::Sqlite, &server).env("TOLLGATE_SIGNUP_CREDIT", "0.25").start().await;
    let users: Vec<Uuid> = (0..40).map(|_| Uuid::new_v4()).collect();
    let tokens: Vec<String> =
        users.iter().map(|user| key.token(&claims(&server.issuer(), *user))).collect();
    let mut asked = Vec::new();
    for token in &tokens {
        asked.push(app.begin(&crate::client::Ask::get("/v1/models").bearer(token)).await);
    }
    eventually("some have signed up", async || {
        (count(&app, "SELECT user_id FROM members").await > 2).then_some(())
    })
    .await;
    app.kill9();
    drop(asked);
    let before = count(&app, "SELECT user_id FROM members").await;
    println!("{before} of {} users had signed up when the process was killed", users.len());
    let half = "SELECT a.id FROM accounts a WHERE a.name LIKE 'user:%' AND (NOT EXISTS \
        (SELECT 1 FROM members m WHERE m.account_id = a.id) OR a.balance_nusd <> 250000000)";
    assert_eq!(count(&app, half).await, 0, "an account without a member or a credit");
    app.restart().await;
    for token in &tokens {
        models(&app, token).await.ok();
    }
    assert_signed_up_once(&app, &users).await;
    app.finish().await;
}

async fn a_removed_user_stays_out(store: Store) {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(store, &server).env("TOLLGATE_SIGNUP_CREDIT", "0.25").start().await;
    let user = Uuid::new_v4();
    models(&app, &key.token(&claims(&server.issuer(), user))).await.ok();
    app.books.tamper(&format!("DELETE FROM members WHERE user_id = '{user}'")).await;
    // A token that nobody has seen: what is remembered of the other lasts some seconds.
    let got = models(&app, &key.token(&claims(&server.issuer(), user))).await;
    assert_refused(&got, 403, "no_account");
    app.finish().await;
}

/// Without a credit and under another name, nothing of the first account keeps them from a second.
async fn a_removed_member_makes_no_account(store: Store) {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(store, &server).start().await;
    let admin = Admin::of(&app).await;
    let (owner, guest) = (Uuid::new_v4(), Uuid::new_v4());
    // A token that nobody has seen: what is remembered of the other lasts some seconds.
    let status = async |user: Uuid| models(&app, &key.token(&claims(&server.issuer(), user))).await;
    status(owner).await.ok();
    let own = format!("SELECT account_id FROM members WHERE user_id = '{owner}'");
    let own = app.books.rows(&own).await.remove(0)["account_id"].clone();
    let own = own.as_str().expect("an id").to_string();
    admin.done(200, "PATCH", &format!("/accounts/{own}"), Some(json!({"name": "acme"}))).await;
    app.cli(&["member", "add", "--account", "test", "--user", &guest.to_string()]).await;
    status(guest).await.ok();

    let members = |account: &str| format!("/accounts/{account}/members");
    for (account, user) in [(&own, owner), (&app.account, guest)] {
        let path = format!("{}/{user}", members(account));
        admin.done(204, "DELETE", &path, None).await;
        for _ in 0..2 {
            assert_refused(&status(user).await, 403, "no_account");
        }
    }
    assert_eq!(app.books.accounts().await.len(), 3, "no account was made");
    // Until somebody lets them in again; and then for as long as they are.
    let body = json!({"user_id": owner.to_string()});
    admin.done(201, "POST", &members(&app.account), Some(body)).await;
    status(owner).await.ok();
    app.books.tamper(&format!("DELETE FROM members WHERE user_id = '{owner}'")).await;
    status(owner).await.ok();
    assert_eq!(app.books.accounts().await.len(), 4, "nobody has removed this one");
    app.finish().await;
}

const PLANS: &str = r#"
[[plan]]
name = "starter"
postpaid = true
limit_usd_per_month = "2"
"#;

async fn a_plan_is_given_at_sign_up(store: Store) {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = Setup::new(store)
        .env("SUPABASE_URL", server.url())
        .env("TOLLGATE_SIGNUP_PLAN", "starter")
        .prices(PLANS)
        .start()
        .await;
    let user = Uuid::new_v4();
    let token = key.token(&claims(&server.issuer(), user));
    app.upstream.script(Answer::openrouter().plain());
    app.ask(&app.chat_ask(&question(MODEL)).bearer(&token)).await.ok();
    app.record().await;
    let account = format!("SELECT kind, plan, limit_nusd FROM accounts WHERE name = 'user:{user}'");
    let account = app.books.rows(&account).await.remove(0);
    let expected = json!({"kind": "postpaid", "plan": "starter", "limit_nusd": 2_000_000_000});
    assert_eq!(account, expected);
    app.finish().await;
}

/// The table is set while the server runs.
async fn a_plan_is_given_as_it_is_now(store: Store) {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let mut app = Setup::new(store).env("SUPABASE_URL", server.url()).start().await;
    let mut admin = Admin::of(&app).await;
    admin.done(200, "PUT", "/price-table", Some(json!({"text": PLANS}))).await;
    app.environment.insert("TOLLGATE_SIGNUP_PLAN".to_owned(), "starter".to_owned());
    app.sigterm();
    app.stopped().await;
    app.restart().await;
    admin.base_url.clone_from(&app.base_url);
    let mut given = Vec::new();
    for limit in ["2", "3"] {
        let plans = PLANS.replace("month = \"2\"", &format!("month = \"{limit}\""));
        admin.done(200, "PUT", "/price-table", Some(json!({"text": plans}))).await;
        let user = Uuid::new_v4();
        models(&app, &key.token(&claims(&server.issuer(), user))).await.ok();
        let account = format!("SELECT limit_nusd FROM accounts WHERE name = 'user:{user}'");
        given.push(app.books.rows(&account).await.remove(0)["limit_nusd"].clone());
    }
    assert_eq!(given, [json!(2_000_000_000_i64), json!(3_000_000_000_i64)]);
    app.finish().await;
}
