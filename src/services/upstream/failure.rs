//! An upstream's status: a success, or the error that its body explains.

use super::{AnswerBody, is_compressed};
use crate::error::Error;
use crate::services::http::asked_pause;
use crate::services::tap::{Failure, Operator};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use std::time::{Duration, SystemTime};

const BODY_BYTES_MAX: usize = 64 << 10;
const BODY_WAIT: Duration = Duration::from_secs(5);

/// The answer, when it is a success.
pub async fn check(
    answer: Response<AnswerBody>,
    operator: &Operator,
) -> Result<Response<AnswerBody>, Error> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let retry_after = answer.headers().get(RETRY_AFTER).filter(|value| is_pause(value)).cloned();
    let failure = match status {
        _ if is_compressed(answer.headers()) => Failure::default(),
        // What these are about is in their bodies.
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_REQUEST
        | StatusCode::FORBIDDEN
        | StatusCode::NOT_FOUND
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => explained(answer.into_body()).await,
        _ => Failure::default(),
    };
    Err(failure.with_status(status, retry_after, operator))
}

/// Anything else would be the upstream's words in a header.
fn is_pause(value: &HeaderValue) -> bool {
    asked_pause(value, SystemTime::now()).is_some()
}

async fn explained(body: AnswerBody) -> Failure {
    let body = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_WAIT, body).await {
        Ok(Ok(body)) => Failure::of_body(&body.to_bytes()),
        _ => Failure::default(),
    }
}
