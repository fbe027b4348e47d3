//! Copies at the same time, a process that is killed, a database that goes away, an answer that is
//! lost: what Stripe sends again is not handled again.

use futures::future::join_all;
use serde_json::Value;

use super::events::{
    charge_refunded, completed, deliver, delivery, dispute, now, refund, send, send_to, session,
};
use super::{entered, setup};
use crate::app::{Store, TestApp, both_stores, eventually};
use crate::bad_input::assert_refused;
use crate::random::Random;

both_stores!(a_killed_process_credits_once, any_order_of_events_ends_the_same);

const COPIES: usize = 20;

#[tokio::test]
async fn copies_at_two_processes_are_handled_once() {
    let app = setup(Store::Postgres).start().await;
    let (_replica, there) = app.replica().await;
    let account = app.account.clone();
    let mut balance = Vec::new();
    for round in 0..5 {
        let id = format!("r{round}");
        let paid = completed(&id, &account, 1_000);
        let other = super::event(
            "checkout.session.async_payment_succeeded",
            now(),
            &session(&id, &account, 1_000),
        );
        let back = charge_refunded(&id, 400, now());
        let mut sent = Vec::new();
        for copy in 0..COPIES {
            let base_url = if copy % 2 == 0 { &app.base_url } else { &there };
            sent.push(send_to(base_url, &paid));
            sent.push(send_to(base_url, &other));
            sent.push(send_to(base_url, &back));
        }
        for got in join_all(sent).await {
            assert_eq!(got.status, 200, "{}", got.text());
        }
        let mut entries = entered(&app, &account).await.split_off(balance.len());
        balance.extend(entries.clone());
        entries.sort_unstable();
        assert_eq!(entries, [-400, 1_000], "round {round}: one credit and one correction");
    }
    let events = app.books.rows("SELECT id FROM payment_events").await.len();
    println!(
        "{} deliveries at 2 processes: {events} events, {} entries",
        5 * 3 * COPIES,
        balance.len()
    );
    app.finish().await;
}

/// Killed at another moment each time, between receipt and answer for the most part.
async fn a_killed_process_credits_once(store: Store) {
    let mut app = setup(store).start().await;
    let account = app.account.clone();
    let (mut before_answer, mut written) = (0, 0);
    let pauses = [0, 2, 4, 6, 8, 10, 13, 17, 25, 40];
    for (round, pause) in pauses.into_iter().enumerate() {
        let event = completed(&format!("k{round}"), &account, 100);
        let exchange = app.begin(&delivery(&event)).await;
        // Where in its work the kill meets it is left to chance.
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        app.kill9();
        let got = exchange.finish().await;
        before_answer += usize::from(got.status == 0);
        app.restart().await;
        written += usize::from(entered(&app, &account).await.len() > round);
        deliver(&app, &event).await;
        assert_eq!(entered(&app, &account).await.len(), round + 1, "after {pause} ms");
    }
    println!(
        "{store:?}: {} kills, {before_answer} before the answer, {written} after the commit",
        pauses.len()
    );
    app.finish().await;
}

#[tokio::test]
async fn a_database_that_is_away_is_a_503_and_loses_nothing() {
    let app = setup(Store::Postgres).proxied().start().await;
    let account = app.account.clone();
    let proxy = app.proxy.as_ref().expect("a proxy");
    let event = completed("a", &account, 1_000);
    proxy.cut();
    let got = send(&app, &event).await;
    assert_refused(&got, "away", 503, "database_unavailable", "");
    proxy.mend();
    let sent_again = async || (send(&app, &event).await.status == 200).then_some(());
    eventually("it is taken", sent_again).await;
    assert_eq!(entered(&app, &account).await, [1_000]);

    // It is committed, and nobody is told.
    let event = completed("b", &account, 500);
    let lost = proxy.lost();
    proxy.lose(1);
    let got = send(&app, &event).await;
    assert_eq!(got.status, 503, "{}", got.text());
    assert!(proxy.lost() > lost, "the answer to a commit was lost");
    eventually("it is taken", async || (send(&app, &event).await.status == 200).then_some(()))
        .await;
    assert_eq!(entered(&app, &account).await, [1_000, 500]);
    app.finish().await;
}

/// The life of one payment, in many orders and with repetitions: the same end.
async fn any_order_of_events_ends_the_same(store: Store) {
    let app = setup(store).start().await;
    let account = app.account.clone();
    for round in 0..8 {
        let id = format!("o{round}");
        let at = now();
        let re = |name: &str| format!("{id}{name}");
        let mut all: Vec<Value> = vec![
            completed(&id, &account, 1_000),
            refund("refund.created", &re("x"), &id, 200, "pending", at),
            charge_refunded(&id, 200, at),
            refund("refund.updated", &re("x"), &id, 200, "succeeded", at + 1),
            refund("refund.created", &re("y"), &id, 100, "pending", at + 2),
            charge_refunded(&id, 300, at + 2),
            refund("refund.failed", &re("y"), &id, 100, "failed", at + 3),
            dispute("created", &id, 500, "needs_response", at + 4),
            dispute("funds_withdrawn", &id, 500, "needs_response", at + 4),
            dispute("funds_reinstated", &id, 500, "won", at + 6),
            dispute("closed", &id, 500, "won", at + 6),
        ];
        all.extend(all.clone());
        let random = Random::new(round);
        for at in (1..all.len()).rev() {
            all.swap(at, random.below(at + 1));
        }
        let before: i64 = entered(&app, &account).await.iter().sum();
        for event in &all {
            deliver(&app, event).await;
        }
        let after: i64 = entered(&app, &account).await.iter().sum();
        assert_eq!(after - before, 800, "round {round}");
    }
    drop_nothing(&app).await;
    app.finish().await;
}

/// Every event that came is remembered.
async fn drop_nothing(app: &TestApp) {
    let events = app.books.rows("SELECT id FROM payment_events WHERE state = 'handled'").await;
    assert_eq!(events.len(), 8 * 11);
}
