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
use axum::http::header::{CONNECTION, TRANSFER_ENCODING};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{delete, get, post};
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tower_http::cors::{AllowHeaders, AllowMethods, Any, CorsLayer};
use tracing::Instrument;

pub fn router(app: Arc<App>) -> Router {
    let router = Router::new()
        // OpenAI's surface
        .route("/v1/chat/completions", post(chat::create).fallback(only("POST")))
        .route("/v1/models", get(models::list).fallback(only(GET)))
        .route("/v1/models/{*id}", get(models::retrieve).fallback(only(GET)))
        .route("/v1/organization/usage/completions", get(usage::completions).fallback(only(GET)))
        .route("/v1/organization/costs", get(usage::costs).fallback(only(GET)))
        // OpenRouter's
        .route("/v1/key", get(credits::key).fallback(only(GET)))
        .route("/v1/credits", get(credits::credits).fallback(only(GET)))
        // our own
        .route("/v1/usage.csv", get(export::usage).fallback(only(GET)))
        .route("/v1/latency", get(latency::latency).fallback(only(GET)))
        .route("/v1/account", get(account::account).fallback(only(GET)))
        .route("/v1/holds", get(account::holds).fallback(only(GET)))
        // for whoever watches this
        .route("/healthz", get(health::live).fallback(only(GET)))
        .route("/readyz", get(health::ready).fallback(only(GET)))
        .merge(payments())
        .merge(owner())
        .merge(console())
        .merge(admin());
    // Where they have a listener of their own, they are not here.
    let is_here = app.config.server.metrics_listen.is_none();
    let router = if is_here { router.merge(measured(metrics::show)) } else { router };
    router
        .fallback(unknown)
        .with_state(app.clone())
        // The outer one first: the id is there before anything can fail. Together, because each
        // `layer` costs every request a box.
        .layer((from_fn_with_state(app, identify), cors()))
}

/// Of the listener that is for metrics alone: who reaches it may read them.
pub fn metrics_router(app: Arc<App>) -> Router {
    measured(metrics::open).fallback(unknown).with_state(app).layer(from_fn(name))
}

fn measured<H: Handler<T, Arc<App>>, T: 'static>(tell: H) -> Router<Arc<App>> {
    Router::new().route("/metrics", get(tell).fallback(only(GET)))
}

/// Stripe and the pages where people pay.
fn payments() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/billing/checkout", post(billing::checkout).fallback(only("POST")))
        .route("/v1/billing/portal", post(billing::portal).fallback(only("POST")))
        .route("/webhooks/stripe", post(webhooks::stripe).fallback(only("POST")))
        .route_layer(from_fn(bounded))
}

/// An account's own keys.
fn owner() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/v1/keys",
            get(own_keys::list).post(own_keys::create).fallback(only("GET, HEAD, POST")),
        )
        .route("/v1/keys/{id}", delete(own_keys::revoke).fallback(only("DELETE")))
        .route_layer(from_fn(bounded))
}

/// For people, in a browser.
fn console() -> Router<Arc<App>> {
    let assets = Arc::new(console::Assets::new());
    let [page, files] = [assets.clone(), assets];
    Router::new()
        .route("/console", get(console::page(page)).fallback(only(GET)))
        .route("/console/config.json", get(console::config).fallback(only(GET)))
        .route("/console/{file}", get(console::file(files)).fallback(only(GET)))
}

/// What whoever runs this does over HTTP.
fn admin() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/admin/v1/accounts",
            get(accounts::list).post(accounts::create).fallback(only("GET, HEAD, POST")),
        )
        .route(
            "/admin/v1/accounts/{id}",
            get(accounts::retrieve).patch(accounts::update).fallback(only("GET, HEAD, PATCH")),
        )
        .route(
            "/admin/v1/accounts/{id}/members",
            get(members::list).post(members::add).fallback(only("GET, HEAD, POST")),
        )
        .route(
            "/admin/v1/accounts/{id}/members/{user}",
            delete(members::remove).fallback(only("DELETE")),
        )
        .route(
            "/admin/v1/accounts/{id}/keys",
            get(keys::list).post(keys::create).fallback(only("GET, HEAD, POST")),
        )
        .route("/admin/v1/accounts/{id}/credits", post(entries::create).fallback(only("POST")))
        .route("/admin/v1/accounts/{id}/ledger", get(entries::ledger).fallback(only(GET)))
        .route("/admin/v1/accounts/{id}/usage", get(records::usage).fallback(only(GET)))
        .route(
            "/admin/v1/keys/{id}",
            get(keys::retrieve)
                .patch(keys::update)
                .delete(keys::revoke)
                .fallback(only("GET, HEAD, PATCH, DELETE")),
        )
        .route("/admin/v1/keys/{id}/rotate", post(keys::rotate).fallback(only("POST")))
        .route("/admin/v1/prices", get(prices::list).fallback(only(GET)))
        .route("/admin/v1/plans", get(prices::plans).fallback(only(GET)))
        .route(
            "/admin/v1/price-table",
            get(prices::table).put(prices::set_table).fallback(only("GET, HEAD, PUT")),
        )
        .route("/admin/v1/events", get(events::list).fallback(only(GET)))
        .route("/admin/v1/events/{id}/retry", post(events::retry).fallback(only("POST")))
        .route("/admin/v1/events/{id}/dismiss", post(events::dismiss).fallback(only("POST")))
        .route("/admin/v1/events/{id}/park", post(events::park).fallback(only("POST")))
        .route("/admin/v1/exports", get(exports::list).fallback(only(GET)))
        .route("/admin/v1/exports/{id}/missing", post(exports::missing).fallback(only("POST")))
        .route("/admin/v1/exports/{id}/counted", post(exports::counted).fallback(only("POST")))
        .route("/admin/v1/audit", get(records::audit).fallback(only(GET)))
        .route("/admin/v1/margins", get(overview::margins).fallback(only(GET)))
        .route("/admin/v1/drift", get(overview::drift).fallback(only(GET)))
        .route("/admin/v1/sinks", get(overview::sinks).fallback(only(GET)))
        .route("/admin/v1/health", get(overview::health).fallback(only(GET)))
        .route_layer(from_fn(bounded))
}

/// A request that changes something and takes longer is given up: the database does not answer.
const CHANGE_WAIT: Duration = Duration::from_secs(15);

/// For a change whose request was given up. A database that takes longer does not answer any more.
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(60);

/// In a task of its own: a change that has begun is finished and other processes are told of it,
/// also when its client has gone or its time is over.
async fn bounded(request: Request, next: Next) -> Result<Response, Error> {
    let away = |_| Error::Database("no answer in time".to_owned());
    let work = tokio::time::timeout(CHANGE_WAIT_MAX, next.run(request).in_current_span());
    let answer = tokio::time::timeout(CHANGE_WAIT, tokio::spawn(work)).await.map_err(away)?;
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

const GET: &str = "GET, HEAD";

/// Answers another method.
fn only(allow: &'static str) -> impl Fn() -> Ready<Error> + Clone {
    move || ready(Error::MethodNotAllowed { allow })
}

async fn unknown() -> Error {
    Error::UnknownUrl
}
