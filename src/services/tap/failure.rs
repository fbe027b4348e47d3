//! What an upstream's own error means for the client, wherever it stood: with a status, in the body
//! of a 200, or in the middle of a stream.
//!
//! Invariant: the upstream's text reaches the client only where it is about the client's request
//! (400, 404, 413, 422), shortened, and without what tells of the operator (see `operator`). All
//! else is said in our own words, a moderation's word of a prompt too.

use super::operator::{Operator, split_class};
use crate::error::{About, Error};
use crate::models::openai::answer::is_truthy;
use crate::models::openai::lenient::{Object, Text};
use crate::models::openai::pairs::Pairs;
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
    about: Option<About>,
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
    #[serde(borrow)]
    metadata: Object<Metadata<'a>>,
}

/// OpenRouter's own word for what is wrong, and what a moderation says.
/// <https://openrouter.ai/docs/api-reference/errors-and-debugging>
#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata<'a> {
    #[serde(borrow)]
    error_type: Text<'a>,
    #[serde(borrow)]
    reasons: Option<&'a RawValue>,
    #[serde(borrow)]
    flagged_input: Text<'a>,
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
const MODEL_NOT_FOUND: &str = "model_not_found";
/// The words that are passed on.
const WORDS: [(&str, About); 3] = [
    (MODEL_NOT_FOUND, About::Model),
    ("context_length_exceeded", About::Length),
    ("content_policy_violation", About::Content),
];
/// LiteLLM has them as the name of its exception, at the beginning of the message.
/// <https://docs.litellm.ai/docs/exception_mapping>
const CLASSES: [(&str, About); 2] = [
    ("ContextWindowExceededError", About::Length),
    ("ContentPolicyViolationError", About::Content),
];

/// What a moderation quotes may be somebody's secret.
const FLAGGED: &str = "The model's provider has flagged this prompt.";

/// LiteLLM's word for the operator's key having spent its budget.
const BUDGET_EXCEEDED: &str = "budget_exceeded";

/// Members by which an object that is no part of an answer says that something failed: those of
/// vLLM and FastChat (`{"object":"error","message":…}`, `{"text":…,"error_code":…}`), of FastAPI
/// (`{"detail":…}`), and of what stands between (`{"message":…}`, `{"errors":[…]}`).
const SIGNS: &[&str] = &["detail", "errors", "error_code"];
const SIGNS_AS_TEXT: &[&str] = &["message", "msg"];
/// Members that may say what the object is.
const KINDS: &[&str] = &["object", "type"];

impl Failure {
    /// Reads an `error` member: an object, or just a text.
    #[must_use]
    pub fn read(error: &RawValue) -> Self {
        if let Ok(Text(Some(message))) = serde_json::from_str(error.get()) {
            return Self { message: message.into_owned(), ..Self::default() };
        }
        Self::of(serde_json::from_str(error.get()).unwrap_or_default())
    }

    /// Reads an object that is no part of an answer, where it says without an `error` member that
    /// something failed. `is_error`: what it came with says so.
    #[must_use]
    pub fn bare(text: &str, is_error: bool) -> Option<Self> {
        let pairs: Result<Pairs<'_>, _> = serde_json::from_str(text);
        let is_failure = is_error || pairs.is_ok_and(|Pairs(members)| tells_of_failure(&members));
        is_failure.then(|| Self::of(serde_json::from_str(text).unwrap_or_default()))
    }

    fn of(said: Said<'_>) -> Self {
        let code = said.code.map(|code| code.get().trim_matches('"'));
        let available = said.availability.value.code.0.as_deref();
        let Metadata { error_type, reasons, flagged_input } = &said.metadata.value;
        let words = [code, available, error_type.0.as_deref()];
        let is_said = |(word, _): &&(&str, About)| words.contains(&Some(word));
        let is_flagged = reasons.is_some_and(is_truthy) || flagged_input.0.is_some();
        let word = WORDS.iter().find(is_said).map(|(_, about)| *about);
        let named = said.message.0.as_deref().and_then(class);
        let about = is_flagged.then_some(About::Content).or(word).or(named);
        let owned = |text: Text<'_>| text.0.map(Cow::into_owned).unwrap_or_default();
        Self {
            status: said.code.and_then(status_of).or_else(|| said.http_status.and_then(status_of)),
            kind: owned(said.kind),
            message: owned(said.message),
            about,
        }
    }

    /// Reads the body of a refusal; nothing, where it has no error in it.
    #[must_use]
    pub fn of_body(body: &[u8]) -> Self {
        let text = std::str::from_utf8(body).unwrap_or_default();
        let body: Body<'_> = serde_json::from_str(text).unwrap_or_default();
        body.error.map(Self::read).or_else(|| Self::bare(text, false)).unwrap_or_default()
    }

    /// What to tell the client of an error that came with this status of its own.
    #[must_use]
    pub fn with_status(
        self,
        status: StatusCode,
        retry_after: Option<HeaderValue>,
        operator: &Operator,
    ) -> Error {
        if self.kind == BUDGET_EXCEEDED {
            return Error::UpstreamRefused { status };
        }
        match status {
            StatusCode::FORBIDDEN if self.about == Some(About::Content) => {
                let (message, about) = (FLAGGED.to_owned(), About::Content);
                Error::UpstreamRejected { status, message, about }
            }
            StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED | StatusCode::FORBIDDEN => {
                Error::UpstreamRefused { status }
            }
            StatusCode::TOO_MANY_REQUESTS => Error::UpstreamRateLimited { retry_after },
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNPROCESSABLE_ENTITY => {
                // The path is always the same: what is not found with status 404 is the model too.
                let is_missing = status == StatusCode::NOT_FOUND;
                let other = if is_missing { About::Model } else { About::Request };
                let message = operator.shown(&self.message);
                Error::UpstreamRejected { status, message, about: self.about.unwrap_or(other) }
            }
            _ => Error::UpstreamFailed { status, reason: "its status", retry_after },
        }
    }

    /// What to tell the client of an error in an answer whose status was 200.
    #[must_use]
    pub fn within(self, operator: &Operator) -> Error {
        let reason = "an error in its answer";
        match self.status {
            Some(status) if status.is_client_error() => self.with_status(status, None, operator),
            _ if self.kind == BUDGET_EXCEEDED => self.with_status(StatusCode::OK, None, operator),
            status => {
                let status = status.unwrap_or(StatusCode::OK);
                Error::UpstreamFailed { status, reason, retry_after: None }
            }
        }
    }
}

/// What the name of LiteLLM's exception says.
fn class(message: &str) -> Option<About> {
    let (class, _) = split_class(message)?;
    CLASSES.iter().find(|(name, _)| *name == class).map(|(_, about)| *about)
}

/// As a number or as text; words such as `server_error` are none.
fn status_of(code: &RawValue) -> Option<StatusCode> {
    StatusCode::from_bytes(code.get().trim_matches('"').as_bytes()).ok()
}

fn tells_of_failure(members: &[(Cow<'_, str>, &RawValue)]) -> bool {
    let has = |names: &[&str], is_such: fn(&RawValue) -> bool| {
        let is_one = |name: &str| names.iter().any(|one| one.eq_ignore_ascii_case(name));
        members.iter().any(|(name, value)| is_one(name) && is_such(value))
    };
    let is_text = |value: &RawValue| value.get().starts_with('"') && is_truthy(value);
    // With choices, be there none, it is a chunk, whatever else it has.
    let is_chunk = has(&["choices"], |value| value.get() != "null");
    has(KINDS, |value| value.get() == "\"error\"")
        || (!is_chunk && (has(SIGNS, is_truthy) || has(SIGNS_AS_TEXT, is_text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_in_every_form() {
        let read = |text: &str| {
            let raw: &RawValue = serde_json::from_str(text).unwrap();
            Failure::read(raw).within(&Operator::default())
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

    #[test]
    fn words_that_programs_ask_for_are_passed_on() {
        let said = |text: &str, status: u16| {
            let raw: &RawValue = serde_json::from_str(text).unwrap();
            let status = StatusCode::from_u16(status).unwrap();
            let error = Failure::read(raw).with_status(status, None, &Operator::default());
            (error.status().as_u16(), error.code())
        };
        let too_long = r#"{"message":"too long","code":"context_length_exceeded"}"#;
        let flagged =
            r#"{"code":403,"message":"x","metadata":{"reasons":["hate"],"flagged_input":"y"}}"#;
        let of_openrouter =
            r#"{"code":400,"message":"no","metadata":{"error_type":"context_length_exceeded"}}"#;
        let of_litellm = r#"{"message":"litellm.ContextWindowExceededError: no","code":"400"}"#;
        let against_policy = r#"{"code":403,"metadata":{"error_type":"content_policy_violation"}}"#;
        for (text, status, told) in [
            (of_openrouter, 400, (400, Some("context_length_exceeded"))),
            (of_litellm, 400, (400, Some("context_length_exceeded"))),
            (against_policy, 403, (403, Some("content_policy_violation"))),
            (too_long, 400, (400, Some("context_length_exceeded"))),
            (too_long, 403, (502, Some("upstream_refused"))),
            (flagged, 403, (403, Some("content_policy_violation"))),
            (r#"{"code":403,"metadata":{"reasons":[]}}"#, 403, (502, Some("upstream_refused"))),
            (r#"{"message":"no"}"#, 404, (404, Some("model_not_found"))),
            (r#"{"message":"no","code":"operators_own"}"#, 400, (400, None)),
        ] {
            assert_eq!(said(text, status), told, "{text}");
        }
    }

    #[test]
    fn an_object_without_an_error_may_be_one() {
        let status = |text: &str| {
            let failure = Failure::bare(text, false)?;
            Some(failure.within(&Operator::default()).status().as_u16())
        };
        for (text, told_as) in [
            (r#"{"object":"error","message":"no","type":"BadRequestError","code":400}"#, 400),
            (r#"{"object":"error","message":"no","code":"401"}"#, 502),
            (r#"{"object":"error","choices":[]}"#, 502),
            (r#"{"type":"error"}"#, 502),
            (r#"{"text":"NETWORK ERROR","error_code":50001}"#, 502),
            (r#"{"detail":[{"loc":["body"],"msg":"no"}]}"#, 502),
            (r#"{"errors":[{"message":"no"}],"choices":null}"#, 502),
            (r#"{"Message":"no"}"#, 502),
            (r#"{"code":429,"msg":"no"}"#, 429),
        ] {
            assert_eq!(status(text), Some(told_as), "{text}");
        }
        for sound in [
            "{}",
            r#"{"choices":[],"message":"queued"}"#,
            r#"{"choices":[],"prompt_filter_results":[{"prompt_index":0}]}"#,
            r#"{"object":"status","state":"searching","error_code":0}"#,
            r#"{"type":"message_start","message":{"role":"assistant"}}"#,
            r#"{"detail":null,"errors":[],"message":""}"#,
            "[1]",
            "{",
        ] {
            assert_eq!(status(sound), None, "{sound}");
        }
        assert!(Failure::bare("{}", true).is_some(), "the event's type says so");
    }
}
