//! An upstream: OpenRouter, a LiteLLM proxy, or any server that speaks OpenAI's protocol.
//!
//! Invariants: every wait has a deadline; no redirect is followed; an upstream's address, key and
//! body never become part of an error that a client reads. HTTP/1.1: the pool of HTTP/2 queues
//! streams beyond the peer's limit (measured: 400 streams took two waves).

mod activity;
mod connections;
mod failure;
pub mod health;
mod lookup;
pub mod retry;

use crate::config::{Disconnect, OfferConfig, UpstreamConfig, UpstreamKind, UpstreamTerms};
use crate::error::Error;
use crate::models::key::matches_pattern;
use crate::models::openai::request::{Dialect, NEWER, OLDER};
use crate::models::usage::Ending;
use crate::services::http::{self, AGENT, HttpClient, JSON};
use crate::services::metrics::CallMetrics;
use crate::services::tap::Operator;
use crate::services::trace::CallTrace;
use axum::http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING};
use axum::http::header::{CONTENT_TYPE, USER_AGENT};
use axum::http::uri::PathAndQuery;
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
pub use connections::AnswerBody;
use connections::Connections;
use health::Health;
pub use lookup::Found;
use retry::Retries;

pub struct Upstream {
    /// On holds, records and log lines.
    pub name: String,
    pub kind: UpstreamKind,
    pub offer: OfferConfig,
    /// Up to and including `/v1`.
    base: String,
    authorization: Option<HeaderValue>,
    /// What none of its texts may tell a client.
    pub operator: Arc<Operator>,
    /// For questions of ours.
    client: HttpClient,
    /// For chat completions.
    connections: Arc<Connections>,
    chat_path: PathAndQuery,
    pub terms: UpstreamTerms,
    pub retries: Retries,
    pub health: Arc<Health>,
    pub measured: CallMetrics,
}

/// A call under way. It owns all it needs, so that it can outlive the client that caused it.
pub type Call = Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, Error>> + Send>>;

/// Answers to our own questions (models, generation).
const QUESTION_WAIT: Duration = Duration::from_secs(20);
/// OpenRouter's whole model list is about 1 MB.
const QUESTION_BYTES_MAX: usize = 32 << 20;

impl Upstream {
    /// # Errors
    /// [`Error::Internal`] when address or key cannot be used in a request.
    pub fn new(config: &UpstreamConfig, measured: CallMetrics) -> Result<Self, Error> {
        let UpstreamConfig { name, kind, base_url: base, api_key, terms, offer } = config;
        let unusable = || Error::Internal("UPSTREAM_BASE_URL is not an http(s) URL".to_owned());
        let is_http = base.starts_with("http://") || base.starts_with("https://");
        let url = base.parse::<Uri>().ok().filter(|_| is_http).ok_or_else(unusable)?;
        let chat_path = format!("{}/chat/completions", url.path().trim_end_matches('/'));
        let authorization = api_key.as_ref().map(|key| bearer(key.expose_secret())).transpose()?;
        Ok(Self {
            name: name.clone(),
            kind: *kind,
            offer: offer.clone(),
            base: base.clone(),
            authorization,
            operator: Arc::new(Operator::new(api_key.clone(), url.host())),
            client: http::client(terms.connect),
            connections: Connections::new(&url, terms.connect)?,
            chat_path: chat_path.parse().map_err(|_| unusable())?,
            terms: *terms,
            retries: Retries::new(terms.retries),
            health: Arc::default(),
            measured,
        })
    }

    /// What to do with the answer of a client that has gone. Where the provider bills the whole
    /// answer anyway, reading on costs nothing and tells the numbers.
    #[must_use]
    pub fn disconnect(&self, provider: Option<&str>) -> Disconnect {
        match self.terms.disconnect {
            Disconnect::Auto if !self.kind.has_lookup() => Disconnect::Drain,
            Disconnect::Auto if provider.is_some_and(bills_in_full) => Disconnect::Drain,
            Disconnect::Auto => Disconnect::Lookup,
            set => set,
        }
    }

    /// Whether it can tell, and is to be asked, what it made of an answer that ended so.
    #[must_use]
    pub fn is_asked_after(&self, ending: Ending, provider: Option<&str>) -> bool {
        let is_to_be = match ending {
            Ending::ClientGone => self.disconnect(provider) != Disconnect::Count,
            Ending::Completed | Ending::UpstreamFailed | Ending::Killed => true,
            // What was delivered is charged, whatever the upstream went on to make.
            Ending::CutOff => false,
        };
        is_to_be && self.kind.has_lookup()
    }

    /// OpenAI's newer models refuse the cap's older name; OpenRouter and LiteLLM read both. Of
    /// others the operator says how they differ.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        let usual = match self.kind {
            UpstreamKind::OpenAi => NEWER,
            UpstreamKind::OpenRouter | UpstreamKind::LiteLlm => OLDER,
        };
        let UpstreamTerms { cap_member: sole, takes_user, .. } = self.terms;
        Dialect { cap: sole.unwrap_or(usual), is_sole: sole.is_some(), takes_user }
    }

    /// The names that clients use for a model of its list; none: it is not served.
    #[must_use]
    pub fn names_of(&self, own: &str) -> Vec<String> {
        let OfferConfig { models, rename, prefix, .. } = &self.offer;
        let renamed = rename.iter().filter(|(_, upstreams)| *upstreams == own);
        let mut names: Vec<String> = renamed.map(|(client, _)| client.clone()).collect();
        if names.is_empty() {
            names.push(format!("{prefix}{own}"));
        }
        let is_served = |name: &String| {
            models.is_empty() || models.iter().any(|pattern| matches_pattern(pattern, name))
        };
        names.retain(is_served);
        names
    }

    /// Its own name for the model that clients call so.
    #[must_use]
    pub fn own_name<'a>(&'a self, name: &'a str) -> &'a str {
        let OfferConfig { rename, prefix, .. } = &self.offer;
        rename.get(name).map_or_else(|| name.strip_prefix(prefix).unwrap_or(name), String::as_str)
    }

    /// Whether both are the same server.
    #[must_use]
    pub fn is_same_server(&self, other: &Self) -> bool {
        (self.kind, &self.base) == (other.kind, &other.base)
    }

    /// Whether that server takes both for the same client.
    #[must_use]
    pub fn has_same_key(&self, other: &Self) -> bool {
        self.authorization == other.authorization
    }

    /// Whether `other` is the same upstream, configured anew: what one knows counts for the other.
    #[must_use]
    pub fn is_same_upstream(&self, other: &Self) -> bool {
        self.name == other.name && self.is_same_server(other) && self.has_same_key(other)
    }

    /// Whether nothing about it is configured otherwise.
    #[must_use]
    pub fn is_configured_like(&self, other: &Self) -> bool {
        self.is_same_upstream(other) && self.terms == other.terms && self.offer == other.offer
    }

    /// Takes over what `old` knows of its health.
    #[must_use]
    pub fn with_health_of(self, old: &Self) -> Self {
        Self { health: old.health.clone(), ..self }
    }

    /// Sends a chat completion. The call runs when it is polled.
    #[must_use]
    pub fn chat(self: &Arc<Self>, body: Bytes, trace: Option<&CallTrace>) -> Call {
        let upstream = self.clone();
        let mut headers = HeaderMap::new();
        if let Some(trace) = trace {
            trace.put_headers(&mut headers);
        }
        Box::pin(async move {
            let mut request = Request::new(Full::new(body));
            *request.method_mut() = Method::POST;
            *request.headers_mut() = headers;
            upstream.put_headers(request.headers_mut());
            request.headers_mut().insert(CONTENT_TYPE, JSON);
            let answer = upstream.connections.send(&upstream.chat_path, request);
            let answer = tokio::time::timeout(upstream.terms.head, answer).await;
            let answer = not_compressed(answer.map_err(|_| no_head())??)?;
            failure::check(answer, &upstream.operator).await
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

    /// Asks for a list. `path` follows the base.
    ///
    /// # Errors
    /// One of the upstream's.
    pub async fn ask_list(&self, path: &str) -> Result<Bytes, Error> {
        self.list_for(self.request(Method::GET, path, Bytes::new())?).await
    }

    /// A list, which must come with status 200.
    async fn list_for(&self, request: Request<Full<Bytes>>) -> Result<Bytes, Error> {
        let (status, body) = self.answer_to(request).await?;
        match status {
            StatusCode::OK => Ok(body),
            StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED | StatusCode::FORBIDDEN => {
                Err(Error::UpstreamRefused { status })
            }
            _ => Err(Error::UpstreamFailed { status, reason: "no list", retry_after: None }),
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
        self.put_headers(request.headers_mut());
        Ok(request)
    }

    fn put_headers(&self, headers: &mut HeaderMap) {
        headers.insert(USER_AGENT, AGENT);
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        // What is read on the way must be plain.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        wait: Duration,
    ) -> Result<Response<Incoming>, Error> {
        let answer = tokio::time::timeout(wait, self.client.request(request))
            .await
            .map_err(|_| no_head())?
            .map_err(|error| Error::UpstreamUnavailable(http::cause(&error)))?;
        not_compressed(answer)
    }
}

fn no_head() -> Error {
    Error::UpstreamTimeout("waiting for an answer")
}

/// A success that can be read. What a refusal means is in its status, whatever its body.
fn not_compressed<B>(answer: Response<B>) -> Result<Response<B>, Error> {
    let status = answer.status();
    if status.is_success() && is_compressed(answer.headers()) {
        let reason = "compressed though not asked";
        return Err(Error::UpstreamFailed { status, reason, retry_after: None });
    }
    Ok(answer)
}

/// Codings, which ignore case, but for the one that changes nothing.
/// <https://www.rfc-editor.org/rfc/rfc9110#field.content-encoding>
fn is_compressed(headers: &HeaderMap) -> bool {
    let is_none = |coding: &[u8]| {
        let coding = coding.trim_ascii();
        coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
    };
    let values = headers.get_all(CONTENT_ENCODING).into_iter().map(HeaderValue::as_bytes);
    values.flat_map(|value| value.split(|byte| *byte == b',')).any(|coding| !is_none(coding))
}

/// Providers that go on and bill when OpenRouter's client hangs up.
/// <https://openrouter.ai/docs/api-reference/streaming#stream-cancellation>
const BILLING_IN_FULL: &[&str] = &[
    "AI21",
    "AionLabs",
    "Alibaba",
    "Amazon Bedrock",
    "AWS Bedrock",
    "Featherless",
    "Google",
    "Google AI Studio",
    "Google Vertex",
    "Groq",
    "HuggingFace",
    "Inception",
    "InferenceNet",
    "Inflection",
    "Kluster",
    "Lambda",
    "Lynn",
    "Minimax",
    "Mistral",
    "Modal",
    "Nebius",
    "Perplexity",
    "Reflection",
    "Replicate",
    "SambaNova",
    "Targon",
    "ZeroOneAI",
];

fn bills_in_full(provider: &str) -> bool {
    BILLING_IN_FULL.iter().any(|name| name.eq_ignore_ascii_case(provider))
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

fn bearer(key: &str) -> Result<HeaderValue, Error> {
    let unusable = || Error::Internal("the upstream's key is not printable".to_owned());
    http::bearer(key).ok_or_else(unusable)
}
