//! The count: without an upstream's usage, what is recorded equals tiktoken over the whole text.

use serde_json::{Value, json};
use tiktoken_rs::{CoreBPE, cl100k_base_singleton, o200k_base_singleton};

use crate::app::books::UsageRecord;
use crate::app::{Kind, Setup, Store, TestApp, both_stores, in_its_time, question, streamed};
use crate::random::Random;
use crate::upstream::answer::{Answer, DONE};

both_stores!(a_stream_without_usage_is_counted, a_plain_answer_without_usage_is_counted);

const COUNTED_MODEL: &str = "gpt-4o-mini";

async fn counting_app(store: Store) -> TestApp {
    Setup::new(store).kind(Kind::OpenAi).start().await
}

/// As ordinary text: a special token's name in it is text like any other.
fn tokens(vocabulary: &CoreBPE, text: &str) -> i64 {
    i64::try_from(vocabulary.encode_ordinary(text).len()).expect("a small number")
}

fn o200k(text: &str) -> i64 {
    tokens(o200k_base_singleton(), text)
}

/// OpenAI's rule for messages of plain text: three tokens each, three more before the answer.
fn prompt_tokens(vocabulary: &CoreBPE, body: &Value) -> i64 {
    let messages = body["messages"].as_array().expect("messages");
    let each = messages.iter().map(|message| {
        let role = tokens(vocabulary, message["role"].as_str().expect("a role"));
        let content = tokens(vocabulary, message["content"].as_str().expect("plain text"));
        let name = message["name"].as_str().map_or(0, |name| 1 + tokens(vocabulary, name));
        3 + role + content + name
    });
    3 + each.sum::<i64>()
}

#[track_caller]
fn assert_counted(record: &UsageRecord, completion: i64) {
    assert_eq!(record.source, "counted", "{record:#?}");
    assert_eq!(record.completion_tokens, completion, "{record:#?}");
    assert_eq!(record.counted_completion_tokens, Some(completion), "{record:#?}");
    assert_eq!(Some(record.prompt_tokens), record.counted_prompt_tokens, "{record:#?}");
}

async fn a_stream_without_usage_is_counted(store: Store) {
    let app = counting_app(store).await;
    let answer = Answer::openai().no_usage();
    app.upstream.script(answer.stream());
    let body = streamed(COUNTED_MODEL);
    app.chat(&body).await.ok();
    let record = app.record().await;
    assert_counted(&record, o200k(&answer.text()));
    assert_eq!(record.prompt_tokens, prompt_tokens(o200k_base_singleton(), &body));
    assert_eq!(record.counter.as_deref(), Some("o200k_base"));
    assert!(record.counter_exact, "gpt-4o-mini is a model that tiktoken knows");
    // The operator's table is retail, 150 and 600 nano-USD a token.
    assert_eq!(record.charge_nusd, record.prompt_tokens * 150 + record.completion_tokens * 600);
    app.finish().await;
}

async fn a_plain_answer_without_usage_is_counted(store: Store) {
    let app = counting_app(store).await;
    let answer = Answer::openai().no_usage();
    app.upstream.script(answer.plain());
    app.chat(&question(COUNTED_MODEL)).await.ok();
    assert_counted(&app.record().await, o200k(&answer.text()));
    app.finish().await;
}

#[tokio::test]
async fn ours_stands_beside_the_upstreams() {
    let app = counting_app(Store::Sqlite).await;
    let answer = Answer::openai().tokens(1234, 567);
    app.upstream.script(answer.stream());
    app.chat(&streamed(COUNTED_MODEL)).await.ok();
    let record = app.record().await;
    assert_eq!(record.source, "upstream");
    assert_eq!((record.prompt_tokens, record.completion_tokens), (1234, 567));
    assert_eq!(record.counted_completion_tokens, Some(o200k(&answer.text())));
    app.finish().await;
}

fn part(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// The delta that carries a piece of text in one of its fields.
type DeltaOf = fn(&str) -> Value;

#[tokio::test]
async fn every_text_of_a_delta_counts() {
    let app = counting_app(Store::Sqlite).await;
    let arguments = r#"{"city":"Zürich","unit":"celsius"}"#;
    let fields: [(&str, &str, DeltaOf); 11] = [
        ("content", "Ordinary words, in a row.", |text| json!({"content": text})),
        ("refusal", "I cannot help with that.", |text| json!({"refusal": text})),
        ("reasoning", "First think, then answer.", |text| json!({"reasoning": text})),
        ("reasoning_content", "As DeepSeek says it.", |text| json!({"reasoning_content": text})),
        (
            "both names, one empty",
            "The second name has it.",
            |text| json!({"reasoning": "", "reasoning_content": text}),
        ),
        (
            "both names, the other empty",
            "The first name has it.",
            |text| json!({"reasoning": text, "reasoning_content": ""}),
        ),
        ("function", "named_in_the_older_form", |text| json!({"function_call": {"name": text}})),
        (
            "arguments",
            arguments,
            |text| json!({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}),
        ),
        (
            "input",
            "A custom tool's input is plain.",
            |text| json!({"tool_calls": [{"index": 0, "type": "custom", "custom": {"input": text}}]}),
        ),
        ("parts", "A text among others.", |text| json!({"content": [part(text), {"type": "x"}]})),
        (
            "thoughts",
            "As Mistral's models think.",
            |text| json!({"content": [{"type": "thinking", "thinking": [part(text)]}]}),
        ),
    ];
    let random = Random::from_environment();
    for (field, text, delta) in fields {
        let answer = Answer::openai().no_usage();
        let mut script = answer.head();
        for piece in random.pieces(text, 4) {
            script = script.chunk(answer.choice_event(0, &delta(&piece).to_string(), "null"));
        }
        app.upstream.script(script.chunk(answer.finish_event() + DONE).end());
        let got = app.chat(&streamed(COUNTED_MODEL)).await;
        got.ok();
        let record = app.record_of(&got).await;
        assert_eq!(record.completion_tokens, o200k(text), "{field}, {random}: {record:#?}");
    }
    app.finish().await;
}

#[tokio::test]
async fn every_text_of_a_plain_message_counts() {
    let app = counting_app(Store::Sqlite).await;
    let message = json!({
        "role": "assistant",
        "content": "Ordinary words.",
        "reasoning": "First think.",
        "tool_calls": [{
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": "{\"city\":\"Zürich\"}"},
        }],
    });
    let body = json!({
        "id": "chatcmpl-plain", "object": "chat.completion", "created": 1, "model": COUNTED_MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
    });
    app.upstream.script(crate::upstream::script::Script::json(200, body.to_string()));
    app.chat(&question(COUNTED_MODEL)).await.ok();
    let texts = ["Ordinary words.", "First think.", "weather", "{\"city\":\"Zürich\"}"];
    let expected = texts.map(o200k).iter().sum();
    assert_counted(&app.record().await, expected);
    app.finish().await;
}

/// What no string says is counted as it is written, and what is no text makes an estimate.
#[tokio::test]
async fn what_is_no_text_is_not_passed_over() {
    let app = counting_app(Store::Sqlite).await;
    let arguments = json!({"city": "Zürich", "days": [1, 2, 3]});
    let picture = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}});
    let call = json!({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]});
    for (delta, text, source) in [
        (call, arguments.to_string(), "counted"),
        (json!({"content": [part("Look."), picture]}), "Look.".to_owned(), "estimated"),
        (json!({"content": "Look.", "images": [picture]}), "Look.".to_owned(), "estimated"),
        (json!({"content": "Look.", "images": []}), "Look.".to_owned(), "counted"),
        (json!({"content": "Listen.", "audio": {"id": "a"}}), "Listen.".to_owned(), "estimated"),
    ] {
        let answer = Answer::openai().no_usage();
        let event = answer.choice_event(0, &delta.to_string(), "null");
        let script = answer.head().chunk(event).chunk(answer.finish_event() + DONE);
        app.upstream.script(script.end());
        let got = app.chat(&streamed(COUNTED_MODEL)).await;
        got.ok();
        let record = app.record_of(&got).await;
        assert_eq!(record.source, source, "{delta}: {record:#?}");
        assert_eq!(record.completion_tokens, o200k(&text), "{delta}: {record:#?}");
    }
    app.finish().await;
}

#[tokio::test]
async fn choices_are_counted_apart() {
    let app = counting_app(Store::Sqlite).await;
    let texts = ["Tollgates collect money.", "Tollbooths do it just as well."];
    let answer = Answer::openai().no_usage();
    let mut script = answer.head();
    // One character of each in turn: counting them as one text gives far more tokens.
    for at in 0..texts[1].len() {
        for (index, text) in (0..).zip(texts) {
            let Some(piece) = text.get(at..=at) else {
                continue;
            };
            let delta = json!({ "content": piece }).to_string();
            script = script.chunk(answer.choice_event(index, &delta, "null"));
        }
    }
    for index in 0..2 {
        script = script.chunk(answer.choice_event(index, "{}", r#""stop""#));
    }
    app.upstream.script(script.chunk(DONE).end());
    let mut body = streamed(COUNTED_MODEL);
    body["n"] = json!(2);
    app.chat(&body).await.ok();
    assert_counted(&app.record().await, o200k(texts[0]) + o200k(texts[1]));
    app.finish().await;
}

#[tokio::test]
async fn the_count_does_not_depend_on_the_deltas() {
    let app = counting_app(Store::Sqlite).await;
    let random = Random::from_environment();
    for case in 0..40 {
        let text = random_text(&random);
        let answer = Answer::openai().no_usage().pieces(random.pieces(&text, 6));
        app.upstream.script(answer.stream());
        let got = app.chat(&streamed(COUNTED_MODEL)).await;
        got.ok();
        let record = app.record_of(&got).await;
        let expected = Some(o200k(&text));
        assert_eq!(record.counted_completion_tokens, expected, "case {case}, {random}: {text:?}");
    }
    app.finish().await;
}

/// Some kilobytes of what the vocabulary's splitting rules look at: runs of white space, line ends
/// before slashes, contractions, digits, capitals inside words, scripts without spaces, emoji.
fn random_text(random: &Random) -> String {
    const PARTS: [&str; 32] = [
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        " \n ",
        "/",
        "\n/",
        "'",
        "'s",
        "'LL",
        "don't",
        "word",
        "camelCase",
        "UPPER",
        "1",
        "2345",
        "3.14",
        "世界",
        "こんにちは",
        "привет",
        "é",
        "e\u{301}",
        "👩‍👩‍👧",
        "🇨🇭",
        "\u{a0}",
        "\u{3000}",
        "...",
        "!?",
        "<|endoftext|>",
        "{\"a\":",
        "}",
    ];
    (0..300 + random.below(900)).map(|_| *random.pick(&PARTS)).collect()
}

#[tokio::test]
async fn the_prompt_is_counted_as_text() {
    let app = counting_app(Store::Sqlite).await;
    let prompts = [
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello, 世界"}]),
        json!([{"role": "user", "name": "ann", "content": "x".repeat(5000)}]),
        // A special token's name is seven tokens of text, not one cheap special token.
        json!([{"role": "user", "content": "<|endoftext|>".repeat(100)}]),
    ];
    for messages in prompts {
        let mut body = streamed(COUNTED_MODEL);
        body["messages"] = messages;
        app.upstream.script(Answer::openai().no_usage().stream());
        let got = app.chat(&body).await;
        got.ok();
        let record = app.record_of(&got).await;
        let expected = prompt_tokens(o200k_base_singleton(), &body);
        assert_eq!(record.counted_prompt_tokens, Some(expected), "{}", body["messages"]);
    }
    app.finish().await;
}

#[tokio::test]
async fn parts_of_a_message_are_counted_too() {
    let app = counting_app(Store::Sqlite).await;
    let mut body = streamed(COUNTED_MODEL);
    let text = "The parts of a message are text as well, every one of them.";
    body["messages"] = json!([{"role": "user", "content": [
        {"type": "text", "text": text}, {"type": "text", "text": text},
    ]}]);
    app.upstream.script(Answer::openai().no_usage().stream());
    app.chat(&body).await.ok();
    let counted = app.record().await.counted_prompt_tokens.expect("a count");
    assert!(counted >= 2 * o200k(text), "{counted}");
    assert!(counted <= 2 * o200k(text) + 20, "{counted}");
    app.finish().await;
}

#[tokio::test]
async fn the_vocabulary_is_the_models() {
    let app = counting_app(Store::Sqlite).await;
    // A text that the two vocabularies cut differently.
    let text = "Überraschung: 世界 এবং привет, все вместе!";
    let cl100k = tokens(cl100k_base_singleton(), text);
    assert_ne!(cl100k, o200k(text));
    let cases = [
        ("gpt-4", "cl100k_base", true, cl100k),
        (COUNTED_MODEL, "o200k_base", true, o200k(text)),
        ("local/own-tokens", "o200k_base", false, o200k(text)),
    ];
    for (model, vocabulary, exact, expected) in cases {
        app.upstream.script(Answer::openai().no_usage().pieces([text]).stream());
        let got = app.chat(&streamed(model)).await;
        got.ok();
        let record = app.record_of(&got).await;
        let counted = (record.counter.as_deref(), record.counter_exact);
        assert_eq!(counted, (Some(vocabulary), exact), "{model}");
        assert_eq!(record.completion_tokens, expected, "{model}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_vendors_prefix_does_not_hide_the_model() {
    let app = Setup::new(Store::Sqlite).policy("count").start().await;
    let answer = Answer::openrouter().no_usage().model("openai/gpt-4");
    app.upstream.script(answer.stream());
    app.chat(&streamed(crate::upstream::catalog::OLD_MODEL)).await.ok();
    let record = app.record().await;
    assert_eq!((record.counter.as_deref(), record.counter_exact), (Some("cl100k_base"), true));
    app.finish().await;
}

#[tokio::test]
async fn text_that_breaks_tokenisers_breaks_nothing() {
    let app = counting_app(Store::Sqlite).await;
    // The first makes tiktoken-rs panic when it is asked the easy way; the others are its slowest.
    let texts = [" ".repeat(1_000_000) + "x", "\u{a0}".repeat(400_000), "/".repeat(100_000)];
    for text in texts {
        let start: String = text.chars().take(3).collect();
        let mut body = streamed(COUNTED_MODEL);
        body["messages"] = json!([{"role": "user", "content": text}]);
        app.upstream.script(Answer::openai().no_usage().pieces([text]).stream());
        let got = app.chat(&body).await;
        assert!(got.ok().ends_with(DONE), "{start:?}...");
        // Much work for a debug build.
        let id = got.request_id();
        let record = in_its_time("its record", async || app.books.record(&id).await).await;
        assert!(record.completion_tokens > 0 && record.prompt_tokens > 0, "{start:?}: {record:?}");
        assert_eq!(record.ending, "completed");
    }
    app.finish().await;
}
