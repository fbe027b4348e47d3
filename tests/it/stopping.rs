//! Stopping: SIGTERM lets streams end and settles the rest, SIGKILL loses nothing.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::app::{Kind, Setup, Store, TestApp, both_stores, eventually, question, streamed};
use crate::client::{Ask, Exchange};
use crate::upstream::answer::{Answer, DONE};
use crate::upstream::catalog::MODEL;
use crate::upstream::script::{Gate, Script};

both_stores!(
    sigterm_lets_a_stream_end,
    sigterm_settles_what_outlasts_the_deadline,
    sigterm_charges_nothing_for_an_answer_that_it_cut,
    sigkill_is_made_good_by_a_look_up,
    an_orphan_that_is_being_looked_up_is_left_to_the_next,
    sigkill_is_made_good_by_an_estimate,
    sigkill_with_many_streams,
);

/// A stream that has delivered its first delta and waits for the gate.
async fn open_stream(app: &TestApp, answer: &Answer, gate: &Gate) -> Exchange {
    let mut events = answer.events();
    let first = events.remove(0);
    app.upstream.script(answer.head().chunk(first).wait(gate).chunks(events).end());
    let model = if app.environment["UPSTREAM_KIND"] == "openai" { "gpt-4o-mini" } else { MODEL };
    let mut exchange = app.begin_chat(&streamed(model)).await;
    exchange.until("data: ").await.until("\n\n").await;
    exchange
}

async fn sigterm_lets_a_stream_end(store: Store) {
    let mut app = Setup::new(store).env("TOLLGATE_SHUTDOWN_DELAY_SECONDS", "5").start().await;
    let (answer, gate) = (Answer::openrouter(), Gate::new());
    let exchange = open_stream(&app, &answer, &gate).await;
    app.sigterm();
    let ready = Ask::get("/readyz").bytes();
    eventually("readiness goes before the listener does", async || {
        let exchange = Exchange::try_open(app.address(), &ready).await.ok()?;
        (exchange.finish().await.status == 503).then_some(())
    })
    .await;
    assert_eq!(app.ask(&Ask::get("/healthz")).await.status, 200, "it is alive still");
    eventually("new connections are refused", async || {
        TcpStream::connect(app.address()).await.err()
    })
    .await;
    assert_eq!(app.process.status(), None, "a stream is still open");
    gate.open();
    let got = exchange.finish().await;
    assert_eq!(got.ok(), answer.events_without_usage());
    assert_eq!(app.stopped().await.code(), Some(0));
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("completed", "upstream"));
    app.finish().await;
}

async fn sigterm_settles_what_outlasts_the_deadline(store: Store) {
    let setup = Setup::new(store).kind(Kind::OpenAi).env("TOLLGATE_DRAIN_SECONDS", "1");
    let mut app = setup.start().await;
    let (answer, never) =
        (Answer::openai().no_usage().pieces(["one two three", "four"]), Gate::new());
    let exchange = open_stream(&app, &answer, &never).await;
    app.sigterm();
    let got = exchange.finish().await;
    let text = got.text();
    assert!(text.contains(r#""error""#), "a stream that is cut says so: {text}");
    assert!(!text.contains("[DONE]"), "a cut stream looks whole: {text}");
    assert_eq!(app.stopped().await.code(), Some(0));
    let record = app.record().await;
    assert_eq!((record.source.as_str(), record.completion_tokens), ("counted", 3), "{record:#?}");
    assert_ne!(record.ending, "completed");
    app.finish().await;
}

/// Its client waited and got nothing, though the upstream made it and can be asked: with a head and
/// without, plain and streamed.
async fn sigterm_charges_nothing_for_an_answer_that_it_cut(store: Store) {
    let setup = Setup::new(store).env("TOLLGATE_DRAIN_SECONDS", "1");
    let mut app = setup.env("TOLLGATE_SLOW_LOOKUP_EVERY_SECONDS", "1").start().await;
    let never = Gate::new();
    let mut open = Vec::new();
    for body in [question(MODEL), streamed(MODEL)] {
        for has_head in [false, true] {
            let answer = Answer::openrouter();
            app.upstream.generation(0, answer.generation(12, 5, 0.0001));
            let head = if has_head { answer.head() } else { Script::new() };
            let mut script = head.wait(&never);
            script.truth = None;
            app.upstream.script(script);
            open.push(app.begin_chat(&body).await);
            app.upstream.wait_for_chats(open.len()).await;
        }
    }
    app.sigterm();
    assert_eq!(app.stopped().await.code(), Some(0));
    for exchange in open {
        let got = exchange.finish().await;
        assert!(!got.complete || got.text().contains(r#""error""#), "{}", got.text());
    }
    for record in app.records(4).await {
        assert_eq!((record.ending.as_str(), record.source.as_str()), ("upstream_failed", "none"));
        assert_eq!(record.charge_nusd, 0, "{record:#?}");
    }
    app.restart().await;
    let look_ups = app.books.rows("SELECT * FROM lookups").await;
    assert!(look_ups.is_empty(), "what nobody got is asked after: {look_ups:?}");
    app.finish().await;
}

#[tokio::test]
async fn sigterm_with_nothing_to_do_is_quick() {
    let mut app = TestApp::start(Store::Sqlite).await;
    // A kept connection without a request must not hold the program up.
    let mut idle = Exchange::open(app.address(), &Ask::get("/healthz").bytes()).await;
    assert_eq!(idle.next().await.status, 200);
    let start = Instant::now();
    app.sigterm();
    assert_eq!(app.stopped().await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(15), "it took {:?}", start.elapsed());
    app.finish().await;
}

#[tokio::test]
async fn sigterm_right_after_the_start_is_not_missed() {
    let mut app = TestApp::start(Store::Sqlite).await;
    for round in 0..5 {
        app.sigterm();
        assert_eq!(app.stopped().await.code(), Some(0), "round {round}: ended by the signal");
        app.restart().await;
    }
    app.finish().await;
}

/// Kills the program in the middle of a stream, and starts it again.
async fn kill_and_restart(app: &mut TestApp, answer: &Answer) {
    let exchange = open_stream(app, answer, &Gate::new()).await;
    eventually("the hold knows its generation", async || {
        let holds = app.books.holds().await;
        holds[0].generation_id.clone()
    })
    .await;
    app.kill9();
    drop(exchange.finish().await);
    let holds = app.books.holds().await;
    assert_eq!(holds.len(), 1, "the hold outlives the program");
    app.restart().await;
}

async fn sigkill_is_made_good_by_a_look_up(store: Store) {
    let setup = Setup::new(store).env("TOLLGATE_LEASE_SECONDS", "2");
    let mut app = setup.env("TOLLGATE_LOOKUP_SECONDS", "20").start().await;
    let answer = Answer::openrouter();
    app.upstream.generation(1, answer.generation(12, 5, 0.0001));
    kill_and_restart(&mut app, &answer).await;
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("killed", "lookup"));
    assert_eq!((record.completion_tokens, record.charge_nusd), (5, 120_000));
    assert_eq!(record.generation_id.as_ref(), Some(&answer.id));
    app.finish().await;
}

/// Who is asking for what a killed process left, and is to end itself, estimates nothing.
async fn an_orphan_that_is_being_looked_up_is_left_to_the_next(store: Store) {
    let setup = Setup::new(store).env("TOLLGATE_LEASE_SECONDS", "2");
    let setup = setup.env("TOLLGATE_LOOKUP_SECONDS", "15").env("TOLLGATE_DRAIN_SECONDS", "1");
    let mut app = setup.start().await;
    let answer = Answer::openrouter();
    app.upstream.generation(u32::MAX, answer.generation(12, 5, 0.0001));
    kill_and_restart(&mut app, &answer).await;
    eventually("it is asked for", async || {
        (!app.upstream.calls("/v1/generation").is_empty()).then_some(())
    })
    .await;
    app.sigterm();
    assert_eq!(app.stopped().await.code(), Some(0));
    assert_eq!((app.books.left_holds().await.len(), app.books.records().await.len()), (1, 0));
    app.upstream.generation(0, answer.generation(12, 5, 0.0001));
    app.restart().await;
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("killed", "lookup"));
    assert_eq!(record.charge_nusd, 120_000);
    app.finish().await;
}

async fn sigkill_is_made_good_by_an_estimate(store: Store) {
    let setup = Setup::new(store).kind(Kind::OpenAi).env("TOLLGATE_LEASE_SECONDS", "2");
    let mut app = setup.start().await;
    kill_and_restart(&mut app, &Answer::openai()).await;
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("killed", "estimated"));
    assert!(record.prompt_tokens > 0 && record.charge_nusd > 0, "{record:#?}");
    assert!(
        record.charge_nusd <= record.hold_nusd,
        "an estimate stays within its hold: {record:#?}"
    );
    app.finish().await;
}

async fn sigkill_with_many_streams(store: Store) {
    let setup = Setup::new(store).env("TOLLGATE_LEASE_SECONDS", "2");
    let mut app = setup.env("TOLLGATE_LOOKUP_SECONDS", "20").start().await;
    let gate = Gate::new();
    let mut open = Vec::new();
    for _ in 0..8 {
        let answer = Answer::openrouter();
        app.upstream.generation(0, answer.generation(12, 5, 0.0001));
        open.push(open_stream(&app, &answer, &gate).await);
    }
    eventually("every hold knows its generation", async || {
        let holds = app.books.holds().await;
        holds.iter().all(|hold| hold.generation_id.is_some()).then_some(())
    })
    .await;
    // Half of them end just as the program is killed: each is settled before or after, and once.
    gate.open();
    let got = open.remove(0).finish().await;
    assert!(got.ok().ends_with(DONE));
    app.kill9();
    drop(open);
    app.restart().await;
    let records = app.records(8).await;
    for record in records {
        let right = match record.source.as_str() {
            "upstream" => record.charge_nusd == 147_600,
            "lookup" => record.charge_nusd == 120_000,
            _ => false,
        };
        assert!(right, "{record:#?}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_restart_serves_the_same_keys() {
    let mut app = TestApp::start(Store::Sqlite).await;
    app.sigterm();
    assert_eq!(app.stopped().await.code(), Some(0));
    app.restart().await;
    app.upstream.script(Answer::openrouter().stream());
    app.chat(&streamed(MODEL)).await.ok();
    app.finish().await;
}
