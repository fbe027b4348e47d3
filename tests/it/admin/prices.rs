//! The operator's table of prices, set while running.

use serde_json::{Value, json};

use super::{Admin, NOBODY, ORDINARY_NUSD, chat, text};
use crate::app::{Kind, Setup, Store, TestApp, both_stores};
use crate::bad_input::assert_refused;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{MODEL, UNPRICED_MODEL};

both_stores!(
    a_table_changes_the_next_request_and_no_past_one,
    the_table_in_force_set_again_changes_nothing,
    a_table_is_in_force_after_a_restart_and_for_commands,
    a_bad_table_is_refused_and_says_why,
    plans_are_shown_with_what_they_give,
);

/// A dollar and two for a million tokens: 12 and 7 of them cost this much.
const TABLE_NUSD: i64 = 12 * 1_000 + 7 * 2_000;

fn table(more: &str) -> Value {
    json!({"text": format!("[[price]]\nmodel = \"openai/gpt-4o*\"\nprompt_usd_per_mtok = \"1\"\n\
                            completion_usd_per_mtok = \"2\"\n{more}")})
}

const USD: i64 = 1_000_000_000;

async fn set(admin: &Admin, body: Value) -> Value {
    admin.done(200, "PUT", "/price-table", Some(body)).await
}

async fn price_of(admin: &Admin, model: &str, plan: &str) -> Value {
    let prices = admin.all("/prices", 100).await;
    let price = prices.into_iter().find(|row| row["model"] == model && row["plan"] == plan);
    price.unwrap_or_default()
}

async fn a_table_changes_the_next_request_and_no_past_one(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let none = json!({"object": "price_table", "is_file": false, "table": null});
    assert_eq!(admin.get("/price-table").await, none);
    let old = price_of(&admin, MODEL, "").await;
    assert_eq!((&old["rule"], &old["rates"]["prompt"]), (&json!("cost_plus"), &json!(150_000)));
    chat(&app, &app.key, MODEL).await.ok();
    let before = app.record().await;

    let answer = set(&admin, table("")).await;
    assert_eq!(answer["table"]["version"], json!(1));
    assert_eq!(answer["table"]["text"], table("")["text"]);
    assert_eq!(admin.get("/price-table").await, answer);
    // At once: no wait between the answer and the next request.
    chat(&app, &app.key, MODEL).await.ok();
    let records = app.records(2).await;
    assert_eq!(records[1].charge_nusd, TABLE_NUSD);
    let new = price_of(&admin, MODEL, "").await;
    assert_eq!((&new["rule"], &new["id"]), (&json!("list"), &json!(records[1].price_id)));
    assert_eq!(records[0].charge_nusd, ORDINARY_NUSD);
    assert_eq!(
        (&records[0].price_id, json!(records[0].price_id)),
        (&before.price_id, old["id"].clone())
    );

    // The upstream has no price for it, and now it has one.
    let refused = chat(&app, &app.key, UNPRICED_MODEL).await;
    assert_refused(&refused, "no price", 400, "model_not_priced", "model");
    let text =
        "[[price]]\nmodel = \"*\"\nprompt_usd_per_mtok = \"3\"\ncompletion_usd_per_mtok = \"3\"";
    assert_eq!(set(&admin, json!({"text": text})).await["table"]["version"], json!(2));
    chat(&app, &app.key, UNPRICED_MODEL).await.ok();
    assert_eq!(app.records(3).await[2].charge_nusd, 19 * 3_000);
    // An empty table takes all of it back.
    set(&admin, json!({"text": ""})).await;
    assert_eq!(price_of(&admin, MODEL, "").await, old);
    assert_eq!(price_of(&admin, UNPRICED_MODEL, "").await, json!(null));
    app.settled().await;
    app.cli(&["verify"]).await;
    app.finish().await;
}

async fn the_table_in_force_set_again_changes_nothing(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let first = set(&admin, table("")).await;
    let audit = admin.audit().await;
    assert_eq!(set(&admin, table("")).await, first, "its version and its time are what they were");
    assert_eq!(admin.audit().await, audit);
    assert_eq!(set(&admin, table("# other\n")).await["table"]["version"], json!(2));
    // One that was in force before is another change.
    assert_eq!(set(&admin, table("")).await["table"]["version"], json!(3));
    assert_eq!(admin.audit().await.len(), audit.len() + 2);
    app.finish().await;
}

async fn a_table_is_in_force_after_a_restart_and_for_commands(store: Store) {
    let mut app = TestApp::start(store).await;
    let plan = "[[price]]\nmodel = \"*\"\nplan = \"team\"\nprompt_usd_per_mtok = \"1\"\n\
                completion_usd_per_mtok = \"2\"\n[[plan]]\nname = \"team\"\npostpaid = true\n\
                limit_usd_per_month = \"3\"\nkey_usd_per_day = \"0.5\"\n";
    let (key, secret) = {
        let admin = Admin::of(&app).await;
        let early =
            admin.send("POST", "/accounts", Some(&json!({"name": "a", "plan": "team"}))).await;
        assert_refused(&early, "no such plan yet", 400, "", "plan");
        set(&admin, json!({"text": plan})).await;
        let account = admin.create("/accounts", json!({"name": "a", "plan": "team"})).await;
        assert_eq!(
            (&account["kind"], &account["limit_nusd"]),
            (&json!("postpaid"), &json!(3_000_000_000_i64))
        );
        let (key, secret) = admin.create_key(&text(&account["id"]), json!({"name": "k"})).await;
        assert_eq!(key["budget"]["day_limit_nusd"], json!(500_000_000));
        (text(&key["id"]), secret)
    };
    app.create_account("b", &["--plan", "team"]).await;
    app.cli(&["account", "update", "--account", "test", "--plan", "team"]).await;
    app.sigterm();
    app.stopped().await;
    app.restart().await;
    for secret in [&secret, &app.key] {
        chat(&app, secret, MODEL).await.ok();
    }
    let records = app.records(2).await;
    assert_eq!(records[0].api_key_id.as_deref(), Some(key.as_str()));
    assert!(records.iter().all(|record| record.charge_nusd == TABLE_NUSD), "{records:#?}");
    app.cli(&["account", "update", "--account", "test", "--plan", "none"]).await;
    let shown = app.list(&["account", "show", "--account", "test"]).await.remove(0);
    assert_eq!(shown["plan"], json!(null));
    app.finish().await;
}

async fn a_bad_table_is_refused_and_says_why(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    set(&admin, table("")).await;
    let long = "#".repeat((1 << 20) + 1);
    for (more, named) in [
        ("[[price", "TOML"),
        ("[[price]]\nmodel = \"m\"\n", "prompt_usd_per_mtok"),
        ("[[plan]]\nname = \"p\"\nlimmit = \"1\"\n", "limmit"),
        ("[[markup]]\nmodel = \"m\"\nfactor = \"much\"\n", "much"),
        ("[[markup]]\nmodel = \"m\"\nfactor = \"1e3\"\n", "1e3"),
        ("[[plan]]\nname = \"p\"\nkey_usd_per_day = \"5.\"\n", "'5.'"),
        ("[[markup]]\nmodel = \"m\"\nfactor = \"1\"\nplan = \"nowhere\"\n", "nowhere"),
        ("[[plan]]\nname = \"p\"\n[[plan]]\nname = \"p\"\n", "'p'"),
        ("[[plan]]\nname = \"\"\n", "called"),
        ("[[plan]]\nname = \"p\"\npostpaid = true\nlimit_usd_per_month = \"-5\"\n", "below zero"),
        (&long, "1048576"),
    ] {
        let got = admin.send("PUT", "/price-table", Some(&table(more))).await;
        let start = &more[..more.len().min(60)];
        assert_refused(&got, start, 400, "", "text");
        let message = text(&got.json()["error"]["message"]);
        assert!(message.contains(named), "{start}: {message}");
    }
    chat(&app, &app.key, MODEL).await.ok();
    assert_eq!(app.record().await.charge_nusd, TABLE_NUSD, "the table before it stands");
    assert_eq!(admin.get("/price-table").await["table"]["version"], json!(1));
    app.finish().await;
}

#[tokio::test]
async fn a_file_of_prices_goes_before_a_table() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    let admin = Admin::of(&app).await;
    let refused = admin.send("PUT", "/price-table", Some(&json!({"text": ""}))).await;
    assert_refused(&refused, "there is a file", 409, "already_exists", "");
    let shown = admin.get("/price-table").await;
    assert_eq!(shown, json!({"object": "price_table", "is_file": true, "table": null}));
    app.upstream.script(Answer::openai().plain());
    app.chat(&crate::app::question("gpt-4o-mini")).await.ok();
    assert_eq!(app.record().await.charge_nusd, 12 * 150 + 7 * 600);
    let missing = admin.send("GET", &format!("/keys/{NOBODY}"), None).await;
    assert_refused(&missing, "nobody", 404, "not_found", "");
    app.finish().await;
}

async fn plans_are_shown_with_what_they_give(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    assert_eq!(admin.get("/plans").await["data"], json!([]));
    let plans = "[[markup]]\nmodel = \"openai/*\"\nplan = \"team\"\nfactor = \"1.05\"\n\
                 [[markup]]\nmodel = \"openai/*\"\nfactor = \"1.5\"\n\
                 [[plan]]\nname = \"team\"\npostpaid = true\nlimit_usd_per_month = \"100\"\n\
                 markup = \"1.10\"\nkey_usd_per_day = \"5\"\nrequests_per_minute = 600\n\
                 key_tokens_per_minute = 40000\n[[plan]]\nname = \"free\"\n";
    set(&admin, table(plans)).await;
    let shown = admin.all("/plans", 1).await;
    let names: Vec<_> = shown.iter().map(|plan| text(&plan["name"])).collect();
    assert_eq!(names, ["free", "team"]);
    let unlimited = json!({
        "requests_per_minute": null, "tokens_per_minute": null, "concurrent_requests": null,
        "day_limit_nusd": null, "week_limit_nusd": null, "month_limit_nusd": null,
        "total_limit_nusd": null,
    });
    let free = json!({
        "name": "free", "kind": "prepaid", "limit_nusd": null, "requests_per_minute": null,
        "tokens_per_minute": null, "concurrent_requests": null, "key": unlimited,
        // The plan has none of its own: the usual one is last.
        "markups": [{"model": "openai/*", "markup_ppm": 1_500_000},
                    {"model": "*", "markup_ppm": 1_200_000}],
    });
    assert_eq!(shown[0], free);
    let team = &shown[1];
    assert_eq!((&team["kind"], &team["limit_nusd"]), (&json!("postpaid"), &json!(100 * USD)));
    assert_eq!(team["requests_per_minute"], json!(600));
    assert_eq!(team["key"]["day_limit_nusd"], json!(5 * USD));
    assert_eq!(team["key"]["tokens_per_minute"], json!(40_000));
    let markups: Vec<_> = team["markups"].as_array().expect("rules").iter().collect();
    let ppm: Vec<_> = markups.iter().map(|rule| rule["markup_ppm"].clone()).collect();
    assert_eq!(ppm, [1_050_000, 1_500_000, 1_100_000]);
    // What is shown is what an account of the plan gets and pays.
    let account = admin.create("/accounts", json!({"name": "acme", "plan": "team"})).await;
    assert_eq!(account["limit_nusd"], team["limit_nusd"]);
    assert_eq!(admin.get("/plans?after=free").await["data"], json!([team]));
    app.finish().await;
}
