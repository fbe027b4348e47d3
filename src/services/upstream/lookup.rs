//! Asks OpenRouter afterwards what a generation used and cost: `GET /generation?id=`.
//!
//! A 404 means "not yet": the row appears some time after the answer's end, later for interrupted
//! streams. So it is asked again with doubling pauses until the configured time is over.

use super::Upstream;
use crate::error::Error;
use crate::models::money::Tokens;
use crate::models::openai::answer::{Reported, plausible_cost, plausible_tokens};
use crate::models::usage::{TokenUsage, shortened};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the upstream knows about a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub reported: Reported,
    pub model: Option<String>,
    pub provider: Option<String>,
    pub finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    data: Generation<'a>,
}

/// Billing uses the native counts. <https://openrouter.ai/docs/api-reference/get-a-generation>
#[derive(Deserialize)]
struct Generation<'a> {
    #[serde(default)]
    native_tokens_prompt: Option<i64>,
    #[serde(default)]
    native_tokens_completion: Option<i64>,
    #[serde(default)]
    native_tokens_reasoning: Option<i64>,
    #[serde(default)]
    native_tokens_completion_images: Option<i64>,
    #[serde(default)]
    native_tokens_cached: Option<i64>,
    #[serde(borrow, default)]
    total_cost: Option<&'a RawValue>,
    #[serde(borrow, default)]
    upstream_inference_cost: Option<&'a RawValue>,
    #[serde(default)]
    is_byok: Option<bool>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    provider_name: Option<String>,
    #[serde(default)]
    finish_reason: Option<String>,
}

const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Ids go into a URL: nothing but these characters is asked for.
const ID_BYTES_MAX: usize = 200;

impl Upstream {
    /// What the generation used, or `None` when the upstream does not say in time or `stop` comes.
    pub async fn look_up(&self, id: &str, stop: &CancellationToken) -> Option<Found> {
        if !self.kind.has_lookup() || !is_id(id) {
            return None;
        }
        let look_up = tokio::time::timeout(self.terms.lookup, self.look_up_until_found(id));
        tokio::select! {
            found = look_up => found.ok(),
            () = stop.cancelled() => None,
        }
    }

    async fn look_up_until_found(&self, id: &str) -> Found {
        let mut pause = self.terms.lookup_first;
        loop {
            tokio::time::sleep(pause).await;
            match self.look_up_once(id).await {
                Ok(Some(found)) => return found,
                Ok(None) => {}
                Err(error) => tracing::debug!("a look-up failed and is tried again: {error}"),
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Asks once; `None`: it does not know, yet.
    pub async fn look_up_once(&self, id: &str) -> Result<Option<Found>, Error> {
        if !self.kind.has_lookup() || !is_id(id) {
            return Ok(None);
        }
        let (status, body) = self.ask(&format!("/generation?id={id}")).await?;
        match status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => {
                return Err(Error::UpstreamFailed {
                    status,
                    reason: "no look-up",
                    retry_after: None,
                });
            }
        }
        Ok(serde_json::from_slice::<Envelope<'_>>(&body).ok().and_then(|found| found.data.read()))
    }
}

impl Generation<'_> {
    fn read(self) -> Option<Found> {
        let prompt = self.native_tokens_prompt.and_then(plausible_tokens)?;
        let completion = self.native_tokens_completion.and_then(plausible_tokens)?;
        let part = |tokens: Option<i64>, whole: i64| Tokens(tokens.unwrap_or(0).clamp(0, whole));
        let reasoning = part(self.native_tokens_reasoning, completion);
        // Charged apart from each other: together no more than the whole.
        let rest = completion.saturating_sub(reasoning.0);
        let tokens = TokenUsage {
            prompt: Tokens(prompt),
            cached: part(self.native_tokens_cached, prompt),
            completion: Tokens(completion),
            reasoning,
            image_completion: part(self.native_tokens_completion_images, rest),
            ..TokenUsage::default()
        };
        Some(Found {
            reported: Reported { tokens, cost_pico: self.cost_pico() },
            model: self.model.as_deref().map(shortened),
            provider: self.provider_name.as_deref().map(shortened),
            finish_reason: self.finish_reason.as_deref().map(shortened),
        })
    }

    /// As in `usage`: the provider's price comes on top only with a bring-your-own key.
    fn cost_pico(&self) -> Option<i128> {
        let cost = |raw: Option<&RawValue>| plausible_cost(raw?.get());
        let total = cost(self.total_cost)?;
        match self.is_byok {
            Some(true) => total.checked_add(cost(self.upstream_inference_cost)?),
            _ => Some(total),
        }
    }
}

fn is_id(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !id.is_empty() && id.len() <= ID_BYTES_MAX && id.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(cost: &str, completion: i64) -> Option<Found> {
        let text = format!(
            r#"{{"native_tokens_prompt":12,"native_tokens_completion":{completion},"total_cost":{cost}}}"#
        );
        serde_json::from_str::<Generation<'_>>(&text).unwrap().read()
    }

    #[test]
    fn pictures_are_a_part_of_the_completion() {
        let text = r#"{"native_tokens_prompt":12,"native_tokens_completion":100,"total_cost":1,
            "native_tokens_reasoning":30,"native_tokens_completion_images":90}"#;
        let tokens = serde_json::from_str::<Generation<'_>>(text).unwrap().read().unwrap();
        let TokenUsage { completion, reasoning, image_completion, .. } = tokens.reported.tokens;
        assert_eq!([completion, reasoning, image_completion].map(|it| it.0), [100, 30, 70]);
    }

    #[test]
    fn what_cannot_be_believed_was_not_found() {
        let reported = found("0.0001", 5).unwrap().reported;
        assert_eq!(reported.cost_pico, Some(100_000_000));
        assert_eq!(reported.tokens.completion, Tokens(5));
        assert_eq!(found("0.0001", 9_000_000_000_000_000_000), None);
        assert_eq!(found("0.0001", -5), None);
        for cost in ["1e5", "-0.1", "null"] {
            assert_eq!(found(cost, 5).unwrap().reported.cost_pico, None, "{cost}");
        }
    }
}
