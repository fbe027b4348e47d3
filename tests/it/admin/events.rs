//! Billing events over HTTP: found by sink, state and account, kept back and sent again, as by the
//! commands, with an entry in the audit log for each.

use serde_json::{Value, json};

use super::{Admin, NOBODY, text};
use crate::app::{Setup, Store, TestApp, both_stores, streamed};
use crate::bad_input::assert_refused;
use crate::billing::{
    all, assert_stripe_agrees, known_to_stripe, one, with_openmeter, with_stripe, with_webhook,
};
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::server::Fault;
use crate::sinks::stripe::Stripe;
use crate::sinks::webhook::Webhook;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

both_stores!(
    events_are_found_by_what_they_are,
    an_event_is_kept_back_and_sent_again,
    what_was_merged_is_sent_again_together,
    an_event_is_dismissed,
    events_that_are_none,
);

fn ids(rows: &[Value]) -> Vec<String> {
    rows.iter().map(|row| text(&row["id"])).collect()
}

/// What the audit log says of events.
async fn told(admin: &Admin) -> Vec<Value> {
    let entries = admin.audit().await.into_iter();
    entries.filter(|entry| text(&entry["action"]).starts_with("event.")).collect()
}

async fn events_are_found_by_what_they_are(store: Store) {
    let (openmeter, webhook) = (OpenMeter::start().await, Webhook::start().await);
    let setup = with_openmeter(Setup::new(store), &openmeter);
    let app = with_webhook(setup, &webhook).start().await;
    let admin = Admin::of(&app).await;
    let other = admin.account("other").await;
    let (_, key) = admin.create_key(&other, json!({"name": "k"})).await;
    for tokens in 1..4 {
        one(&app, tokens).await;
    }
    app.upstream.script(Answer::openrouter().no_cost().tokens(12, 9).stream());
    app.ask(&app.chat_ask(&streamed(MODEL)).bearer(&key)).await.ok();
    let records = app.records(4).await;
    all(&app, "exported").await;
    let expected: Vec<String> = records
        .iter()
        .flat_map(|record| ["openmeter", "webhook"].map(|sink| format!("{}:{sink}", record.id)))
        .collect();
    assert_eq!(ids(&admin.all("/events", 3).await), expected);
    let found = async |query: &str| {
        let page = admin.get(&format!("/events?limit=100&{query}")).await;
        ids(page["data"].as_array().expect("a list"))
    };
    let webhooks: Vec<String> =
        expected.iter().filter(|id| id.ends_with(":webhook")).cloned().collect();
    assert_eq!(found("sink=webhook").await, webhooks);
    assert!(found("sink=stripe").await.is_empty());
    assert_eq!(found("state=exported").await, expected);
    assert!(found("state=parked").await.is_empty());
    assert_eq!(found(&format!("account={other}")).await, expected[6..]);
    assert_eq!(found(&format!("account={other}&sink=webhook")).await, webhooks[3..]);
    assert!(found(&format!("account={NOBODY}")).await.is_empty());
    assert_eq!(found(&format!("sink=webhook&after={}", webhooks[1])).await, webhooks[2..]);
    app.finish().await;
}

async fn an_event_is_kept_back_and_sent_again(store: Store) {
    let openmeter = OpenMeter::start().await;
    openmeter.faults.always(Some(Fault::Status(500, None)));
    let app = with_openmeter(Setup::new(store), &openmeter).start().await;
    let admin = Admin::of(&app).await;
    one(&app, 1).await;
    let path = format!("/events/{}:openmeter", app.record().await.id);
    let not_parked = admin.send("POST", &format!("{path}/retry"), None).await;
    assert_refused(&not_parked, "it waits", 400, "", "id");
    let word = Some(json!({"reason": "no_customer"}));
    let got = admin.send("POST", &format!("{path}/park"), word.as_ref()).await;
    assert_refused(&got, "a word of the program", 400, "", "reason");

    let reason = Some(json!({"reason": "disputed"}));
    let parked = admin.done(200, "POST", &format!("{path}/park"), reason.clone()).await;
    assert_eq!((&parked["state"], &parked["reason"]), (&json!("parked"), &json!("disputed")));
    let again = admin.send("POST", &format!("{path}/park"), reason.as_ref()).await;
    assert_refused(&again, "it is parked", 400, "", "id");
    let found = admin.get(&format!("/events?state=parked&account={}", app.account)).await;
    assert_eq!(found["data"], json!([parked]));
    assert_eq!(json!(app.list(&["events", "list", "--parked"]).await), json!([parked]));
    openmeter.faults.calm();
    let retried = admin.done(200, "POST", &format!("{path}/retry"), None).await;
    assert!(["waiting", "exported"].contains(&text(&retried["state"]).as_str()), "{retried}");
    all(&app, "exported").await;
    assert_eq!(openmeter.events().len(), 1);

    let told = told(&admin).await;
    let said: Vec<_> = told
        .iter()
        .map(|entry| {
            let states = [&entry["before"]["state"], &entry["after"]["state"]].map(text);
            assert_eq!(entry["account_id"], json!(app.account), "{entry}");
            assert_eq!(entry["subject"], parked["id"], "{entry}");
            assert!(text(&entry["actor"]).starts_with("key:"), "{entry}");
            (text(&entry["action"]), states.join(" to "))
        })
        .collect();
    let expected = [("event.park", "waiting to parked"), ("event.retry", "parked to waiting")];
    assert_eq!(said, expected.map(|(action, states)| (action.to_string(), states.to_string())));
    app.finish().await;
}

async fn an_event_is_dismissed(store: Store) {
    let openmeter = OpenMeter::start().await;
    openmeter.faults.queue([Fault::Status(400, None)]);
    let app = with_openmeter(Setup::new(store), &openmeter).start().await;
    let admin = Admin::of(&app).await;
    one(&app, 1).await;
    let path = format!("/events/{}:openmeter", app.record().await.id);
    all(&app, "parked").await;
    let dismissed = admin.done(200, "POST", &format!("{path}/dismiss"), None).await;
    let told = (&dismissed["state"], &dismissed["reason"]);
    assert_eq!(told, (&json!("exported"), &json!("dismissed")));
    for path in [format!("{path}/dismiss"), format!("{path}/retry")] {
        let got = admin.send("POST", &path, None).await;
        assert_refused(&got, "it is not parked", 400, "", "id");
    }
    one(&app, 2).await;
    app.records(2).await;
    all(&app, "exported").await;
    assert_eq!(openmeter.events().len(), 1, "that which came after it");
    let day = text(&dismissed["created_at"])[..10].to_string();
    let differs = async || {
        let said = app.try_cli(&["reconcile", "--json", "--samples", "0", "--day", &day]).await;
        said.stdout.contains("\"kind\":\"difference\"")
    };
    assert!(!differs().await, "what was dismissed is not missing there");
    app.books.tamper("UPDATE billing_events SET reason = NULL").await;
    assert!(differs().await, "what was sent would be");
    app.finish().await;
}

async fn what_was_merged_is_sent_again_together(store: Store) {
    let stripe = Stripe::start(&[]).await;
    let app = with_stripe(Setup::new(store), &stripe).start().await;
    let admin = Admin::of(&app).await;
    app.cli(&["account", "update", "--account", "test", "--stripe-customer", "cus_wrong"]).await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "parked").await;
    let parked = admin.get("/events?sink=stripe&state=parked").await["data"][0].clone();
    assert!(text(&parked["reason"]).contains("resource_missing"), "{parked}");
    assert!(parked["export_group"].is_string(), "{parked}");
    stripe.add_customer("cus_test");
    known_to_stripe(&app).await;
    let id = text(&parked["id"]);
    admin.done(200, "POST", &format!("/events/{id}/retry"), None).await;
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    let told = told(&admin).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["subject"], &told[0]["action"]), (&json!(id), &json!("event.retry")));
    app.finish().await;
}

async fn events_that_are_none(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    for (query, param) in [
        ("sink=nobody", "sink"),
        ("sink=", "sink"),
        ("sink=%00", "sink"),
        ("state=void", "state"),
        ("state=PARKED", "state"),
        ("account=7", "account"),
        ("after=no-event", "after"),
        (&format!("after={NOBODY}:a%00"), "after"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=many", "limit"),
        ("state=parked&state=waiting", "state"),
        ("acount=7", ""),
    ] {
        let got = admin.send("GET", &format!("/events?{query}"), None).await;
        assert_refused(&got, query, 400, "", param);
    }
    for id in [NOBODY, "x", &format!("{NOBODY}:webhook"), &format!("{NOBODY}:%00"), "%ff"] {
        let retry = format!("/events/{id}/retry");
        assert_refused(&admin.send("POST", &retry, None).await, id, 404, "not_found", "");
        let (park, body) = (format!("/events/{id}/park"), json!({"reason": "r"}));
        let park = admin.send("POST", &park, Some(&body)).await;
        assert_refused(&park, id, 404, "not_found", "");
    }
    let park = format!("/events/{NOBODY}:webhook/park");
    for (body, param) in [
        (json!({}), ""),
        (json!({"reason": 7}), "reason"),
        (json!({"reason": "r", "more": 1}), "more"),
    ] {
        let got = admin.send("POST", &park, Some(&body)).await;
        assert_refused(&got, &body.to_string(), 400, "", param);
    }
    assert!(told(&admin).await.is_empty());
    app.finish().await;
}
