//! The built-in demo upstream: answers without a model behind it, and says so.
//!
//! It is a server of its own on a loopback port, so that a request takes the same path as with a
//! real upstream. It speaks the part of OpenRouter's protocol that Tollgate uses, prices included,
//! so that the books move. Never reachable from outside (`Config::check_demo`).

use axum::body::{Body, Bytes};
use axum::extract::Json;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, serve};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpListener;

pub const MODEL: &str = "tollgate-demo";

/// About the pace of a real model.
const WORD_PAUSE: Duration = Duration::from_millis(25);
/// How much of the question is repeated in the answer.
const ECHO_CHARS_MAX: usize = 200;

#[derive(Deserialize)]
struct Request {
    /// Null is as good as not there, as with OpenAI.
    #[serde(default)]
    stream: Option<bool>,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Value,
}

/// Starts the demo; the base URL to reach it at.
///
/// # Errors
/// When no loopback port is to be had.
pub async fn start() -> anyhow::Result<String> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(complete));
    tokio::spawn(async move {
        if let Err(error) = serve(listener, router).await {
            tracing::error!("the demo upstream has ended: {error}");
        }
    });
    Ok(format!("http://{address}/v1"))
}

async fn models() -> Json<Value> {
    Json(json!({"data": [{
        "id": MODEL,
        "created": 1_700_000_000,
        "owned_by": "tollgate",
        "pricing": {"prompt": "0.00000015", "completion": "0.0000006"},
        "top_provider": {"max_completion_tokens": 4096},
    }]}))
}

async fn complete(Json(request): Json<Request>) -> Response {
    let question = request.messages.last().map(|message| text(&message.content));
    let answer = answer(&question.unwrap_or_default());
    let words: Vec<String> = answer.split_inclusive(' ').map(str::to_owned).collect();
    let usage = usage(&request, words.len());
    if request.stream == Some(true) { stream(words, &usage) } else { plain(&answer, &usage) }
}

fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    }
}

fn answer(question: &str) -> String {
    let echo: String = question.chars().take(ECHO_CHARS_MAX).collect();
    format!(
        "This is Tollgate's built-in demo, not a language model. You said: \"{echo}\". Every word \
         of this answer was streamed, counted and charged to your account, as a real model's \
         would be. Set OPENROUTER_API_KEY or UPSTREAM_BASE_URL to talk to one."
    )
}

fn usage(request: &Request, words: usize) -> Value {
    let prompt: usize =
        request.messages.iter().map(|m| text(&m.content).split_whitespace().count() + 3).sum();
    json!({"prompt_tokens": prompt, "completion_tokens": words, "total_tokens": prompt + words})
}

fn chunk(choices: &Value, usage: &Value) -> Bytes {
    let chunk = json!({
        "id": "demo", "object": "chat.completion.chunk", "created": 1_700_000_000,
        "model": MODEL, "choices": choices, "usage": usage,
    });
    Bytes::from(format!("data: {chunk}\n\n"))
}

fn stream(words: Vec<String>, usage: &Value) -> Response {
    let delta = |delta: Value, finish: Value| {
        chunk(&json!([{"index": 0, "delta": delta, "finish_reason": finish}]), &Value::Null)
    };
    let mut chunks = vec![delta(json!({"role": "assistant", "content": ""}), Value::Null)];
    chunks.extend(words.into_iter().map(|word| delta(json!({"content": word}), Value::Null)));
    chunks.push(delta(json!({}), json!("stop")));
    chunks.push(chunk(&json!([]), usage));
    chunks.push(Bytes::from_static(b"data: [DONE]\n\n"));
    let paced = futures::stream::iter(chunks).then(|chunk| async {
        tokio::time::sleep(WORD_PAUSE).await;
        Ok::<_, Infallible>(chunk)
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(paced)).into_response()
}

fn plain(answer: &str, usage: &Value) -> Response {
    Json(json!({
        "id": "demo", "object": "chat.completion", "created": 1_700_000_000, "model": MODEL,
        "choices": [{
            "index": 0, "logprobs": null, "finish_reason": "stop",
            "message": {"role": "assistant", "content": answer, "refusal": null},
        }],
        "usage": usage,
    }))
    .into_response()
}
