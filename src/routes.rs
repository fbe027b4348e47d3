//! The one table of routes, and the layers around it in the order a request meets them.

use crate::controllers::{chat, credits, export, health, models, usage};
use crate::error::Error;
use crate::models::ids::RequestId;
use crate::state::App;
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use std::sync::Arc;
use std::time::Duration;
use tower_http::cors::{AllowHeaders, AllowMethods, Any, CorsLayer};
use tracing::Instrument;

pub fn router(app: Arc<App>) -> Router {
    Router::new()
        // OpenAI's surface
        .route("/v1/chat/completions", post(chat::create).fallback(only_post))
        .route("/v1/models", get(models::list).fallback(only_get))
        .route("/v1/models/{*id}", get(models::retrieve).fallback(only_get))
        .route("/v1/organization/usage/completions", get(usage::completions).fallback(only_get))
        .route("/v1/organization/costs", get(usage::costs).fallback(only_get))
        // OpenRouter's
        .route("/v1/key", get(credits::key).fallback(only_get))
        .route("/v1/credits", get(credits::credits).fallback(only_get))
        // our own
        .route("/v1/usage.csv", get(export::usage).fallback(only_get))
        // for whoever runs this
        .route("/healthz", get(health::live).fallback(only_get))
        .route("/readyz", get(health::ready).fallback(only_get))
        .fallback(unknown)
        .with_state(app)
        // outermost last: the id is there before anything can fail
        .layer(cors())
        .layer(from_fn(identify))
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long a browser may remember what it may send.
const PREFLIGHT_FOR: Duration = Duration::from_secs(3_600);

/// Gives the request its id: in its extensions, in the log, in the answer.
async fn identify(mut request: Request, next: Next) -> Response {
    let id = RequestId::generate();
    request.extensions_mut().insert(id);
    let span = tracing::info_span!("request", id = %id);
    let mut response = next.run(request).instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response
}

/// Browsers may call from anywhere: keys are in a header, not in a cookie. Preflights carry no key,
/// and the SDKs send headers of their own (`X-Stainless-*`).
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([
            X_REQUEST_ID,
            HeaderName::from_static("retry-after"),
            HeaderName::from_static("x-should-retry"),
            HeaderName::from_static("x-tollgate-completion-tokens-max"),
        ])
        .max_age(PREFLIGHT_FOR)
}

async fn only_get() -> Error {
    Error::MethodNotAllowed { allow: "GET, HEAD" }
}

async fn only_post() -> Error {
    Error::MethodNotAllowed { allow: "POST" }
}

async fn unknown() -> Error {
    Error::UnknownUrl
}
