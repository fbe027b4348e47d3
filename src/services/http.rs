//! The HTTP client of everything that Tollgate calls: the upstream, the auth server and
//! the sinks.
//!
//! Invariants: no redirect is followed, no proxy of the environment is used, an error names no
//! address; every wait has a deadline, which the caller gives. HTTP/1.1, TLS with our own roots.

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::{Duration, SystemTime};

pub type HttpClient = Client<Connector, Full<Bytes>>;

/// How we call ourselves.
pub const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("tollgate/", env!("CARGO_PKG_VERSION")));

/// The type of every body that is JSON.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Idle connections kept to one server, and for how long (below the usual 60 s of proxies).
pub const IDLE_CONNECTIONS_MAX: usize = 512;
pub const IDLE_FOR: Duration = Duration::from_secs(50);
/// Answers of services that are asked something: lists of a hundred meters are far smaller.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there was no answer, without the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    pub why: String,
    /// Whether the request arrived is not known; else it was never sent.
    pub may_have_arrived: bool,
}

impl Silence {
    /// Of a request that could not be made.
    pub fn unsent(why: &impl ToString) -> Self {
        Self { why: why.to_string(), may_have_arrived: false }
    }

    /// Of one that may be anywhere.
    #[must_use]
    pub fn unknown(why: &str) -> Self {
        Self { why: why.to_owned(), may_have_arrived: true }
    }
}

impl From<Silence> for String {
    fn from(silence: Silence) -> Self {
        silence.why
    }
}

/// Asks, and reads the whole answer, within `wait`.
///
/// # Errors
/// Why there was none.
pub async fn ask(
    client: &HttpClient,
    request: Request<Full<Bytes>>,
    wait: Duration,
) -> Result<Answer, Silence> {
    ask_up_to(client, request, wait, ANSWER_BYTES_MAX).await
}

/// As [`ask`], for an answer that may be larger.
///
/// # Errors
/// Those of [`ask`].
pub async fn ask_up_to(
    client: &HttpClient,
    request: Request<Full<Bytes>>,
    wait: Duration,
    bytes_max: usize,
) -> Result<Answer, Silence> {
    let answer = async {
        let failed = |error: hyper_util::client::legacy::Error| Silence {
            why: cause(&error),
            may_have_arrived: !error.is_connect(),
        };
        let answer = client.request(request).await.map_err(failed)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, bytes_max).collect().await;
        let body = body.map_err(|_| Silence::unknown("the answer broke off"))?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    };
    let in_time = tokio::time::timeout(wait, answer).await;
    in_time.unwrap_or_else(|_| Err(Silence::unknown("no answer in time")))
}

/// How long a server asks to be left alone.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    asked_pause(headers.get(RETRY_AFTER)?, now)
}

/// `Retry-After`: seconds, or until a date.
/// <https://www.rfc-editor.org/rfc/rfc9110#field.retry-after>
#[must_use]
pub fn asked_pause(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

pub type Connector = HttpsConnector<HttpConnector>;

/// Makes connections, plain or with TLS; each within `connect`.
#[must_use]
pub fn connector(connect: Duration) -> Connector {
    let mut tcp = HttpConnector::new();
    tcp.set_connect_timeout(Some(connect));
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(IDLE_FOR));
    tcp.enforce_http(false);
    HttpsConnectorBuilder::new()
        .with_webpki_roots()
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp)
}

/// What `Authorization` carries: it is never shown. `None`: the token has what no header may have.
#[must_use]
pub fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[must_use]
pub fn client(connect: Duration) -> HttpClient {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_FOR)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .build(connector(connect))
}

/// Kind of failure without the address it happened at.
#[must_use]
pub fn cause(error: &hyper_util::client::legacy::Error) -> String {
    let what = if error.is_connect() { "connect" } else { "request" };
    format!("{what}: {}", std::error::Error::source(error).map_or_else(failed, root))
}

/// What an error comes from in the end: outer ones may name the address.
#[must_use]
pub fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(inner) = last.source() {
        last = inner;
    }
    last.to_string()
}

fn failed() -> String {
    "failed".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_in_seconds_or_a_date() {
        let after = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770))
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:00 GMT"), Some(Duration::ZERO), "it is past");
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
    }
}
