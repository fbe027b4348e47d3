//! Batches that a sink refuses, when finding the bad events in them takes longer than a call may.

use std::time::Duration;

use crate::app::{Setup, Store, TestApp, both_stores, eventually};
use crate::random::Random;
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::server::Fault;

use super::doubt::back;
use super::traffic::{Caller, callers, load};
use super::with_openmeter;

both_stores!(
    what_is_refused_is_found_however_long_that_takes,
    what_was_taken_beside_it_is_not_sent_again,
);

const CALLS: usize = 40;
const PAUSE: Duration = Duration::from_millis(300);

/// Events that wait for one batch, at a sink whose every answer takes a while: ten of them are as
/// long as a call may take.
async fn waiting(store: Store, openmeter: &OpenMeter) -> TestApp {
    openmeter.faults.always(Some(Fault::Status(503, None)));
    let setup = with_openmeter(Setup::new(store), openmeter);
    let setup = setup.env("TOLLGATE_EXPORT_SECONDS", "3");
    let mut app = setup.env("TOLLGATE_EXPORT_LEASE_SECONDS", "12").start().await;
    let callers: Vec<Caller> = callers(&app, &["cus_one"]).await;
    load(&app, &[app.address()], &callers, CALLS, &Random::from_environment()).await;
    app.kill9();
    for column in ["next_attempt_at", "leased_until"] {
        back(&app, "billing_events", column, 1).await;
    }
    openmeter.faults.always(Some(Fault::Paced(PAUSE)));
    app
}

async fn ids(app: &TestApp) -> Vec<String> {
    app.books.events().await.into_iter().map(|event| event.id).collect()
}

async fn what_is_refused_is_found_however_long_that_takes(store: Store) {
    let openmeter = OpenMeter::start().await;
    let mut app = waiting(store, &openmeter).await;
    for id in ids(&app).await {
        openmeter.refuse(&id);
    }
    app.restart().await;
    let parked = async || {
        let events = app.books.events().await;
        events.iter().filter(|event| event.state == "parked").count()
    };
    let mut before = 0;
    while before < CALLS {
        before = eventually("more are parked", async || {
            let now = parked().await;
            (now > before).then_some(now)
        })
        .await;
    }
    assert!(openmeter.events().is_empty());
    app.finish().await;
}

async fn what_was_taken_beside_it_is_not_sent_again(store: Store) {
    let openmeter = OpenMeter::start().await;
    let mut app = waiting(store, &openmeter).await;
    let ids = ids(&app).await;
    for id in [&ids[3], &ids[36]] {
        openmeter.refuse(id);
    }
    app.restart().await;
    eventually("two are parked, and the others there", async || {
        let events = app.books.events().await;
        let of = |state: &str| events.iter().filter(|event| event.state == state).count();
        ((of("parked"), of("exported")) == (2, CALLS - 2)).then_some(())
    })
    .await;
    assert_eq!((openmeter.events().len(), openmeter.duplicates()), (CALLS - 2, 0));
    app.finish().await;
}
