//! What an upstream's own error means for the client, wherever it stood: with a status, in the body
//! of a 200, or in the middle of a stream.
//!
//! Invariant: the upstream's text reaches the client only where it is about the client's request
//! (400, 404, 413, 422), shortened, and without what tells of the operator: keys, addresses, ids of
//! accounts. All else is said in our own words.

use crate::error::Error;
use crate::models::openai::lenient::{Object, Text};
use axum::http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// An upstream's error object, or what can be read of it.
#[derive(Debug, Default)]
pub struct Failure {
    /// What it says the status is: as a number or as text, as LiteLLM has it.
    status: Option<StatusCode>,
    kind: String,
    message: String,
    /// It has no such model, or nobody to serve it.
    is_models: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Body<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Said<'a> {
    #[serde(borrow)]
    message: Text<'a>,
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    /// OpenRouter's newer errors have this in place of a code.
    #[serde(borrow)]
    http_status: Option<&'a RawValue>,
    #[serde(borrow)]
    availability: Object<Availability<'a>>,
}

/// OpenRouter's reason why nobody answers.
/// <https://openrouter.ai/docs/api-reference/errors-and-debugging>
#[derive(Default, Deserialize)]
#[serde(default)]
struct Availability<'a> {
    #[serde(borrow)]
    code: Text<'a>,
}

/// The word for a model that an upstream does not have; OpenRouter's comes with status 400.
/// <https://platform.openai.com/docs/guides/error-codes>
const MODEL_NOT_FOUND: &str = "model_not_found";

/// LiteLLM's word for the operator's key having spent its budget.
const BUDGET_EXCEEDED: &str = "budget_exceeded";
const MESSAGE_CHARS_MAX: usize = 1_000;
/// LiteLLM adds how it is set up behind this.
const SETUP_FOLLOWS: &str = "Received Model Group=";

/// A message that speaks of keys is about the operator's.
const OPERATORS_WORDS: &[&str] = &["api key", "api_key", "apikey", "bearer ", "authorization"];
/// How ids of accounts and keys begin, at OpenAI, OpenRouter, Stripe and their like.
const OPERATORS_IDS: &[&str] =
    &["sk-", "sk_", "pk_", "rk_", "org-", "org_", "proj_", "user_", "acct_", "team_", "key_"];

impl Failure {
    /// Reads an `error` member: an object, or just a text.
    #[must_use]
    pub fn read(error: &RawValue) -> Self {
        if let Ok(Text(Some(message))) = serde_json::from_str(error.get()) {
            return Self { message: message.into_owned(), ..Self::default() };
        }
        let said: Said<'_> = serde_json::from_str(error.get()).unwrap_or_default();
        let is_word = |code: &RawValue| code.get().trim_matches('"') == MODEL_NOT_FOUND;
        let is_models = said.code.is_some_and(is_word)
            || said.availability.value.code.0.as_deref() == Some(MODEL_NOT_FOUND);
        let owned = |text: Text<'_>| text.0.map(Cow::into_owned).unwrap_or_default();
        Self {
            status: said.code.and_then(status_of).or_else(|| said.http_status.and_then(status_of)),
            kind: owned(said.kind),
            message: owned(said.message),
            is_models,
        }
    }

    /// Reads the body of a refusal; nothing, where it has no error in it.
    #[must_use]
    pub fn of_body(body: &[u8]) -> Self {
        let body: Body<'_> = serde_json::from_slice(body).unwrap_or_default();
        body.error.map(Self::read).unwrap_or_default()
    }

    /// What to tell the client of an error that came with this status of its own.
    #[must_use]
    pub fn with_status(self, status: StatusCode, retry_after: Option<HeaderValue>) -> Error {
        if self.kind == BUDGET_EXCEEDED {
            return Error::UpstreamRefused { status };
        }
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED | StatusCode::FORBIDDEN => {
                Error::UpstreamRefused { status }
            }
            StatusCode::TOO_MANY_REQUESTS => Error::UpstreamRateLimited { retry_after },
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => {
                // The path is always the same: what is not found with status 404 is the model too.
                let is_models = status == StatusCode::NOT_FOUND || self.is_models;
                Error::UpstreamRejected { status, message: shown(&self.message), is_models }
            }
            _ => Error::UpstreamFailed { status, reason: "its status", retry_after },
        }
    }

    /// What to tell the client of an error in an answer whose status was 200.
    #[must_use]
    pub fn within(self) -> Error {
        let reason = "an error in its answer";
        match self.status {
            Some(status) if status.is_client_error() => self.with_status(status, None),
            _ if self.kind == BUDGET_EXCEEDED => self.with_status(StatusCode::OK, None),
            status => {
                let status = status.unwrap_or(StatusCode::OK);
                Error::UpstreamFailed { status, reason, retry_after: None }
            }
        }
    }
}

/// As a number or as text; words such as `server_error` are none.
fn status_of(code: &RawValue) -> Option<StatusCode> {
    StatusCode::from_bytes(code.get().trim_matches('"').as_bytes()).ok()
}

/// Whether a text that is no answer (a comment, a line of a log) tells of the operator.
#[must_use]
pub fn tells_of_operator(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    speaks_of_keys(&text) || text.split_whitespace().any(is_operators)
}

fn speaks_of_keys(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    OPERATORS_WORDS.iter().any(|word| lower.contains(word))
}

/// The upstream's text as a client may read it.
fn shown(message: &str) -> String {
    let message = message.split(SETUP_FOLLOWS).next().unwrap_or_default();
    let message = without_class(message).trim();
    if message.is_empty() || speaks_of_keys(message) {
        return "The model's provider rejected the request.".to_owned();
    }
    // Cut first: what is masked is as long as the message.
    let start: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
    start.split_inclusive(char::is_whitespace).map(masked).collect()
}

/// LiteLLM puts the name of its exception before the message.
fn without_class(message: &str) -> &str {
    let named = message.strip_prefix("litellm.").and_then(|rest| rest.split_once(": "));
    named.map_or(message, |(_, message)| message)
}

/// A word as it is, or a mark in its place; the space behind it stays.
fn masked(word: &str) -> Cow<'_, str> {
    let bare = word.trim_end();
    if is_operators(bare) { Cow::Owned(word.replacen(bare, "***", 1)) } else { Cow::Borrowed(word) }
}

fn is_operators(word: &str) -> bool {
    let is_name = |character: char| character.is_ascii_alphanumeric() || "_-".contains(character);
    let mut names = word.split(|character| !is_name(character));
    let has_id = names.any(|name| {
        let has_digit = name.bytes().any(|byte| byte.is_ascii_digit());
        has_digit && OPERATORS_IDS.iter().any(|start| name.starts_with(start))
    });
    has_id || word.contains("://") || word.contains('@') || has_address(word)
}

/// Whether something in the word is a host with a port, or an IPv4 address.
fn has_address(word: &str) -> bool {
    let is_part = |character: char| character.is_ascii_alphanumeric() || ".-:".contains(character);
    word.split(|character| !is_part(character)).any(|part| {
        let (host, port) = part.split_once(':').unwrap_or((part, ""));
        let is_port = port.len() >= 2 && port.bytes().all(|byte| byte.is_ascii_digit());
        let is_host = host.bytes().any(|byte| byte.is_ascii_alphabetic());
        host.parse::<std::net::Ipv4Addr>().is_ok() || (is_host && is_port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_of_the_operator_is_masked() {
        for (said, shown_as) in [
            (
                "'temperature' must be below 2.0: got 3.5",
                "'temperature' must be below 2.0: got 3.5",
            ),
            ("see https://docs.example/x for more", "see *** for more"),
            ("refused by 10.0.0.7, (10.0.0.7:4000)", "refused by *** ***"),
            ("no route to litellm.internal:4000!", "no route to ***"),
            ("in organization org-A1b2C3 on tokens", "in organization *** on tokens"),
            ("user 'user_2abc9' is unknown", "user *** is unknown"),
            (
                "use 'user_location', not gpt-4o-mini:free",
                "use 'user_location', not gpt-4o-mini:free",
            ),
            ("at 12:30 in line 3:14", "at 12:30 in line 3:14"),
            ("litellm.BadRequestError: no such tool: x", "no such tool: x"),
            ("too long\nReceived Model Group=house/x\nFallbacks=None", "too long"),
        ] {
            assert_eq!(shown(said), shown_as);
        }
        let ours = shown("");
        assert_eq!(shown("Incorrect API key provided: hunter2"), ours);
        assert_eq!(shown("bad header 'Authorization'"), ours);
    }

    #[test]
    fn an_error_is_read_in_every_form() {
        let read = |text: &str| {
            let raw: &RawValue = serde_json::from_str(text).unwrap();
            Failure::read(raw).within()
        };
        let rejected = |message: &str| Some(message.to_owned());
        for (text, status, message) in [
            (r#"{"code":400,"message":"no","type":null}"#, 400, rejected("no")),
            (r#"{"code":"404","message":"no"}"#, 404, rejected("no")),
            (r#"{"http_status":422,"message":"no"}"#, 422, rejected("no")),
            (r#"{"code":401,"message":"no"}"#, 502, None),
            (r#"{"code":429,"message":"no"}"#, 429, None),
            (r#"{"code":"server_error","message":"no"}"#, 502, None),
            (r#"{"code":503}"#, 503, None),
            (r#""Provider gone""#, 502, None),
            ("[1]", 502, None),
        ] {
            let error = read(text);
            assert_eq!(error.status().as_u16(), status, "{text}");
            let told = match error {
                Error::UpstreamRejected { message, .. } => Some(message),
                _ => None,
            };
            assert_eq!(told, message, "{text}");
        }
    }
}
