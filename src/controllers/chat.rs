//! `POST /v1/chat/completions`.

use crate::controllers::extract::{IdempotencyKey, JsonBody, Traced};
use crate::error::{Error, insert_room};
use crate::models::ids::RequestId;
use crate::models::money::Tokens;
use crate::models::openai::request::ChatRequest;
use crate::services::admission::Caller;
use crate::services::auth::Principal;
use crate::services::bodies::Kept;
use crate::services::exchange::{Answer, Exchange};
use crate::services::forwarding::Begun;
use crate::services::meter::Meter;
use crate::services::waiting::Waiting;
use crate::state::App;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Body as HttpBody;
use std::convert::Infallible;
use std::sync::Arc;

/// Admits, forwards, and answers with the upstream's bytes.
///
/// # Errors
/// Whatever ends a request before its first byte.
pub async fn create(
    State(app): State<Arc<App>>,
    id: RequestId,
    principal: Principal,
    idempotency_key: IdempotencyKey,
    Traced(trace): Traced,
    JsonBody(body): JsonBody,
) -> Result<Response, Error> {
    let request = ChatRequest::parse(&body)?;
    let idempotency_key = idempotency_key.0;
    let caller = Caller { id, principal: &principal, idempotency_key, trace };
    let admitted = app.admission.admit(caller, &request, &body).await?;
    let (cap, room) = (admitted.lowered_cap(), admitted.room());
    let mut response = match admitted.forward().begun().await? {
        Begun::Answered(exchange, Answer::Events) => events(Meter::new(exchange, app.stop.clone())),
        Begun::Answered(exchange, Answer::Document(document)) => whole(exchange, document),
        Begun::NotYet(forwarding) => events(Waiting::new(forwarding, app.stop.clone())),
    };
    if let Some(Tokens(cap)) = cap {
        response.headers_mut().insert(COMPLETION_CAP, HeaderValue::from(cap));
    }
    insert_room(response.headers_mut(), &room);
    Ok(response)
}

/// Says that the account could pay for so many completion tokens only.
const COMPLETION_CAP: HeaderName = HeaderName::from_static("x-tollgate-completion-tokens-max");

fn whole(mut exchange: Exchange, document: Bytes) -> Response {
    let room = exchange.take_room();
    if let Err(error) = exchange.complete() {
        error.log("an answer failed in part");
    }
    let body = match room {
        Some(room) => Body::new(Kept::new(document, room)),
        None => Body::from(document),
    };
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

fn events(body: impl HttpBody<Data = Bytes, Error = Infallible> + Send + 'static) -> Response {
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream; charset=utf-8"),
        (CACHE_CONTROL.as_str(), "no-cache"),
        // Proxies that collect answers would turn a stream into a plain answer.
        ("x-accel-buffering", "no"),
    ];
    (headers, Body::new(body)).into_response()
}
