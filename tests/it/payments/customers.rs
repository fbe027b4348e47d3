//! Accounts become customers by themselves, each once.

use std::collections::BTreeMap;

use futures::future::join_all;
use serde_json::json;

use super::pages::{CHECKOUT, owner, with_pages};
use crate::app::{Setup, Store, TestApp, both_stores, eventually, in_its_time};
use crate::billing::{all, assert_stripe_agrees, one, with_stripe};
use crate::client::Ask;
use crate::random::Random;
use crate::sinks::server::{Fault, faults};
use crate::sinks::stripe::Stripe;

both_stores!(a_new_account_is_billed_without_anybodys_help, a_customer_is_found_after_a_kill);

fn automatic(setup: Setup, stripe: &Stripe) -> Setup {
    with_stripe(setup, stripe).env("STRIPE_CREATE_CUSTOMERS", "on")
}

/// Accounts by the customer that they have.
async fn customers(app: &TestApp) -> BTreeMap<String, String> {
    let rows = app.books.rows("SELECT id, stripe_customer_id FROM accounts").await;
    let text = |value: &serde_json::Value| value.as_str().map(str::to_string);
    rows.iter()
        .filter_map(|row| Some((text(&row["stripe_customer_id"])?, text(&row["id"])?)))
        .collect()
}

async fn assert_one_each(app: &TestApp, stripe: &Stripe, accounts: usize) {
    in_its_time("every account is a customer", async || {
        (customers(app).await.len() == accounts).then_some(())
    })
    .await;
    let made = stripe.made("cus_");
    let theirs: BTreeMap<String, String> = made
        .iter()
        .map(|(id, form)| (id.clone(), form["metadata[tollgate_account_id]"].clone()))
        .collect();
    assert_eq!(theirs.len(), accounts, "one customer for each account");
    assert_eq!(theirs, customers(app).await);
}

async fn a_new_account_is_billed_without_anybodys_help(store: Store) {
    let stripe = Stripe::start(&["cus_own"]).await;
    let app = automatic(Setup::new(store), &stripe).start().await;
    let own = app.create_account("own", &["--stripe-customer", "cus_own"]).await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "exported").await;
    let made = stripe.made("cus_");
    assert_eq!(made.len(), 1);
    assert_stripe_agrees(&app, &stripe, &made[0].0).await;
    assert_eq!(customers(&app).await["cus_own"], own, "an operator's own stays");
    let audit = app.list(&["audit", "list"]).await;
    assert!(audit.iter().any(|row| row["actor"] == "stripe"), "{audit:?}");
    app.finish().await;
}

#[tokio::test]
async fn processes_that_race_make_one_customer_each() {
    const ACCOUNTS: usize = 12;
    let random = Random::from_environment();
    let stripe = Stripe::start(&[]).await;
    let setup = with_pages(Setup::new(Store::Postgres), &stripe);
    let app = setup.env("STRIPE_CREATE_CUSTOMERS", "on").start().await;
    let (_one, there) = app.replica().await;
    stripe.faults.random(random, 4, faults(1, 0));
    for number in 1..ACCOUNTS {
        app.create_account(&format!("a{number}"), &[]).await;
    }
    // People who want to pay at the same moment, at both.
    let key = owner(&app).await;
    let ask = Ask::post_json(CHECKOUT, json!({"amount_cents": 500}).to_string()).bearer(&key);
    let clicks = (0..10).map(|click| {
        let base_url = if click % 2 == 0 { &app.base_url } else { &there };
        let address = crate::app::address_of(base_url);
        let bytes = ask.bytes();
        async move { crate::client::Exchange::open(address, &bytes).await.finish().await.status }
    });
    let statuses = join_all(clicks).await;
    assert!(statuses.iter().all(|status| [200, 502].contains(status)), "{statuses:?}");
    stripe.faults.calm();
    stripe.index();
    in_its_time("every account is a customer", async || {
        // What was answered with an error is repeated for a day; the search knows better.
        stripe.index();
        (customers(&app).await.len() == ACCOUNTS).then_some(())
    })
    .await;
    assert_one_each(&app, &stripe, ACCOUNTS).await;
    app.finish().await;
}

/// It was made at Stripe, the process died, and the key is forgotten: it is found all the same.
async fn a_customer_is_found_after_a_kill(store: Store) {
    let stripe = Stripe::start(&[]).await;
    stripe.faults.queue([Fault::None, Fault::HangAfter]);
    let mut app = automatic(Setup::new(store), &stripe).start().await;
    eventually("a customer is made", async || (stripe.made("cus_").len() == 1).then_some(())).await;
    app.kill9();
    assert_eq!(customers(&app).await.len(), 0, "nobody was told");
    stripe.forget();
    stripe.index();
    app.restart().await;
    assert_one_each(&app, &stripe, 1).await;
    app.finish().await;
}
