//! Usage that Stripe has taken and finds at fault later: it is parked, told, and sent again.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use super::events::{deliver, now, send};
use super::setup;
use crate::app::{Store, TestApp, both_stores, eventually};
use crate::billing::{
    all, assert_stripe_agrees, known_to_stripe, one, patient, with_stripe, with_webhook,
};
use crate::sinks::server::Fault;
use crate::sinks::stripe::{CHARGE_METER, Stripe};
use crate::sinks::webhook::Webhook;

both_stores!(
    usage_that_is_found_at_fault_is_parked,
    one_of_several_meters_that_is_found_at_fault_counts_in_the_end,
    what_is_found_at_fault_stays_so_when_its_own_call_is_written_down_after,
    what_is_partly_archived_is_sent_again_as_it_was,
    what_is_wholly_archived_is_told_of_and_sent_again,
);

/// As Stripe's second API has it.
pub fn thin(id: &str) -> Value {
    json!({"id": id, "object": "v2.core.event", "livemode": false,
        "type": "v1.billing.meter.error_report_triggered", "created": "2026-11-24T12:00:00.000Z",
        "related_object": {"id": "mtr_1", "type": "billing.meter",
            "url": "/v1/billing/meters/mtr_1"}})
}

pub fn report(identifier: &str) -> Value {
    json!({"developer_message_summary": "There is 1 invalid event",
        "validation_start": "2026-11-24T11:59:50.000Z", "validation_end": "2026-11-24T12:00:00Z",
        "reason": {"error_count": 1, "error_types": [{"code": "meter_event_customer_not_found",
            "error_count": 1, "sample_errors": [{"error_message": "The customer is gone",
                "request": {"identifier": identifier}}]}]}})
}

async fn events_of(app: &TestApp, sink: &str) -> Vec<(String, Option<String>)> {
    let events = app.books.events().await.into_iter().filter(|event| event.sink == sink);
    events.filter(|event| event.kind == "usage").map(|event| (event.state, event.reason)).collect()
}

async fn usage_that_is_found_at_fault_is_parked(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let webhook = Webhook::start().await;
    let app = with_webhook(with_stripe(setup(store), &stripe), &webhook).start().await;
    known_to_stripe(&app).await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "exported").await;
    let identifier = stripe.taken()[0].identifier.clone();

    // Nothing is known of it at first: Stripe tries again.
    let event = thin("evt_thin_1");
    let got = send(&app, &event).await;
    assert_eq!(got.status, 502, "{}", got.text());
    stripe.set_report("evt_thin_1", &report(&identifier));
    // What the webhook is told, it is told until it hears.
    webhook.faults.always(Some(Fault::FailAfter(503)));
    deliver(&app, &event).await;
    deliver(&app, &event).await;
    let why = Some("stripe meter_event_customer_not_found: The customer is gone".to_string());
    assert_eq!(events_of(&app, "stripe").await, [("parked".to_string(), why.clone())]);
    assert_eq!(events_of(&app, "webhook").await, [("exported".to_string(), None)]);
    let told = eventually("the webhook is told", async || {
        let events = webhook.events().into_values();
        events.into_iter().find(|event| event["type"] == "event.parked")
    })
    .await;
    assert_eq!(told["data"]["reason"], json!(why));
    assert!(app.cli(&["verify"]).await.contains("stripe: 0 exported, 0 waiting, 1 parked"));

    // Sent again, with an identifier of its own; and the notice says what it said.
    app.cli(&["events", "retry", "--parked"]).await;
    webhook.faults.calm();
    all(&app, "exported").await;
    let taken = stripe.taken();
    assert_eq!(taken.len(), 2);
    assert_ne!(taken[1].identifier, identifier);
    assert_eq!(stripe.sums(CHARGE_METER)["cus_test"], taken[0].value * 2, "Stripe counts one");

    // A whole report about a call, by its key; and one that names nobody.
    let mut whole = thin("evt_whole");
    whole["data"] = report(&format!("{}-0", taken[1].identifier));
    deliver(&app, &whole).await;
    assert_eq!(events_of(&app, "stripe").await[0].0, "parked");
    let mut stranger = thin("evt_stranger");
    stranger["data"] = report("somebody-elses");
    stranger["created"] = json!(now());
    deliver(&app, &stranger).await;
    app.finish().await;
}

/// A customer's usage makes two exports of one group.
async fn with_two_meters(store: Store) -> (Stripe, TestApp) {
    let stripe = Stripe::start(&["cus_test"]).await;
    stripe.add_meter("llm_input");
    let setup = patient(with_stripe(setup(store), &stripe));
    let app = setup.env("STRIPE_METERS", "uncached_prompt_tokens=llm_input").start().await;
    known_to_stripe(&app).await;
    (stripe, app)
}

async fn one_of_several_meters_that_is_found_at_fault_counts_in_the_end(store: Store) {
    let (stripe, app) = with_two_meters(store).await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "exported").await;
    // The others of its group count, and its identifier is known there for a day.
    let mut event = thin("evt_one_of_several");
    event["data"] = report(&stripe.reject("cus_test"));
    deliver(&app, &event).await;
    assert_eq!(events_of(&app, "stripe").await[0].0, "parked");
    app.cli(&["events", "retry", "--parked"]).await;
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    assert_eq!(stripe.sums("llm_input")["cus_test"], 12);
    app.finish().await;
}

async fn what_is_found_at_fault_stays_so_when_its_own_call_is_written_down_after(store: Store) {
    let (stripe, app) = with_two_meters(store).await;
    // Of one worker's calls for a customer the first is answered and the second is not: while it
    // is waited for, nothing of both is written down.
    stripe.faults.queue([Fault::None, Fault::GatedAfter]);
    one(&app, 100).await;
    eventually("both are there", async || (stripe.taken().len() == 2).then_some(())).await;
    let states = async || {
        let rows = app.books.rows("SELECT state, reason FROM exports ORDER BY seq").await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        rows.iter().map(|row| (text(&row["state"]), text(&row["reason"]))).collect::<Vec<_>>()
    };
    let mut event = thin("evt_meanwhile");
    event["data"] = report(&stripe.reject("cus_test"));
    deliver(&app, &event).await;
    assert_eq!(states().await[0].0, "parked");
    assert_eq!(states().await[1], ("waiting".to_string(), String::new()), "its call goes on");
    stripe.faults.gate.open();
    let is_written = async || (states().await[1].0 == "exported").then_some(());
    eventually("the end of both calls is written down", is_written).await;
    assert_eq!(states().await[0].0, "parked", "Stripe does not count it");
    app.cli(&["events", "retry", "--parked"]).await;
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    assert_eq!(stripe.sums("llm_input")["cus_test"], 12);
    app.finish().await;
}

/// Two calls of one minute, merged into one export, which Stripe drops when events of it are in an
/// archive; gives the export's id.
async fn dropped_late(store: Store, stripe: &Stripe, archived: &str) -> (TestApp, String) {
    let app = with_stripe(setup(store), stripe).start().await;
    for tokens in [100, 70] {
        one(&app, tokens).await;
    }
    app.records(2).await;
    all(&app, "parked").await;
    let same =
        "UPDATE billing_events SET created_at = (SELECT MIN(created_at) FROM billing_events)";
    app.books.tamper(same).await;
    known_to_stripe(&app).await;
    all(&app, "exported").await;
    // As if their rows were in files.
    app.books.tamper(&format!("UPDATE billing_events SET export_group = 'x' {archived}")).await;
    let dropped = stripe.reject("cus_test");
    let mut event = thin("evt_late");
    event["data"] = report(&dropped);
    deliver(&app, &event).await;
    (app, dropped)
}

/// And is back, for whoever looks at the books.
async fn put_back(app: &TestApp) {
    let group = "(SELECT MIN(event_group) FROM exports)";
    let group = format!("UPDATE billing_events SET export_group = {group} WHERE sink = 'stripe'");
    app.books.tamper(&group).await;
}

async fn what_is_partly_archived_is_sent_again_as_it_was(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let one = "WHERE id = (SELECT MIN(id) FROM billing_events)";
    let (app, dropped) = dropped_late(store, &stripe, one).await;
    let states: Vec<String> =
        events_of(&app, "stripe").await.into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, ["exported", "parked"]);
    assert_eq!(app.cli(&["events", "retry", "--parked"]).await, "1");
    all(&app, "exported").await;
    assert_ne!(stripe.taken()[0].identifier, dropped);
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    put_back(&app).await;
    app.finish().await;
}

async fn what_is_wholly_archived_is_told_of_and_sent_again(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let (app, dropped) = dropped_late(store, &stripe, "").await;
    assert_eq!(app.cli(&["events", "retry", "--parked"]).await, "0", "none stands for it");
    let said = async || app.process.stderr().contains(&dropped).then_some(());
    eventually("it is said", said).await;
    assert_eq!(app.cli(&["exports", "missing", &dropped]).await, "1");
    eventually("it is sent again", async || (stripe.taken().len() == 1).then_some(())).await;
    assert_ne!(stripe.taken()[0].identifier, dropped);
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    let exported = "SELECT * FROM exports WHERE state = 'exported'";
    let exported = async || (app.books.rows(exported).await.len() == 1).then_some(());
    eventually("that is written down", exported).await;
    let again = app.try_cli(&["exports", "missing", &dropped]).await;
    assert!(!again.status.success(), "once: {again:?}");
    put_back(&app).await;
    app.finish().await;
}

/// Nobody else writes on SQLite meanwhile.
#[tokio::test]
async fn a_report_that_comes_during_a_retry_is_not_undone() {
    let (stripe, app) = with_two_meters(Store::Postgres).await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "exported").await;
    let [mut first, mut second] = [thin("evt_first"), thin("evt_second")];
    first["data"] = report(&stripe.reject("cus_test"));
    second["data"] = report(&stripe.reject("cus_test"));
    deliver(&app, &first).await;

    let mut conn = PgConnection::connect(&app.database_url()).await.expect("a connection");
    let mut held = conn.begin().await.expect("a transaction");
    let hold = sqlx::query("SELECT 1 FROM export_lanes FOR UPDATE");
    hold.fetch_all(&mut *held).await.expect("a lane");
    let retry = app.cli(&["events", "retry", "--parked"]);
    let meanwhile = async {
        let waits = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
                     AND wait_event_type = 'Lock'";
        let waits = async || app.books.rows(waits).await.pop();
        eventually("the retry waits for the lane", waits).await;
        let release = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            held.rollback().await.expect("the end of it");
        };
        tokio::join!(deliver(&app, &second), release);
    };
    tokio::join!(retry, meanwhile);

    assert_eq!(events_of(&app, "stripe").await[0].0, "parked", "Stripe does not count it");
    app.cli(&["events", "retry", "--parked"]).await;
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    assert_eq!(stripe.sums("llm_input")["cus_test"], 12);
    app.finish().await;
}
