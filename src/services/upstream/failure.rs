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
use std::time::Duration;

const BODY_BYTES_MAX: usize = 64 << 10;
const BODY_WAIT: Duration = Duration::from_secs(5);
const MESSAGE_CHARS_MAX: usize = 1_000;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Envelope {
    error: Message,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Message {
    message: String,
}

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
        StatusCode::TOO_MANY_REQUESTS => Error::UpstreamRateLimited { retry_after },
        StatusCode::BAD_REQUEST
        | StatusCode::NOT_FOUND
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => {
            let message = message(answer.into_body()).await;
            Error::UpstreamRejected { status, message }
        }
        _ => Error::UpstreamFailed { status, reason: "its status", retry_after },
    })
}

async fn message(body: Incoming) -> String {
    let body = Limited::new(body, BODY_BYTES_MAX).collect();
    let text = match tokio::time::timeout(BODY_WAIT, body).await {
        Ok(Ok(body)) => serde_json::from_slice::<Envelope>(&body.to_bytes())
            .map(|envelope| envelope.error.message)
            .unwrap_or_default(),
        _ => String::new(),
    };
    let text: String = text.chars().take(MESSAGE_CHARS_MAX).collect();
    if text.is_empty() { "The model's provider rejected the request.".to_owned() } else { text }
}
