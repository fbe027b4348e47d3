//! Replicas killed at random, sinks that fail at random: in the end nothing is lost or sent twice.
//! `TEST_SEED` gives the run again.

use crate::app::process::Process;
use crate::app::{Setup, Store, both_stores};
use crate::random::Random;
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::server::faults;
use crate::sinks::stripe::{CHARGE_METER, Stripe};

use super::traffic::{Caller, callers, drained, load};
use super::{ledger, with_openmeter, with_stream, with_stripe};

both_stores!(
    whatever_fails_the_sinks_have_what_the_ledger_says,
    whatever_fails_a_stream_has_what_the_ledger_says,
);

const CUSTOMERS: [&str; 3] = ["cus_one", "cus_two", "cus_three"];
const ROUNDS: usize = 6;
const REQUESTS: usize = 12;

async fn whatever_fails_the_sinks_have_what_the_ledger_says(store: Store) {
    chaos(store, with_stripe).await;
}

async fn whatever_fails_a_stream_has_what_the_ledger_says(store: Store) {
    chaos(store, with_stream).await;
}

async fn chaos(store: Store, with_stripe: fn(Setup, &Stripe) -> Setup) {
    let random = Random::from_environment();
    let (stripe, openmeter) = (Stripe::start(&CUSTOMERS).await, OpenMeter::start().await);
    stripe.faults.random(Random::new(random.seed() + 1), 3, faults(1, 0));
    openmeter.faults.random(Random::new(random.seed() + 2), 3, faults(1, 0));
    let setup = with_openmeter(with_stripe(Setup::new(store), &stripe), &openmeter);
    let mut app = setup.start().await;
    let callers = callers(&app, &CUSTOMERS).await;
    // On SQLite there is one process; it is killed all the same.
    let mut replica: Option<Process> = None;
    for _ in 0..ROUNDS {
        load(&app, &[app.address()], &callers, REQUESTS, &random).await;
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
    for Caller { account, customer, .. } in &callers {
        let rest = charged[account] - sent[*customer] * 1_000;
        assert!((0..1_000).contains(&rest), "{random}: {customer} differs by {rest} nano-USD");
    }
    assert_eq!(stripe.wrong(), Vec::<String>::new(), "{random}");
    assert_eq!(openmeter.wrong(), Vec::<String>::new(), "{random}");
    println!("{random}: {} calls to Stripe, {} to OpenMeter", stripe.calls(), openmeter.calls());
    drop(replica);
    app.finish().await;
}
