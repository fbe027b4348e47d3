//! A call that fails before its first byte goes to the next upstream, and one that fails after it
//! does not. The record lists them all.

use super::{FIRST_NUSD, SECOND_NUSD, Two, answer, outline, tried};
use crate::app::{Setup, Store, both_stores, eventually, question, streamed};
use crate::client::Ask;
use crate::upstream::answer::{DONE, event};
use crate::upstream::catalog::{self, MODEL};
use crate::upstream::script::{Gate, Script};
use crate::upstream::{Listing, Upstream};

both_stores!(
    the_next_one_answers,
    an_answer_that_has_begun_stays_where_it_is,
    a_killed_process_is_looked_up_where_it_was,
    what_a_failed_call_cost_is_the_operators,
    attempts_are_the_operators_to_see,
);

fn as_is(setup: Setup) -> Setup {
    setup
}

/// With a look-up that is not given up.
fn patient(setup: Setup) -> Setup {
    setup.env("TOLLGATE_LOOKUP_SECONDS", "20")
}

/// A failure before the first byte, and what the record says of it.
struct Early {
    script: Script,
    failure: &'static str,
    status: Option<u64>,
}

fn early(script: Script, failure: &'static str, status: Option<u64>) -> Early {
    Early { script, failure, status }
}

fn page() -> Script {
    let body = "<html><body>It works!</body></html>";
    let length = body.len().to_string();
    let headers = [("Content-Type", "text/html"), ("Content-Length", length.as_str())];
    Script::new().head(200, &headers).write(body)
}

fn early_failures(never: &Gate) -> Vec<Early> {
    let no_model = r#"{"error":{"message":"no such model","code":"model_not_found"}}"#;
    let at_once = [("Retry-After", "0")];
    vec![
        early(Script::new().rst(), "unreachable", None),
        early(Script::new().close(), "unreachable", None),
        early(Script::json(500, "{}"), "failed", Some(500)),
        early(Script::json_with(429, &at_once, "{}"), "rate_limited", Some(429)),
        early(Script::json_with(503, &at_once, "{}"), "failed", Some(503)),
        early(Script::json(408, "{}"), "failed", Some(408)),
        early(Script::json(401, "{}"), "refused", Some(401)),
        early(Script::json(402, "{}"), "refused", Some(402)),
        early(Script::json(403, "{}"), "refused", Some(403)),
        early(Script::json(404, "{}"), "no_model", Some(404)),
        early(Script::json(400, no_model), "no_model", Some(400)),
        early(page(), "failed", Some(200)),
        early(Script::json(200, "{}"), "failed", Some(200)),
        early(Script::json(200, r#"{"object":"error","message":"x"}"#), "failed", Some(200)),
        early(Script::json(200, r#"{"detail":"at http://10.0.0.7:4000"}"#), "failed", Some(200)),
        early(Script::json(200, r#"{"message":"x","code":"401"}"#), "refused", Some(401)),
        early(Script::new().wait(never), "timed_out", None),
    ]
}

async fn the_next_one_answers(store: Store) {
    let two = Two::start(store, "head_seconds = 4", as_is).await;
    let (app, never) = (&two.app, Gate::new());
    let mut records = 0;
    for (number, failure) in early_failures(&never).into_iter().enumerate() {
        let Early { script, failure, status } = failure;
        let streams = number % 2 == 0;
        app.upstream.script(script);
        let whole = answer();
        two.second.script(if streams { whole.stream() } else { whole.plain() });
        let body = if streams { streamed(MODEL) } else { question(MODEL) };
        let got = app.chat(&body).await;
        assert_eq!(got.status, 200, "{failure} {status:?}: {}", got.text());
        let text = if streams { got.content() } else { got.text() };
        assert!(text.contains(&whole.text()), "{failure} {status:?}: {text}");
        records += 1;
        let record = app.records(records).await.pop().expect("a record");
        assert_eq!(record.upstream, "second", "{failure}");
        assert_eq!((record.ending.as_str(), record.source.as_str()), ("completed", "upstream"));
        assert_eq!(record.charge_nusd, SECOND_NUSD, "its price, and once: {record:?}");
        let failed = ("first".to_string(), failure.to_string(), status);
        let answered = ("second".to_string(), String::new(), Some(200));
        assert_eq!(outline(&record), [failed, answered], "{record:?}");
        // It is well again, so that the next failure is met.
        app.upstream.script(answer().plain());
        app.chat(&question(MODEL)).await.ok();
        records += 1;
        let record = app.records(records).await.pop().expect("a record");
        assert_eq!((record.upstream.as_str(), record.charge_nusd), ("first", FIRST_NUSD));
        assert_eq!((record.attempts, record.tried), (1, None), "nothing to tell");
    }
    let log = app.process.stderr();
    assert!(log.contains("moved on") && log.contains("first"), "the operator is told: {log}");
    two.finish().await;
}

async fn an_answer_that_has_begun_stays_where_it_is(store: Store) {
    let two = Two::start(store, "", as_is).await;
    let app = &two.app;
    let whole = answer();
    app.upstream.script(whole.head().chunk(whole.content_event("The ")).rst());
    let got = app.chat(&streamed(MODEL)).await;
    assert_eq!(got.status, 200);
    assert!(got.text().contains("upstream_truncated"), "{}", got.text());
    assert_eq!(two.calls(), (1, 0), "the client has got something");
    assert_eq!(app.record().await.upstream, "first");
    // An error in the first event has not reached the client, whatever comes before and beside it.
    let error = event(r#"{"error":{"code":502,"message":"no"},"choices":[]}"#);
    let (one, other) = error.split_at(20);
    let comment = ": OPENROUTER PROCESSING\n\n";
    let scripts = [
        Script::stream().chunk(error.clone() + DONE).end(),
        Script::stream().chunk(comment).sleep(100).chunk(&error).end(),
        Script::stream().chunk(one).sleep(100).chunk(other).end(),
    ];
    for (number, script) in scripts.into_iter().enumerate() {
        app.upstream.script(script);
        let whole = answer();
        two.second.script(whole.stream());
        let got = app.chat(&streamed(MODEL)).await;
        assert_eq!(got.text(), whole.events_without_usage());
        let record = app.records(2 * number + 2).await.pop().expect("a record");
        assert_eq!((record.upstream.as_str(), record.charge_nusd), ("second", SECOND_NUSD));
        // It is well again, so that it is asked first.
        app.upstream.script(answer().plain());
        app.chat(&question(MODEL)).await.ok();
    }
    // One that is about the request is the client's to know.
    for status in [400, 413, 422] {
        let told = format!(r#"{{"error":{{"message":"words for the client {status}"}}}}"#);
        app.upstream.script(Script::json(status, told));
        let got = app.chat(&question(MODEL)).await;
        assert_eq!(got.status, status);
        assert!(got.text().contains("words for the client"), "{}", got.text());
    }
    assert_eq!(two.calls(), (10, 3), "a request at fault is so everywhere");
    two.finish().await;
}

async fn a_killed_process_is_looked_up_where_it_was(store: Store) {
    let hasty = |setup: Setup| patient(setup).env("TOLLGATE_LEASE_SECONDS", "1");
    let mut two = Two::start(store, "", hasty).await;
    let gate = Gate::new();
    two.app.upstream.script(Script::json(500, "{}"));
    let whole = answer();
    two.second.script(whole.head().chunk(whole.content_event("The ")).wait(&gate));
    let mut exchange = two.app.begin_chat(&streamed(MODEL)).await;
    exchange.until("The ").await;
    let hold = two.app.books.holds().await.remove(0);
    assert_eq!(hold.upstream, "second");
    assert_eq!(hold.generation_id.as_deref(), Some(whole.id.as_str()));
    two.app.kill9();
    drop(exchange);
    two.second.generation(1, whole.generation(12, 9, 0.0007));
    two.app.restart().await;
    let record = two.app.record().await;
    assert_eq!((record.upstream.as_str(), record.ending.as_str()), ("second", "killed"));
    assert_eq!((record.source.as_str(), record.completion_tokens), ("lookup", 9));
    assert_eq!(record.charge_nusd, 840_000, "0.0007 and a fifth");
    assert_eq!(two.app.upstream.calls("/v1/generation").len(), 0, "it knows nothing of it");
    let failed = ("first".to_string(), "failed".to_string(), Some(500));
    assert_eq!((outline(&record), record.attempts), (vec![failed], 2));
    gate.open();
    // The failed call and the one under way; the list has those that ended.
    two.app.finish().await;
}

async fn what_a_failed_call_cost_is_the_operators(store: Store) {
    let two = Two::start(store, "", patient).await;
    let app = &two.app;
    let lost = answer();
    let head = [
        ("Content-Type", "application/json"),
        ("Content-Length", "1000"),
        ("X-Generation-Id", lost.id.as_str()),
    ];
    app.upstream.script(Script::new().head(200, &head).write("{\"id\":").close());
    app.upstream.generation(1, lost.generation(12, 300, 0.0005));
    two.second.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    let record = app.record().await;
    assert_eq!((record.upstream.as_str(), record.charge_nusd), ("second", SECOND_NUSD));
    let first = &tried(&record)[0];
    assert_eq!(first["generation_id"], lost.id.as_str());
    assert_eq!(first["cost_pusd"], 500_000_000, "{first}");
    two.finish().await;
}

async fn attempts_are_the_operators_to_see(store: Store) {
    let two = Two::start(store, "", as_is).await;
    let app = &two.app;
    app.upstream.script(Script::json(500, "{}"));
    two.second.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    app.record().await;
    app.create_account("house", &[]).await;
    let key = app.create_key("house", &["--role", "service"]).await;
    let path = format!("/admin/v1/accounts/{}/usage", app.account);
    let seen = app.ask(&Ask::get(&path).bearer(&key)).await.json();
    let row = &seen["data"][0];
    assert_eq!(row["upstream"], "second");
    assert_eq!(row["tried"][0]["upstream"], "first", "{row}");
    assert_eq!(row["tried"][1]["status"], 200, "{row}");
    let prices = app.ask(&Ask::get("/admin/v1/prices").bearer(&key)).await.json();
    let keys: Vec<_> =
        prices["data"].as_array().expect("rows").iter().map(|it| &it["key"]).collect();
    for name in ["first", "second"] {
        assert!(keys.iter().any(|key| **key == format!("{MODEL}::{name}")), "{keys:?}");
    }
    let file = app.get("/v1/usage.csv?start_time=1").await;
    let shown = file.text();
    assert!(file.status == 400 || !shown.contains("second"), "{shown}");
    two.finish().await;
}

#[tokio::test]
async fn a_failure_in_a_form_of_its_own_moves_on_before_the_first_event_leaves() {
    for error in [
        r#"data: {"text":"NETWORK ERROR","error_code":50001}"#,
        "event: error\ndata: {\"reason\":\"x\"}",
        "event: error\ndata: out of memory",
    ] {
        let two = Two::start(Store::Sqlite, "", as_is).await;
        let app = &two.app;
        app.upstream.script(Script::stream().chunk(format!("{error}\n\n{DONE}")).end());
        let whole = answer();
        two.second.script(whole.stream());
        let got = app.chat(&streamed(MODEL)).await;
        assert_eq!(got.text(), whole.events_without_usage(), "{error}");
        let record = app.record().await;
        assert_eq!((record.upstream.as_str(), record.charge_nusd), ("second", SECOND_NUSD));
        two.finish().await;
    }
}

#[tokio::test]
async fn nobody_listens_at_the_first() {
    let two = Two::start(Store::Sqlite, "", as_is).await;
    two.app.upstream.stop().await;
    two.second.script(answer().stream());
    two.app.chat(&streamed(MODEL)).await.ok();
    let record = two.app.record().await;
    assert_eq!(outline(&record)[0], ("first".to_string(), "unreachable".to_string(), None));
    assert_eq!(record.charge_nusd, SECOND_NUSD);
    two.finish().await;
}

#[tokio::test]
async fn when_all_have_failed_the_client_is_told_what_helps_it_most() {
    let two = Two::start(Store::Sqlite, "", as_is).await;
    let app = &two.app;
    app.upstream.script(Script::json_with(503, &[("Retry-After", "60")], "{}"));
    two.second.script(Script::json(401, "{}"));
    let got = app.chat(&streamed(MODEL)).await;
    assert_eq!((got.status, got.header("retry-after")), (503, Some("60")), "{}", got.text());
    let record = app.record().await;
    assert_eq!((record.charge_nusd, record.attempts), (0, 2), "{record:?}");
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("upstream_failed", "none"));
    assert_eq!(outline(&record).len(), 2);
    two.finish().await;
}

#[tokio::test]
async fn the_same_one_is_asked_again_before_the_next() {
    let two = Two::start(Store::Sqlite, "retries = 1", as_is).await;
    let app = &two.app;
    for _ in 0..2 {
        app.upstream.script(Script::json(502, "{}"));
    }
    two.second.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    assert_eq!(two.calls(), (2, 1));
    assert_eq!(outline(&app.record().await).len(), 3);
    // Nobody waits for one while another can be asked.
    app.upstream.script(Script::json_with(503, &[("Retry-After", "5")], "{}"));
    two.second.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    assert_eq!(two.calls(), (3, 2));
    two.finish().await;
}

#[tokio::test]
async fn a_client_that_leaves_at_the_second_is_settled_there() {
    let count = |setup: Setup| setup.policy("count");
    let two = Two::start(Store::Sqlite, "", count).await;
    let gate = Gate::new();
    two.app.upstream.script(Script::json(500, "{}"));
    let whole = answer();
    two.second.script(whole.head().chunk(whole.content_event("The tollgate ")).wait(&gate));
    let mut exchange = two.app.begin_chat(&streamed(MODEL)).await;
    exchange.until("tollgate").await;
    exchange.hang_up();
    let record = two.app.record().await;
    assert_eq!((record.upstream.as_str(), record.ending.as_str()), ("second", "client_gone"));
    assert_eq!(record.source, "counted");
    assert!(record.charge_nusd > 0 && outline(&record).len() == 2, "{record:?}");
    gate.open();
    two.finish().await;
}

#[tokio::test]
async fn one_without_a_list_does_not_keep_the_others_from_serving() {
    let away = Upstream::start(catalog::openrouter_models()).await;
    away.set_models(Listing::Fails(500));
    let second = Upstream::start(super::dear_models(16_384)).await;
    let file = super::entry("first", &away, "") + &super::entry("second", &second, "order = 2");
    let app = Setup::new(Store::Sqlite).upstreams(file).start_with(away).await;
    second.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    assert_eq!(app.record().await.upstream, "second");
    app.upstream.set_models(Listing::Json(catalog::openrouter_models()));
    eventually("the first one's models are there", async || {
        let models = app.get("/v1/models").await.text();
        models.contains(catalog::FOREIGN_MODEL).then_some(())
    })
    .await;
    app.upstream.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    assert_eq!(app.records(2).await[1].upstream, "first");
    app.finish().await;
}
