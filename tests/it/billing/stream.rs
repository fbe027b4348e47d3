//! Stripe's meter event stream in place of single calls: the same promises, by batches.

use serde_json::{Value, json};

use crate::app::{Setup, Store, TestApp, both_stores, eventually};
use crate::random::Random;
use crate::sinks::server::Fault;
use crate::sinks::stripe::{CHARGE_METER, Stripe};

use super::doubt::{back, in_doubt_with};
use super::traffic::{Caller, callers, load};
use super::{all, assert_stripe_agrees, known_to_stripe, ledger, one, with_stream};

both_stores!(
    events_leave_in_batches_of_whole_customers,
    a_session_that_has_ended_is_renewed,
    a_lost_answer_doubles_nothing,
    a_bad_event_is_alone,
    what_was_counted_a_day_ago_is_not_sent_again,
    what_stripe_drops_afterwards_is_named_by_reconcile,
);

async fn start(store: Store, stripe: &Stripe) -> TestApp {
    let app = with_stream(Setup::new(store), stripe).start().await;
    known_to_stripe(&app).await;
    app
}

async fn events_leave_in_batches_of_whole_customers(store: Store) {
    let stripe = Stripe::start(&["cus_test", "cus_two", "cus_three"]).await;
    stripe.add_meter("llm_requests");
    stripe.faults.always(Some(Fault::Status(503, Some(1))));
    let setup = with_stream(Setup::new(store), &stripe);
    let app = setup.env("STRIPE_METERS", "requests=llm_requests").start().await;
    known_to_stripe(&app).await;
    for name in ["two", "three"] {
        let customer = format!("cus_{name}");
        app.create_account(name, &["--credit", "1", "--stripe-customer", &customer]).await;
        let mut keyed = app.chat_ask(&crate::app::streamed(crate::upstream::catalog::MODEL));
        keyed = keyed.bearer(&app.create_key(name, &[]).await);
        app.upstream.script(crate::upstream::answer::Answer::openrouter().no_cost().stream());
        app.ask(&keyed).await.ok();
    }
    for tokens in [1, 3, 21] {
        one(&app, tokens).await;
    }
    app.records(5).await;
    stripe.faults.calm();
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    assert_eq!(stripe.sums("llm_requests").values().sum::<i64>(), 5);
    assert_eq!((stripe.sessions_opened(), stripe.duplicates()), (1, 0));
    // Two meters make two events of each customer.
    assert!(stripe.largest() > 2, "more than one customer: {}", stripe.largest());
    let shown = app.cli(&["config"]).await;
    assert!(shown.contains("STRIPE_METER_STREAM=on"), "{shown}");
    app.finish().await;
}

async fn a_session_that_has_ended_is_renewed(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let app = start(store, &stripe).await;
    for number in 1..=3 {
        one(&app, 10).await;
        app.records(number).await;
        all(&app, "exported").await;
        stripe.end_sessions();
    }
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    assert_eq!(stripe.sessions_opened(), 3);
    app.finish().await;
}

async fn a_lost_answer_doubles_nothing(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    // The first is for the session.
    let lost = [Fault::CutAfter, Fault::FailAfter(500), Fault::HangAfter];
    stripe.faults.queue([Fault::None].into_iter().chain(lost));
    let mut app = start(store, &stripe).await;
    one(&app, 100).await;
    app.records(1).await;
    eventually("it was told", async || (stripe.taken().len() == 1).then_some(())).await;
    // The process dies with the answer.
    app.kill9();
    app.restart().await;
    one(&app, 7).await;
    all(&app, "exported").await;
    app.records(2).await;
    all(&app, "exported").await;
    assert!(stripe.duplicates() > 0, "it was told again");
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

/// One of three customers of one call, which is halved until that one is alone.
async fn a_bad_event_is_alone(store: Store) {
    let customers = ["cus_a", "cus_b", "cus_c"];
    let stripe = Stripe::start(&customers).await;
    stripe.faults.always(Some(Fault::Status(503, None)));
    let mut app = with_stream(Setup::new(store), &stripe).start().await;
    let random = Random::from_environment();
    let callers = callers(&app, &customers).await;
    load(&app, &[app.address()], &callers, 3, &random).await;
    let rows = eventually("they are planned", async || {
        let rows = app.books.rows("SELECT id, customer FROM exports ORDER BY customer").await;
        (rows.len() == 3).then_some(rows)
    })
    .await;
    assert_eq!(rows[1]["customer"], json!("cus_b"));
    // Each waits for as long as chance has it, but they are to leave together.
    app.kill9();
    stripe.refuse(rows[1]["id"].as_str().expect("an id"));
    stripe.faults.calm();
    for (table, column) in [
        ("exports", "next_attempt_at"),
        ("export_lanes", "next_attempt_at"),
        ("export_lanes", "leased_until"),
    ] {
        back(&app, table, column, 1).await;
    }
    app.restart().await;
    eventually("none waits", async || {
        let events = app.books.events().await;
        events.iter().all(|event| event.state != "waiting").then_some(())
    })
    .await;
    assert_eq!(stripe.largest(), 3, "they were in one call");
    for event in app.books.events().await {
        let is_bad = event.account_id == callers[1].account;
        let why = event.reason.clone().unwrap_or_default();
        let right = if is_bad {
            event.state == "parked" && why.contains("an event is refused")
        } else {
            event.state == "exported" && why.is_empty()
        };
        assert!(right, "{event:?}");
    }
    let charged = ledger(&app).await;
    let owed = |caller: &Caller| (caller.customer.to_string(), charged[&caller.account] / 1_000);
    let others = [owed(&callers[0]), owed(&callers[2])];
    assert_eq!(stripe.sums(CHARGE_METER), others.into(), "{random}");
    assert_eq!((stripe.taken().len(), stripe.wrong()), (2, vec![]));
    // The next of that customer is not kept.
    load(&app, &[app.address()], &callers[1..2], 1, &random).await;
    eventually("the next one is there", async || (stripe.taken().len() == 3).then_some(())).await;
    app.finish().await;
}

async fn what_was_counted_a_day_ago_is_not_sent_again(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let setup = with_stream(Setup::new(store), &stripe);
    // The first call is for the session.
    stripe.faults.queue([Fault::None]);
    let mut app = in_doubt_with(setup, &stripe, Fault::FailAfter(500)).await;
    let taken = stripe.taken().len();
    app.restart().await;
    all(&app, "exported").await;
    assert_eq!((stripe.taken().len(), taken), (1, 1), "it was there");
    assert!(stripe.summaries_read() > 0);
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

async fn what_stripe_drops_afterwards_is_named_by_reconcile(store: Store) {
    let stripe = Stripe::start(&[]).await;
    let app = start(store, &stripe).await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "exported").await;
    eventually("Stripe drops it", async || (stripe.dropped().len() == 1).then_some(())).await;
    let today = app.books.records().await[0].ended_at[..10].to_string();
    let arguments = ["reconcile", "--json", "--samples", "0", "--day", &today];
    let ended = app.try_cli(&arguments).await;
    assert!(!ended.status.success(), "{ended:?}");
    let lines = ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let lines: Vec<Value> = lines.collect();
    let differs = lines.iter().find(|line| line["kind"] == "difference").expect("a difference");
    assert_eq!((&differs["customer"], &differs["day"]), (&"cus_test".into(), &today.into()));
    app.finish().await;
}
