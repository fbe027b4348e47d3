//! Billing events on their way: what the sinks have in the end is what the ledger says, whatever
//! goes wrong between them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::app::process::Process;
use crate::app::{Setup, Store, TestApp, both_stores, eventually, streamed};
use crate::metrics::scrape::{address, watched};
use crate::promises::corrected;
use crate::sinks::openmeter::{self, OpenMeter};
use crate::sinks::server::Fault;
use crate::sinks::stripe::{self, CHARGE_METER, Stripe};
use crate::sinks::webhook::{self, Webhook};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

mod chaos;
pub mod doubt;
mod outage;
mod refused;
mod stream;
mod traffic;
mod warnings;
mod word;

both_stores!(
    every_sink_gets_what_the_ledger_charged,
    an_export_planned_while_verify_reads_is_no_difference,
    a_late_truth_reaches_every_sink,
    an_account_without_a_customer_is_sent_when_it_has_one,
    what_stripe_refuses_is_parked_and_tried_again,
    what_openmeter_refuses_is_alone,
    an_idempotency_key_is_not_used_for_a_failure_twice,
    a_sink_in_trouble_holds_up_nobody,
    a_call_under_way_is_finished_at_the_end,
    sinks_may_be_switched_on_later,
    an_operator_parks_and_retries,
    the_webhook_is_told_until_it_hears,
    optional_meters_count_tokens,
);

pub fn with_stripe(setup: Setup, stripe: &Stripe) -> Setup {
    setup
        .env("STRIPE_SECRET_KEY", stripe::KEY)
        .env("STRIPE_API_BASE", &stripe.url())
        .env("STRIPE_CALLS_PER_SECOND", "1000")
        // Where a customer is wanted, the test says so.
        .env("STRIPE_CREATE_CUSTOMERS", "off")
        .env("TOLLGATE_EXPORT_SECONDS", "2")
        .env("TOLLGATE_EXPORT_LEASE_SECONDS", "4")
}

/// By its meter event stream.
pub fn with_stream(setup: Setup, stripe: &Stripe) -> Setup {
    let setup = with_stripe(setup, stripe).env("STRIPE_METER_STREAM", "on");
    setup.env("STRIPE_STREAM_BASE", &stripe.url())
}

pub fn with_openmeter(setup: Setup, openmeter: &OpenMeter) -> Setup {
    setup
        .env("OPENMETER_URL", &openmeter.url())
        .env("OPENMETER_TOKEN", openmeter::TOKEN)
        .env("TOLLGATE_EXPORT_SECONDS", "2")
        .env("TOLLGATE_EXPORT_LEASE_SECONDS", "4")
}

pub fn with_webhook(setup: Setup, webhook: &Webhook) -> Setup {
    setup
        .env("TOLLGATE_WEBHOOK_URL", &webhook.url())
        .env("TOLLGATE_WEBHOOK_SECRET", webhook::SECRET)
}

/// With time for a call that the test holds up.
pub fn patient(setup: Setup) -> Setup {
    setup.env("TOLLGATE_EXPORT_SECONDS", "30").env("TOLLGATE_EXPORT_LEASE_SECONDS", "60")
}

/// SIGTERM, heard: what is under way goes on for five seconds, and nothing else is begun. The
/// workers are told together with the listener for metrics, which the test must have asked for.
pub async fn told_to_stop(app: &mut TestApp) {
    let metrics = address(app).await;
    app.sigterm();
    let is_closed = async || TcpStream::connect(metrics).await.err();
    eventually("nobody listens for metrics any more", is_closed).await;
}

/// The first account as a customer of Stripe.
pub async fn known_to_stripe(app: &TestApp) {
    app.cli(&["account", "update", "--account", "test", "--stripe-customer", "cus_test"]).await;
}

/// One request of so many completion tokens, at 720 nano-USD each and 2,160 for the prompt.
pub async fn one(app: &TestApp, tokens: i64) {
    app.upstream.script(Answer::openrouter().no_cost().tokens(12, tokens).stream());
    app.chat(&streamed(MODEL)).await.ok();
}

/// What accounts were charged and given back, by account, in nano-USD.
pub async fn ledger(app: &TestApp) -> BTreeMap<String, i64> {
    let mut sums = BTreeMap::new();
    for entry in app.books.entries().await.into_iter().filter(|entry| entry.kind != "credit") {
        *sums.entry(entry.account_id).or_default() -= entry.amount_nusd;
    }
    sums
}

/// Waits until every event is in this state.
pub async fn all(app: &TestApp, state: &str) {
    eventually(&format!("every event is {state}"), async || {
        let events = app.books.events().await;
        events.iter().all(|event| event.state == state).then_some(())
    })
    .await;
}

/// Less than a unit differs for the first account, and Stripe had nothing to complain of.
pub async fn assert_stripe_agrees(app: &TestApp, stripe: &Stripe, customer: &str) {
    let charged = ledger(app).await.get(&app.account).copied().unwrap_or_default();
    let sent = stripe.sums(CHARGE_METER).get(customer).copied().unwrap_or_default();
    let rest = charged - sent * 1_000;
    assert!((0..1_000).contains(&rest), "charged {charged} nano-USD, sent {sent} micro-USD");
    assert_eq!(stripe.wrong(), Vec::<String>::new());
}

async fn every_sink_gets_what_the_ledger_charged(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let (openmeter, webhook) = (OpenMeter::start().await, Webhook::start().await);
    let setup = with_openmeter(with_stripe(Setup::new(store), &stripe), &openmeter);
    let app = with_webhook(setup, &webhook).start().await;
    known_to_stripe(&app).await;
    // 7.2 micro-USD and the prompt's: none is whole.
    for tokens in [1, 3, 10, 0, 21] {
        one(&app, tokens).await;
    }
    app.records(5).await;
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    assert_eq!(openmeter.sums("charge_nusd"), ledger(&app).await);
    let events = openmeter.events();
    assert_eq!(events.len(), 5);
    let sum = |member: &str| openmeter.sums(member)[&app.account];
    assert_eq!((sum("requests"), sum("uncached_prompt_tokens")), (5, 60));
    assert_eq!(sum("text_completion_tokens"), 35);
    assert_eq!(events[0]["type"], json!("tollgate.usage"));
    assert_eq!(events[0]["data"]["model"], json!(MODEL));
    assert_eq!((webhook.events().len(), webhook.forged()), (5, 0));
    let told = webhook.events();
    assert!(told.values().all(|event| event["type"] == "usage.recorded"), "{told:?}");
    let told: i64 =
        told.values().map(|event| event["data"]["charge_nusd"].as_i64().expect("a number")).sum();
    assert_eq!(told, ledger(&app).await[&app.account]);
    let verified = app.cli(&["verify"]).await;
    assert!(verified.contains("stripe: 5 exported, 0 waiting, 0 parked"), "{verified}");
    app.finish().await;
}

async fn an_export_planned_while_verify_reads_is_no_difference(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let app = with_stripe(Setup::new(store), &stripe).start().await;
    known_to_stripe(&app).await;
    let lane = async || app.books.rows("SELECT seq, carried_nusd FROM export_lanes").await;
    let mut seen = Vec::new();
    for (calls, tokens) in [(1, 1), (2, 3)] {
        one(&app, tokens).await;
        app.records(calls).await;
        all(&app, "exported").await;
        seen.push(lane().await[0].clone());
    }
    let set = async |row: &Value| {
        let sql = format!(
            "UPDATE export_lanes SET seq = {}, carried_nusd = {}",
            row["seq"], row["carried_nusd"]
        );
        app.books.tamper(&sql).await;
    };
    // The lane was read before the second was planned, and the exports after.
    set(&seen[0]).await;
    app.cli(&["verify"]).await;
    set(&json!({ "seq": seen[1]["seq"], "carried_nusd": seen[0]["carried_nusd"] })).await;
    let verified = app.try_cli(&["verify"]).await;
    assert!(verified.stdout.contains("DIFFERS  customer cus_test: carries"), "{}", verified.stdout);
    app.books.tamper("UPDATE export_lanes SET customer = 'cus_other'").await;
    let verified = app.try_cli(&["verify"]).await;
    let stranger = "DIFFERS  customer cus_test: its exports are of no lane";
    assert!(verified.stdout.contains(stranger), "{}", verified.stdout);
    app.books.tamper("UPDATE export_lanes SET customer = 'cus_test'").await;
    set(&seen[1]).await;
    app.finish().await;
}

async fn a_late_truth_reaches_every_sink(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let (openmeter, webhook) = (OpenMeter::start().await, Webhook::start().await);
    let setup = with_openmeter(with_stripe(Setup::new(store), &stripe), &openmeter);
    let setup = with_webhook(setup, &webhook).env("TOLLGATE_SLOW_LOOKUP_EVERY_SECONDS", "1");
    let app = setup.start().await;
    known_to_stripe(&app).await;
    let record = corrected(&app).await;
    eventually("the correction is sent everywhere", async || {
        let events = app.books.events().await;
        let is_all = events.len() == 6 && events.iter().all(|event| event.state == "exported");
        is_all.then_some(())
    })
    .await;
    assert_eq!(ledger(&app).await[&app.account], 1_200, "what it cost in the end");
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    assert_eq!(openmeter.sums("charge_nusd")[&app.account], 1_200);
    assert_eq!(openmeter.sums("requests")[&app.account], 1, "a correction is no request");
    assert_eq!(openmeter.sums("uncached_prompt_tokens")[&app.account], 12);
    assert_eq!(openmeter.sums("text_completion_tokens")[&app.account], 5);
    let told = webhook.events();
    let told = &told[&format!("{}:webhook:correction", record.id)];
    assert_eq!(told["type"], json!("usage.corrected"));
    assert_eq!(told["data"]["charge_nusd"], json!(1_200 - record.charge_nusd));
    app.finish().await;
}

async fn an_account_without_a_customer_is_sent_when_it_has_one(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let app = with_stripe(Setup::new(store), &stripe).start().await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "parked").await;
    assert_eq!(app.books.events().await[0].reason.as_deref(), Some("no_customer"));
    assert_eq!(stripe.calls(), 0);
    known_to_stripe(&app).await;
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

async fn what_stripe_refuses_is_parked_and_tried_again(store: Store) {
    let stripe = Stripe::start(&[]).await;
    let webhook = Webhook::start().await;
    let app = with_webhook(with_stripe(Setup::new(store), &stripe), &webhook).start().await;
    let wrong = ["account", "update", "--account", "test", "--stripe-customer", "cus_wrong"];
    app.cli(&wrong).await;
    one(&app, 100).await;
    app.records(1).await;
    let parked = eventually("it is parked", async || {
        let events = app.list(&["events", "list", "--parked", "--sink", "stripe"]).await;
        events.into_iter().next()
    })
    .await;
    let reason = parked["reason"].as_str().expect("a reason");
    assert!(reason.contains("resource_missing"), "{reason}");
    // The operator is told, with the reason, and again when a retry does not help.
    let told = async |times: usize| {
        eventually("the webhook is told", async || {
            let events = webhook.events().into_values();
            let told: Vec<Value> = events.filter(|told| told["type"] == "event.parked").collect();
            (told.len() == times).then_some(told)
        })
        .await
    };
    let [first] = told(1).await.try_into().expect("one");
    assert_eq!(first["data"]["reason"], parked["reason"]);
    assert_eq!(first["data"]["event_id"], parked["id"]);
    assert_eq!(app.cli(&["events", "retry", "--parked"]).await, "1");
    assert!(told(2).await.iter().all(|told| told["data"]["event_id"] == parked["id"]));
    app.cli(&["verify"]).await;
    // The typing error is put right: what was planned for nobody is planned anew.
    stripe.add_customer("cus_test");
    known_to_stripe(&app).await;
    assert_eq!(app.cli(&["events", "retry", "--parked"]).await, "1");
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

async fn what_openmeter_refuses_is_alone(store: Store) {
    let openmeter = OpenMeter::start().await;
    openmeter.faults.always(Some(Fault::Status(503, Some(1))));
    let app = with_openmeter(Setup::new(store), &openmeter).start().await;
    for tokens in 1..=6 {
        one(&app, tokens).await;
    }
    let records = app.records(6).await;
    let bad = format!("{}:openmeter", records[3].id);
    openmeter.refuse(&bad);
    openmeter.faults.calm();
    eventually("five are there, and one is parked", async || {
        let events = app.books.events().await;
        let parked: Vec<_> = events.iter().filter(|event| event.state == "parked").collect();
        (openmeter.events().len() == 5 && parked.len() == 1 && parked[0].id == bad).then_some(())
    })
    .await;
    openmeter.accept_all();
    app.cli(&["events", "retry", &bad]).await;
    all(&app, "exported").await;
    assert!(openmeter.largest() > 1, "they were sent together");
    assert_eq!(openmeter.sums("charge_nusd"), ledger(&app).await);
    app.finish().await;
}

async fn an_idempotency_key_is_not_used_for_a_failure_twice(store: Store) {
    // Stripe takes the event, answers 500, and would answer 500 to the same key for a day.
    let stripe = Stripe::start(&["cus_test"]).await;
    stripe.faults.queue([Fault::FailAfter(500)]);
    let app = with_stripe(Setup::new(store), &stripe).start().await;
    known_to_stripe(&app).await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "exported").await;
    assert_eq!(stripe.taken().len(), 1);
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

async fn a_sink_in_trouble_holds_up_nobody(store: Store) {
    let (openmeter, webhook) = (OpenMeter::start().await, Webhook::start().await);
    openmeter.faults.always(Some(Fault::HangAfter));
    let setup = with_openmeter(Setup::new(store), &openmeter);
    let app = with_webhook(setup, &webhook).start().await;
    for tokens in 1..=8 {
        one(&app, tokens).await;
    }
    app.records(8).await;
    eventually("the other sink has all", async || (webhook.events().len() == 8).then_some(()))
        .await;
    // Eight events and a few deadlines of two seconds: the breaker keeps the calls few.
    assert!(openmeter.calls() < 10, "{} calls to a sink that is silent", openmeter.calls());
    openmeter.faults.calm();
    all(&app, "exported").await;
    assert_eq!(openmeter.sums("charge_nusd"), ledger(&app).await);
    app.finish().await;
}

async fn a_call_under_way_is_finished_at_the_end(store: Store) {
    let openmeter = OpenMeter::start().await;
    openmeter.faults.queue([Fault::GatedAfter]);
    let setup = watched(patient(with_openmeter(Setup::new(store), &openmeter)));
    let mut app = setup.start().await;
    one(&app, 1).await;
    app.records(1).await;
    eventually("the call has arrived", async || (openmeter.calls() == 1).then_some(())).await;
    told_to_stop(&mut app).await;
    openmeter.faults.gate.open();
    assert!(app.stopped().await.success());
    let events = app.books.events().await;
    assert_eq!(events[0].state, "exported", "its answer was waited for");
    app.restart().await;
    one(&app, 2).await;
    app.records(2).await;
    all(&app, "exported").await;
    assert_eq!(openmeter.calls(), 2, "nothing was sent again");
    assert_eq!(openmeter.sums("charge_nusd"), ledger(&app).await);
    app.finish().await;
}

async fn sinks_may_be_switched_on_later(store: Store) {
    let openmeter = OpenMeter::start().await;
    let mut app = Setup::new(store).start().await;
    one(&app, 1).await;
    app.records(1).await;
    app.kill9();
    let with = with_openmeter(Setup::new(store), &openmeter).environment();
    let before = app.environment.clone();
    app.environment.extend(with);
    app.restart().await;
    one(&app, 2).await;
    let records = app.records(2).await;
    all(&app, "exported").await;
    app.cli(&["verify"]).await;
    assert_eq!(openmeter.events().len(), 1, "what was used before has no event");
    // One that is missing is named.
    let delete = format!("DELETE FROM billing_events WHERE request_id = '{}'", records[1].id);
    app.books.tamper(&delete).await;
    let verified = app.try_cli(&["verify"]).await;
    assert!(!verified.status.success());
    let named = format!("charge of {}: no billing event for openmeter", records[1].id);
    assert!(verified.stdout.contains(&named), "{}", verified.stdout);
    // It can be made, once; and the sink knows it by its id.
    assert_eq!(app.cli(&["events", "backfill"]).await, "1");
    assert_eq!(app.cli(&["events", "backfill"]).await, "0");
    all(&app, "exported").await;
    app.cli(&["verify"]).await;
    assert_eq!(openmeter.events().len(), 1, "the same one again");
    app.books.tamper(&delete).await;
    // And switched off again: what follows needs none.
    app.kill9();
    app.environment = before;
    app.restart().await;
    one(&app, 3).await;
    app.records(3).await;
    let verified = app.try_cli(&["verify"]).await;
    assert_eq!(verified.stdout.matches("DIFFERS").count(), 1, "{}", verified.stdout);
    app.books.tamper("DELETE FROM billing_sinks").await;
    app.finish().await;
}

/// A process that begins with a sink, beside one that does not know of it.
#[tokio::test]
async fn what_was_settled_without_a_new_sink_is_made_up_for() {
    let openmeter = OpenMeter::start().await;
    let mut app = Setup::new(Store::Postgres).start().await;
    let with = with_openmeter(Setup::new(Store::Postgres), &openmeter).environment();
    let mut environment = app.environment.clone();
    environment.extend(with);
    let mut newer = Process::serve(&environment, app.folder());
    newer.base_url().await;
    one(&app, 2).await;
    let record = app.record().await;
    assert!(app.books.events().await.is_empty(), "it does not know of the sink");
    assert!(!app.try_cli(&["verify"]).await.status.success());
    assert_eq!(app.cli(&["events", "backfill"]).await, "1");
    all(&app, "exported").await;
    let sent = BTreeMap::from([(app.account.clone(), record.charge_nusd)]);
    assert_eq!(openmeter.sums("charge_nusd"), sent);
    app.cli(&["verify"]).await;
    newer.kill();
    app.environment = environment;
    app.finish().await;
}

async fn an_operator_parks_and_retries(store: Store) {
    let openmeter = OpenMeter::start().await;
    openmeter.faults.always(Some(Fault::Status(500, None)));
    let mut app = with_openmeter(Setup::new(store), &openmeter).start().await;
    one(&app, 1).await;
    let id = format!("{}:openmeter", app.record().await.id);
    // What is on its way while it is parked may yet arrive, and is exported then.
    app.kill9();
    assert_eq!(app.cli(&["events", "park", &id, "--reason", "disputed"]).await, "1");
    let parked = app.list(&["events", "list", "--parked"]).await;
    assert_eq!(parked[0]["reason"], json!("disputed"));
    assert!(!app.try_cli(&["events", "park", "no-such-event"]).await.status.success());
    assert!(!app.try_cli(&["events", "retry"]).await.status.success(), "nothing is named");
    assert_eq!(app.cli(&["events", "retry", &id]).await, "1");
    openmeter.faults.calm();
    app.restart().await;
    all(&app, "exported").await;
    let listed: Vec<Value> = app.list(&["events", "list", "--sink", "openmeter"]).await;
    assert_eq!(listed.len(), 1);
    app.finish().await;
}

async fn optional_meters_count_tokens(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    stripe.add_meter("llm_input");
    stripe.add_meter("llm_reasoning");
    let setup = with_stripe(Setup::new(store), &stripe);
    let meters = "uncached_prompt_tokens=llm_input,reasoning_tokens=llm_reasoning";
    let app = setup.env("STRIPE_METERS", meters).start().await;
    known_to_stripe(&app).await;
    for _ in 0..3 {
        let answer = Answer::openrouter().no_cost().tokens(12, 9).parts(5, 4);
        app.upstream.script(answer.stream());
        app.chat(&streamed(MODEL)).await.ok();
    }
    app.records(3).await;
    all(&app, "exported").await;
    assert_eq!(stripe.sums("llm_input")["cus_test"], 3 * 7);
    assert_eq!(stripe.sums("llm_reasoning")["cus_test"], 3 * 4);
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    // What else was sent than they sum to is named.
    let differs = async |set: &str, back: &str, words: &str| {
        app.books.tamper(&format!("UPDATE exports SET {set} WHERE unit = 1")).await;
        let said = app.try_cli(&["verify"]).await;
        assert!(!said.status.success() && said.stdout.contains(words), "{set}: {said:?}");
        app.books.tamper(&format!("UPDATE exports SET {back} WHERE unit = 1")).await;
    };
    differs("value = value + 1", "value = value - 1", "is sent of").await;
    let both = |by: &str| format!("value = value {by}, amount = amount {by}");
    differs(&both("+ 1000"), &both("- 1000"), "is no sum of its members").await;
    app.finish().await;
}

async fn the_webhook_is_told_until_it_hears(store: Store) {
    let webhook = Webhook::start().await;
    webhook.faults.queue([Fault::Status(404, None), Fault::CutAfter, Fault::FailAfter(503)]);
    let app = with_webhook(Setup::new(store), &webhook).start().await;
    one(&app, 5).await;
    app.records(1).await;
    all(&app, "exported").await;
    assert_eq!((webhook.events().len(), webhook.forged()), (1, 0));
    assert_eq!(webhook.deliveries(), 3, "heard at the third time that it arrived");
    // Gone for good: parked, and told to nobody.
    webhook.faults.queue([Fault::Status(410, None)]);
    one(&app, 6).await;
    app.records(2).await;
    eventually("it is parked", async || {
        let events = app.books.events().await;
        events.iter().any(|event| event.state == "parked").then_some(())
    })
    .await;
    app.finish().await;
}
