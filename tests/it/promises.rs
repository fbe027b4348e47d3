//! Idempotency keys, budgets of keys, plans, markups, changes of prices, late truths, and `verify`.

mod flipped;

use futures::future::join_all;
use serde_json::json;

use crate::app::books::{Pool, UsageRecord};
use crate::app::{Setup, Store, TestApp, both_stores, eventually, streamed};
use crate::client::Answered;
use crate::upstream::Listing;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{MODEL, OLD_MODEL, openrouter_models};
use crate::upstream::model::{Manner, Model};
use crate::upstream::script::{Gate, Script};

both_stores!(
    an_idempotency_key_is_served_once,
    a_key_spends_no_more_than_its_budget,
    plans_and_markups_make_the_price,
    a_change_of_price_changes_no_past_record,
    a_late_truth_becomes_one_correction,
);

#[track_caller]
fn assert_refused(got: &Answered, status: u16, code: &str) {
    assert_eq!(got.status, status, "{}", got.text());
    assert_eq!(got.json()["error"]["code"], json!(code), "{}", got.text());
    assert_eq!(got.header("x-should-retry"), Some("false"), "{:?}", got.headers);
}

async fn an_idempotency_key_is_served_once(store: Store) {
    let mut app = TestApp::start(store).await;
    let ask = |key: &str| app.chat_ask(&streamed(MODEL)).header("Idempotency-Key", key);
    let (once, other) = (ask("once"), ask("other"));
    let (answer, gate) = (Answer::openrouter(), Gate::new());
    let mut events = answer.events();
    let first = events.remove(0);
    app.upstream.script(answer.head().chunk(first).wait(&gate).chunks(events).end());
    let mut running = app.begin(&once).await;
    running.until("data: ").await;

    assert_refused(&app.ask(&once).await, 409, "idempotency_key_reused");
    gate.open();
    running.finish().await.ok();
    app.settled().await;
    assert_refused(&app.ask(&once).await, 409, "idempotency_key_reused");
    assert_eq!(app.upstream.chats().len(), 1, "a repetition is not forwarded");

    app.upstream.script(Answer::openrouter().stream());
    app.ask(&other).await.ok();
    // Another account's key of the same name is another key.
    app.create_account("neighbour", &["--credit", "1"]).await;
    let neighbour = app.create_key("neighbour", &[]).await;
    app.upstream.script(Answer::openrouter().stream());
    app.ask(&once.clone().bearer(&neighbour)).await.ok();
    // Two of them: whoever sent them meant one, and nobody knows which.
    let two = ask("once").header("Idempotency-Key", "another");
    crate::bad_input::assert_refused(&app.ask(&two).await, "two keys", 400, "", "");
    // What failed before it gave anything may be tried again.
    let failed = app.chat_ask(&streamed(MODEL)).header("Idempotency-Key", "failed");
    app.upstream.script(Script::json(500, "{}"));
    assert_eq!(app.ask(&failed).await.status, 502);
    app.settled().await;
    app.upstream.script(Answer::openrouter().stream());
    app.ask(&failed).await.ok();
    app.settled().await;

    // And it is remembered by the books, not by the process.
    app.kill9();
    app.restart().await;
    let ask = app.chat_ask(&streamed(MODEL)).header("Idempotency-Key", "once");
    assert_refused(&app.ask(&ask).await, 409, "idempotency_key_reused");
    let entries = app.books.entries().await.into_iter();
    let charges = entries.filter(|entry| entry.kind == "charge" && entry.amount_nusd != 0);
    assert_eq!(charges.count(), 4, "a repetition is never billed");
    app.finish().await;
}

/// A cent for keys of an account that has ten dollars.
async fn a_key_spends_no_more_than_its_budget(store: Store) {
    let model = Model::start(Manner { tokens: 40, ..Manner::obedient() }).await;
    let app = Setup::new(store).env("UPSTREAM_BASE_URL", &model.url()).start().await;
    for window in ["--budget", "--budget-day", "--budget-week", "--budget-month"] {
        let key = app.create_key("test", &[window, "0.01"]).await;
        let mut body = streamed(OLD_MODEL);
        body["max_tokens"] = json!(100);
        let ask = app.chat_ask(&body).bearer(&key);
        let mut answers = join_all((0..10).map(|_| app.ask(&ask))).await;
        loop {
            app.settled().await;
            let got = app.ask(&ask).await;
            let status = got.status;
            answers.push(got);
            if status != 200 {
                break;
            }
        }
        assert_refused(answers.last().expect("one"), 429, "key_budget_exceeded");
        let mut spent = 0;
        let records = app.books.records().await;
        for got in &answers {
            let record = records.iter().find(|record| record.id == got.request_id());
            spent += record.map_or(0, |record| record.charge_nusd);
        }
        assert!(spent <= 10_000_000, "{window}: spent {spent}");
        let floor = 16 * 72_000 + 40 * 36_000;
        assert!(spent > 10_000_000 - floor, "{window}: refused with {spent} spent");
        // The account itself has money, for its other keys.
        app.chat(&body).await.ok();
    }
    app.finish().await;
}

const PLANS: &str = r#"
[[price]]
model = "vendor/own-tokens"
plan = "flat"
prompt_usd_per_mtok = "7"
completion_usd_per_mtok = "11"

[[markup]]
model = "openai/gpt-4"
factor = "3"

[[plan]]
name = "flat"

[[plan]]
name = "partner"
markup = "1.05"

[[plan]]
name = "later"
postpaid = true
limit_usd_per_month = "0.02"
key_usd_per_day = "0.01"
"#;

async fn plans_and_markups_make_the_price(store: Store) {
    let app = Setup::new(store).prices(PLANS).start().await;
    for plan in ["flat", "partner"] {
        app.create_account(plan, &["--plan", plan, "--credit", "1"]).await;
    }
    app.create_account("later", &["--plan", "later"]).await;
    let keys = [
        ("none", app.key.clone()),
        ("flat", app.create_key("flat", &[]).await),
        ("partner", app.create_key("partner", &[]).await),
        ("later", app.create_key("later", &[]).await),
    ];
    let key = |plan: &str| &keys.iter().find(|(name, _)| *name == plan).expect("a plan").1;
    let cost = 123_000;
    // The cost with its markup; the plan's own retail price whatever it cost; a row for the model
    // comes before the plan's markup.
    let cases = [
        ("none", MODEL, cost * 120 / 100),
        ("partner", MODEL, cost * 105 / 100),
        ("later", MODEL, cost * 120 / 100),
        ("none", OLD_MODEL, cost * 3),
        ("partner", OLD_MODEL, cost * 3),
        ("none", "vendor/own-tokens", cost * 120 / 100),
        ("flat", "vendor/own-tokens", 12 * 7_000 + 7 * 11_000),
        ("partner", "vendor/own-tokens", cost * 105 / 100),
    ];
    for (plan, model, charge) in cases {
        app.upstream.script(Answer::openrouter().model(model).stream());
        let mut body = streamed(model);
        body["max_tokens"] = json!(20);
        let got = app.ask(&app.chat_ask(&body).bearer(key(plan))).await;
        got.ok();
        assert_eq!(app.record_of(&got).await.charge_nusd, charge, "{model} on the plan {plan}");
    }
    // The plan's limits: 0.02 a month for the account, 0.01 a day for each key.
    app.settled().await;
    app.upstream.script(Answer::openrouter().cost("0.009").model(MODEL).stream());
    app.ask(&app.chat_ask(&streamed(MODEL)).bearer(key("later"))).await.ok();
    app.settled().await;
    let got = app.ask(&app.chat_ask(&streamed(MODEL)).bearer(key("later"))).await;
    assert_refused(&got, 429, "key_budget_exceeded");
    let second = app.create_key("later", &[]).await;
    app.upstream.script(Answer::openrouter().cost("0.009").model(MODEL).stream());
    app.ask(&app.chat_ask(&streamed(MODEL)).bearer(&second)).await.ok();
    app.settled().await;
    let third = app.create_key("later", &[]).await;
    let got = app.ask(&app.chat_ask(&streamed(MODEL)).bearer(&third)).await;
    assert_refused(&got, 429, "insufficient_quota");
    app.finish().await;
}

async fn one(app: &TestApp, answer: &Answer, model: &str) -> UsageRecord {
    app.upstream.script(answer.stream());
    let got = app.chat(&streamed(model)).await;
    got.ok();
    app.record_of(&got).await
}

async fn a_change_of_price_changes_no_past_record(store: Store) {
    let mut app = TestApp::start(store).await;
    let answer = || Answer::openrouter().no_cost().tokens(1_000, 500);
    let old = one(&app, &answer(), MODEL).await;
    assert_eq!(old.charge_nusd, (1_000 * 150 + 500 * 600) * 12 / 10);
    let mut models = openrouter_models();
    models["data"][0]["pricing"]["completion"] = json!("0.0000009");
    app.upstream.set_models(Listing::Json(models));
    app.kill9();
    app.restart().await;
    let new = one(&app, &answer(), MODEL).await;
    assert_eq!(new.charge_nusd, (1_000 * 150 + 500 * 900) * 12 / 10);
    assert_ne!(new.price_id, old.price_id, "another version");
    let records = app.books.records().await;
    let kept = records.iter().find(|record| record.id == old.id).expect("it is kept");
    assert_eq!(format!("{kept:?}"), format!("{old:?}"), "a past record is as it was");
    app.cli(&["verify"]).await;
    let sql = format!("SELECT price_id FROM price_changes WHERE model = '{MODEL}' AND plan = ''");
    assert_eq!(app.books.rows(&sql).await.len(), 2, "one change, and the first price");
    // And back: the first version again, not a third one.
    app.upstream.set_models(Listing::Json(openrouter_models()));
    app.kill9();
    app.restart().await;
    assert_eq!(one(&app, &answer(), MODEL).await.price_id, old.price_id);
    app.finish().await;
}

/// A stream that was broken off, counted because the upstream did not know it yet, and then known.
pub async fn corrected(app: &TestApp) -> UsageRecord {
    let (record, answer) = counted(app).await;
    learn(app, &record, &answer).await;
    record
}

/// The first half of it.
pub async fn counted(app: &TestApp) -> (UsageRecord, Answer) {
    let answer = Answer::openrouter().no_usage();
    app.upstream.script(answer.stream());
    let got = app.chat(&streamed(MODEL)).await;
    got.ok();
    let record = app.record_of(&got).await;
    assert_eq!(record.source, "counted", "{record:#?}");
    (record, answer)
}

/// And the second.
pub async fn learn(app: &TestApp, record: &UsageRecord, answer: &Answer) {
    app.upstream.generation(0, answer.generation(12, 5, 0.000_001));
    // Not to be waited for: five minutes.
    let past = if matches!(app.books.pool, Pool::Sqlite(_)) {
        "'2020-01-01T00:00:00.000000+00:00'"
    } else {
        "'2020-01-01T00:00:00Z'"
    };
    app.books.tamper(&format!("UPDATE lookups SET next_attempt_at = {past}")).await;
    eventually("the correction", async || {
        let rows = app.books.rows("SELECT * FROM usage_corrections").await;
        rows.into_iter().find(|row| row["request_id"] == json!(record.id))
    })
    .await;
}

async fn a_late_truth_becomes_one_correction(store: Store) {
    let app = Setup::new(store).env("TOLLGATE_SLOW_LOOKUP_EVERY_SECONDS", "1").start().await;
    let record = corrected(&app).await;
    assert!(record.charge_nusd > 1_200, "the estimate was dearer: {record:#?}");
    // It would be asked for again, were it not done.
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    let records = app.books.records().await;
    assert_eq!(format!("{:?}", records[0]), format!("{record:?}"), "a record is never changed");
    let entries = app.books.entries().await;
    let of = |kind: &str| -> Vec<i64> {
        let own = entries.iter().filter(|entry| entry.kind == kind);
        own.map(|entry| entry.amount_nusd).collect()
    };
    assert_eq!(of("charge"), [-record.charge_nusd]);
    assert_eq!(of("correction"), [record.charge_nusd - 1_200], "back to what it cost");
    app.finish().await;
}
