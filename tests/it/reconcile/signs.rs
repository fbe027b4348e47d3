//! What takes and what gives back, both in doubt: a sink may have either without the other.

use serde_json::json;

use super::Said;
use crate::app::{Setup, Store, TestApp, eventually};
use crate::billing::{known_to_stripe, with_openmeter, with_stripe};
use crate::promises::{counted, learn};
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::stripe::Stripe;

/// A charge and the correction that gives some of it back, both told; nobody runs any more.
async fn told(setup: Setup) -> TestApp {
    let mut app = setup.env("TOLLGATE_SLOW_LOOKUP_EVERY_SECONDS", "1").start().await;
    known_to_stripe(&app).await;
    // One after the other, so that they are not merged.
    let (record, answer) = counted(&app).await;
    exported(&app, 1).await;
    learn(&app, &record, &answer).await;
    exported(&app, 2).await;
    app.kill9();
    app
}

async fn exported(app: &TestApp, events: usize) {
    eventually("they are told", async || {
        let told = app.books.events().await;
        let all = told.len() == events && told.iter().all(|event| event.state == "exported");
        all.then_some(())
    })
    .await;
}

/// Of the day of the first event.
async fn reconciled(app: &TestApp) -> Said {
    let day = app.books.records().await[0].ended_at[..10].to_string();
    let arguments = ["reconcile", "--json", "--samples", "0", "--day", &day];
    Said::read(&app.try_cli(&arguments).await)
}

pub(super) async fn a_correction_in_doubt_is_no_difference(store: Store) {
    let openmeter = OpenMeter::start().await;
    let app = told(with_openmeter(Setup::new(store), &openmeter)).await;
    // The answers were lost, and of the two calls that of the correction itself.
    app.books.tamper("UPDATE billing_events SET state = 'waiting'").await;
    openmeter.tamper(|events| events.retain(|_, event| event["data"]["kind"] != "correction"));
    let said = reconciled(&app).await;
    assert!(said.named("openmeter", &["day"]).is_empty(), "{:#?}", said.findings);
    assert_eq!(said.of("waiting").len(), 1, "{:#?}", said.findings);
    // But none of them is more than both.
    openmeter.tamper(|events| {
        for event in events.values_mut() {
            let charge = event["data"]["charge_nusd"].as_i64().expect("a number");
            event["data"]["charge_nusd"] = json!(charge + 1);
        }
    });
    let said = reconciled(&app).await;
    assert_eq!(said.named("openmeter", &["day"]).len(), 1, "{:#?}", said.findings);
    app.books.tamper("UPDATE billing_events SET state = 'exported'").await;
    app.finish().await;
}

pub(super) async fn a_merged_correction_in_doubt_is_no_difference(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let app = told(with_stripe(Setup::new(store), &stripe)).await;
    let exports = app.books.rows("SELECT value FROM exports").await;
    assert_eq!(exports.len(), 2, "{exports:#?}");
    let in_doubt = "state = 'waiting', first_sent_at = created_at";
    app.books.tamper(&format!("UPDATE exports SET {in_doubt}")).await;
    stripe.tamper(|taken| taken.retain(|taken| taken.value > 0));
    let said = reconciled(&app).await;
    assert!(said.named("stripe", &["day"]).is_empty(), "{:#?}", said.findings);
    assert!(!said.of("waiting").is_empty(), "{:#?}", said.findings);
    app.books.tamper("UPDATE exports SET state = 'exported'").await;
    app.finish().await;
}
