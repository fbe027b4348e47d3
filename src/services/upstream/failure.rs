//! What an upstream's status means for the client.
//!
//! Invariant: the upstream's text reaches the client only where it is about the client's request
//! (400, 404, 413, 422), shortened, and never where it may be about the operator's account.

use crate::error::Error;
use axum::http::header::RETRY_AFTER;
use axum::http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

const BODY_BYTES_MAX: usize = 64 << 10;
const BODY_WAIT: Duration = Duration::from_secs(5);
const MESSAGE_CHARS_MAX: usize = 1_000;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Envelope {
    error: Told,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Told {
    message: String,
    #[serde(rename = "type")]
    kind: String,
    /// A text at OpenAI, a number at OpenRouter.
    code: Value,
    availability: Availability,
}

/// OpenRouter's reason why nobody answers.
/// <https://openrouter.ai/docs/api-reference/errors-and-debugging>
#[derive(Default, Deserialize)]
#[serde(default)]
struct Availability {
    code: Value,
}

/// Both have this word for a model that they do not have, OpenRouter with status 400.
/// <https://platform.openai.com/docs/guides/error-codes>
const MODEL_NOT_FOUND: &str = "model_not_found";

/// LiteLLM's word for the operator's key having spent its budget.
const BUDGET_EXCEEDED: &str = "budget_exceeded";

/// The answer, when it is a success.
pub async fn check(answer: Response<Incoming>) -> Result<Response<Incoming>, Error> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let retry_after = answer.headers().get(RETRY_AFTER).cloned();
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED | StatusCode::FORBIDDEN => {
            Error::UpstreamRefused { status }
        }
        StatusCode::TOO_MANY_REQUESTS => match message(answer.into_body()).await {
            Told { kind, .. } if kind == BUDGET_EXCEEDED => Error::UpstreamRefused { status },
            _ => Error::UpstreamRateLimited { retry_after },
        },
        StatusCode::BAD_REQUEST
        | StatusCode::NOT_FOUND
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => {
            let told = message(answer.into_body()).await;
            if told.kind == BUDGET_EXCEEDED {
                Error::UpstreamRefused { status }
            } else {
                let message = shown(&told.message);
                let is_models = status == StatusCode::NOT_FOUND || told.is_models();
                Error::UpstreamRejected { status, message, is_models }
            }
        }
        _ => Error::UpstreamFailed { status, reason: "its status", retry_after },
    })
}

impl Told {
    /// It has no such model, or nobody to serve it. The path is always the same: what is not found
    /// with status 404 is the model too.
    fn is_models(&self) -> bool {
        [&self.code, &self.availability.code].into_iter().any(|code| code == MODEL_NOT_FOUND)
    }
}

async fn message(body: Incoming) -> Told {
    let body = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_WAIT, body).await {
        Ok(Ok(body)) => serde_json::from_slice::<Envelope>(&body.to_bytes())
            .map(|envelope| envelope.error)
            .unwrap_or_default(),
        _ => Told::default(),
    }
}

fn shown(message: &str) -> String {
    if message.is_empty() {
        return "The model's provider rejected the request.".to_owned();
    }
    message.chars().take(MESSAGE_CHARS_MAX).collect()
}
