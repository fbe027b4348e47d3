//! Changes at the same time: none is lost, none undoes another, and the audit log tells each as it
//! was.

use std::collections::BTreeSet;

use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};

use super::{Admin, chat, status_of, text};
use crate::app::{Store, TestApp, both_stores, eventually};
use crate::client::Exchange;
use crate::upstream::catalog::MODEL;

both_stores!(
    changes_of_one_key_do_not_undo_each_other,
    every_secret_of_rotations_at_once_was_the_keys,
    one_reference_is_entered_once,
    a_member_is_somebodys,
    every_table_of_prices_has_its_version,
);

/// Each entry begins where the one before it ended.
#[track_caller]
fn assert_chained(entries: &[Value]) {
    for pair in entries.windows(2) {
        assert_eq!(pair[0]["after"], pair[1]["before"], "{pair:#?}");
    }
}

async fn told(admin: &Admin, action: &str) -> Vec<Value> {
    let audit = admin.audit().await;
    audit.into_iter().filter(|entry| entry["action"] == json!(action)).collect()
}

async fn changes_of_one_key_do_not_undo_each_other(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let (key, secret) = admin.create_key(&app.account, json!({"name": "k"})).await;
    let path = format!("/keys/{}", text(&key["id"]));
    let members = [
        "requests_per_minute",
        "tokens_per_minute",
        "concurrent_requests",
        "day_limit_nusd",
        "week_limit_nusd",
        "month_limit_nusd",
        "total_limit_nusd",
    ];
    let patches = members.iter().map(|member| admin.patch(&path, json!({*member: 1_000_000})));
    let ((), _) = tokio::join!(
        async { drop(join_all(patches).await) },
        admin.done(200, "DELETE", &path, None),
    );
    let row = admin.get(&path).await;
    for member in members {
        let value = row.get(member).unwrap_or(&row["budget"][member]);
        assert_eq!(value, &json!(1_000_000), "{member} was undone: {row}");
    }
    assert!(row["revoked_at"].is_string(), "the revocation was undone: {row}");
    assert_eq!(status_of(&app, &secret).await, 401);
    let mut entries = told(&admin, "key.update").await;
    entries.extend(told(&admin, "key.revoke").await);
    assert_eq!(entries.len(), members.len() + 1, "one entry each");
    // Ids are made before the row is locked, so the order is that of the states themselves.
    let befores: BTreeSet<_> = entries.iter().map(|entry| entry["before"].to_string()).collect();
    let afters: BTreeSet<_> = entries.iter().map(|entry| entry["after"].to_string()).collect();
    assert_eq!(befores.len(), entries.len(), "two changes of one state: {entries:#?}");
    assert_eq!(befores.symmetric_difference(&afters).count(), 2, "no chain: {entries:#?}");
    app.finish().await;
}

async fn every_secret_of_rotations_at_once_was_the_keys(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let (key, first) = admin.create_key(&app.account, json!({"name": "k"})).await;
    let id = text(&key["id"]);
    let secrets = join_all((0..6).map(|_| admin.rotate(&id, 3_600))).await;
    assert_eq!(secrets.iter().collect::<BTreeSet<_>>().len(), 6);
    let mut working = Vec::new();
    for secret in &secrets {
        working.extend((status_of(&app, secret).await == 200).then_some(secret));
    }
    assert_eq!(working.len(), 2, "the last two of six, in whatever order they came");
    assert_eq!(status_of(&app, &first).await, 401);
    app.finish().await;
}

async fn one_reference_is_entered_once(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let (first, second) = (admin.account("first").await, admin.account("second").await);
    let credit = json!({"amount_nusd": 1_000, "reason": "one invoice", "reference": "inv-1"});
    let paths: Vec<String> = (0..12)
        .map(|number| format!("/accounts/{}/credits", [&first, &second][number % 2]))
        .collect();
    let sent = paths.iter().map(|path| admin.send("POST", path, Some(&credit)));
    let mut statuses: Vec<u16> = join_all(sent).await.iter().map(|got| got.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [[201].as_slice(), &[409; 11]].concat());
    let entered = app.books.entries().await;
    assert_eq!(entered.iter().filter(|entry| entry.amount_nusd == 1_000).count(), 1);
    let told = told(&admin, "credit.enter").await;
    let told = told.iter().filter(|entry| entry["after"]["amount_nusd"] == json!(1_000));
    assert_eq!(told.count(), 1, "what was refused is not in the log");
    app.finish().await;
}

async fn a_member_is_somebodys(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let mut paths = Vec::new();
    for name in ["a", "b", "c", "d"] {
        paths.push(format!("/accounts/{}/members", admin.account(name).await));
    }
    let user = json!({"user_id": "7b1c9ad2-6b1e-4c57-9d0c-0f6f2b1f6a01"});
    join_all(paths.iter().map(|path| admin.create(path, user.clone()))).await;
    let entries = told(&admin, "member.add").await;
    assert_eq!(entries.len(), paths.len());
    let firsts = entries.iter().filter(|entry| entry["before"].is_null());
    assert_eq!(firsts.count(), 1, "only one found nobody: {entries:#?}");
    let lists = join_all(paths.iter().map(|path| admin.all(path, 10))).await;
    assert_eq!(lists.concat().len(), 1, "one account in the end");
    app.finish().await;
}

async fn every_table_of_prices_has_its_version(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let tables = (1..=5).map(|factor| {
        let text = format!("[[markup]]\nmodel = \"*\"\nfactor = \"{factor}\"\n");
        admin.done(200, "PUT", "/price-table", Some(json!({"text": text})))
    });
    let answers = join_all(tables).await;
    let versions = answers.iter().filter_map(|answer| answer["table"]["version"].as_i64());
    assert_eq!(versions.collect::<BTreeSet<_>>(), (1..=5).collect());
    let mut entries = told(&admin, "price_table.set").await;
    entries.sort_by_key(|entry| entry["after"]["version"].as_i64());
    assert_chained(&entries);
    let last = answers.iter().max_by_key(|answer| answer["table"]["version"].as_i64());
    assert_eq!(Some(&admin.get("/price-table").await), last);
    app.finish().await;
}

/// Whoever reads the books, and however long that takes, keeps nobody's hold waiting.
#[tokio::test]
async fn readers_that_hang_keep_no_hold_waiting() {
    let app = TestApp::start(Store::Postgres).await;
    let admin = Admin::of(&app).await;
    admin.audit().await;
    chat(&app, &app.key, MODEL).await.ok();
    let mut lock = PgConnection::connect(&app.database_url()).await.expect("a connection");
    lock.execute("BEGIN; LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE").await.expect("a lock");
    let request = admin.request("GET", "/audit", None).bytes();
    let readers = join_all((0..20).map(|_| Exchange::open(app.address(), &request))).await;
    eventually("readers hang", async || {
        let waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND database = \
                       (SELECT oid FROM pg_database WHERE datname = current_database())";
        (app.books.rows(waiting).await.len() >= 3).then_some(())
    })
    .await;
    chat(&app, &app.key, MODEL).await.ok();
    lock.execute("ROLLBACK").await.expect("it is given back");
    for reader in readers {
        let got = reader.finish().await;
        assert!([200, 503].contains(&got.status), "{}: {}", got.status, got.text());
    }
    app.finish().await;
}
