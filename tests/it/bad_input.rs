//! Bad input: a clear refusal in OpenAI's envelope, nothing forwarded, nothing charged, no panic.

use serde_json::{Value, json};

use crate::app::{Setup, Store, TestApp, both_stores, question, streamed};
use crate::client::{Answered, Ask};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{MODEL, OLD_MODEL};

both_stores!(bodies, methods_paths_and_types, authorization);

const CHAT: &str = "/v1/chat/completions";

/// Every refusal has the envelope's four members, JSON's content type and a request id. A code of ""
/// is any, a param of "" is null.
#[track_caller]
pub fn assert_refused(got: &Answered, what: &str, status: u16, code: &str, param: &str) {
    assert_eq!(got.status, status, "{what}: {}", got.text());
    let body = got.json();
    let error = body["error"].as_object().unwrap_or_else(|| panic!("{what}: {body}"));
    let mut members: Vec<_> = error.keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["code", "message", "param", "type"], "{what}: {body}");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(!message.is_empty(), "{what}: {body}");
    assert!(error["type"].is_string(), "{what}: {body}");
    let expected = if param.is_empty() { json!(null) } else { json!(param) };
    assert_eq!(error["param"], expected, "{what}: {body}");
    if !code.is_empty() {
        assert_eq!(error["code"], json!(code), "{what}: {body}");
    }
    let kind = got.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("application/json"), "{what}: {kind}");
    assert!(!got.request_id().is_empty());
}

/// The question with one member set.
fn with(member: &str, value: Value) -> String {
    let mut body = question(MODEL);
    body[member] = value;
    body.to_string()
}

fn without(member: &str) -> String {
    let mut body = question(MODEL);
    body.as_object_mut().expect("an object").remove(member);
    body.to_string()
}

/// What is wrong, the body, and the status, code and param of its refusal; "" is null, or any code.
type Case = (&'static str, Vec<u8>, u16, &'static str, &'static str);

fn malformed() -> Vec<Case> {
    let deep = format!(r#"{{"model":"{MODEL}","messages":{}"#, "[".repeat(90_000));
    let long = with("messages", json!([{"role": "user", "content": "x".repeat(200_000)}]));
    vec![
        ("nothing", Vec::new(), 400, "", ""),
        ("half of JSON", br#"{"model":"#.to_vec(), 400, "", ""),
        ("more than JSON", (with("n", json!(1)) + "x").into(), 400, "", ""),
        ("an array", b"[]".to_vec(), 400, "", ""),
        ("a string", br#""hello""#.to_vec(), 400, "", ""),
        ("not UTF-8", b"{\"model\":\"\xff\xfe\"}".to_vec(), 400, "", ""),
        ("90,000 brackets", deep.into(), 400, "", ""),
        ("too long", long.into(), 413, "request_too_large", ""),
    ]
}

fn wrong_members() -> Vec<Case> {
    let wrong = [
        ("model", json!(5)),
        ("model", json!(null)),
        ("messages", json!("hi")),
        ("messages", json!({})),
        ("stream", json!("yes")),
        ("max_tokens", json!("9")),
        ("max_tokens", json!(-5)),
        ("max_completion_tokens", json!({})),
        ("n", json!("2")),
        ("n", json!(0)),
        ("n", json!(-1)),
        ("stream_options", json!(true)),
        // They have prices of their own, which no book has.
        ("service_tier", json!("priority")),
        ("service_tier", json!("fast")),
        ("service_tier", json!("scale")),
        ("service_tier", json!("Priority")),
        ("service_tier", json!(1)),
    ];
    let wrong = wrong.map(|(member, value)| (member, with(member, value).into(), 400, "", member));
    let mut cases = wrong.to_vec();
    cases.extend(["model", "messages"].map(|one| (one, without(one).into(), 400, "", one)));
    let unknown = with("model", json!("no/such")).into();
    cases.push(("unknown", unknown, 404, "model_not_found", "model"));
    cases
}

async fn bodies(store: Store) {
    let app = Setup::new(store).env("TOLLGATE_BODY_BYTES_MAX", "100000").start().await;
    for (what, body, status, code, param) in [malformed(), wrong_members()].concat() {
        let start = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let got = app.ask(&Ask::post_json(CHAT, body).bearer(&app.key)).await;
        let what = format!("{what}: {start}");
        assert_refused(&got, &what, status, code, param);
    }
    app.assert_untouched().await;
    app.finish().await;
}

async fn methods_paths_and_types(store: Store) {
    let app = TestApp::start(store).await;
    let body = question(MODEL).to_string();
    let post = |path: &str| Ask::post_json(path, &body).bearer(&app.key);
    let typed = |kind: &str| post(CHAT).without("content-type").header("Content-Type", kind);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let got = app.ask(&typed(kind)).await;
        assert_refused(&got, kind, 415, "", "");
    }
    for (method, path, allowed) in [
        ("GET", CHAT, "POST"),
        ("PUT", CHAT, "POST"),
        ("DELETE", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/openai/gpt-4o-mini", "GET"),
    ] {
        let got = app.ask(&Ask::new(method, path).bearer(&app.key)).await;
        assert_refused(&got, &format!("{method} {path}"), 405, "", "");
        let allow = got.header("allow").unwrap_or_default();
        assert!(allow.split(',').any(|one| one.trim() == allowed), "{method} {path}: {allow}");
    }
    for path in
        ["/v1/nope", "/v1", "/", "/chat/completions", "/v1/chat/completions/x", "/v2/models"]
    {
        let got = app.ask(&post(path)).await;
        assert_refused(&got, path, 404, "unknown_url", "");
    }
    app.assert_untouched().await;
    app.finish().await;
}

async fn authorization(store: Store) {
    let app = TestApp::start(store).await;
    let ask = Ask::post_json(CHAT, question(MODEL).to_string());
    let other_case: String = app.key.chars().rev().collect();
    let mut changed = app.key.clone();
    let last = changed.pop().expect("a key");
    changed.push(if last == 'a' { 'b' } else { 'a' });
    let wrong = [
        "Bearer".to_string(),
        "Bearer ".to_string(),
        "Bearer nonsense".to_string(),
        format!("Bearer {changed}"),
        format!("Bearer {other_case}"),
        format!("Bearer {}", &app.key[..app.key.len() - 4]),
        format!("Bearer {} {}", app.key, app.key),
        format!("Basic {}", app.key),
        app.key.clone(),
        format!("Bearer {}", "x".repeat(5000)),
        format!("Bearer {}\u{e9}", app.key),
    ];
    let got = app.ask(&ask).await;
    assert_refused(&got, "no key", 401, "", "");
    assert_eq!(got.json()["error"]["code"], json!(null), "missing is not the same as wrong");
    for value in wrong {
        let got = app.ask(&ask.clone().header("Authorization", &value)).await;
        assert_refused(&got, &value, 401, "", "");
        let error = got.json()["error"].clone();
        assert_eq!(error["type"], json!("invalid_request_error"), "{value}");
        let sent = value.split_whitespace().last().unwrap_or_default();
        let echoed = sent.len() > 12 && got.text().contains(sent);
        assert!(!echoed, "a key is echoed in full: {}", got.text());
    }
    let got = app.ask(&ask.clone().bearer("sk-tg-wrong")).await;
    assert_refused(&got, "wrong", 401, "invalid_api_key", "");
    app.assert_untouched().await;
    app.finish().await;
}

#[tokio::test]
async fn a_body_without_a_length_is_limited_too() {
    let app = Setup::new(Store::Sqlite).env("TOLLGATE_BODY_BYTES_MAX", "10000").start().await;
    let body = with("messages", json!([{"role": "user", "content": "x".repeat(12_000)}]));
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let ask = Ask::post_json(CHAT, chunked).header("Transfer-Encoding", "chunked");
    let got = app.ask(&ask.bearer(&app.key)).await;
    assert_refused(&got, "chunked", 413, "request_too_large", "");
    app.assert_untouched().await;
    app.finish().await;
}

#[tokio::test]
async fn a_chunked_body_within_the_limit_is_served() {
    let app = TestApp::start(Store::Sqlite).await;
    let body = question(MODEL).to_string();
    let (left, right) = body.split_at(30);
    let chunked =
        format!("{:x}\r\n{left}\r\n{:x}\r\n{right}\r\n0\r\n\r\n", left.len(), right.len());
    app.upstream.script(Answer::openrouter().plain());
    let ask = Ask::post_json(CHAT, chunked).header("Transfer-Encoding", "chunked");
    app.ask(&ask.bearer(&app.key)).await.ok();
    app.finish().await;
}

/// Two members of one name: readers disagree on which counts, so a cheap model could be priced and
/// a dear one be run.
#[tokio::test]
async fn a_member_given_twice_does_not_cheat() {
    let app = TestApp::start(Store::Sqlite).await;
    let messages = r#""messages":[{"role":"user","content":"x"}]"#;
    let bodies = [
        format!(r#"{{"model":"{MODEL}","max_tokens":9,{messages},"model":"{OLD_MODEL}"}}"#),
        format!(r#"{{"model":"{MODEL}","max_tokens":9,{messages},"mod\u0065l":"{OLD_MODEL}"}}"#),
    ];
    for body in bodies {
        app.upstream.script(Answer::openrouter().no_cost().plain());
        let got = app.ask(&Ask::post_json(CHAT, &body).bearer(&app.key)).await;
        if got.status == 200 {
            let run = app.upstream.last_chat().json()["model"].clone();
            let record = app.record_of(&got).await;
            assert_eq!(json!(record.model), run, "another model ran than was priced: {body}");
            assert_eq!(app.upstream.last_chat().text().matches("gpt-4").count(), 1, "{body}");
        } else {
            assert_eq!(got.status, 400, "{body}: {}", got.text());
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn escaped_member_names_are_the_same_members() {
    let app = TestApp::start(Store::Sqlite).await;
    let body = format!(
        r#"{{"mod\u0065l":"{MODEL}","str\u0065am":true,"max_tokens":9,"messages":[{{"role":"user","content":"x"}}]}}"#
    );
    let answer = Answer::openrouter();
    app.upstream.script(answer.stream());
    let got = app.ask(&Ask::post_json(CHAT, body).bearer(&app.key)).await;
    assert_eq!(got.ok(), answer.events_without_usage());
    assert!(app.record().await.streamed);
    app.finish().await;
}

#[tokio::test]
async fn what_is_not_http_does_no_harm() {
    let app = TestApp::start(Store::Sqlite).await;
    let whole = app.chat_ask(&streamed(MODEL)).bytes();
    let lie = String::from_utf8(whole.clone())
        .expect("ASCII")
        .replace("Content-Length: ", "Content-Length: 9");
    let requests: [(&str, &[u8]); 5] = [
        ("noise", b"\x00\x01\x02\x16\x03\x01hello\r\n\r\n"),
        ("no version", b"GET /v1/models\r\n\r\n"),
        ("two lengths", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{}xx"),
        ("a bad chunk", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        ("a header without end", b"GET /healthz HTTP/1.1\r\nHost"),
    ];
    for (what, bytes) in requests {
        let mut exchange = crate::client::Exchange::open(app.address(), bytes).await;
        exchange.linger(100).await;
        exchange.hang_up();
        assert_eq!(app.ask(&Ask::get("/healthz")).await.status, 200, "after {what}");
    }
    // A client that goes away in the middle of its own body, or announces more than it sends.
    for bytes in [&whole[..whole.len() - 10], lie.as_bytes()] {
        let exchange = crate::client::Exchange::open(app.address(), bytes).await;
        exchange.hang_up();
    }
    assert_eq!(app.ask(&Ask::get("/healthz")).await.status, 200);
    app.assert_untouched().await;
    app.finish().await;
}
