//! What an upstream's list says of a model beyond its price: it decides what is asked of the
//! upstream, and what is set aside.

use serde_json::{Value, json};

use crate::app::{Kind, Setup, Store, TestApp, both_stores, question, streamed, uncap};
use crate::upstream::Upstream;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{FREE_MODEL, MODEL, openrouter_models};

both_stores!(a_file_is_read_for_money_that_is_there);

/// A list in which the model has these members instead.
fn list(model: &str, members: &Value) -> Value {
    let mut list = openrouter_models();
    let models = list["data"].as_array_mut().expect("a list");
    let entry = models.iter_mut().find(|entry| entry["id"] == model).expect("it is listed");
    let entry = entry.as_object_mut().expect("an object");
    entry.extend(members.as_object().expect("members").clone());
    list
}

async fn with_list(setup: Setup, list: Value) -> TestApp {
    let upstream = Upstream::start(list).await;
    setup.start_with(upstream).await
}

fn with_a_file(model: &str, plugins: &Value) -> Value {
    let mut body = question(model);
    let file = json!({"filename": "a.pdf", "file_data": "https://example.org/a.pdf"});
    body["messages"][0]["content"] = json!([{"type": "file", "file": file}]);
    body["plugins"] = plugins.clone();
    body
}

fn engine(name: &str) -> Value {
    json!([{"id": "file-parser", "pdf": {"engine": name}}])
}

/// What costs nothing by its tokens can cost two dollars by its pages.
async fn a_file_is_read_for_money_that_is_there(store: Store) {
    let app = Setup::new(store).credit("1").start().await;
    for plugins in [json!(null), engine("mistral-ocr")] {
        let got = app.chat(&with_a_file(FREE_MODEL, &plugins)).await;
        assert_eq!((got.status, &got.json()["error"]["code"]), (429, &json!("insufficient_quota")));
    }
    app.assert_untouched().await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&with_a_file(FREE_MODEL, &engine("cloudflare-ai"))).await.ok();
    assert_eq!(app.record().await.hold_nusd, 0);
    app.finish().await;
}

#[tokio::test]
async fn a_file_that_the_model_reads_itself_has_no_fee() {
    let modalities = json!({"architecture": {"input_modalities": ["text", "file"]}});
    let setup = Setup::new(Store::Sqlite).credit("1");
    let app = with_list(setup, list(MODEL, &modalities)).await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&with_a_file(MODEL, &json!(null))).await.ok();
    let got = app.chat(&with_a_file(MODEL, &engine("mistral-ocr"))).await;
    assert_eq!(got.status, 429, "{}", got.text());
    app.record().await;
    app.finish().await;
}

/// OpenRouter, vLLM and others refuse a cap for which the context has no room beside the prompt.
#[tokio::test]
async fn a_short_context_bounds_a_plain_answer_by_itself() {
    let short = json!({"context_length": 8192, "top_provider": {"max_completion_tokens": null}});
    let app = with_list(Setup::new(Store::Sqlite), list(MODEL, &short)).await;
    let mut body = question(MODEL);
    uncap(&mut body);
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&body).await.ok();
    let sent = app.upstream.last_chat().json();
    assert_eq!((sent.get("max_tokens"), sent.get("max_completion_tokens")), (None, None));
    let record = app.record().await;
    assert!(record.hold_nusd >= 8_192 * 600, "all of the context is held for: {record:?}");
    app.finish().await;
}

#[tokio::test]
async fn what_there_is_money_for_fits_into_a_short_context() {
    let short = json!({"context_length": 512, "top_provider": {"max_completion_tokens": null}});
    let setup = Setup::new(Store::Sqlite).credit("0.0003");
    let app = with_list(setup, list(MODEL, &short)).await;
    let mut body = question(MODEL);
    uncap(&mut body);
    body["messages"][0]["content"] = json!("toll ".repeat(200));
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&body).await.ok();
    let sent = app.upstream.last_chat().json();
    let cap = sent["max_tokens"].as_i64().expect("there is money for less than the context");
    assert!((16..=312).contains(&cap), "200 tokens of the 512 are the prompt's: {cap}");
    app.record().await;
    app.finish().await;
}

#[tokio::test]
async fn openrouters_variants_are_the_same_model() {
    let app = TestApp::start(Store::Sqlite).await;
    for variant in [":nitro", ":floor", ":exacto"] {
        let name = format!("{MODEL}{variant}");
        app.upstream.script(Answer::openrouter().plain());
        app.chat(&question(&name)).await.ok();
        assert_eq!(app.upstream.last_chat().json()["model"], json!(name));
    }
    assert!(app.records(3).await.iter().all(|record| record.model == MODEL));
    for unknown in [format!("{MODEL}:online"), "nobody:nitro".to_owned(), ":nitro".to_owned()] {
        let got = app.chat(&question(&unknown)).await;
        assert_eq!((got.status, &got.json()["error"]["code"]), (404, &json!("model_not_found")));
    }
    app.finish().await;
}

#[tokio::test]
async fn others_have_no_variants() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    let got = app.chat(&question("gpt-4o-mini:nitro")).await;
    assert_eq!((got.status, &got.json()["error"]["code"]), (404, &json!("model_not_found")));
    app.finish().await;
}

/// Its own clients ask for the usage chunk so.
#[tokio::test]
async fn openrouters_way_to_ask_for_usage_is_known() {
    let app = TestApp::start(Store::Sqlite).await;
    let (asked, answer) = (json!({"include": true}), Answer::openrouter());
    let mut body = streamed(MODEL);
    body["usage"] = asked.clone();
    app.upstream.script(answer.stream());
    let got = app.chat(&body).await;
    let events = got.events();
    assert!(events.iter().any(|event| event["usage"]["cost"].is_number()), "{}", got.text());
    let sent = app.upstream.last_chat().json();
    assert_eq!(sent["usage"], asked);
    assert_eq!(sent["stream_options"], json!({"include_usage": true}));
    app.record().await;
    app.finish().await;
}

/// Mistral refuses members that it does not know.
#[tokio::test]
async fn an_upstream_may_get_no_user() {
    let setup = Setup::new(Store::Sqlite).env("TOLLGATE_UPSTREAM_USER", "none");
    let app = setup.start().await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    assert_eq!(app.upstream.last_chat().json().get("user"), None);
    app.record().await;
    app.finish().await;
}
