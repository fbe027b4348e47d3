//! The one table of routes, and the layers around it in the order a request meets them.

use crate::controllers::admin::{
    accounts, credits as entries, events, exports, keys, members, overview, prices, records,
};
use crate::controllers::{account, console, keys as own_keys, latency};
use crate::controllers::{
    billing, chat, credits, export, health, metrics, models, usage, webhooks,
};
use crate::error::{Error, ErrorCode};
use crate::models::ids::RequestId;
use crate::services::metrics::Surface;
use crate::services::trace::Tracer;
use crate::state::App;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::handler::Handler;
use axum::http::header::{ALLOW, CONNECTION, TRANSFER_ENCODING};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{delete, get, post};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tower_http::cors::{AllowHeaders, AllowMethods, Any, CorsLayer};
use tracing::Instrument;

pub fn router(app: Arc<App>) -> Router {
    let router = Router::new()
        // OpenAI's surface
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::retrieve))
        .route("/v1/organization/usage/completions", get(usage::completions))
        .route("/v1/organization/costs", get(usage::costs))
        // OpenRouter's
        .route("/v1/key", get(credits::key))
        .route("/v1/credits", get(credits::credits))
        // our own
        .route("/v1/usage.csv", get(export::usage))
        .route("/v1/latency", get(latency::latency))
        .route("/v1/account", get(account::account))
        .route("/v1/holds", get(account::holds))
        // for whoever watches this
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .merge(payments())
        .merge(owner())
        .merge(console())
        .merge(admin());
    // Where they have a listener of their own, they are not here.
    let is_here = app.config.server.metrics_listen.is_none();
    let router = if is_here { router.merge(measured(metrics::show)) } else { router };
    answering_all(router)
        .with_state(app.clone())
        // The outer one first: the id is there before anything can fail. Together, because each
        // `layer` costs every request a box.
        .layer((from_fn_with_state(app, identify), cors()))
}

/// Of the listener that is for metrics alone: who reaches it may read them.
pub fn metrics_router(app: Arc<App>) -> Router {
    answering_all(measured(metrics::open)).with_state(app).layer(from_fn(name))
}

fn measured<H: Handler<T, Arc<App>>, T: 'static>(tell: H) -> Router<Arc<App>> {
    Router::new().route("/metrics", get(tell))
}

/// Stripe and the pages where people pay.
fn payments() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/billing/checkout", post(billing::checkout))
        .route("/v1/billing/portal", post(billing::portal))
        .route("/webhooks/stripe", post(webhooks::stripe))
        .route_layer(from_fn(finished_anyway))
}

/// An account's own keys.
fn owner() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/keys", get(own_keys::list).post(own_keys::create))
        .route("/v1/keys/{id}", delete(own_keys::revoke))
        .route_layer(from_fn(finished_anyway))
}

/// For people, in a browser.
fn console() -> Router<Arc<App>> {
    let assets = Arc::new(console::Assets::new());
    let [page, files] = [assets.clone(), assets];
    Router::new()
        .route("/console", get(console::page(page)))
        .route("/console/config.json", get(console::config))
        .route("/console/{file}", get(console::file(files)))
}

/// What whoever runs this does over HTTP.
fn admin() -> Router<Arc<App>> {
    Router::new()
        .route("/admin/v1/accounts", get(accounts::list).post(accounts::create))
        .route("/admin/v1/accounts/{id}", get(accounts::retrieve).patch(accounts::update))
        .route("/admin/v1/accounts/{id}/members", get(members::list).post(members::add))
        .route("/admin/v1/accounts/{id}/members/{user}", delete(members::remove))
        .route("/admin/v1/accounts/{id}/keys", get(keys::list).post(keys::create))
        .route("/admin/v1/accounts/{id}/credits", post(entries::create))
        .route("/admin/v1/accounts/{id}/ledger", get(entries::ledger))
        .route("/admin/v1/accounts/{id}/usage", get(records::usage))
        .route("/admin/v1/keys/{id}", get(keys::retrieve).patch(keys::update).delete(keys::revoke))
        .route("/admin/v1/keys/{id}/rotate", post(keys::rotate))
        .route("/admin/v1/prices", get(prices::list))
        .route("/admin/v1/plans", get(prices::plans))
        .route("/admin/v1/price-table", get(prices::table).put(prices::set_table))
        .route("/admin/v1/events", get(events::list))
        .route("/admin/v1/events/{id}/retry", post(events::retry))
        .route("/admin/v1/events/{id}/dismiss", post(events::dismiss))
        .route("/admin/v1/events/{id}/park", post(events::park))
        .route("/admin/v1/exports", get(exports::list))
        .route("/admin/v1/exports/{id}/missing", post(exports::missing))
        .route("/admin/v1/exports/{id}/counted", post(exports::counted))
        .route("/admin/v1/audit", get(records::audit))
        .route("/admin/v1/margins", get(overview::margins))
        .route("/admin/v1/drift", get(overview::drift))
        .route("/admin/v1/sinks", get(overview::sinks))
        .route("/admin/v1/health", get(overview::health))
        .route_layer(from_fn(finished_anyway))
}

/// The client is told after this that the database does not answer.
const ANSWER_WAIT: Duration = Duration::from_secs(15);

/// What it began may go on for this long. A database that takes longer does not answer any more.
const FINISH_WAIT: Duration = Duration::from_secs(60);

/// In a task of its own: a change that has begun is finished and other processes are told of it,
/// also when its client has gone or its time is over.
async fn finished_anyway(request: Request, next: Next) -> Result<Response, Error> {
    let away = |_| Error::Database("no answer in time".to_owned());
    let work = tokio::time::timeout(FINISH_WAIT, next.run(request).in_current_span());
    let answer = tokio::time::timeout(ANSWER_WAIT, tokio::spawn(work)).await.map_err(away)?;
    answer.map_err(|error| Error::Internal(format!("a change: {error}")))?.map_err(away)
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long a browser may remember what it may send.
const PREFLIGHT_FOR: Duration = Duration::from_secs(3_600);

/// Gives the request its id: in its extensions, in the log, in the answer; and counts it.
async fn identify(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let (id, began) = (RequestId::generate(), Instant::now());
    let route = request.extensions().get().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let surface = Surface::of(route);
    let begin = |tracer: &Tracer| tracer.begin(id, request.method(), route, request.headers());
    let trace = app.tracer.as_ref().map(begin);
    if let Some(trace) = &trace {
        request.extensions_mut().insert(trace.clone());
    }
    let response = run_as(id, request, next).await;
    let code = response.extensions().get().map(|ErrorCode(code)| *code);
    if let Some(trace) = trace {
        trace.answered(response.status(), code);
    }
    app.metrics.surface.answered(surface, response.status(), code, began.elapsed());
    response
}

/// Gives the request its id, where answers are not counted: whoever watches is not watched.
async fn name(request: Request, next: Next) -> Response {
    run_as(RequestId::generate(), request, next).await
}

async fn run_as(id: RequestId, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(id);
    let is_last = is_chunked(&request);
    let span = tracing::info_span!("request", id = %id);
    let mut response = next.run(request).instrument(span).await;
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(X_REQUEST_ID, value);
    }
    if is_last {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The server reads a body that has a length and chunks by its chunks, and does not say that there
/// was a length. A proxy in front of us may have gone by it, and what follows would be another's
/// request: so nothing that follows chunks is read.
/// <https://www.rfc-editor.org/rfc/rfc9112#section-6.1-15>
fn is_chunked(request: &Request) -> bool {
    request.headers().contains_key(TRANSFER_ENCODING)
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
            ALLOW,
            HeaderName::from_static("retry-after"),
            HeaderName::from_static("retry-after-ms"),
            HeaderName::from_static("x-should-retry"),
            HeaderName::from_static("x-tollgate-completion-tokens-max"),
            HeaderName::from_static("x-ratelimit-limit-requests"),
            HeaderName::from_static("x-ratelimit-remaining-requests"),
            HeaderName::from_static("x-ratelimit-reset-requests"),
            HeaderName::from_static("x-ratelimit-limit-tokens"),
            HeaderName::from_static("x-ratelimit-remaining-tokens"),
            HeaderName::from_static("x-ratelimit-reset-tokens"),
        ])
        .max_age(PREFLIGHT_FOR)
}

/// Also what has no route, or not with this method, where the router adds the header `allow`.
fn answering_all(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .fallback(async || Error::UnknownUrl)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
}
