//! Replicas killed at random, sinks that fail at random: in the end nothing is lost or sent twice.
//! `TEST_SEED` gives the run again.

use futures::future::join_all;

use crate::app::process::Process;
use crate::app::{Setup, Store, TestApp, both_stores, eventually, streamed};
use crate::random::Random;
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::stripe::{CHARGE_METER, Stripe};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

use super::{ledger, with_openmeter, with_stream, with_stripe};

both_stores!(
    whatever_fails_the_sinks_have_what_the_ledger_says,
    whatever_fails_a_stream_has_what_the_ledger_says,
);

const ACCOUNTS: [&str; 3] = ["one", "two", "three"];
const ROUNDS: usize = 6;
const REQUESTS: usize = 12;

/// An account of each name, with a customer and a key.
async fn accounts(app: &TestApp) -> Vec<(String, String)> {
    let mut accounts = Vec::new();
    for name in ACCOUNTS {
        let customer = format!("cus_{name}");
        let id =
            app.create_account(name, &["--credit", "10", "--stripe-customer", &customer]).await;
        accounts.push((id, app.create_key(name, &[]).await));
    }
    accounts
}

async fn load(app: &TestApp, keys: &[(String, String)], random: &Random) {
    for _ in 0..REQUESTS {
        let tokens = i64::try_from(random.below(40)).expect("few");
        app.upstream.script(Answer::openrouter().no_cost().tokens(12, tokens).stream());
    }
    let asks = (0..REQUESTS).map(|number| {
        let key = &keys[number % keys.len()].1;
        async move { app.ask(&app.chat_ask(&streamed(MODEL)).bearer(key)).await.ok() }
    });
    join_all(asks).await;
}

/// Waits as long as ever fewer events wait: pauses may have grown longer than any patience.
async fn drained(app: &TestApp, random: &Random) {
    loop {
        let waiting = async || {
            let events = app.books.events().await;
            events.iter().filter(|event| event.state != "exported").count()
        };
        let before = waiting().await;
        if before == 0 {
            return;
        }
        eventually(&format!("fewer than {before} wait ({random})"), async || {
            (waiting().await < before).then_some(())
        })
        .await;
    }
}

async fn whatever_fails_the_sinks_have_what_the_ledger_says(store: Store) {
    chaos(store, with_stripe).await;
}

async fn whatever_fails_a_stream_has_what_the_ledger_says(store: Store) {
    chaos(store, with_stream).await;
}

async fn chaos(store: Store, with_stripe: fn(Setup, &Stripe) -> Setup) {
    let random = Random::from_environment();
    let customers: Vec<String> = ACCOUNTS.iter().map(|name| format!("cus_{name}")).collect();
    let customers: Vec<&str> = customers.iter().map(String::as_str).collect();
    let (stripe, openmeter) = (Stripe::start(&customers).await, OpenMeter::start().await);
    stripe.faults.random(Random::new(random.seed() + 1), 3);
    openmeter.faults.random(Random::new(random.seed() + 2), 3);
    let setup = with_openmeter(with_stripe(Setup::new(store), &stripe), &openmeter);
    let mut app = setup.start().await;
    let accounts = accounts(&app).await;
    // On SQLite there is one process; it is killed all the same.
    let mut replica: Option<Process> = None;
    for _ in 0..ROUNDS {
        load(&app, &accounts, &random).await;
        app.settled().await;
        let pause = u64::try_from(random.below(1_500)).expect("few");
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        if store == Store::Postgres && random.below(2) == 0 {
            // A kill in the middle of what it was doing, and another one in its place.
            replica = Some(app.replica().await.0);
        } else {
            app.kill9();
            app.restart().await;
        }
    }
    stripe.faults.calm();
    openmeter.faults.calm();
    drained(&app, &random).await;
    let events = app.books.events().await;
    assert_eq!(events.len(), 2 * ROUNDS * REQUESTS, "{random}");
    let charged = ledger(&app).await;
    assert_eq!(openmeter.sums("charge_nusd"), charged, "{random}");
    assert_eq!(openmeter.events().len(), ROUNDS * REQUESTS, "{random}");
    let sent = stripe.sums(CHARGE_METER);
    for ((account, _), customer) in accounts.iter().zip(customers) {
        let rest = charged[account] - sent[customer] * 1_000;
        assert!((0..1_000).contains(&rest), "{random}: {customer} differs by {rest} nano-USD");
    }
    assert_eq!(stripe.wrong(), Vec::<String>::new(), "{random}");
    println!("{random}: {} calls to Stripe, {} to OpenMeter", stripe.calls(), openmeter.calls());
    drop(replica);
    app.finish().await;
}
