//! Plays one fault and writes down what was seen; asserts what must hold whatever the fault.

use serde_json::Value;

use super::case::{Fault, Form, SECRETS, WORDS};
use crate::app::books::UsageRecord;
use crate::app::{Kind, TestApp, UPSTREAM_KEY, address_of, eventually};
use crate::app::{question, streamed_with_usage};
use crate::client::{Answered, Ask};
use crate::upstream::answer::{Answer, nano_usd};
use crate::upstream::catalog::MODEL;

/// What a row of the table says, but for the fault's name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    pub client: String,
    pub charged: String,
    pub logged: String,
    id: String,
    failed: bool,
}

/// Four tokens in two pieces; the upstream says seven.
pub fn answer(kind: Kind) -> Answer {
    let answer = if kind == Kind::OpenRouter { Answer::openrouter() } else { Answer::openai() };
    answer.pieces(["one two", " three four"])
}

pub async fn play(app: &TestApp, kind: Kind, fault: &Fault) -> Seen {
    let what = format!("{}: {} ({}), {:?}", fault.chapter, fault.what, fault.variant, fault.form);
    let answer = answer(kind);
    // What OpenRouter says when it is asked afterwards.
    app.upstream.generation(0, answer.generation(12, 5, 0.0001));
    app.upstream.script((fault.play)(&answer));
    let model = if kind == Kind::OpenRouter { MODEL } else { "gpt-4o-mini" };
    let body = match fault.form {
        Form::Plain => question(model),
        Form::Stream => streamed_with_usage(model),
    };
    let mut exchange = app.begin_chat(&body).await;
    if let Some((gate, needle)) = &fault.gate {
        exchange.until(needle).await;
        gate.open();
    }
    let got = exchange.finish().await;
    assert_ne!(got.status, 0, "{what}: no answer");
    assert!(got.complete, "{what}: the client's answer is cut: {got:?}");
    let record = app.record_of(&got).await;
    assert_tells_nothing(app, &got, &what);
    let (client, failed) = told(&got, &record, &answer, &what);
    Seen { client, charged: charged(&record), logged: String::new(), id: record.id, failed }
}

#[track_caller]
fn assert_tells_nothing(app: &TestApp, got: &Answered, what: &str) {
    let all = format!("{:?} {}", got.headers, got.text());
    let address = app.upstream.url();
    let address = address_of(&address).to_string();
    for secret in SECRETS.into_iter().chain([UPSTREAM_KEY, &address]) {
        assert!(!all.contains(secret), "{what}: {secret} is shown: {all}");
    }
}

fn charged(record: &UsageRecord) -> String {
    let UsageRecord { charge_nusd, prompt_tokens, completion_tokens, source, ending, .. } = record;
    if source == "none" {
        assert_eq!((*charge_nusd, *prompt_tokens, *completion_tokens), (0, 0, 0), "{record:?}");
        return format!("0, {ending}");
    }
    format!("{charge_nusd} for {prompt_tokens}+{completion_tokens}, {source}, {ending}")
}

/// What the client sees, in words, and whether it is a failure.
fn told(got: &Answered, record: &UsageRecord, answer: &Answer, what: &str) -> (String, bool) {
    let is_stream =
        got.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
    if got.status != 200 {
        assert_eq!(record.source, "none", "{what}: charged for a failure: {record:?}");
        return (refusal(got, what), true);
    }
    let datas = if is_stream { datas(&got.text()) } else { vec![got.text()] };
    let values: Vec<Value> =
        datas.iter().filter_map(|data| serde_json::from_str(data).ok()).collect();
    let mut words = vec!["200".to_string(), how_much(&values, answer).to_string()];
    words.extend(values.iter().filter_map(|value| usage(value, record, what)).next_back());
    let errors: Vec<String> = values.iter().filter_map(error_of).collect();
    words.extend(errors.clone());
    if is_stream {
        let is_done = datas.iter().any(|data| data == "[DONE]");
        assert!(is_done || !errors.is_empty(), "{what}: a silent end: {}", got.text());
        words.extend(is_done.then(|| "`[DONE]`".to_string()));
    }
    let failed = record.ending != "completed";
    assert_eq!(failed, !errors.is_empty() || stops_for_error(&values), "{what}: {record:?}");
    (words.join(", "), failed)
}

fn stops_for_error(values: &[Value]) -> bool {
    values.iter().any(|value| value["choices"][0]["finish_reason"] == "error")
}

fn datas(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_string).collect()
}

fn refusal(got: &Answered, what: &str) -> String {
    crate::bad_input::assert_refused(got, what, got.status, "", "");
    let retry = got.header("retry-after").map(|after| format!(", Retry-After: {after}"));
    let body = got.json();
    let error = error_of(&body).unwrap_or_else(|| panic!("{what}: {body}"));
    format!("{} {error}{}", got.status, retry.unwrap_or_default())
}

/// The error of an answer or a chunk, which is in our form wherever it stands.
fn error_of(value: &Value) -> Option<String> {
    let inside = &value["choices"][0]["error"];
    let error = if value["error"].is_null() { inside } else { &value["error"] };
    let members = error.as_object()?;
    let mut names: Vec<_> = members.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["code", "message", "param", "type"], "not in our form: {value}");
    let words = error["message"].as_str().is_some_and(|message| message.contains(WORDS));
    let said = if words { " with the upstream's words" } else { "" };
    let code = error["code"].as_str().unwrap_or("null");
    Some(format!("{}/{code}{said}", error["type"].as_str().unwrap_or("null")))
}

fn how_much(values: &[Value], answer: &Answer) -> &'static str {
    let content = |value: &Value| {
        let choice = &value["choices"][0];
        let delta = choice["delta"]["content"].as_str();
        delta.or(choice["message"]["content"].as_str()).map(str::to_string)
    };
    let text: String = values.iter().filter_map(content).collect();
    match text.strip_prefix(&answer.text()) {
        Some("") => "all text",
        Some(_) => "all text and more",
        None if text.is_empty() => "no text",
        None => "half of the text",
    }
}

/// The usage that the client sees, at the price that it pays.
fn usage(value: &Value, record: &UsageRecord, what: &str) -> Option<String> {
    let usage = value.get("usage")?.as_object()?;
    for (name, cost) in usage.iter().filter(|(name, cost)| name.contains("cost") && !cost.is_null())
    {
        assert_eq!(name, "cost", "{what}: {value}");
        let text = cost.to_string();
        assert_eq!(nano_usd(&text), Some(record.charge_nusd), "{what}: {value}");
    }
    let tokens = |name: &str| usage.get(name).map_or_else(|| "?".to_string(), Value::to_string);
    Some(format!("usage {}+{}", tokens("prompt_tokens"), tokens("completion_tokens")))
}

/// Adds the log line of each request, and asserts that the log keeps the upstream's secrets too.
pub async fn add_log(app: &TestApp, all: &mut [(usize, Seen)]) {
    let last = app.ask(&Ask::get("/v1/nope")).await.request_id();
    let log = eventually("the last log line", async || {
        let log = app.process.stderr();
        log.contains(&last).then_some(log)
    })
    .await;
    for secret in SECRETS.iter().chain(&[WORDS]) {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret} is in the log: {line:?}");
    }
    let lines: Vec<Value> =
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for (_, seen) in all {
        let own = lines.iter().filter(|line| line["span"]["id"] == seen.id.as_str());
        let told: Vec<String> = own
            .filter_map(|line| {
                let code = line["fields"]["error.code"].as_str()?;
                Some(format!("{} {code}", line["level"].as_str()?))
            })
            .collect();
        assert_eq!(told.len(), usize::from(seen.failed), "one line a failure: {seen:?} {told:?}");
        seen.logged = told.concat();
    }
}
