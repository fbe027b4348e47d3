//! The rewrites of an answer, all of them, as splices in its text.
//!
//! Invariants: the operator's cost, and an upstream's error as it worded it, never reach the
//! client; every member that is not named here stays byte for byte.

use crate::error::Error;
use crate::models::money::NanoUsd;
use crate::models::openai::answer::{Answer, Delta};
use crate::models::openai::pairs::Pairs;
use crate::models::openai::splice::Edits;
use crate::services::sse::Verdict;
use bytes::Bytes;
use serde_json::value::RawValue;

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

/// The chunk in OpenAI's form of a usage chunk: no choices, the client's price. `None`: it cannot
/// be read member by member.
pub fn usage_chunk(text: &str, charge: Option<NanoUsd>) -> Option<String> {
    let Pairs(pairs): Pairs<'_> = serde_json::from_str(text).ok()?;
    let mut edits = Edits::default();
    let mut has_choices = false;
    for (name, value) in pairs {
        match name.as_ref() {
            "choices" => {
                has_choices = true;
                if value.get() != NO_CHOICES {
                    edits.replace(text, value, NO_CHOICES.to_owned());
                }
            }
            "usage" => show_price(text, value, charge, &mut edits),
            _ => {}
        }
    }
    if !has_choices {
        edits.add_members(text, text, &format!("\"choices\":{NO_CHOICES}"));
    }
    Some(edits.apply(text))
}

/// SDKs go through the choices of every chunk: nothing in their place is not an empty list.
const NO_CHOICES: &str = "[]";

/// The chunk without its usage; not at all where that cannot be taken off.
pub fn without_usage(text: &str) -> Verdict {
    match usage_taken_off(text) {
        Some(edits) if edits.is_empty() => Verdict::Pass,
        Some(edits) => Verdict::Replace(event(&edits.apply(text))),
        None => Verdict::Drop,
    }
}

fn usage_taken_off(text: &str) -> Option<Edits> {
    let Pairs(pairs): Pairs<'_> = serde_json::from_str(text).ok()?;
    let mut edits = Edits::default();
    for (_, usage) in pairs.into_iter().filter(|(name, _)| name == "usage") {
        if usage.get() != "null" {
            edits.replace(text, usage, "null".to_owned());
        }
    }
    Some(edits)
}

/// A whole completion with the client's price in its usage, or without a usage that cannot be
/// believed, which has no price; `None`: as it is.
///
/// # Errors
/// [`Error::UpstreamFailed`] when it cannot be read member by member.
pub fn plain(text: &str, charge: Option<NanoUsd>) -> Result<Option<String>, Error> {
    let edits = if charge.is_some() { priced(text, charge) } else { usage_taken_off(text) };
    let edits = edits.ok_or_else(|| super::not_a_completion("too many members"))?;
    Ok((!edits.is_empty()).then(|| edits.apply(text)))
}

fn priced(text: &str, charge: Option<NanoUsd>) -> Option<Edits> {
    if !names_cost(text) {
        return Some(Edits::default());
    }
    let Pairs(pairs): Pairs<'_> = serde_json::from_str(text).ok()?;
    let mut edits = Edits::default();
    for (_, usage) in pairs.into_iter().filter(|(name, _)| name == "usage") {
        show_price(text, usage, charge, &mut edits);
    }
    Some(edits)
}

/// Whether there can be a member with "cost" in its name, which may be spelt with escapes.
fn names_cost(text: &str) -> bool {
    text.contains("cost") || text.contains("\\u00")
}

/// `cost` becomes the client's price; what else a provider says of its prices is not the client's
/// (`cost_details`, `estimated_cost`, `upstream_inference_cost`).
fn show_price(text: &str, usage: &RawValue, charge: Option<NanoUsd>, edits: &mut Edits) {
    let Ok(Pairs(members)) = serde_json::from_str::<Pairs<'_>>(usage.get()) else {
        // Only an object has costs in it.
        if usage.get().starts_with('{') {
            edits.replace(text, usage, "null".to_owned());
        }
        return;
    };
    for (name, value) in members.into_iter().filter(|(_, value)| value.get() != "null") {
        if name == "cost" {
            let shown = charge.map_or_else(|| "null".to_owned(), |charge| charge.to_string());
            edits.replace(text, value, shown);
        } else if name.contains("cost") {
            edits.replace(text, value, "null".to_owned());
        }
    }
}

/// What a client may read of an answer that failed; anything else that came with the error is the
/// operator's business (`user_id`, `openrouter_metadata`).
const KEPT_WITH_ERROR: &[&str] = &[
    "id",
    "object",
    "created",
    "model",
    "provider",
    "service_tier",
    "system_fingerprint",
    "choices",
    "usage",
];

/// An answer or a chunk with errors in it, which are told in our words. `None`: it cannot be read
/// member by member.
pub fn with_error(text: &str, error: &Error, charge: Option<NanoUsd>) -> Option<String> {
    let Pairs(pairs): Pairs<'_> = serde_json::from_str(text).ok()?;
    let mut edits = Edits::default();
    for (name, value) in pairs {
        match name.as_ref() {
            "error" => edits.replace(text, value, inner(error)?),
            "choices" => tell_of_choices(text, value, error, &mut edits)?,
            "usage" => show_price(text, value, charge, &mut edits),
            name if KEPT_WITH_ERROR.contains(&name) => {}
            _ => edits.replace(text, value, "null".to_owned()),
        }
    }
    Some(edits.apply(text))
}

/// OpenRouter has the error of a choice within it.
fn tell_of_choices(text: &str, choices: &RawValue, error: &Error, edits: &mut Edits) -> Option<()> {
    let choices: Vec<Pairs<'_>> = serde_json::from_str(choices.get()).ok()?;
    for (name, value) in choices.into_iter().flat_map(|Pairs(pairs)| pairs) {
        if name == "error" && value.get() != "null" {
            edits.replace(text, value, inner(error)?);
        }
    }
    Some(())
}

/// The object in the envelope.
fn inner(error: &Error) -> Option<String> {
    let envelope = error.envelope();
    let inner = envelope.strip_prefix("{\"error\":")?.strip_suffix('}')?;
    Some(inner.to_owned())
}

/// Whether a chunk brings nothing that a client would read.
pub fn is_without_text(chunk: &Answer<'_>) -> bool {
    chunk.choices.0.iter().all(|choice| {
        let delta = choice.value.said();
        let Delta { content, refusal, reasoning, reasoning_content, .. } = delta;
        let texts = [&content.text, &refusal.0, &reasoning.0, &reasoning_content.0];
        texts.iter().all(|text| text.as_deref().is_none_or(str::is_empty))
            && !delta.has_more()
            && delta.tool_calls.0.is_empty()
            && !delta.function_call.given
    })
}
