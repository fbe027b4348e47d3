//! Calls that fail before their first byte are made again where that may help: one hold, one
//! charge, and the number of attempts on the record.

use crate::app::{Setup, Store, TestApp, both_stores, eventually, question, streamed};
use crate::client::Answered;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use crate::upstream::script::{Gate, Script};

both_stores!(
    a_failure_before_the_first_byte_is_tried_again,
    the_last_failure_is_told,
    what_does_not_help_is_not_tried_again,
    a_pause_that_is_none_is_not_told,
    a_client_that_leaves_between_two_attempts_pays_nothing,
);

async fn app(store: Store) -> TestApp {
    Setup::new(store).env("TOLLGATE_UPSTREAM_RETRIES", "2").start().await
}

fn failure(status: u16) -> Script {
    Script::json_with(status, &[("Retry-After", "0")], r#"{"error":{"message":"busy"}}"#)
}

fn answer() -> Answer {
    Answer::openrouter().model(MODEL)
}

fn calls(app: &TestApp) -> usize {
    app.upstream.calls("/v1/chat/completions").len()
}

async fn a_failure_before_the_first_byte_is_tried_again(store: Store) {
    let app = app(store).await;
    let mut records = 0;
    for status in [408, 429, 500, 502, 503, 529] {
        for body in [question(MODEL), streamed(MODEL)] {
            let before = calls(&app);
            app.upstream.script(failure(status));
            let whole = answer();
            app.upstream.script(if body["stream"] == true {
                whole.stream()
            } else {
                whole.plain()
            });
            let got = app.chat(&body).await;
            assert_eq!(got.status, 200, "after a {status}: {}", got.text());
            assert_eq!(calls(&app) - before, 2, "after a {status}");
            records += 1;
            let record = app.records(records).await.pop().expect("a record");
            assert_eq!((record.attempts, record.ending.as_str()), (2, "completed"), "{record:?}");
            assert!(record.charge_nusd > 0, "{record:?}");
        }
    }
    app.upstream.script(Script::new().rst());
    app.upstream.script(answer().plain());
    assert_eq!(app.chat(&question(MODEL)).await.status, 200, "after a reset");
    app.finish().await;
}

async fn the_last_failure_is_told(store: Store) {
    let app = app(store).await;
    for status in [500, 500, 503] {
        app.upstream.script(failure(status));
    }
    let got = app.chat(&streamed(MODEL)).await;
    assert_eq!(got.status, 503, "{}", got.text());
    assert_eq!(calls(&app), 3, "two further attempts");
    let record = app.record().await;
    assert_eq!((record.attempts, record.charge_nusd), (3, 0), "{record:?}");
    assert_eq!((record.upstream_status, record.source.as_str()), (Some(503), "none"));
    app.finish().await;
}

async fn what_does_not_help_is_not_tried_again(store: Store) {
    let app = app(store).await;
    let in_a_minute = [("Retry-After", "60")];
    let scripts = [
        (Script::json(400, r#"{"error":{"message":"no"}}"#), 400),
        (Script::json(401, "{}"), 502),
        (Script::json(402, "{}"), 502),
        (Script::json(404, r#"{"error":{"message":"no"}}"#), 404),
        (Script::json_with(429, &in_a_minute, "{}"), 429),
        (Script::json_with(503, &in_a_minute, "{}"), 503),
        // What it means is in its status, whatever its body is said to be.
        (Script::json_with(503, &[in_a_minute[0], ("Content-Encoding", "gzip")], "\x1f"), 503),
    ];
    for (index, (script, status)) in scripts.into_iter().enumerate() {
        app.upstream.script(script);
        let got: Answered = app.chat(&question(MODEL)).await;
        assert_eq!(got.status, status, "{}", got.text());
        assert_eq!(calls(&app), index + 1, "one attempt for a {status}");
        if matches!(status, 429 | 503) {
            assert_eq!(got.header("retry-after"), Some("60"), "the client may wait as long");
        }
    }
    for record in app.records(7).await {
        assert_eq!((record.attempts, record.charge_nusd), (1, 0), "{record:?}");
    }
    app.finish().await;
}

async fn a_pause_that_is_none_is_not_told(store: Store) {
    let app = app(store).await;
    let words = [("Retry-After", "ask billing@provider.example")];
    for _ in 0..3 {
        app.upstream.script(Script::json_with(429, &words, "{}"));
    }
    let got = app.chat(&question(MODEL)).await;
    assert_eq!((got.status, got.header("retry-after")), (429, None), "{}", got.text());
    app.finish().await;
}

async fn a_client_that_leaves_between_two_attempts_pays_nothing(store: Store) {
    let app = app(store).await;
    let gate = Gate::new();
    app.upstream.script(Script::json_with(503, &[("Retry-After", "4")], "{}").wait(&gate));
    let exchange = app.begin_chat(&streamed(MODEL)).await;
    eventually("the first attempt", async || (calls(&app) == 1).then_some(())).await;
    gate.open();
    exchange.hang_up();
    let record = app.record().await;
    assert_eq!((record.charge_nusd, record.source.as_str()), (0, "none"), "{record:?}");
    assert_eq!(record.ending, "client_gone", "{record:?}");
    assert_eq!(calls(&app), 1, "nobody waits for a second one");
    app.finish().await;
}
