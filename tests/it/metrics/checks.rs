//! The books' own checks as metrics: 0 while all is well, and not when somebody tampers.

use super::scrape::{Scrape, scrape, watched};
use crate::app::{Setup, Store, TestApp, both_stores, eventually, in_its_time, question, streamed};
use crate::billing::{with_openmeter, with_stripe};
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::server::Fault;
use crate::sinks::stripe::Stripe;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use crate::upstream::script::{Gate, Script};

both_stores!(
    what_is_open_is_told,
    a_difference_in_the_books_is_told,
    a_sinks_backlog_is_told,
    what_is_parked_is_told,
    an_upstream_in_trouble_is_told,
);

async fn until(app: &TestApp, what: &str, reached: impl Fn(&Scrape) -> bool) -> Scrape {
    in_its_time(what, async || Some(scrape(app).await).filter(&reached)).await
}

fn differences(told: &Scrape, check: &str) -> i64 {
    told.sum("tollgate_books_differences", &[("check", check)])
}

async fn what_is_open_is_told(store: Store) {
    let app = watched(Setup::new(store)).start().await;
    let (answer, gate) = (Answer::openrouter(), Gate::new());
    app.upstream.script(Script::stream().wait(&gate).chunks(answer.events()).end());
    let open = app.begin_chat(&streamed(MODEL)).await;
    let told = until(&app, "the hold shows", |told| told.sum("tollgate_holds_open", &[]) == 1);
    let told = told.await;
    let held: i64 = app.books.holds().await.iter().map(|hold| hold.amount_nusd).sum();
    assert!(held > 0);
    assert_eq!(told.sum("tollgate_holds_open_nusd", &[]), held);
    assert_eq!(differences(&told, "holds"), 0);
    gate.open();
    open.finish().await.ok();
    app.records(1).await;
    let told = until(&app, "it is closed and looked at", |told| {
        let checked = told.sum("tollgate_books_checked_total", &[("check", "usage")]);
        told.sum("tollgate_holds_open", &[]) == 0 && checked == 1
    });
    let told = told.await;
    for check in ["holds", "held", "usage"] {
        assert_eq!(differences(&told, check), 0, "{check}");
    }
    assert!(told.sum("tollgate_books_looked_at_seconds", &[]) > 1_700_000_000);
    app.finish().await;
}

async fn a_difference_in_the_books_is_told(store: Store) {
    let app = watched(Setup::new(store)).start().await;
    app.books.tamper("UPDATE accounts SET held_nusd = held_nusd + 1").await;
    until(&app, "money set aside by no hold", |told| differences(told, "held") == 1).await;
    app.books.tamper("UPDATE accounts SET held_nusd = held_nusd - 1").await;
    until(&app, "it is put right", |told| differences(told, "held") == 0).await;

    let (answer, gate) = (Answer::openrouter(), Gate::new());
    app.upstream.script(Script::stream().wait(&gate).chunks(answer.events()).end());
    let open = app.begin_chat(&streamed(MODEL)).await;
    let owner = eventually("a hold is open", async || {
        let rows = app.books.rows("SELECT owner FROM holds").await;
        rows.first().and_then(|row| row["owner"].as_str().map(str::to_string))
    })
    .await;
    let nobody = "00000000-0000-0000-0000-000000000000";
    app.books.tamper(&format!("UPDATE holds SET owner = '{nobody}'")).await;
    until(&app, "a hold that is not there", |told| differences(told, "holds") == 1).await;
    app.books.tamper(&format!("UPDATE holds SET owner = '{owner}'")).await;
    until(&app, "it is there again", |told| differences(told, "holds") == 0).await;
    gate.open();
    open.finish().await.ok();
    app.finish().await;
}

async fn a_sinks_backlog_is_told(store: Store) {
    let openmeter = OpenMeter::start().await;
    openmeter.faults.always(Some(Fault::Status(503, None)));
    let app = watched(with_openmeter(Setup::new(store), &openmeter)).start().await;
    for _ in 0..3 {
        app.upstream.script(Answer::openrouter().plain());
        app.chat(&question(MODEL)).await.ok();
    }
    let sink = [("sink", "openmeter")];
    let told = until(&app, "three events wait", |told| {
        let oldest = told.sum("tollgate_sink_oldest_seconds", &sink);
        told.sum("tollgate_sink_events_waiting", &sink) == 3 && oldest > 0
    });
    let told = told.await;
    let later = [("sink", "openmeter"), ("result", "later")];
    assert!(told.sum("tollgate_sink_parcels_total", &later) > 0);
    assert_eq!(differences(&told, "usage"), 0);
    openmeter.faults.calm();
    let told = until(&app, "nothing waits", |told| {
        let delivered = [("sink", "openmeter"), ("result", "delivered")];
        let is_there = told.sum("tollgate_sink_parcels_total", &delivered) == 3;
        is_there && told.sum("tollgate_sink_events_waiting", &sink) == 0
    });
    assert_eq!(told.await.sum("tollgate_sink_oldest_seconds", &sink), 0);
    app.finish().await;
}

async fn an_upstream_in_trouble_is_told(store: Store) {
    let app = watched(Setup::new(store)).start().await;
    let up = |told: &Scrape| told.sum("tollgate_upstream_up", &[("upstream", "openrouter")]);
    assert_eq!(up(&scrape(&app).await), 1);
    app.upstream.stop().await;
    for _ in 0..3 {
        assert_eq!(app.chat(&question(MODEL)).await.status, 502);
    }
    let told = scrape(&app).await;
    assert_eq!(up(&told), 0);
    let unreachable = [("upstream", "openrouter"), ("result", "unreachable")];
    assert_eq!(told.sum("tollgate_upstream_calls_total", &unreachable), 3);
    app.records(3).await;
    app.finish().await;
}

async fn what_is_parked_is_told(store: Store) {
    let (openmeter, stripe) = (OpenMeter::start().await, Stripe::start(&[]).await);
    openmeter.faults.always(Some(Fault::Status(503, None)));
    let setup = with_stripe(with_openmeter(Setup::new(store), &openmeter), &stripe);
    let app = watched(setup).start().await;
    for _ in 0..2 {
        app.upstream.script(Answer::openrouter().plain());
        app.chat(&question(MODEL)).await.ok();
    }
    let records = app.records(2).await;
    openmeter.refuse(&format!("{}:openmeter", records[0].id));
    openmeter.faults.calm();
    let told = until(&app, "one is refused, two have no customer", |told| {
        let of = |name: &str, sink| told.sum(name, &[("sink", sink)]);
        of("tollgate_sink_events_parked", "openmeter") == 1
            && of("tollgate_sink_events_without_customer", "stripe") == 2
            && of("tollgate_sink_events_waiting", "stripe") == 0
    });
    let told = told.await;
    assert_eq!(told.sum("tollgate_sink_events_parked", &[("sink", "stripe")]), 0);
    let rejected = [("sink", "openmeter"), ("result", "rejected")];
    assert_eq!(told.sum("tollgate_sink_parcels_total", &rejected), 1);
    app.finish().await;
}
