//! One error type, one envelope, one log line.
//!
//! Invariant: what a client reads never holds a key, an upstream's address, or another's data; the
//! cause goes to the log, once, where the response is made. Every variant has its status, type and
//! code in one exhaustive match each.

mod about;

pub use about::About;

use crate::models::limits::{Limited, Rate, Room, millis_up};
use crate::models::money::OutOfRange;
use crate::models::openai::request::Invalid;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use std::borrow::Cow;
use std::time::Duration;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    // === who calls ===
    #[error("no API key was given")]
    MissingKey,
    #[error("the API key is not valid")]
    WrongKey,
    #[error("the access token is not valid: {0}")]
    WrongToken(&'static str),
    #[error("the access token has expired")]
    ExpiredToken,
    #[error("the user has no account")]
    NoAccount,
    #[error("too many wrong keys and tokens from this address")]
    TooManyFailures { retry_after: Duration },
    // === what is asked ===
    #[error("the request's head cannot be read: {status}")]
    UnreadableHead { status: StatusCode },
    #[error("invalid request: {}", .0.message)]
    Invalid(Invalid),
    #[error("unknown URL")]
    UnknownUrl,
    #[error("there is no such {0}")]
    NotFound(&'static str),
    #[error("exists already: {0}")]
    Exists(&'static str),
    #[error("the caller's role does not allow this")]
    Forbidden,
    #[error("method not allowed")]
    MethodNotAllowed,
    #[error("the content type is not JSON")]
    NotJson,
    #[error("the body is larger than {max} bytes")]
    BodyTooLarge { max: usize },
    #[error("the body did not arrive")]
    BodyIncomplete,
    #[error("unknown model")]
    UnknownModel { model: String },
    #[error("the key may not use this model")]
    ModelNotAllowed { model: String },
    #[error("the model has no known price")]
    ModelNotPriced { model: String },
    // === what may be spent ===
    #[error("the account cannot pay for this request")]
    InsufficientQuota,
    #[error("the key's budget cannot pay for this request")]
    KeyBudget,
    #[error("no room in the {:?}'s limit of {:?}", .limited.by, .limited.rate)]
    RateLimited { model: String, limited: Box<Limited> },
    #[error("the idempotency key was used before")]
    Repeated,
    #[error("the account is suspended")]
    Suspended,
    // === what is paid ===
    #[error("no {0} is configured")]
    NotConfigured(&'static str),
    #[error("the event's signature is wrong: {0}")]
    WrongSignature(&'static str),
    #[error("the payment provider could not be asked: {0}")]
    PaymentProvider(String),
    #[error("the payment provider refused: {0}")]
    PaymentRefused(String),
    // === what Tollgate needs ===
    #[error("too many requests at once")]
    Overloaded,
    #[error("the database is unavailable: {0}")]
    Database(String),
    #[error("the auth server's keys are not to be had")]
    AuthServer,
    #[error("the model list is not there yet")]
    NoModels,
    #[error("this process is shutting down")]
    ShuttingDown,
    #[error("internal: {0}")]
    Internal(String),
    // === what the upstream says ===
    /// It refuses the operator's key or credit: not the client's doing.
    #[error("the upstream refused our credentials or credit: {status}")]
    UpstreamRefused { status: StatusCode },
    #[error("the upstream limits our rate")]
    UpstreamRateLimited { retry_after: Option<HeaderValue> },
    /// It found the request at fault; its message is meant for the client. Where it is the model's
    /// name that it does not know, another upstream may.
    #[error("the upstream found the request at fault: {status}")]
    UpstreamRejected { status: StatusCode, message: String, about: About },
    #[error("the upstream failed: {status}: {reason}")]
    UpstreamFailed { status: StatusCode, reason: &'static str, retry_after: Option<HeaderValue> },
    #[error("the upstream broke off")]
    UpstreamTruncated,
    #[error("the upstream could not be reached: {0}")]
    UpstreamUnavailable(String),
    #[error("the upstream did not answer in time: {0}")]
    UpstreamTimeout(&'static str),
}

/// Which error an answer is: in its extensions, for whoever counts answers.
#[derive(Clone, Copy, Debug)]
pub struct ErrorCode(pub &'static str);

/// OpenAI's error object; `error` is its only member on the wire.
#[derive(Debug, serde::Serialize)]
struct Envelope<'a> {
    error: Body<'a>,
}

#[derive(Debug, serde::Serialize)]
struct Body<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// OpenAI's SDKs look at this one first, because it is more exact.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// How soon to come back when the cause is ours and short.
const RETRY_AFTER_OURS: Duration = Duration::from_secs(1);

impl Error {
    /// A member or parameter that cannot be taken.
    #[must_use]
    pub fn invalid(param: &'static str, what: &str) -> Self {
        let message = format!("Invalid '{param}': {what}.");
        Self::Invalid(Invalid { message, param: Some(Cow::Borrowed(param)) })
    }

    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::MissingKey | Self::WrongKey | Self::WrongToken(_) | Self::ExpiredToken => {
                StatusCode::UNAUTHORIZED
            }
            Self::Invalid(_)
            | Self::BodyIncomplete
            | Self::ModelNotPriced { .. }
            | Self::WrongSignature(_) => StatusCode::BAD_REQUEST,
            Self::UnknownUrl
            | Self::NotFound(_)
            | Self::UnknownModel { .. }
            | Self::NotConfigured(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ModelNotAllowed { .. } | Self::Suspended | Self::Forbidden | Self::NoAccount => {
                StatusCode::FORBIDDEN
            }
            Self::InsufficientQuota
            | Self::KeyBudget
            | Self::TooManyFailures { .. }
            | Self::RateLimited { .. }
            | Self::UpstreamRateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Repeated | Self::Exists(_) => StatusCode::CONFLICT,
            Self::Overloaded
            | Self::Database(_)
            | Self::AuthServer
            | Self::NoModels
            | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::UnreadableHead { status } | Self::UpstreamRejected { status, .. } => *status,
            Self::UpstreamFailed { status, .. } if *status == StatusCode::SERVICE_UNAVAILABLE => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::UpstreamRefused { .. }
            | Self::UpstreamFailed { .. }
            | Self::UpstreamTruncated
            | Self::UpstreamUnavailable(_)
            | Self::PaymentProvider(_)
            | Self::PaymentRefused(_) => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::MissingKey
            | Self::WrongKey
            | Self::WrongToken(_)
            | Self::ExpiredToken
            | Self::NoAccount
            | Self::UnreadableHead { .. }
            | Self::Invalid(_)
            | Self::UnknownUrl
            | Self::NotFound(_)
            | Self::Exists(_)
            | Self::Forbidden
            | Self::MethodNotAllowed
            | Self::NotJson
            | Self::BodyTooLarge { .. }
            | Self::BodyIncomplete
            | Self::UnknownModel { .. }
            | Self::ModelNotAllowed { .. }
            | Self::ModelNotPriced { .. }
            | Self::NotConfigured(_)
            | Self::WrongSignature(_)
            | Self::UpstreamRejected { .. } => "invalid_request_error",
            Self::InsufficientQuota | Self::KeyBudget => "insufficient_quota",
            Self::RateLimited { limited, .. } => match limited.rate {
                Rate::Requests | Rate::Concurrent => "requests",
                Rate::Tokens => "tokens",
            },
            Self::Repeated => "idempotency_error",
            Self::Suspended => "access_terminated",
            Self::TooManyFailures { .. } | Self::UpstreamRateLimited { .. } => "rate_limit_error",
            Self::Overloaded
            | Self::Database(_)
            | Self::AuthServer
            | Self::NoModels
            | Self::ShuttingDown
            | Self::Internal(_) => "server_error",
            Self::UpstreamRefused { .. }
            | Self::UpstreamFailed { .. }
            | Self::UpstreamTruncated
            | Self::UpstreamUnavailable(_)
            | Self::UpstreamTimeout(_) => "upstream_error",
            Self::PaymentProvider(_) | Self::PaymentRefused(_) => "payment_error",
        }
    }

    /// A stable word for programs.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::MissingKey
            | Self::Invalid(_)
            | Self::UpstreamRejected { about: About::Request, .. } => return None,
            Self::UpstreamRejected { about: About::Length, .. } => "context_length_exceeded",
            Self::UpstreamRejected { about: About::Content, .. } => "content_policy_violation",
            Self::WrongKey => "invalid_api_key",
            Self::WrongToken(_) => "invalid_token",
            Self::ExpiredToken => "token_expired",
            Self::NoAccount => "no_account",
            Self::TooManyFailures { .. } => "too_many_failures",
            Self::UnreadableHead { .. } => "unreadable_head",
            Self::UnknownUrl => "unknown_url",
            Self::NotFound(_) => "not_found",
            Self::Exists(_) => "already_exists",
            Self::Forbidden => "insufficient_permissions",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NotJson => "unsupported_media_type",
            Self::BodyTooLarge { .. } => "request_too_large",
            Self::BodyIncomplete => "incomplete_body",
            Self::UnknownModel { .. } | Self::UpstreamRejected { about: About::Model, .. } => {
                "model_not_found"
            }
            Self::ModelNotAllowed { .. } => "model_not_allowed",
            Self::ModelNotPriced { .. } => "model_not_priced",
            Self::InsufficientQuota => "insufficient_quota",
            Self::KeyBudget => "key_budget_exceeded",
            Self::Repeated => "idempotency_key_reused",
            Self::Suspended => "account_suspended",
            Self::NotConfigured(_) => "not_configured",
            Self::WrongSignature(_) => "invalid_signature",
            Self::PaymentProvider(_) => "payment_provider_unavailable",
            Self::PaymentRefused(_) => "payment_refused",
            Self::Overloaded => "overloaded",
            Self::Database(_) => "database_unavailable",
            Self::AuthServer => "auth_server_unavailable",
            Self::NoModels => "models_unavailable",
            Self::ShuttingDown => "shutting_down",
            Self::Internal(_) => "internal_error",
            Self::UpstreamRefused { .. } => "upstream_refused",
            Self::RateLimited { .. } | Self::UpstreamRateLimited { .. } => "rate_limit_exceeded",
            Self::UpstreamFailed { .. } => "upstream_error",
            Self::UpstreamTruncated => "upstream_truncated",
            Self::UpstreamUnavailable(_) => "upstream_unavailable",
            Self::UpstreamTimeout(_) => "upstream_timeout",
        })
    }

    /// What the upstream answered with, where it did.
    #[must_use]
    pub fn upstream_status(&self) -> Option<StatusCode> {
        match self {
            Self::UpstreamRefused { status }
            | Self::UpstreamRejected { status, .. }
            | Self::UpstreamFailed { status, .. } => Some(*status),
            Self::UpstreamRateLimited { .. } => Some(StatusCode::TOO_MANY_REQUESTS),
            _ => None,
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid(invalid) => invalid.param.as_deref(),
            Self::UnknownModel { .. }
            | Self::ModelNotAllowed { .. }
            | Self::ModelNotPriced { .. } => Some("model"),
            _ => None,
        }
    }

    /// What the client reads.
    fn message(&self) -> String {
        match self {
            Self::MissingKey => "You didn't provide an API key. Provide it in an Authorization \
                header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
                .to_owned(),
            Self::WrongKey => "Incorrect API key provided.".to_owned(),
            Self::WrongToken(_) => "The access token is not valid.".to_owned(),
            Self::ExpiredToken => "The access token has expired. Please sign in again.".to_owned(),
            Self::NoAccount => "There is no account for this user here.".to_owned(),
            Self::TooManyFailures { .. } => "Too many failed attempts. Please wait.".to_owned(),
            Self::Invalid(invalid) => invalid.message.clone(),
            Self::UnreadableHead { .. } => "The request's head is too long or not HTTP.".to_owned(),
            Self::UnknownUrl => "Unknown request URL. Please check the URL for typos.".to_owned(),
            Self::NotFound(what) | Self::NotConfigured(what) => format!("There is no such {what}."),
            Self::Exists(what) => format!("There is {what} already."),
            Self::Forbidden => "You have insufficient permissions for this operation.".to_owned(),
            Self::MethodNotAllowed => {
                "Not allowed to use this method here; the header 'allow' names others.".to_owned()
            }
            Self::NotJson => "Unsupported content type: send 'application/json'.".to_owned(),
            Self::BodyTooLarge { max } => {
                format!("The request body is too large: at most {max} bytes.")
            }
            Self::BodyIncomplete => "The request body did not arrive in full.".to_owned(),
            Self::UnknownModel { model } => {
                format!("The model `{model}` does not exist or you do not have access to it.")
            }
            Self::ModelNotAllowed { model } => {
                format!("This API key does not have access to the model `{model}`.")
            }
            Self::ModelNotPriced { model } => {
                format!("The model `{model}` has no price here and cannot be used.")
            }
            Self::InsufficientQuota => "You exceeded your current quota, please check your plan \
                and billing details."
                .to_owned(),
            Self::KeyBudget => "This API key has spent its budget.".to_owned(),
            Self::RateLimited { model, limited } => limited.message(model),
            Self::Repeated => "A request with this Idempotency-Key is running or has ended within \
                the last 24 hours; it is not billed twice."
                .to_owned(),
            Self::Suspended => "This account is suspended.".to_owned(),
            Self::WrongSignature(what) => format!("The signature is not valid: {what}."),
            Self::PaymentRefused(_) => "The payment provider did not take this.".to_owned(),
            Self::Overloaded => "Too many requests at once. Please try again later.".to_owned(),
            Self::Database(_) | Self::AuthServer | Self::PaymentProvider(_) => {
                "A service that this one needs is unavailable. Please try again later.".to_owned()
            }
            Self::NoModels => "There is no list of models yet. Please try again later.".to_owned(),
            Self::ShuttingDown => {
                "This server is shutting down. Please send the request again.".to_owned()
            }
            Self::Internal(_) => {
                "The server had an error while processing your request.".to_owned()
            }
            Self::UpstreamRefused { .. } => {
                "The model's provider is not available to this service.".to_owned()
            }
            Self::UpstreamRateLimited { .. } => {
                "The model's provider limits the rate of requests. Please try again later."
                    .to_owned()
            }
            Self::UpstreamRejected { message, .. } => message.clone(),
            Self::UpstreamFailed { .. } => "The model's provider failed.".to_owned(),
            Self::UpstreamTruncated => "The model's provider broke off its answer.".to_owned(),
            Self::UpstreamUnavailable(_) => "The model's provider cannot be reached.".to_owned(),
            Self::UpstreamTimeout(_) => "The model's provider did not answer in time.".to_owned(),
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self {
            // The SDKs retry a 409 and a 429; no retry brings money or another answer.
            // Nor is an answer that was waited for in vain asked for twice: it may be billed.
            Self::InsufficientQuota
            | Self::KeyBudget
            | Self::Repeated
            | Self::UpstreamTimeout(_) => {
                headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            Self::RateLimited { limited, .. } => {
                insert_room(&mut headers, &limited.room);
                match limited.wait.map(millis_up) {
                    Some(wait) => {
                        headers.insert(RETRY_AFTER_MS, HeaderValue::from(wait));
                        headers.insert(RETRY_AFTER, HeaderValue::from(wait.div_ceil(1_000)));
                    }
                    // It never fits.
                    None => {
                        headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
                    }
                }
            }
            Self::TooManyFailures { retry_after } => {
                headers.insert(RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)));
            }
            Self::Overloaded
            | Self::Database(_)
            | Self::AuthServer
            | Self::NoModels
            | Self::ShuttingDown => {
                headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_OURS.as_secs()));
            }
            Self::UpstreamRateLimited { retry_after: Some(retry_after) }
            | Self::UpstreamFailed { retry_after: Some(retry_after), .. } => {
                headers.insert(RETRY_AFTER, retry_after.clone());
            }
            _ => {}
        }
        headers
    }

    /// The envelope as JSON text.
    #[must_use]
    pub fn envelope(&self) -> String {
        let message = self.message();
        let envelope = Envelope {
            error: Body {
                message: &message,
                kind: self.kind(),
                param: self.param(),
                code: self.code(),
            },
        };
        // Plain texts have no way to fail.
        serde_json::to_string(&envelope).unwrap_or_default()
    }

    /// As it is counted and logged: every error has a word.
    fn counted(&self) -> &'static str {
        self.code().unwrap_or("invalid_request")
    }

    /// The one log line of a failure: loud when it is ours or the upstream's, quiet when it is the
    /// client's. `what` it ended.
    pub fn log(&self, what: &str) {
        let status = self.status().as_u16();
        let code = self.counted();
        if self.status().is_server_error() {
            tracing::error!(http.status = status, error.code = code, "{what}: {self}");
        } else {
            tracing::debug!(http.status = status, error.code = code, "{what}: {self}");
        }
    }
}

/// Tells a caller with limits of rate what is left of them.
pub fn insert_room(headers: &mut HeaderMap, room: &Room) {
    for (name, value) in room.headers() {
        // Digits and units have no way to fail.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

impl From<OutOfRange> for Error {
    fn from(error: OutOfRange) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.log(if self.status().is_server_error() {
            "request failed"
        } else {
            "request refused"
        });
        let content_type = [(axum::http::header::CONTENT_TYPE, "application/json")];
        let answer = (self.status(), content_type, self.headers(), self.envelope());
        let mut response = answer.into_response();
        response.extensions_mut().insert(ErrorCode(self.counted()));
        response
    }
}
