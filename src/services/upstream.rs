//! The upstream: OpenRouter, a LiteLLM proxy, or any server that speaks OpenAI's protocol.
//!
//! Invariants: every wait has a deadline; no redirect is followed; an upstream's address, key and
//! body never become part of an error that a client reads. HTTP/1.1: the pool of HTTP/2 queues
//! streams beyond the peer's limit (measured: 400 streams took two waves).

mod activity;
mod failure;
mod lookup;
mod retry;

use crate::config::{Config, UpstreamConfig, UpstreamKind};
use crate::error::Error;
use crate::services::http::{self, AGENT, HttpClient};
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use secrecy::ExposeSecret;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use activity::{Activity, LOG_ROWS, Logged};
pub use lookup::Found;
use retry::Retries;

pub struct Upstream {
    pub kind: UpstreamKind,
    /// Up to and including `/v1`.
    base: String,
    authorization: Option<HeaderValue>,
    client: HttpClient,
    head_wait: Duration,
    lookup_wait: Duration,
    lookup_first: Duration,
    pub retries: Retries,
}

/// A call under way. It owns all it needs, so that it can outlive the client that caused it.
pub type Call = Pin<Box<dyn Future<Output = Result<Response<Incoming>, Error>> + Send>>;

/// Answers to our own questions (models, generation).
const QUESTION_WAIT: Duration = Duration::from_secs(20);
/// OpenRouter's whole model list is about 1 MB.
const QUESTION_BYTES_MAX: usize = 32 << 20;

impl Upstream {
    /// # Errors
    /// [`Error::Internal`] when address or key cannot be used in a request.
    pub fn new(config: &Config, base: &str) -> Result<Self, Error> {
        let UpstreamConfig { kind, api_key, connect, head, lookup, lookup_first, .. } =
            &config.upstream;
        let is_http = base.starts_with("http://") || base.starts_with("https://");
        if !is_http || base.parse::<Uri>().is_err() {
            return Err(Error::Internal("UPSTREAM_BASE_URL is not an http(s) URL".to_owned()));
        }
        let authorization = api_key.as_ref().map(|key| bearer(key.expose_secret())).transpose()?;
        Ok(Self {
            kind: *kind,
            base: base.to_owned(),
            authorization,
            client: http::client(*connect),
            head_wait: *head,
            lookup_wait: *lookup,
            lookup_first: *lookup_first,
            retries: Retries::new(config.upstream.retries),
        })
    }

    /// How long a look-up may take.
    #[must_use]
    pub fn lookup_wait(&self) -> Duration {
        self.lookup_wait
    }

    /// Sends a chat completion. The call runs when it is polled.
    #[must_use]
    pub fn chat(self: &Arc<Self>, body: Bytes) -> Call {
        let upstream = self.clone();
        Box::pin(async move {
            let mut request = upstream.request(Method::POST, "/chat/completions", body)?;
            request.headers_mut().insert(CONTENT_TYPE, APPLICATION_JSON);
            let answer = upstream.send(request, upstream.head_wait).await?;
            failure::check(answer).await
        })
    }

    /// Asks the upstream something. `path` follows the base.
    async fn ask(&self, path: &str) -> Result<(StatusCode, Bytes), Error> {
        self.answer_to(self.request(Method::GET, path, Bytes::new())?).await
    }

    async fn answer_to(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Error> {
        let answer = self.send(request, QUESTION_WAIT).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), QUESTION_BYTES_MAX).collect();
        let body = tokio::time::timeout(QUESTION_WAIT, body)
            .await
            .map_err(|_| Error::UpstreamTimeout("reading an answer"))?
            .map_err(|error| Error::UpstreamUnavailable(error.to_string()))?;
        Ok((status, body.to_bytes()))
    }

    /// Asks for a list, which must come with status 200.
    ///
    /// # Errors
    /// One of the upstream's.
    pub async fn ask_list(&self, path: &str) -> Result<Bytes, Error> {
        match self.ask(path).await? {
            (StatusCode::OK, body) => Ok(body),
            (status, _) => {
                Err(Error::UpstreamFailed { status, reason: "no list", retry_after: None })
            }
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Error> {
        self.request_to(method, &format!("{}{path}", self.base), body)
    }

    fn request_to(
        &self,
        method: Method,
        uri: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .body(Full::new(body))
            .map_err(|error| Error::Internal(format!("cannot make a request: {error}")))?;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, AGENT);
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        wait: Duration,
    ) -> Result<Response<Incoming>, Error> {
        let answer = tokio::time::timeout(wait, self.client.request(request))
            .await
            .map_err(|_| Error::UpstreamTimeout("waiting for an answer"))?
            .map_err(|error| Error::UpstreamUnavailable(http::cause(&error)))?;
        let encoding = answer.headers().get(CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            let status = answer.status();
            let reason = "compressed though not asked";
            return Err(Error::UpstreamFailed { status, reason, retry_after: None });
        }
        Ok(answer)
    }
}

/// The id by which the upstream can be asked about this answer later.
#[must_use]
pub fn generation_id(headers: &HeaderMap) -> Option<String> {
    text(headers, "x-generation-id")
}

/// What LiteLLM says that a plain answer cost, in decimal dollars.
#[must_use]
pub fn cost_header(headers: &HeaderMap) -> Option<String> {
    text(headers, "x-litellm-response-cost")
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    (value.len() <= HEADER_TEXT_BYTES_MAX).then(|| value.to_owned())
}

/// Ids and numbers are far shorter.
const HEADER_TEXT_BYTES_MAX: usize = 256;
const APPLICATION_JSON: HeaderValue = HeaderValue::from_static("application/json");

fn bearer(key: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
        .map_err(|_| Error::Internal("the upstream's key is not printable".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}
