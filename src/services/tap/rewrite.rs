//! The rewrites of an answer, all of them, as splices in its text.
//!
//! Invariant: the operator's cost never reaches the client; every member that is not named here
//! stays byte for byte.

use crate::error::Error;
use crate::models::money::NanoUsd;
use crate::models::openai::answer::Answer;
use crate::models::openai::splice::Edits;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The members that are replaced, `null` included.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    choices: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Costs<'a> {
    #[serde(borrow, default)]
    cost: Option<&'a RawValue>,
    #[serde(borrow, default)]
    cost_details: Option<&'a RawValue>,
}

/// Text as one event.
pub fn event(data: &str) -> Bytes {
    let mut event = String::with_capacity(data.len() + 8);
    event.push_str("data: ");
    // Text that came over several data lines has newlines between members.
    event.extend(data.chars().map(|character| match character {
        '\n' | '\r' => ' ',
        other => other,
    }));
    event.push_str("\n\n");
    event.into()
}

/// The chunk in OpenAI's form of a usage chunk: no choices, the client's price.
pub fn usage_chunk(text: &str, charge: Option<NanoUsd>) -> Option<String> {
    let members: Members<'_> = serde_json::from_str(text).ok()?;
    let mut edits = Edits::default();
    if let Some(choices) = members.choices.filter(|choices| choices.get() != "[]") {
        edits.replace(text, choices, "[]".to_owned());
    }
    show_price(text, members.usage?, charge, &mut edits);
    Some(edits.apply(text))
}

/// The chunk without its usage.
pub fn without_usage(text: &str) -> Option<Bytes> {
    let members: Members<'_> = serde_json::from_str(text).ok()?;
    let mut edits = Edits::default();
    edits.replace(text, members.usage?, "null".to_owned());
    Some(event(&edits.apply(text)))
}

/// A whole completion with the client's price in its usage; `None`: as it is.
pub fn plain(text: &str, charge: NanoUsd) -> Option<String> {
    let members: Members<'_> = serde_json::from_str(text).ok()?;
    let mut edits = Edits::default();
    show_price(text, members.usage?, Some(charge), &mut edits);
    if edits.is_empty() { None } else { Some(edits.apply(text)) }
}

fn show_price(text: &str, usage: &RawValue, charge: Option<NanoUsd>, edits: &mut Edits) {
    let Ok(costs) = serde_json::from_str::<Costs<'_>>(usage.get()) else {
        return;
    };
    if let Some(cost) = costs.cost {
        let shown = charge.map_or_else(|| "null".to_owned(), |charge| charge.to_string());
        edits.replace(text, cost, shown);
    }
    if let Some(details) = costs.cost_details {
        edits.replace(text, details, "null".to_owned());
    }
}

/// Statuses that are about the operator's key or credit, not about the request.
const OPERATORS_CODES: &[&str] = &["401", "402", "403"];
/// What addresses and accounts of the operator look like in a message.
const OPERATORS_WORDS: &[&str] = &["://", "org-", "proj_", "sk-", "api_key", "api key"];

/// Whether an error in a stream tells of the operator's account rather than of the request.
pub fn is_operators(error: &RawValue) -> bool {
    /// The code comes as a number or as text.
    #[derive(Deserialize)]
    struct Code<'a> {
        #[serde(borrow, default)]
        code: Option<&'a RawValue>,
    }

    let code = serde_json::from_str::<Code<'_>>(error.get()).ok().and_then(|error| error.code);
    let code = code.map(|code| code.get().trim_matches('"')).unwrap_or_default();
    let text = error.get().to_ascii_lowercase();
    OPERATORS_CODES.contains(&code) || OPERATORS_WORDS.iter().any(|word| text.contains(word))
}

/// The chunk with an error in its place that tells nothing of the operator.
pub fn with_error(text: &str) -> Option<Bytes> {
    let error = serde_json::from_str::<Members<'_>>(text).ok()?.error?;
    let ours = Error::UpstreamFailed {
        status: axum::http::StatusCode::OK,
        reason: "an error in the stream",
        retry_after: None,
    };
    let envelope = ours.envelope();
    let inner = envelope.strip_prefix("{\"error\":")?.strip_suffix('}')?;
    let mut edits = Edits::default();
    edits.replace(text, error, inner.to_owned());
    Some(event(&edits.apply(text)))
}

/// Whether a chunk brings nothing that a client would read.
pub fn is_without_text(chunk: &Answer<'_>) -> bool {
    chunk.choices.0.iter().all(|choice| {
        let delta = choice.value.said();
        let texts = [&delta.content, &delta.refusal, &delta.reasoning, &delta.reasoning_content];
        texts.iter().all(|text| text.0.as_deref().is_none_or(str::is_empty))
            && delta.tool_calls.0.is_empty()
            && !delta.function_call.given
    })
}
