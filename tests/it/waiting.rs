//! A stream whose upstream does not answer for a while, not even with a head.

use crate::app::{Setup, Store, TestApp, both_stores, streamed};
use crate::client::Exchange;
use crate::upstream::answer::{Answer, DONE};
use crate::upstream::catalog::MODEL;
use crate::upstream::script::{Gate, Script};

both_stores!(
    a_late_head_is_covered_by_comments,
    a_late_failure_is_an_event_and_costs_nothing,
    a_document_that_comes_late_is_no_stream,
    who_leaves_while_waiting_is_drained,
    the_end_of_the_process_ends_the_waiting,
);

const COMMENT: &str = ": keep-alive\n\n";

/// A stream whose upstream goes on when the gate opens, and whose client has been told to wait.
async fn told_to_wait(app: &TestApp, gate: &Gate, rest: Script) -> Exchange {
    app.upstream.script(Script::new().wait(gate).then(rest));
    let mut exchange = app.begin_chat(&streamed(MODEL)).await;
    exchange.until(COMMENT).await;
    assert_eq!(exchange.status(), 200);
    assert_eq!(app.books.holds().await.len(), 1, "before its client is told anything");
    exchange
}

async fn a_late_head_is_covered_by_comments(store: Store) {
    let app = TestApp::start(store).await;
    let (answer, gate) = (Answer::openrouter(), Gate::new());
    let exchange = told_to_wait(&app, &gate, answer.stream()).await;
    gate.open();
    let got = exchange.finish().await;
    assert_eq!(got.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(got.ok(), format!("{COMMENT}{}", answer.events_without_usage()));
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("completed", "upstream"));
    assert_eq!(record.charge_nusd, 147_600);
    app.finish().await;
}

async fn a_late_failure_is_an_event_and_costs_nothing(store: Store) {
    let app = TestApp::start(store).await;
    let gate = Gate::new();
    let refusal = r#"{"error":{"message":"no capacity","code":503}}"#;
    let exchange = told_to_wait(&app, &gate, Script::json(503, refusal)).await;
    gate.open();
    assert_failed(&app, exchange).await;
    app.finish().await;
}

async fn a_document_that_comes_late_is_no_stream(store: Store) {
    let app = TestApp::start(store).await;
    let (answer, gate) = (Answer::openrouter(), Gate::new());
    let exchange = told_to_wait(&app, &gate, Script::json(200, answer.plain_body())).await;
    gate.open();
    assert_failed(&app, exchange).await;
    app.finish().await;
}

/// One event tells it, nothing follows, and the client pays nothing.
async fn assert_failed(app: &TestApp, exchange: Exchange) {
    let got = exchange.finish().await;
    let [event] = &got.events()[..] else { panic!("one event: {}", got.text()) };
    assert_eq!(event["error"]["code"], "upstream_error", "{event}");
    assert!(!got.text().contains(DONE), "it is not whole: {}", got.text());
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.charge_nusd), ("upstream_failed", 0));
}

async fn who_leaves_while_waiting_is_drained(store: Store) {
    let app = Setup::new(store).policy("drain").start().await;
    let (answer, gate) = (Answer::openrouter(), Gate::new());
    told_to_wait(&app, &gate, answer.stream()).await.hang_up();
    gate.open();
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("client_gone", "upstream"));
    assert_eq!(record.charge_nusd, 147_600);
    app.finish().await;
}

async fn the_end_of_the_process_ends_the_waiting(store: Store) {
    let mut app = Setup::new(store).env("TOLLGATE_DRAIN_SECONDS", "1").start().await;
    let (answer, gate) = (Answer::openrouter(), Gate::new());
    let exchange = told_to_wait(&app, &gate, answer.stream()).await;
    app.sigterm();
    let got = exchange.finish().await;
    assert_eq!(got.events()[0]["error"]["code"], "shutting_down", "{}", got.text());
    assert_eq!(app.stopped().await.code(), Some(0));
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.charge_nusd), ("upstream_failed", 0));
    gate.open();
    app.finish().await;
}
