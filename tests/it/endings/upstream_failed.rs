//! The upstream fails: before its first byte or in the middle, by status, by reset, by silence.

use serde_json::json;

use super::assert_whole;
use crate::app::{Kind, Setup, Store, TestApp, both_stores, question, streamed};
use crate::client::Answered;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use crate::upstream::script::{Gate, Script, Step};

both_stores!(
    failures_before_the_first_byte,
    failures_in_the_middle,
    a_usage_before_the_last_text_is_not_that_of_a_broken_answer,
);

/// What the client and the record must say of a call that failed before its first byte.
struct Failure {
    what: &'static str,
    script: Script,
    status: u16,
    code: Option<&'static str>,
    upstream_status: Option<i64>,
}

fn refusal(upstream_status: u16, status: u16, code: Option<&'static str>) -> Failure {
    let text = format!(
        r#"{{"error":{{"code":{upstream_status},"message":"the upstream's words","metadata":{{"raw":"sk-or-secret"}}}},"user_id":"org_secret"}}"#
    );
    Failure {
        what: "a status",
        script: Script::json_with(upstream_status, &[("Retry-After", "7")], text),
        status,
        code,
        upstream_status: Some(i64::from(upstream_status)),
    }
}

fn broken(what: &'static str, script: Script) -> Failure {
    Failure { what, script, status: 502, code: None, upstream_status: None }
}

fn early_failures() -> Vec<Failure> {
    let mut failures = vec![
        broken("reset at once", Script::new().rst()),
        broken("closed at once", Script::new().close()),
        broken("not HTTP", Script::new().write("gopher, if anything\r\n\r\n").close()),
        broken("half a head", Script::new().write("HTTP/1.1 200 OK\r\nContent-Ty").close()),
        refusal(429, 429, None),
        refusal(408, 502, Some("upstream_error")),
        refusal(500, 502, Some("upstream_error")),
        refusal(502, 502, Some("upstream_error")),
        refusal(503, 503, Some("upstream_error")),
        refusal(524, 502, Some("upstream_error")),
        refusal(529, 502, Some("upstream_error")),
    ];
    // The operator's own trouble with the upstream: the client learns nothing of it.
    failures.extend([401, 402, 403].map(|status| refusal(status, 502, Some("upstream_refused"))));
    // The client's own fault: it is told.
    failures.extend([400, 404, 413, 422].map(|status| refusal(status, status, None)));
    failures
}

async fn failures_before_the_first_byte(store: Store) {
    let app = TestApp::start(store).await;
    let mut number = 0;
    for streams in [true, false] {
        for failure in early_failures() {
            let what = format!("{} {:?}", failure.what, failure.upstream_status);
            // Idempotent or not, hyper may send a request again when a kept connection turns out to
            // be dead before any answer; a second script makes that visible, and harmless.
            app.upstream.script(failure.script.clone());
            let got = app.chat(&if streams { streamed(MODEL) } else { question(MODEL) }).await;
            assert_failed(&got, &failure, &what);
            let record = app.records(number + 1).await.remove(number);
            number += 1;
            assert_eq!(record.id, got.request_id(), "{what}");
            assert_eq!(record.upstream_status, failure.upstream_status, "{what}");
            assert_eq!(
                (record.ending.as_str(), record.source.as_str()),
                ("upstream_failed", "none")
            );
            assert_eq!(record.charge_nusd, 0, "{what}");
        }
    }
    app.finish().await;
}

#[track_caller]
fn assert_failed(got: &Answered, failure: &Failure, what: &str) {
    assert_eq!(got.status, failure.status, "{what}: {}", got.text());
    let error = &got.json()["error"];
    assert!(error["message"].is_string() && error["type"].is_string(), "{what}: {error}");
    if let Some(code) = failure.code {
        assert_eq!(error["code"], json!(code), "{what}: {error}");
    }
    let text = got.text();
    assert!(!text.contains("secret"), "{what}: the upstream's body is dumped: {text}");
    let passes = [400, 404, 413, 422].contains(&failure.status);
    let passed = text.contains("the upstream's words");
    let refused = failure.code == Some("upstream_refused");
    assert!(passed || !passes, "{what}: the client is not told why: {text}");
    assert!(!(passed && refused), "{what}: the operator's trouble is shown: {text}");
    if failure.status == 429 {
        assert_eq!(got.header("retry-after"), Some("7"), "{what}");
    }
}

#[tokio::test]
async fn nobody_listens_at_the_upstream() {
    let app = TestApp::start(Store::Sqlite).await;
    app.upstream.stop().await;
    let got = app.chat(&streamed(MODEL)).await;
    assert_eq!(got.status, 502, "{}", got.text());
    assert_eq!(got.json()["error"]["code"], json!("upstream_unavailable"));
    assert!(!got.text().contains("127.0.0.1"), "the upstream's address is shown: {}", got.text());
    let record = app.record().await;
    assert_eq!((record.source.as_str(), record.charge_nusd), ("none", 0));
    app.finish().await;
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_given_up() {
    let app = Setup::new(Store::Sqlite).env("TOLLGATE_UPSTREAM_HEAD_SECONDS", "1").start().await;
    app.upstream.script(Script::new().wait(&Gate::new()));
    let got = app.chat(&streamed(MODEL)).await;
    assert_eq!(got.status, 504, "{}", got.text());
    assert_eq!(got.json()["error"]["code"], json!("upstream_timeout"));
    assert_eq!(got.header("x-should-retry"), Some("false"), "it may be billed already");
    app.upstream.wait_for_gone(1).await;
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.charge_nusd), ("upstream_failed", 0));
    app.finish().await;
}

#[tokio::test]
async fn a_plain_answer_that_drips_has_an_end() {
    let app = Setup::new(Store::Sqlite).env("TOLLGATE_STREAM_SECONDS", "1").start().await;
    let headers = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")];
    let mut script = Script::new().head(200, &headers).chunk("{");
    for _ in 0..100 {
        script = script.sleep(100).chunk(" ");
    }
    app.upstream.script(script.chunk("}").end());
    let got = app.chat(&question(MODEL)).await;
    assert_eq!(got.status, 504, "{}", got.text());
    assert_eq!(got.json()["error"]["code"], json!("upstream_timeout"));
    app.upstream.wait_for_gone(1).await;
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.charge_nusd), ("upstream_failed", 0));
    app.finish().await;
}

/// What programs ask an error for, and what is not the operator's failure.
#[tokio::test]
async fn a_prompt_at_fault_is_told_by_its_word() {
    let app = TestApp::start(Store::Sqlite).await;
    let flagged = json!({"error": {"code": 403, "message": "flagged: the client's secret",
        "metadata": {"reasons": ["hate"], "flagged_input": "secret", "provider_name": "x"}}});
    let too_long = json!({"error": {"code": "context_length_exceeded", "param": "messages",
        "message": "This model's maximum context length is 8192 tokens."}});
    for (status, answer, word) in
        [(403, &flagged, "content_policy_violation"), (400, &too_long, "context_length_exceeded")]
    {
        app.upstream.script(Script::json(status, answer.to_string()));
        let got = app.chat(&question(MODEL)).await;
        assert_eq!(got.status, status, "{}", got.text());
        let error = &got.json()["error"];
        assert_eq!(
            (&error["code"], &error["type"]),
            (&json!(word), &json!("invalid_request_error"))
        );
        assert!(!got.text().contains("secret"), "{}", got.text());
        let record = app.record_of(&got).await;
        assert_eq!((record.ending.as_str(), record.charge_nusd), ("upstream_failed", 0));
    }
    app.finish().await;
}

/// Ways in which a stream breaks after two deltas.
fn breaks() -> Vec<(&'static str, Vec<Step>)> {
    vec![
        ("a reset", vec![Step::Rst]),
        ("a close inside the body", vec![Step::Close]),
        ("a half-close inside the body", vec![Step::HalfClose, Step::Wait(Gate::new())]),
        ("half an event, then a close", vec![Step::Chunk(b"data: {\"id\":".to_vec()), Step::Close]),
        ("a clean end without a finish", vec![Step::End]),
        (
            "a clean end after half an event",
            vec![Step::Chunk(b"data: {\"id\"".to_vec()), Step::End],
        ),
        ("a broken chunk", vec![Step::Write(b"zzz\r\n".to_vec()), Step::Close]),
        ("silence", vec![Step::Wait(Gate::new())]),
    ]
}

async fn failures_in_the_middle(store: Store) {
    let counts = Setup::new(store).kind(Kind::OpenAi).env("TOLLGATE_UPSTREAM_IDLE_SECONDS", "1");
    let app = counts.start().await;
    for (what, steps) in breaks() {
        let answer = Answer::openai().no_usage().pieces(["one two", " three four"]);
        let sent = answer.content_events().concat();
        let mut script = answer.head().chunk(&sent);
        script.steps.extend(steps);
        app.upstream.script(script);
        let got = app.chat(&streamed("gpt-4o-mini")).await;
        assert_truncated(&got, &sent, what);
        let record = app.record_of(&got).await;
        assert_eq!(record.ending, "upstream_failed", "{what}: {record:#?}");
        assert_eq!((record.source.as_str(), record.completion_tokens), ("counted", 4), "{what}");
        assert_eq!(record.charge_nusd, record.prompt_tokens * 150 + 4 * 600, "{what}");
    }
    app.finish().await;
}

/// Less than what a token has on average.
#[tokio::test]
async fn the_shortest_text_is_charged_for() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    let answer = Answer::openai().no_usage().pieces(["No"]);
    let sent = answer.content_events().concat();
    app.upstream.script(answer.head().chunk(&sent).rst());
    let got = app.chat(&streamed("gpt-4o-mini")).await;
    assert_truncated(&got, &sent, "a reset");
    let record = app.record_of(&got).await;
    assert_eq!(record.ending, "upstream_failed", "{record:#?}");
    assert_eq!((record.source.as_str(), record.completion_tokens), ("counted", 1), "{record:#?}");
    assert!(record.prompt_tokens > 0, "{record:#?}");
    assert_eq!(record.charge_nusd, record.prompt_tokens * 150 + 600);
    app.finish().await;
}

/// The client has all that came, then an error event in OpenAI's form, and no `[DONE]`.
#[track_caller]
fn assert_truncated(got: &Answered, sent: &str, what: &str) {
    assert_eq!(got.status, 200, "{what}");
    let text = got.text();
    assert!(text.starts_with(sent), "{what}: {text}");
    assert!(!text.contains("[DONE]"), "{what}: a cut stream looks whole: {text}");
    let last = text.trim_end().rsplit("data: ").next().unwrap_or_default();
    let error: serde_json::Value = serde_json::from_str(last)
        .unwrap_or_else(|_| panic!("{what}: no error event at the end: {text}"));
    assert!(error["error"]["message"].is_string(), "{what}: {text}");
    assert_eq!(error["error"]["type"], json!("upstream_error"), "{what}: {text}");
    assert!(error["error"]["code"].is_string(), "{what}: {text}");
}

#[tokio::test]
async fn a_broken_stream_is_looked_up_where_that_is_possible() {
    let setup = Setup::new(Store::Sqlite).env("TOLLGATE_LOOKUP_SECONDS", "20");
    let app = setup.start().await;
    // OpenRouter charges nothing for some errors, whatever text had come.
    for (cost, charge) in [(0.0001, 120_000), (0.0, 0)] {
        let answer = Answer::openrouter().no_usage();
        app.upstream.generation(1, answer.generation(12, 2, cost));
        let sent = answer.content_events().concat();
        app.upstream.script(answer.head().chunk(&sent).rst());
        let got = app.chat(&streamed(MODEL)).await;
        assert_truncated(&got, &sent, "a reset");
        let record = app.record_of(&got).await;
        let said = (record.ending.as_str(), record.source.as_str(), record.charge_nusd);
        assert_eq!(said, ("upstream_failed", "lookup", charge));
    }
    app.finish().await;
}

#[tokio::test]
async fn usage_seen_before_the_break_is_the_usage() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = Answer::openrouter();
    let sent = answer.content_events().concat() + &answer.finish_event() + &answer.usage_event();
    app.upstream.script(answer.head().chunk(&sent).rst());
    app.chat(&streamed(MODEL)).await;
    assert_whole(&app.record().await, "upstream", "a reset after the usage");
    app.finish().await;
}

#[tokio::test]
async fn a_plain_answer_that_breaks_off_is_an_error() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    let body = Answer::openai().plain_body();
    let (half, _) = body.split_at(body.len() / 2);
    let length = body.len().to_string();
    let headers = [("Content-Type", "application/json"), ("Content-Length", length.as_str())];
    app.upstream.script(Script::new().head(200, &headers).write(half).close());
    let got = app.chat(&question("gpt-4o-mini")).await;
    assert_eq!(got.status, 502, "{}", got.text());
    assert!(got.json()["error"]["message"].is_string());
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.charge_nusd), ("upstream_failed", 0), "{record:#?}");
    app.finish().await;
}

#[tokio::test]
async fn an_answer_that_is_not_json_is_an_error() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    for body in ["<html>502</html>", "", "[]"] {
        app.upstream.script(Script::json(200, body));
        let got = app.chat(&question("gpt-4o-mini")).await;
        assert_eq!(got.status, 502, "{body:?}: {}", got.text());
        let record = app.record_of(&got).await;
        assert_eq!(
            (record.ending.as_str(), record.charge_nusd),
            ("upstream_failed", 0),
            "{body:?}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn a_plain_answer_of_nothing_but_an_error_costs_nothing() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    let mut answer = Answer::openai().no_usage().pieces([""]);
    answer.finish = "error";
    let error = r#""error":{"code":503,"message":"busy"}"#;
    let body = answer.plain_body();
    for place in [r#"{"index":0"#, r#"{"id""#] {
        let failed = body.replacen(place, &place.replacen('{', &format!("{{{error},"), 1), 1);
        app.upstream.script(Script::json(200, failed));
        let got = app.chat(&question("gpt-4o-mini")).await;
        let record = app.record_of(&got).await;
        assert_eq!((record.source.as_str(), record.charge_nusd), ("none", 0), "{record:#?}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_plain_answer_to_a_streamed_request_is_not_taken_for_a_stream() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = Answer::openrouter();
    app.upstream.script(answer.plain());
    let got = app.chat(&streamed(MODEL)).await;
    // Either it passes as what it is, or it is refused; it is charged as what it is in both cases.
    assert!([200, 502].contains(&got.status), "{}", got.text());
    let record = app.record_of(&got).await;
    assert_whole(&record, "upstream", "plain answer to a stream");
    app.finish().await;
}

/// Servers say the usage so far with each chunk, or begin with one of nothing.
async fn a_usage_before_the_last_text_is_not_that_of_a_broken_answer(store: Store) {
    let app = Setup::new(store).kind(Kind::OpenAi).start().await;
    let answer = Answer::openai();
    let words = tiktoken_rs::o200k_base_singleton().encode_ordinary(&answer.text()).len();
    let words = i64::try_from(words).expect("few");
    let usage_of = |prompt, completion| answer.clone().tokens(prompt, completion).usage_event();
    let text = answer.content_events().concat();
    for (sent, source, completion) in [
        (usage_of(12, 1) + &text, "counted", words),
        (usage_of(0, 0) + &text, "counted", words),
        (text.clone() + &usage_of(12, 7), "upstream", 7),
    ] {
        let mut script = answer.head().chunk(&sent).rst();
        script.truth = None;
        app.upstream.script(script);
        let got = app.chat(&streamed("gpt-4o-mini")).await;
        let record = app.record_of(&got).await;
        assert_eq!(record.ending, "upstream_failed", "{sent}");
        assert_eq!((record.source.as_str(), record.completion_tokens), (source, completion));
        assert!(record.charge_nusd > 0, "{record:#?}");
    }
    app.finish().await;
}
