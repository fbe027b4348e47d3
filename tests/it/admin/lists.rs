//! Lists are pages, and can be followed to their end without loss or repetition.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Admin, NOBODY, ORDINARY_NUSD, chat, text};
use crate::app::{Store, TestApp, both_stores};
use crate::bad_input::assert_refused;
use crate::upstream::catalog::MODEL;

both_stores!(
    usage_and_ledger_page_to_their_end,
    every_list_is_paged,
    a_list_longer_than_the_store_reads_at_once,
    pages_that_are_none,
);

/// The same rows, whatever the size of the pages.
async fn read_twice(admin: &Admin, path: &str) -> Vec<Value> {
    let rows = admin.all(path, 2).await;
    assert_eq!(rows, admin.all(path, 100).await, "{path}");
    rows
}

fn column(rows: &[Value], member: &str) -> Vec<Value> {
    rows.iter().map(|row| row[member].clone()).collect()
}

async fn usage_and_ledger_page_to_their_end(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let (_, other) = admin.create_key(&admin.account("other").await, json!({"name": "k"})).await;
    for number in 0..7 {
        chat(&app, &app.key, MODEL).await.ok();
        if number % 2 == 0 {
            chat(&app, &other, MODEL).await.ok();
        }
    }
    let records = app.records(11).await;
    let own = records.iter().filter(|record| record.account_id == app.account);
    let expected: Vec<Value> = own.map(|record| json!(record.id)).collect();
    let usage = read_twice(&admin, &format!("/accounts/{}/usage", app.account)).await;
    assert_eq!(column(&usage, "id"), expected);
    assert_eq!(usage[0]["charge_nusd"], json!(ORDINARY_NUSD));
    assert_eq!(usage[0]["streamed"], json!(false), "a boolean on either store");
    let ledger = read_twice(&admin, &format!("/accounts/{}/ledger", app.account)).await;
    assert_eq!(column(&ledger, "seq"), (1..=8).map(Value::from).collect::<Vec<_>>());
    assert_eq!(json!(column(&ledger[1..], "request_id")), json!(expected));
    // A page that ends where the list does says so.
    let whole = admin.get(&format!("/accounts/{}/ledger?limit=8", app.account)).await;
    assert_eq!((&whole["has_more"], &whole["first_id"]), (&json!(false), &json!("1")), "{whole}");
    let beyond = admin.get(&format!("/accounts/{}/ledger?after=8", app.account)).await;
    assert_eq!(beyond["data"], json!([]));
    assert_eq!((&beyond["last_id"], &beyond["has_more"]), (&json!(null), &json!(false)));
    app.finish().await;
}

async fn every_list_is_paged(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    for number in 0..5 {
        let account = admin.account(&format!("account {number}")).await;
        admin.create_key(&app.account, json!({"name": format!("key {number}")})).await;
        let user = json!({"user_id": Uuid::now_v7().to_string()});
        admin.create(&format!("/accounts/{}/members", app.account), user).await;
        assert!(!account.is_empty());
    }
    let names =
        |rows: &[Value]| -> Vec<String> { rows.iter().map(|row| text(&row["name"])).collect() };
    let accounts = read_twice(&admin, "/accounts").await;
    assert_eq!(names(&accounts)[..3], ["test", "house", "account 0"]);
    assert_eq!(accounts.len(), 7);
    let keys = read_twice(&admin, &format!("/accounts/{}/keys", app.account)).await;
    assert_eq!(names(&keys)[1..], ["key 0", "key 1", "key 2", "key 3", "key 4"]);
    assert_eq!(read_twice(&admin, &format!("/accounts/{}/members", app.account)).await.len(), 5);
    let prices = read_twice(&admin, "/prices").await;
    let models = column(&prices, "model");
    assert!(models.is_sorted_by_key(Value::to_string), "{models:?}");
    assert!(models.contains(&json!(MODEL)) && models.len() >= 4, "{models:?}");
    assert_eq!(prices[0]["plan"], json!(""));
    read_twice(&admin, "/audit").await;
    let usual = admin.get("/audit").await;
    assert_eq!(usual["data"].as_array().map(Vec::len), Some(20), "the usual limit");
    app.finish().await;
}

async fn a_list_longer_than_the_store_reads_at_once(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let before = admin.audit().await.len();
    let rows = (0..1_050).map(|number| {
        let id = Uuid::now_v7();
        format!("('{id}', 'test', 'test.row', '{number}', '2026-11-24T00:00:00.000000Z')")
    });
    let rows = rows.collect::<Vec<_>>().join(", ");
    let insert = "INSERT INTO audit_log (id, actor, action, subject, created_at) VALUES";
    app.books.tamper(&format!("{insert} {rows}")).await;
    let audit = admin.audit().await.split_off(before);
    let expected = (0..1_050).map(|number| json!(number.to_string()));
    assert_eq!(column(&audit, "subject"), expected.collect::<Vec<_>>());
    let listed = app.list(&["audit", "list"]).await;
    assert_eq!(listed.len(), before + 1_050, "the command reads on as well");
    app.finish().await;
}

async fn pages_that_are_none(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let account = format!("/accounts/{}", app.account);
    let lists = ["/accounts".to_string(), "/audit".to_string()];
    let of_account = ["keys", "members", "usage", "ledger"].map(|one| format!("{account}/{one}"));
    for path in lists.iter().chain(&of_account) {
        let wrong = if path.ends_with("ledger") { NOBODY } else { "7" };
        for (query, param) in [
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("limit=-1", "limit"),
            ("limit=", "limit"),
            ("limit=1.5", "limit"),
            ("limit=many", "limit"),
            ("limit=99999999999999999999999", "limit"),
            ("limit=5&limit=6", "limit"),
            ("limit[]=0", "limit"),
            ("after=5&after=6", "after"),
            ("aftr=5", ""),
            (&format!("after={wrong}"), "after"),
            ("after=%00", "after"),
            ("after=", "after"),
        ] {
            let got = admin.send("GET", &format!("{path}?{query}"), None).await;
            assert_refused(&got, &format!("{path}?{query}"), 400, "", param);
            let message = text(&got.json()["error"]["message"]);
            assert!(!message.contains("deserialize"), "not for people: {message}");
        }
        // Another's id is a place in the order as good as any.
        let after = if path.ends_with("ledger") { "0" } else { NOBODY };
        admin.get(&format!("{path}?after={after}")).await;
    }
    for path in of_account.map(|path| path.replace(&app.account, NOBODY)) {
        let got = admin.send("GET", &path, None).await;
        assert_refused(&got, &path, 404, "not_found", "");
    }
    app.finish().await;
}
