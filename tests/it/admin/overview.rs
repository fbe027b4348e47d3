//! How the service does: margins, drift, sinks and health against the books.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Admin, text};
use crate::app::books::UsageRecord;
use crate::app::{Setup, Store, TestApp, both_stores, question, streamed};
use crate::billing::{all, one, with_openmeter, with_webhook};
use crate::promises::corrected;
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::server::Fault;
use crate::sinks::webhook::Webhook;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use crate::upstream::script::Script;
use crate::views::{copy, forget, hours_from_now, id_at, nano, traffic};

both_stores!(
    margins_are_what_the_books_say,
    a_correction_and_a_failed_call_are_in_the_margin,
    drift_is_told_by_model,
    what_waits_for_a_sink_is_told,
    health_tells_who_is_left_alone,
);

/// Pico-USD of an exact JSON number of dollars.
fn pico(amount: &Value) -> i128 {
    let text = amount.to_string();
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent: i32 = exponent.parse().expect("an exponent");
    let zeros = 12 + exponent - i32::try_from(fraction.len()).expect("a length");
    let zeros = u32::try_from(zeros).unwrap_or_else(|_| panic!("too many digits: {text}"));
    format!("{whole}{fraction}").parse::<i128>().expect("a number") * 10_i128.pow(zeros)
}

async fn rows(admin: &Admin, path: &str) -> Vec<Value> {
    admin.get(path).await["data"].as_array().expect("a list").clone()
}

/// Requests, charge, cost and margin by a member of the records.
type Sums = BTreeMap<String, (i64, i64, i128, i128)>;

fn expected(records: &[UsageRecord], name: impl Fn(&UsageRecord) -> String) -> Sums {
    let mut sums = Sums::new();
    for record in records {
        let sum = sums.entry(name(record)).or_default();
        let cost = i128::from(record.upstream_cost_pusd.unwrap_or_default());
        sum.0 += i64::from(record.source != "none");
        sum.1 += record.charge_nusd;
        sum.2 += cost;
        sum.3 += i128::from(record.charge_nusd) * 1_000 - cost;
    }
    sums
}

fn shown(rows: &[Value]) -> Sums {
    let sum = |row: &Value| {
        let requests = row["num_model_requests"].as_i64().expect("a number");
        let (cost, margin) = (pico(&row["cost_usd"]), pico(&row["margin_usd"]));
        (requests, nano(&row["charge_usd"]), cost, margin)
    };
    rows.iter().map(|row| (row["name"].as_str().unwrap_or("").to_owned(), sum(row))).collect()
}

async fn margins_are_what_the_books_say(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    traffic(&app, &app.key).await;
    let other = app.create_account("<b>other</b>", &["--credit", "5"]).await;
    let key = app.create_key(&other, &[]).await;
    app.upstream.script(Answer::openrouter().cost("0.000000333333").plain());
    app.ask(&app.chat_ask(&question(MODEL)).bearer(&key)).await.ok();
    let records = app.records(10).await;
    let query = format!("/margins?start_time={}", hours_from_now(-2));
    let by_model = rows(&admin, &format!("{query}&group_by=model")).await;
    assert_eq!(shown(&by_model), expected(&records, |record| record.model.clone()));
    let by_account = rows(&admin, &format!("{query}&group_by=account")).await;
    assert_eq!(shown(&by_account), expected(&records, |record| record.account_id.clone()));
    let row = by_account.iter().find(|row| row["name"] == json!(other)).expect("the account");
    assert_eq!(row["account_name"], json!("<b>other</b>"));
    let by_upstream = rows(&admin, &format!("{query}&group_by=upstream")).await;
    assert_eq!(shown(&by_upstream), expected(&records, |record| record.upstream.clone()));
    let whole = rows(&admin, &query).await;
    let total = expected(&records, |_| String::new());
    assert_eq!(shown(&whole), total);
    assert!(total[""].3 > 0, "something was earned: {total:?}");
    // The days together are the whole.
    let days = rows(&admin, &format!("{query}&bucket_width=1d")).await;
    let charged: i64 = days.iter().map(|day| nano(&day["charge_usd"])).sum();
    assert_eq!(charged, total[""].1);
    for bad in ["", "?start_time=1", "?start_time=9999999999", &format!("{query}&group_by=day")] {
        let bad = bad.trim_start_matches("/margins");
        let got = admin.send("GET", &format!("/margins{bad}"), None).await;
        assert_eq!(got.status, 400, "{bad}: {}", got.text());
    }
    let got = app.get("/admin/v1/margins?start_time=1").await;
    assert_eq!(got.status, 403, "operators only: {}", got.text());
    app.finish().await;
}

async fn a_correction_and_a_failed_call_are_in_the_margin(store: Store) {
    let app = Setup::new(store).env("TOLLGATE_SLOW_LOOKUP_EVERY_SECONDS", "1").start().await;
    let admin = Admin::of(&app).await;
    let record = corrected(&app).await;
    let [row] = &rows(&admin, &format!("/margins?start_time={}", hours_from_now(-2))).await[..]
    else {
        panic!("one row")
    };
    // A micro-dollar at the upstream, and a fifth on it.
    assert_eq!((nano(&row["charge_usd"]), pico(&row["cost_usd"])), (1_200, 1_000_000));
    assert_eq!((pico(&row["margin_usd"]), &row["requests_without_cost"]), (200_000, &json!(0)));

    // On a day of their own: a call whose cost is not known, beside failed ones that have cost.
    let day = 1_741_564_800_u64;
    let ids = vec![id_at(day * 1_000 + 5, 1)];
    copy(&app, store, &record.id, &ids).await;
    let tried = r#"[{"upstream":"a","ms":1,"cost_pusd":1234567},{"upstream":"b","ms":2},
                    {"upstream":"c","ms":3,"cost_pusd":1}]"#;
    let set = format!("UPDATE usage_records SET tried = '{tried}' WHERE id = '{}'", ids[0]);
    app.books.tamper(&set).await;
    let path = format!("/margins?start_time={day}&end_time={}", day + 86_400);
    let row = rows(&admin, &path).await.remove(0);
    assert_eq!(pico(&row["failed_cost_usd"]), 1_234_568);
    assert_eq!(pico(&row["cost_usd"]), 0);
    let left = i128::from(record.charge_nusd) * 1_000 - 1_234_568;
    assert_eq!(pico(&row["margin_usd"]), left);
    assert_eq!(row["requests_without_cost"], json!(1));
    assert_eq!(nano(&row["charge_without_cost_usd"]), record.charge_nusd);
    forget(&app, &ids).await;
    app.finish().await;
}

async fn drift_is_told_by_model(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    for completion in [7, 11] {
        app.upstream.script(Answer::openrouter().tokens(12, completion).stream());
        app.chat(&streamed(MODEL)).await.ok();
    }
    let records = app.records(2).await;
    let path = format!("/drift?start_time={}", hours_from_now(-2));
    let row = rows(&admin, &path).await.remove(0);
    let sum = |number: fn(&UsageRecord) -> i64| json!(records.iter().map(number).sum::<i64>());
    assert_eq!((&row["model"], &row["requests"]), (&json!(MODEL), &json!(2)));
    assert_eq!(row["completion_tokens"], json!(18));
    let counted = sum(|record| record.counted_completion_tokens.expect("a count"));
    assert_eq!(row["counted_completion_tokens"], counted);
    let differ = |record: &&UsageRecord| {
        let said = record.completion_tokens;
        let counted = record.counted_completion_tokens.expect("a count");
        !(said - record.reasoning_tokens..=said).contains(&counted)
    };
    assert_eq!(row["different"], json!(records.iter().filter(differ).count()));
    app.finish().await;
}

async fn what_waits_for_a_sink_is_told(store: Store) {
    let (openmeter, webhook) = (OpenMeter::start().await, Webhook::start().await);
    let setup = with_openmeter(Setup::new(store), &openmeter);
    let app = with_webhook(setup, &webhook).start().await;
    let admin = Admin::of(&app).await;
    let seen = async |sink: &str| {
        let sinks = rows(&admin, "/sinks").await;
        let row = sinks.into_iter().find(|row| row["name"] == json!(sink)).expect("the sink");
        (row["waiting"].clone(), row["parked"].clone(), row["oldest_waiting_at"].is_string())
    };
    assert_eq!(seen("openmeter").await, (json!(0), json!(0), false));
    one(&app, 1).await;
    app.records(1).await;
    all(&app, "exported").await;
    openmeter.faults.always(Some(Fault::Status(500, None)));
    for tokens in 2..4 {
        one(&app, tokens).await;
    }
    app.records(3).await;
    assert_eq!(seen("openmeter").await, (json!(2), json!(0), true));
    let waiting = admin.get("/events?sink=openmeter&state=waiting").await;
    let path = format!("/events/{}/park", text(&waiting["data"][0]["id"]));
    admin.done(200, "POST", &path, Some(json!({"reason": "disputed"}))).await;
    assert_eq!(seen("openmeter").await, (json!(1), json!(1), true));
    openmeter.faults.always(None);
    app.finish().await;
}

async fn health_tells_who_is_left_alone(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let well = admin.get("/health").await;
    assert_eq!((&well["status"], &well["upstreams"][0]["models"]), (&json!("ready"), &json!([])));
    for _ in 0..3 {
        app.upstream.script(Script::json(500, "{}"));
        app.chat(&question(MODEL)).await;
    }
    let seen = admin.get("/health").await;
    let upstream = &seen["upstreams"][0];
    assert_eq!((&upstream["state"], &upstream["models_in_trouble"]), (&json!("well"), &json!(1)));
    let trouble = &upstream["models"][0];
    assert_eq!(trouble["model"], json!(MODEL));
    assert!(["left_alone", "on_trial"].contains(&text(&trouble["state"]).as_str()), "{seen}");
    assert!(!seen.to_string().contains(&app.upstream.url()), "no address: {seen}");
    app.records(3).await;
    app.finish().await;
}
