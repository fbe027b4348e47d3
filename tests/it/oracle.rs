//! Independent judges of the stream: another decoder of server-sent events, and an OpenAI SDK.

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use eventsource_stream::Eventsource;
use futures::{StreamExt, stream};
use serde_json::json;

use crate::app::{Kind, Setup, Store, TestApp, both_stores, streamed_with_usage};
use crate::random::Random;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{FREE_MODEL, MODEL};

both_stores!(an_sdk_streams, an_sdk_asks_plainly);

/// The data of each event, as eventsource-stream reads it from pieces of bytes.
async fn decode(pieces: Vec<Vec<u8>>) -> Vec<String> {
    let bytes = stream::iter(pieces.into_iter().map(Ok::<_, std::convert::Infallible>));
    let events = bytes.eventsource().map(|event| event.expect("valid events").data);
    events.collect().await
}

fn sdk(app: &TestApp) -> Client<OpenAIConfig> {
    let config = OpenAIConfig::new().with_api_base(&app.base_url).with_api_key(&app.key);
    Client::with_config(config)
}

#[tokio::test]
async fn another_decoder_reads_what_the_upstream_sent() {
    let app = TestApp::start(Store::Sqlite).await;
    let random = Random::from_environment();
    for case in 0..20 {
        let pieces = random.pieces("Der Schlagbaum öffnet sich. 关卡开了。🚧 \"\\\n", 5);
        let answer = Answer::openrouter().no_cost().pieces(pieces);
        let sent = answer.events().concat().into_bytes();
        app.upstream.script(answer.head().chunks(random.chunks(&sent, 30)).end());
        let response = reqwest::Client::new()
            .post(format!("{}/chat/completions", app.base_url))
            .bearer_auth(&app.key)
            .json(&streamed_with_usage(MODEL))
            .send()
            .await
            .expect("an answer");
        let got: Vec<_> =
            response.bytes_stream().map(|piece| piece.expect("bytes").to_vec()).collect().await;
        assert_eq!(decode(got).await, decode(vec![sent]).await, "case {case}, {random}");
    }
    app.finish().await;
}

async fn an_sdk_streams(store: Store) {
    let app = Setup::new(store).kind(Kind::OpenAi).start().await;
    let answer = Answer::openai().null_usage().model("gpt-4o-mini");
    app.upstream.script(answer.stream());
    let request = serde_json::from_value(streamed_with_usage("gpt-4o-mini")).expect("typed");
    let mut chunks = sdk(&app).chat().create_stream(request).await.expect("a stream");
    let (mut text, mut usage, mut finish) = (String::new(), None, None);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.expect("every chunk is typed");
        for choice in chunk.choices {
            text += &choice.delta.content.unwrap_or_default();
            finish = choice.finish_reason.or(finish);
        }
        usage = chunk.usage.or(usage);
    }
    assert_eq!(text, answer.text());
    assert_eq!(json!(finish), json!("stop"));
    let usage = usage.expect("usage was asked for");
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (12, 7, 19));
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.charge_nusd), ("completed", 12 * 150 + 7 * 600));
    app.finish().await;
}

async fn an_sdk_asks_plainly(store: Store) {
    let app = TestApp::start(store).await;
    let answer = Answer::openrouter();
    app.upstream.script(answer.plain());
    let request = serde_json::from_value(crate::app::question(MODEL)).expect("typed");
    let got = sdk(&app).chat().create(request).await.expect("an answer");
    assert_eq!(got.choices[0].message.content.as_deref(), Some(answer.text().as_str()));
    assert_eq!(got.usage.expect("usage").total_tokens, 19);
    assert_eq!(app.record().await.charge_nusd, 147_600);
    app.finish().await;
}

#[tokio::test]
async fn an_sdk_lists_models() {
    let app = TestApp::start(Store::Sqlite).await;
    let models = sdk(&app).models().list().await.expect("a list");
    assert!(models.data.iter().any(|model| model.id == MODEL), "{models:?}");
    let model = sdk(&app).models().retrieve(FREE_MODEL).await.expect("a model");
    assert_eq!(model.id, FREE_MODEL);
    app.finish().await;
}

#[tokio::test]
async fn an_sdk_is_told_of_a_cut_stream() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    let answer = Answer::openai().no_usage();
    app.upstream.script(answer.head().chunks(answer.content_events()).rst());
    let request = serde_json::from_value(streamed_with_usage("gpt-4o-mini")).expect("typed");
    let mut chunks = sdk(&app).chat().create_stream(request).await.expect("a stream");
    let mut failed = false;
    while let Some(chunk) = chunks.next().await {
        failed |= chunk.is_err();
    }
    assert!(failed, "a cut stream looked whole to the SDK");
    app.finish().await;
}

#[tokio::test]
async fn an_sdk_reads_the_refusals() {
    let app = Setup::new(Store::Sqlite).credit("0").start().await;
    let request = serde_json::from_value(crate::app::question(MODEL)).expect("typed");
    let refused = sdk(&app).chat().create(request).await.expect_err("there is no credit");
    let text = format!("{refused:?}");
    assert!(text.contains("insufficient_quota"), "{text}");
    let config = OpenAIConfig::new().with_api_base(&app.base_url).with_api_key("sk-tg-wrong");
    let request = serde_json::from_value(crate::app::question(MODEL)).expect("typed");
    let refused =
        Client::with_config(config).chat().create(request).await.expect_err("a wrong key");
    assert!(format!("{refused:?}").contains("invalid_api_key"), "{refused:?}");
    app.finish().await;
}
