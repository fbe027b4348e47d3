//! The audit log: one entry for every change, and no secret in it, nor anywhere else.

use serde_json::{Value, json};

use super::{Admin, chat, text};
use crate::app::{Store, TestApp, both_stores};
use crate::upstream::catalog::MODEL;

both_stores!(every_change_has_its_entry_and_no_secret_is_anywhere);

const USER: &str = "7b1c9ad2-6b1e-4c57-9d0c-0f6f2b1f6a01";

/// All that is stored as text.
async fn stored(app: &TestApp) -> String {
    let mut all = String::new();
    for table in [
        "accounts",
        "api_keys",
        "key_budgets",
        "members",
        "audit_log",
        "ledger_entries",
        "usage_records",
        "holds",
        "prices",
        "price_changes",
        "price_tables",
        "idempotency_keys",
        "billing_events",
    ] {
        let rows = app.books.rows(&format!("SELECT * FROM {table}")).await;
        all += &Value::from(rows).to_string();
    }
    all
}

/// Does one of everything; the secrets that were told on the way, and what the API said besides.
async fn one_of_everything(app: &TestApp, admin: &Admin) -> (Vec<String>, Vec<Value>) {
    let account = admin.create("/accounts", json!({"name": "acme", "credit_nusd": 7})).await;
    let path = format!("/accounts/{}", text(&account["id"]));
    let mut said = vec![account];
    said.push(admin.patch(&path, json!({"name": "Acme"})).await);
    let new = json!({"name": "k", "total_limit_nusd": 900_000_000});
    let (mut key, first) = admin.create_key(&app.account, new).await;
    let key_path = format!("/keys/{}", text(&key["id"]));
    let body = Some(json!({"overlap_seconds": 600}));
    let mut rotated = admin.done(200, "POST", &format!("{key_path}/rotate"), body).await;
    let second = text(&rotated["secret"]);
    for answer in [&mut key, &mut rotated] {
        answer.as_object_mut().expect("a key").remove("secret").expect("shown once");
    }
    said.extend([key, rotated]);
    said.push(admin.patch(&key_path, json!({"day_limit_nusd": 800_000_000})).await);
    for secret in [&first, &second] {
        chat(app, secret, MODEL).await.ok();
    }
    said.push(admin.done(200, "DELETE", &key_path, None).await);
    let credit = json!({"amount_nusd": 3, "reason": "thanks", "reference": "r"});
    said.push(admin.create(&format!("{path}/credits"), credit).await);
    let correction = json!({"amount_nusd": -1, "is_correction": true, "reason": "one too many"});
    said.push(admin.create(&format!("{path}/credits"), correction).await);
    said.push(admin.create(&format!("{path}/members"), json!({"user_id": USER})).await);
    admin.done(204, "DELETE", &format!("{path}/members/{USER}"), None).await;
    let table = json!({"text": "[[markup]]\nmodel = \"*\"\nfactor = \"1.5\"\n"});
    said.push(admin.done(200, "PUT", "/price-table", Some(table)).await);
    for list in ["/accounts", "/audit", "/prices"] {
        said.push(admin.get(&format!("{list}?limit=100")).await);
    }
    for list in ["keys", "ledger", "usage"] {
        said.push(admin.get(&format!("/accounts/{}/{list}", app.account)).await);
    }
    said.push(admin.get(&key_path).await);
    (vec![first, second, admin.key.clone(), app.key.clone()], said)
}

async fn every_change_has_its_entry_and_no_secret_is_anywhere(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let before = admin.audit().await.len();
    let (secrets, said) = one_of_everything(&app, &admin).await;
    let entries = admin.audit().await.split_off(before);
    let actions: Vec<_> = entries.iter().map(|entry| text(&entry["action"])).collect();
    let expected = [
        "account.create",
        "credit.enter",
        "account.update",
        "key.create",
        "key.rotate",
        "key.update",
        "key.revoke",
        "credit.enter",
        "credit.enter",
        "member.add",
        "member.remove",
        "price_table.set",
    ];
    assert_eq!(actions, expected);
    let actor = text(&entries[0]["actor"]);
    assert!(actor.starts_with("key:"), "{actor}");
    for entry in &entries {
        assert_eq!(entry["actor"], json!(actor), "{entry}");
        assert!(text(&entry["created_at"]).starts_with("20"), "{entry}");
        assert!(entry["before"].is_object() || entry["after"].is_object(), "{entry}");
        let is_of_an_account = entry["action"] != json!("price_table.set");
        assert_eq!(entry["account_id"].is_string(), is_of_an_account, "{entry}");
    }
    let update = &entries[5];
    assert_eq!(update["before"]["budget"]["day_limit_nusd"], json!(null), "{update}");
    assert_eq!(update["after"]["budget"]["day_limit_nusd"], json!(800_000_000), "{update}");
    assert_ne!(entries[4]["before"]["hint"], entries[4]["after"]["hint"], "a new secret");

    let (stored, log) = (stored(&app).await, app.process.stderr());
    let said = Value::from(said).to_string();
    for secret in &secrets {
        // What is between the beginning and the end that the hint shows.
        let core = &secret[10..secret.len() - 4];
        for (where_, text) in [("stored", &stored), ("said", &said), ("logged", &log)] {
            assert!(!text.contains(core), "a secret is {where_}");
        }
    }
    let hashes = app.books.rows("SELECT secret_hash, previous_secret_hash FROM api_keys").await;
    let hashes = hashes.iter().flat_map(|row| row.as_object().expect("a row").values());
    let hashes: Vec<_> = hashes.filter_map(Value::as_str).collect();
    assert_eq!(hashes.len(), 4, "three keys, one of them with two secrets");
    let audit = Value::from(app.books.rows("SELECT * FROM audit_log").await).to_string();
    for hash in hashes {
        assert!(stored.contains(hash), "this test looks at the wrong text");
        for (where_, text) in [("in the audit log", &audit), ("said", &said), ("logged", &log)] {
            assert!(!text.contains(hash), "the hash of a secret is {where_}");
        }
    }
    app.finish().await;
}
