//! What Stripe has, told by a person who has looked: usage that it dropped without naming it, and
//! usage in doubt.

use serde_json::{Value, json};

use super::doubt::{back, in_doubt_with};
use super::{
    all, assert_stripe_agrees, known_to_stripe, ledger, one, patient, told_to_stop, with_stripe,
};
use crate::app::{Setup, Store, TestApp, both_stores, eventually};
use crate::metrics::scrape::watched;
use crate::sinks::server::Fault;
use crate::sinks::stripe::{CHARGE_METER, Stripe};

both_stores!(
    what_was_dropped_without_a_word_is_sent_again,
    what_is_in_doubt_and_missing_is_sent_again,
    what_is_in_doubt_and_counted_is_done,
    a_doubt_that_stripe_does_not_answer_is_for_a_person,
    a_doubt_that_is_too_old_does_not_wait_for_an_answer,
    what_was_not_sent_is_not_in_doubt,
    what_may_have_arrived_keeps_its_identifier,
    what_was_refused_only_is_planned_anew,
    what_is_billed_by_hand_is_not_sent,
);

/// The ids of exports in this state.
async fn exports(app: &TestApp, state: &str) -> Vec<String> {
    let rows = app.list(&["exports", "list", "--state", state]).await;
    rows.iter().map(|row| row["id"].as_str().expect("an id").to_string()).collect()
}

/// What the audit log has of exports: actions, and the states before and after.
async fn said(app: &TestApp) -> Vec<(String, String, String)> {
    let rows = app.list(&["audit", "list"]).await;
    let text = |value: &Value| value.as_str().expect("a text").to_string();
    let state = |row: &Value| {
        let row: Value = serde_json::from_str(&text(row)).expect("JSON");
        text(&row["state"])
    };
    let said = |row: &Value| (text(&row["action"]), state(&row["before"]), state(&row["after"]));
    let exports = rows.iter().filter(|row| text(&row["subject"]).starts_with("tollgate-"));
    exports.map(said).collect()
}

fn saying(action: &str, before: &str, after: &str) -> (String, String, String) {
    (action.to_string(), before.to_string(), after.to_string())
}

async fn what_was_dropped_without_a_word_is_sent_again(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    stripe.add_meter("llm_input");
    let setup = with_stripe(Setup::new(store), &stripe);
    let app = setup.env("STRIPE_METERS", "uncached_prompt_tokens=llm_input").start().await;
    known_to_stripe(&app).await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "exported").await;
    // It drops the charge, and goes on to know its identifier.
    let dropped = stripe.reject("cus_test");
    let listed = async |wanted: &[&str]| app.list(&[&["exports", "list"], wanted].concat()).await;
    let of_meter = ["--meter", CHARGE_METER, "--customer", "cus_test"];
    let found = listed(&of_meter).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["id"], json!(dropped));
    assert_eq!(listed(&["--from", "2000-01-01", "--to", "2000-01-02"]).await.len(), 0);
    assert_eq!(listed(&["--from", "2000-01-01", "--to", "2999-01-02"]).await.len(), 2);
    assert_eq!(listed(&["--customer", "cus_other"]).await.len(), 0);

    let early = app.try_cli(&["exports", "missing", &dropped]).await;
    assert!(!early.status.success(), "its summaries may not have it yet: {early:?}");
    back(&app, "exports", "next_attempt_at", 2).await;
    assert_eq!(app.cli(&["exports", "missing", &dropped]).await, "1");
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    assert_eq!(stripe.sums("llm_input")["cus_test"], 12, "that was not dropped");
    assert_eq!(exports(&app, "void").await, std::slice::from_ref(&dropped));
    assert_eq!(said(&app).await, [saying("export.missing", "exported", "void")]);
    // Said twice it is sent once.
    let again = app.try_cli(&["exports", "missing", &dropped]).await;
    assert!(!again.status.success(), "{again:?}");
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

/// Somebody else wrote to this meter, so that its sum says nothing of what has no answer.
async fn for_a_person(store: Store, stripe: &Stripe, fault: Fault) -> (TestApp, String) {
    let setup = with_stripe(Setup::new(store), stripe);
    let mut app = in_doubt_with(setup, stripe, fault).await;
    stripe.add_foreign(&app.books.rows("SELECT * FROM exports").await[0], 17);
    app.restart().await;
    all(&app, "parked").await;
    let parked = exports(&app, "parked").await.pop().expect("one");
    (app, parked)
}

async fn what_is_in_doubt_and_missing_is_sent_again(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let (app, parked) = for_a_person(store, &stripe, Fault::CutBefore).await;
    back(&app, "exports", "next_attempt_at", 2).await;
    assert_eq!(app.cli(&["exports", "missing", &parked]).await, "1");
    all(&app, "exported").await;
    let identifiers: Vec<String> = stripe.taken().into_iter().map(|one| one.identifier).collect();
    assert_eq!(identifiers.len(), 2, "that, and somebody else's");
    assert!(!identifiers.contains(&parked), "{identifiers:?}");
    stripe.tamper(|taken| taken.retain(|one| one.identifier != "foreign"));
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    assert_eq!(said(&app).await, [saying("export.missing", "parked", "void")]);
    app.finish().await;
}

async fn what_is_in_doubt_and_counted_is_done(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let (app, parked) = for_a_person(store, &stripe, Fault::CutAfter).await;
    let calls = stripe.usage_calls();
    assert_eq!(app.cli(&["exports", "counted", &parked]).await, "1");
    let events = app.books.events().await;
    assert!(events.iter().all(|event| event.state == "exported" && event.reason.is_none()));
    assert_eq!(exports(&app, "exported").await, [parked]);
    assert_eq!(said(&app).await, [saying("export.counted", "parked", "exported")]);
    assert!(app.cli(&["verify"]).await.contains("stripe: 1 exported, 0 waiting, 0 parked"));
    // What comes after it is sent, and this is not.
    one(&app, 100).await;
    app.records(2).await;
    all(&app, "exported").await;
    assert_eq!(stripe.usage_calls(), calls + 1);
    stripe.tamper(|taken| taken.retain(|one| one.identifier != "foreign"));
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

async fn a_doubt_that_stripe_does_not_answer_is_for_a_person(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let setup = with_stripe(Setup::new(store), &stripe);
    let mut app = in_doubt_with(setup, &stripe, Fault::CutAfter).await;
    stripe.remove_customer("cus_test");
    app.restart().await;
    all(&app, "parked").await;
    assert_eq!(app.books.events().await[0].reason.as_deref(), Some("in_doubt"));
    let said = app.process.stderr();
    assert!(!said.contains("left alone"), "nothing is wrong with the others: {said}");
    app.finish().await;
}

async fn a_doubt_that_is_too_old_does_not_wait_for_an_answer(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let setup = with_stripe(Setup::new(store), &stripe);
    let mut app = in_doubt_with(setup, &stripe, Fault::CutAfter).await;
    // Five weeks later the key was revoked.
    back(&app, "exports", "used_at", 35 * 24).await;
    let key = app.environment.insert("STRIPE_SECRET_KEY".into(), "sk_test_revoked".into());
    app.restart().await;
    all(&app, "parked").await;
    assert_eq!(app.books.events().await[0].reason.as_deref(), Some("in_doubt"));
    // A new one is there: Stripe is asked once more, and tells.
    app.kill9();
    app.environment.extend(key.map(|key| ("STRIPE_SECRET_KEY".into(), key)));
    stripe.tamper(|taken| taken[0].timestamp -= 35 * 24 * 3_600);
    app.restart().await;
    app.cli(&["events", "retry", "--parked"]).await;
    all(&app, "exported").await;
    assert_eq!(stripe.taken().len(), 1, "it was there");
    app.finish().await;
}

async fn what_was_not_sent_is_not_in_doubt(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    stripe.add_meter("llm_input");
    let setup = watched(patient(with_stripe(Setup::new(store), &stripe)));
    let mut app = setup.env("STRIPE_METERS", "uncached_prompt_tokens=llm_input").start().await;
    known_to_stripe(&app).await;
    // Both are taken up together, and the process ends while the first is on its way.
    stripe.faults.queue([Fault::GatedAfter]);
    one(&app, 100).await;
    eventually("a call has arrived", async || (stripe.calls() == 1).then_some(())).await;
    told_to_stop(&mut app).await;
    stripe.faults.gate.open();
    assert!(app.stopped().await.success());
    let rows = app.books.rows("SELECT * FROM exports ORDER BY seq").await;
    assert_eq!(rows[0]["state"], json!("exported"), "{rows:?}");
    assert_eq!((&rows[1]["state"], &rows[1]["first_sent_at"]), (&json!("waiting"), &Value::Null));
    app.restart().await;
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

async fn what_may_have_arrived_keeps_its_identifier(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let app = with_stripe(Setup::new(store), &stripe).start().await;
    known_to_stripe(&app).await;
    // It is taken without a word; then the customer is gone, and comes back.
    stripe.faults.queue([Fault::CutAfter, Fault::Status(500, None)]);
    stripe.faults.always(Some(Fault::Status(503, None)));
    one(&app, 100).await;
    eventually("it is taken", async || (stripe.taken().len() == 1).then_some(())).await;
    stripe.remove_customer("cus_test");
    stripe.faults.calm();
    all(&app, "parked").await;
    let reason = app.books.events().await[0].reason.clone().expect("a reason");
    assert!(reason.contains("resource_missing"), "{reason}");
    stripe.add_customer("cus_test");
    app.cli(&["events", "retry", "--parked"]).await;
    all(&app, "exported").await;
    assert_eq!(stripe.taken().len(), 1, "it was there");
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

async fn what_was_refused_only_is_planned_anew(store: Store) {
    let stripe = Stripe::start(&[]).await;
    let app = with_stripe(Setup::new(store), &stripe).start().await;
    known_to_stripe(&app).await;
    // Nothing was there to be asked, then it was too busy: none of that took anything.
    stripe.server.go().await;
    one(&app, 100).await;
    eventually("nobody is there", async || {
        let rows = app.books.rows("SELECT * FROM exports WHERE reason IS NOT NULL").await;
        (!rows.is_empty()).then_some(())
    })
    .await;
    stripe.faults.queue([Fault::Status(429, None)]);
    stripe.server.come().await;
    all(&app, "parked").await;
    // For another customer: the first was a typing error.
    stripe.add_customer("cus_right");
    let right = ["account", "update", "--account", "test", "--stripe-customer", "cus_right"];
    app.cli(&right).await;
    app.cli(&["events", "retry", "--parked"]).await;
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_right").await;
    app.finish().await;
}

async fn what_is_billed_by_hand_is_not_sent(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    stripe.add_meter("llm_input");
    let setup = with_stripe(Setup::new(store), &stripe);
    let app = setup.env("STRIPE_METERS", "uncached_prompt_tokens=llm_input").start().await;
    known_to_stripe(&app).await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "exported").await;
    stripe.remove_customer("cus_test");
    one(&app, 7).await;
    let by_hand = app.records(2).await.pop().expect("two").charge_nusd;
    let parked =
        eventually("it is parked", async || app.list(&["events", "list", "--parked"]).await.pop())
            .await;
    let id = parked["id"].as_str().expect("an id");
    assert_eq!(app.cli(&["events", "dismiss", id]).await, "1");
    assert_eq!(exports(&app, "void").await.len(), 2, "of the charge and of the tokens");
    all(&app, "exported").await;
    let events = app.books.events().await;
    let dismissed: Vec<_> = events.iter().filter(|event| event.reason.is_some()).collect();
    assert_eq!((&*dismissed[0].id, dismissed[0].reason.as_deref()), (id, Some("dismissed")));
    assert_eq!(dismissed.len(), 1);
    let again = app.try_cli(&["events", "dismiss", id]).await;
    assert!(!again.status.success(), "{again:?}");
    assert_eq!(app.cli(&["events", "retry", "--parked"]).await, "0");
    // What comes after it is sent, and what was carried into it with that.
    stripe.add_customer("cus_test");
    one(&app, 7).await;
    app.records(3).await;
    all(&app, "exported").await;
    let charged = ledger(&app).await[&app.account] - by_hand;
    let rest = charged - stripe.sums(CHARGE_METER)["cus_test"] * 1_000;
    assert!((0..1_000).contains(&rest), "{charged} nano-USD are Stripe's, {rest} are not there");
    assert_eq!(stripe.sums("llm_input")["cus_test"], 24);
    let verified = app.cli(&["verify"]).await;
    assert!(verified.contains("stripe: 3 exported, 0 waiting, 0 parked"), "{verified}");
    let audit = app.list(&["audit", "list"]).await;
    let said = audit.iter().filter(|entry| entry["action"] == "event.dismiss");
    let said: Vec<_> = said.map(|entry| entry["subject"].as_str()).collect();
    assert_eq!(said, [Some(id)]);
    app.finish().await;
}
