//! Stripe forgets identifiers after a day, and takes nothing that is older than 35: outages of that
//! length, made by setting the rows' times back.

use crate::app::books::Pool;
use crate::app::{Setup, Store, TestApp, both_stores, eventually};
use crate::sinks::server::Fault;
use crate::sinks::stripe::Stripe;

use super::{all, assert_stripe_agrees, known_to_stripe, one, with_stripe};

both_stores!(
    what_was_counted_a_day_ago_is_not_sent_again,
    what_was_lost_a_day_ago_is_sent,
    two_of_one_minute_that_were_lost_are_both_sent,
    what_nobody_can_tell_is_for_a_person,
    what_is_too_old_is_parked,
);

/// Sets a time back by so many hours.
pub async fn back(app: &TestApp, table: &str, column: &str, hours: u32) {
    let earlier = match app.books.pool {
        Pool::Sqlite(_) => {
            format!("strftime('%Y-%m-%dT%H:%M:%f000Z', {column}, '-{hours} hours')")
        }
        Pool::Postgres(_) => format!("{column} - INTERVAL '{hours} hours'"),
    };
    app.books.tamper(&format!("UPDATE {table} SET {column} = {earlier}")).await;
}

/// One export whose call ended in this fault, and then silence: the process was stopped.
async fn in_doubt(store: Store, stripe: &Stripe, fault: Fault) -> TestApp {
    in_doubt_with(with_stripe(Setup::new(store), stripe), stripe, fault).await
}

pub async fn in_doubt_with(setup: Setup, stripe: &Stripe, fault: Fault) -> TestApp {
    stripe.faults.always(Some(fault));
    let mut app = setup.start().await;
    known_to_stripe(&app).await;
    one(&app, 100).await;
    app.records(1).await;
    eventually("a call has ended without an answer", async || {
        let ended = "SELECT * FROM exports WHERE reason IS NOT NULL AND first_sent_at IS NOT NULL";
        (!app.books.rows(ended).await.is_empty()).then_some(())
    })
    .await;
    a_day_later(&mut app, stripe).await;
    app
}

/// And nobody was there.
async fn a_day_later(app: &mut TestApp, stripe: &Stripe) {
    app.kill9();
    // What was under way to it is cut off as well, before it would be taken after all.
    stripe.server.come().await;
    stripe.faults.calm();
    // A day and an hour pass; then the process comes back.
    stripe.forget();
    back(app, "exports", "first_sent_at", 25).await;
    back(app, "exports", "next_attempt_at", 25).await;
    back(app, "export_lanes", "next_attempt_at", 25).await;
}

async fn what_was_counted_a_day_ago_is_not_sent_again(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let mut app = in_doubt(store, &stripe, Fault::CutAfter).await;
    let taken = stripe.taken().len();
    app.restart().await;
    all(&app, "exported").await;
    assert_eq!(stripe.taken().len(), taken, "it was there");
    assert!(stripe.summaries_read() > 0);
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

async fn what_was_lost_a_day_ago_is_sent(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let mut app = in_doubt(store, &stripe, Fault::CutBefore).await;
    assert_eq!(stripe.taken().len(), 0);
    app.restart().await;
    all(&app, "exported").await;
    assert!(stripe.summaries_read() > 0, "it was not sent before it was looked for");
    assert_eq!(stripe.taken().len(), 1);
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

async fn two_of_one_minute_that_were_lost_are_both_sent(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let mut app = in_doubt(store, &stripe, Fault::CutBefore).await;
    // The same usage once more: a sum of one could be that of the other.
    stripe.faults.always(Some(Fault::CutBefore));
    app.restart().await;
    one(&app, 100).await;
    eventually("both may have been sent", async || {
        let rows = app.books.rows("SELECT * FROM exports WHERE first_sent_at IS NOT NULL").await;
        (rows.len() == 2).then_some(())
    })
    .await;
    a_day_later(&mut app, &stripe).await;
    app.books.tamper("UPDATE exports SET used_at = (SELECT MIN(used_at) FROM exports)").await;
    app.restart().await;
    all(&app, "exported").await;
    assert_eq!(stripe.taken().len(), 2);
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    app.finish().await;
}

async fn what_nobody_can_tell_is_for_a_person(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let mut app = in_doubt(store, &stripe, Fault::CutAfter).await;
    // Somebody else wrote to this meter, so that its sum says nothing.
    stripe.add_foreign(&app.books.rows("SELECT * FROM exports").await[0], 17);
    app.restart().await;
    all(&app, "parked").await;
    let taken = stripe.taken().len();
    assert_eq!(app.books.events().await[0].reason.as_deref(), Some("in_doubt"));
    // Trying again does not send it either, as long as that is so.
    app.cli(&["events", "retry", "--parked"]).await;
    eventually("it was looked for again", async || (stripe.summaries_read() > 1).then_some(()))
        .await;
    all(&app, "parked").await;
    assert_eq!(stripe.taken().len(), taken);
    app.finish().await;
}

async fn what_is_too_old_is_parked(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    let mut app = with_stripe(Setup::new(store), &stripe).start().await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "parked").await;
    app.kill9();
    back(&app, "billing_events", "created_at", 36 * 24).await;
    app.restart().await;
    known_to_stripe(&app).await;
    eventually("it is too old for Stripe", async || {
        let events = app.books.events().await;
        (events[0].reason.as_deref() == Some("too_old")).then_some(())
    })
    .await;
    assert_eq!(stripe.calls(), 0);
    let said = async || app.process.stderr().contains("parked").then_some(());
    eventually("it is said aloud", said).await;
    app.finish().await;
}
