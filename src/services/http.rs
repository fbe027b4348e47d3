//! The HTTP client of everything that Tollgate calls: the upstream and the auth server.
//!
//! Invariants: no redirect is followed, no proxy of the environment is used, an error names no
//! address; every wait has a deadline, which the caller gives. HTTP/1.1, TLS with our own roots.

use axum::http::HeaderValue;
use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;

pub type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// How we call ourselves.
pub const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("tollgate/", env!("CARGO_PKG_VERSION")));

/// Idle connections kept to one server, and for how long (below the usual 60 s of proxies).
const IDLE_CONNECTIONS_MAX: usize = 512;
const IDLE_FOR: Duration = Duration::from_secs(50);

#[must_use]
pub fn client(connect: Duration) -> HttpClient {
    let mut tcp = HttpConnector::new();
    tcp.set_connect_timeout(Some(connect));
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(IDLE_FOR));
    tcp.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_webpki_roots()
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_FOR)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .build(connector)
}

/// Kind of failure without the address it happened at.
#[must_use]
pub fn cause(error: &hyper_util::client::legacy::Error) -> String {
    let what = if error.is_connect() { "connect" } else { "request" };
    let mut source = std::error::Error::source(error);
    let mut last = None;
    while let Some(inner) = source {
        last = Some(inner.to_string());
        source = inner.source();
    }
    format!("{what}: {}", last.unwrap_or_else(|| "failed".to_owned()))
}
