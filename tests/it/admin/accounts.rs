//! Accounts, their members and what is entered into their ledgers.

use serde_json::{Value, json};

use super::{Admin, NOBODY, ORDINARY_NUSD, chat, text};
use crate::app::{Store, TestApp, both_stores};
use crate::bad_input::assert_refused;
use crate::upstream::catalog::MODEL;

both_stores!(
    an_account_and_its_opening_credit_are_made_together,
    an_account_is_made_changed_and_suspended,
    null_is_not_the_same_as_absent,
    credits_are_entered_once,
    members_move_between_accounts,
);

async fn an_account_is_made_changed_and_suspended(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let made =
        admin.create("/accounts", json!({"name": "Acme", "credit_nusd": 5_000_000_000_i64})).await;
    assert_eq!((&made["kind"], &made["status"]), (&json!("prepaid"), &json!("active")), "{made}");
    assert_eq!(made["balance_nusd"], json!(5_000_000_000_i64), "{made}");
    let path = format!("/accounts/{}", text(&made["id"]));
    assert_eq!(admin.get(&path).await, made);
    let again = admin.send("POST", "/accounts", Some(&json!({"name": "Acme"}))).await;
    assert_refused(&again, "the name is taken", 409, "already_exists", "");
    let taken = admin.send("PATCH", &path, Some(&json!({"name": "test"}))).await;
    assert_refused(&taken, "the name is taken", 409, "already_exists", "");

    let (_, key) = admin.create_key(&text(&made["id"]), json!({"name": "k"})).await;
    chat(&app, &key, MODEL).await.ok();
    app.record().await;
    let suspended = admin.patch(&path, json!({"status": "suspended"})).await;
    assert_eq!(suspended["status"], json!("suspended"));
    assert_eq!(suspended["balance_nusd"], json!(5_000_000_000_i64 - ORDINARY_NUSD));
    let calls = app.upstream.chats().len();
    let refused = chat(&app, &key, MODEL).await;
    assert_refused(&refused, "suspended", 403, "account_suspended", "");
    assert_eq!(app.upstream.chats().len(), calls, "a suspended account calls nobody");
    admin.patch(&path, json!({"status": "active", "name": "Acme Ltd"})).await;
    chat(&app, &key, MODEL).await.ok();
    let account = admin.get(&path).await;
    assert_eq!(account["name"], json!("Acme Ltd"));
    assert!(account.get("ledger_hash").is_none(), "{account}");
    let missing = admin.send("GET", &format!("/accounts/{NOBODY}"), None).await;
    assert_refused(&missing, "nobody", 404, "not_found", "");
    app.finish().await;
}

async fn null_is_not_the_same_as_absent(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let new = json!({"name": "later", "kind": "postpaid", "limit_nusd": 7, "stripe_customer_id": "cus_1"});
    let made = admin.create("/accounts", new).await;
    assert_eq!((&made["limit_nusd"], &made["stripe_customer_id"]), (&json!(7), &json!("cus_1")));
    let path = format!("/accounts/{}", text(&made["id"]));
    let changes = [
        (json!({"requests_per_minute": 9}), json!(7), json!("cus_1"), json!(9)),
        (json!({"limit_nusd": null}), json!(null), json!("cus_1"), json!(9)),
        (json!({}), json!(null), json!("cus_1"), json!(9)),
        (json!({"stripe_customer_id": null, "limit_nusd": 0}), json!(0), json!(null), json!(9)),
        (json!({"requests_per_minute": null}), json!(0), json!(null), json!(null)),
    ];
    for (patch, limit, customer, requests) in changes {
        let row = admin.patch(&path, patch.clone()).await;
        assert_eq!(row["limit_nusd"], limit, "{patch}");
        assert_eq!(row["stripe_customer_id"], customer, "{patch}");
        assert_eq!(row["requests_per_minute"], requests, "{patch}");
        assert_eq!(admin.get(&path).await, row, "the answer is what was stored");
    }
    let null = admin.send("PATCH", &path, Some(&json!({"name": null}))).await;
    assert_refused(&null, "a name is never null", 400, "", "name");
    // Nothing was changed by {}, and so nothing is told of it.
    let updates = admin.audit().await;
    let updates = updates.iter().filter(|entry| entry["action"] == json!("account.update"));
    assert_eq!(updates.count(), 4);
    app.finish().await;
}

async fn credits_are_entered_once(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let (first, second) = (admin.account("first").await, admin.account("second").await);
    let path = format!("/accounts/{first}/credits");
    let credit =
        json!({"amount_nusd": 1_000_000_000, "reason": "an invoice", "reference": "inv-7"});
    let entered = admin.create(&path, credit.clone()).await;
    assert_eq!(entered, json!({"account_id": first, "balance_nusd": 11_000_000_000_i64}));
    for path in [&path, &format!("/accounts/{second}/credits")] {
        let again = admin.send("POST", path, Some(&credit)).await;
        assert_refused(&again, "the same invoice", 409, "already_exists", "");
    }
    // Without a reference nothing tells two credits apart.
    let thanks = json!({"amount_nusd": 5, "reason": "thanks"});
    admin.create(&path, thanks.clone()).await;
    admin.create(&path, thanks).await;
    let taken = json!({"amount_nusd": -2_000_000_010, "is_correction": true, "reason": "too much"});
    let left = admin.create(&path, taken).await;
    assert_eq!(left["balance_nusd"], json!(9_000_000_000_i64));
    let entries = admin.all(&format!("/accounts/{first}/ledger"), 2).await;
    let told: Vec<_> = entries.iter().map(|entry| entry["amount_nusd"].clone()).collect();
    let expected: [i64; 5] = [10_000_000_000, 1_000_000_000, 5, 5, -2_000_000_010];
    assert_eq!(json!(told), json!(expected));
    assert_eq!(entries[4]["kind"], json!("correction"));
    // The chain can be followed from outside.
    for pair in entries.windows(2) {
        assert_eq!(pair[0]["hash"], pair[1]["previous_hash"], "{pair:?}");
    }
    let nobody = format!("/accounts/{NOBODY}/credits");
    let missing =
        admin.send("POST", &nobody, Some(&json!({"amount_nusd": 1, "reason": "r"}))).await;
    assert_refused(&missing, "nobody", 404, "not_found", "");
    app.finish().await;
}

async fn members_move_between_accounts(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let (first, second) = (admin.account("first").await, admin.account("second").await);
    let user = "7b1c9ad2-6b1e-4c57-9d0c-0f6f2b1f6a01";
    let (mine, theirs) =
        (format!("/accounts/{first}/members"), format!("/accounts/{second}/members"));
    let users = async |path: &str| -> Vec<Value> {
        admin.all(path, 10).await.iter().map(|row| row["user_id"].clone()).collect()
    };
    let member = admin.create(&mine, json!({"user_id": user})).await;
    assert_eq!((&member["user_id"], &member["account_id"]), (&json!(user), &json!(first)));
    assert_eq!(admin.create(&mine, json!({"user_id": user})).await, member, "once is enough");
    assert_eq!(users(&mine).await, [json!(user)]);
    admin.create(&theirs, json!({"user_id": user})).await;
    assert_eq!((users(&mine).await.len(), users(&theirs).await), (0, vec![json!(user)]));
    for gone in [format!("{mine}/{user}"), format!("{theirs}/{NOBODY}"), format!("{theirs}/me")] {
        let missing = admin.send("DELETE", &gone, None).await;
        assert_refused(&missing, &gone, 404, "not_found", "");
    }
    assert_eq!(users(&theirs).await, [json!(user)], "an account's member is not another's to end");
    admin.done(204, "DELETE", &format!("{theirs}/{user}"), None).await;
    assert_eq!(users(&theirs).await.len(), 0);
    let audit = admin.audit().await;
    let told: Vec<_> = audit
        .iter()
        .filter(|entry| entry["subject"] == json!(user))
        .map(|entry| {
            json!([entry["action"], entry["before"]["account_id"], entry["after"]["account_id"]])
        })
        .collect();
    let expected = json!([
        ["member.add", null, first],
        ["member.add", first, second],
        ["member.remove", second, null],
    ]);
    assert_eq!(json!(told), expected);

    let user = "7b1c9ad2-6b1e-4c57-9d0c-0f6f2b1f6a02";
    app.cli(&["member", "add", "--account", "first", "--user", user]).await;
    let listed = app.list(&["member", "list", "--account", "first"]).await;
    assert_eq!(listed[0]["user_id"], json!(user));
    app.cli(&["member", "remove", "--account", "first", "--user", user]).await;
    assert_eq!(app.list(&["member", "list", "--account", "first"]).await.len(), 0);
    app.finish().await;
}

#[tokio::test]
async fn accounts_are_changed_by_commands_too() {
    let app = TestApp::start(Store::Sqlite).await;
    app.create_account("later", &["--postpaid"]).await;
    app.cli(&["account", "update", "--account", "later", "--limit", "2", "--suspend"]).await;
    let row = app.list(&["account", "show", "--account", "later"]).await.remove(0);
    assert_eq!((&row["limit_nusd"], &row["status"]), (&json!(2_000_000_000), &json!("suspended")));
    app.cli(&["account", "update", "--account", "later", "--name", "now", "--resume"]).await;
    let row = app.list(&["account", "show", "--account", "now"]).await.remove(0);
    assert_eq!(row["status"], json!("active"));
    let actions: Vec<_> = app.list(&["audit", "list"]).await;
    let updates = actions.iter().filter(|entry| entry["action"] == json!("account.update"));
    assert!(updates.clone().all(|entry| entry["actor"] == json!("operator")), "{actions:?}");
    assert_eq!(updates.count(), 2);
    for wrong in [
        vec!["account", "update", "--account", "test", "--limit", "5"],
        vec!["account", "update", "--account", "now", "--plan", "nowhere"],
        vec!["account", "update", "--account", "now", "--suspend", "--resume"],
        vec!["key", "create", "--account", "now", "--expires-in-days", "4000000000"],
        vec!["key", "create", "--account", "now", "--role", "king"],
        vec!["key", "create", "--account", "now", "--models", "a*b"],
        vec!["key", "rotate", NOBODY],
        vec!["member", "add", "--account", "now", "--user", "me"],
        vec!["member", "remove", "--account", "now", "--user", NOBODY],
    ] {
        let ended = app.try_cli(&wrong).await;
        assert!(!ended.status.success(), "{wrong:?} succeeded: {ended:?}");
        assert!(!ended.stderr.trim().is_empty() && ended.stdout.is_empty(), "{wrong:?}: {ended:?}");
    }
    app.finish().await;
}

async fn an_account_and_its_opening_credit_are_made_together(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let before = (app.books.accounts().await.len(), admin.audit().await.len());
    // The database takes the account, and then not its credit.
    let (refuse, allow) = match store {
        Store::Sqlite => (
            "CREATE TRIGGER no_credit BEFORE INSERT ON ledger_entries \
             WHEN NEW.reason = 'opening credit' BEGIN SELECT RAISE(ABORT, 'no credit'); END",
            "DROP TRIGGER no_credit",
        ),
        Store::Postgres => (
            "ALTER TABLE ledger_entries ADD CONSTRAINT no_credit \
             CHECK (reason <> 'opening credit') NOT VALID",
            "ALTER TABLE ledger_entries DROP CONSTRAINT no_credit",
        ),
    };
    app.books.tamper(refuse).await;
    let acme = json!({"name": "acme", "credit_nusd": 5});
    let got = admin.send("POST", "/accounts", Some(&acme)).await;
    assert_refused(&got, "a credit that is refused", 500, "internal_error", "");
    let ended = app.try_cli(&["account", "create", "--name", "acme", "--credit", "5"]).await;
    assert!(!ended.status.success() && ended.stdout.is_empty(), "{ended:?}");
    let after = (app.books.accounts().await.len(), admin.audit().await.len());
    assert_eq!(after, before, "nothing of it is there");
    // The name is free, and an account without a credit never needed one.
    admin.create("/accounts", json!({"name": "poor"})).await;
    app.books.tamper(allow).await;
    let made = admin.create("/accounts", acme).await;
    assert_eq!(made["balance_nusd"], json!(5));
    let ledger = admin.get(&format!("/accounts/{}/ledger", text(&made["id"]))).await;
    assert_eq!(ledger["data"][0]["reason"], json!("opening credit"));
    app.finish().await;
}
