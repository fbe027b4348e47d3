//! What a request used, where the numbers come from, and how it ended.
//!
//! Invariant: cached and cache-write tokens are parts of the prompt's, reasoning tokens are part of
//! the completion's; nothing ever adds a part to its whole.

use super::attempt::Attempts;
use super::ids::{AccountId, ApiKeyId, RequestId, UserId};
use super::money::{NanoUsd, Tokens};
use super::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

/// Token numbers of one request. The parts are within the totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    pub prompt: Tokens,
    /// Within `prompt`: read from the provider's cache.
    pub cached: Tokens,
    /// Within `prompt`: written to the provider's cache, for minutes.
    pub cache_write: Tokens,
    /// Within `prompt`: written to the provider's cache, for an hour.
    pub cache_write_1h: Tokens,
    /// Within `prompt`.
    pub audio_prompt: Tokens,
    pub completion: Tokens,
    /// Within `completion`.
    pub reasoning: Tokens,
    /// Within `completion`.
    pub audio_completion: Tokens,
    /// Within `completion`.
    pub image_completion: Tokens,
    /// Not tokens: searches that the provider made.
    pub web_searches: i64,
}

/// What a charge is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub tokens: TokenUsage,
    /// Pictures in the prompt that have a fee.
    pub images: i64,
    /// What the operator pays, in pico-USD. `None`: unknown.
    pub cost_pico: Option<i128>,
    /// The upstream said that its answer failed.
    pub has_failed: bool,
    /// Rates may depend on the time of day.
    pub at: Timestamp,
}

/// Where the billed numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The upstream's `usage` in the answer.
    Upstream,
    /// Asked of the upstream afterwards.
    Lookup,
    /// Our own count of the text that passed.
    Counted,
    /// Our own count with something unknown in it: a vocabulary, a part we never saw.
    Estimated,
    /// Nothing was used; the hold was voided.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Completed,
    UpstreamFailed,
    ClientGone,
    /// The account could not pay for more of the stream.
    CutOff,
    /// The process died; another one, or the next start, closed the hold.
    Killed,
}

/// One row of `usage_records`; the members are the columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    pub id: RequestId,
    pub account_id: AccountId,
    pub api_key_id: Option<ApiKeyId>,
    /// The user who asked, where it was not a key. Left out where there is none, so that the hashes
    /// of older records stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// Name of the one that answered, or was called last.
    pub upstream: String,
    pub model: String,
    pub model_served: Option<String>,
    pub provider: Option<String>,
    pub generation_id: Option<String>,
    #[serde(with = "flag")]
    pub streamed: bool,
    pub ending: Ending,
    pub finish_reason: Option<String>,
    pub upstream_status: Option<i64>,
    pub source: UsageSource,
    pub prompt_tokens: Tokens,
    pub cached_tokens: Tokens,
    pub cache_write_tokens: Tokens,
    pub cache_write_1h_tokens: Tokens,
    pub audio_prompt_tokens: Tokens,
    pub completion_tokens: Tokens,
    pub reasoning_tokens: Tokens,
    pub audio_completion_tokens: Tokens,
    pub image_completion_tokens: Tokens,
    pub web_searches: i64,
    /// Pictures in the prompt, where the price has a fee for each. Left out where there is none, so
    /// that the hashes of older records stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_images: Option<i64>,
    pub counted_prompt_tokens: Option<Tokens>,
    pub counted_completion_tokens: Option<Tokens>,
    pub counter: Option<String>,
    #[serde(with = "flag")]
    pub counter_exact: bool,
    pub upstream_cost_pusd: Option<i64>,
    /// In a settlement: what the price says. In the table: what was charged.
    pub charge_nusd: NanoUsd,
    pub shortfall_nusd: NanoUsd,
    pub hold_nusd: NanoUsd,
    pub price_id: String,
    pub attempts: i64,
    pub started_at: Timestamp,
    pub first_byte_at: Option<Timestamp>,
    pub ended_at: Timestamp,
    /// Every call, where there was more to it than one answer. Left out where there was not, so
    /// that the hashes of older records stay as they are.
    #[serde(default, skip_serializing_if = "Attempts::is_empty")]
    pub tried: Attempts,
}

/// What of a usage record says which billing events it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    pub id: RequestId,
    pub account_id: AccountId,
    pub prompt_tokens: Tokens,
    pub completion_tokens: Tokens,
    pub charge_nusd: NanoUsd,
    pub ended_at: Timestamp,
}

/// What was learnt of a request after its usage record was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageCorrection {
    pub request_id: RequestId,
    pub account_id: AccountId,
    pub generation_id: String,
    pub prompt_tokens: Tokens,
    pub completion_tokens: Tokens,
    pub upstream_cost_pusd: Option<i64>,
    /// What should have been charged.
    pub charge_nusd: NanoUsd,
    /// What the ledger entry gives back, or takes when negative.
    pub difference_nusd: NanoUsd,
    pub created_at: Timestamp,
}

/// OpenRouter's `finish_reason` of an answer whose provider failed.
/// <https://openrouter.ai/docs/api-reference/errors-and-debugging>
#[must_use]
pub fn tells_of_failure(finish_reason: &str) -> bool {
    finish_reason == "error"
}

impl UsageRecord {
    /// What its charge was made of.
    #[must_use]
    pub fn used(&self) -> Used {
        Used {
            tokens: TokenUsage {
                prompt: self.prompt_tokens,
                cached: self.cached_tokens,
                cache_write: self.cache_write_tokens,
                cache_write_1h: self.cache_write_1h_tokens,
                audio_prompt: self.audio_prompt_tokens,
                completion: self.completion_tokens,
                reasoning: self.reasoning_tokens,
                audio_completion: self.audio_completion_tokens,
                image_completion: self.image_completion_tokens,
                web_searches: self.web_searches,
            },
            images: self.input_images.unwrap_or_default(),
            cost_pico: self.upstream_cost_pusd.map(i128::from),
            has_failed: self.has_failed(),
            at: self.started_at,
        }
    }

    fn has_failed(&self) -> bool {
        self.ending == Ending::UpstreamFailed
            || self.finish_reason.as_deref().is_some_and(tells_of_failure)
    }

    /// Drops what the upstream calls things; the numbers stay, and what they were made by.
    pub fn forget_names(&mut self) {
        self.model_served = None;
        self.provider = None;
        self.generation_id = None;
        self.finish_reason = self.finish_reason.take().filter(|reason| tells_of_failure(reason));
    }

    #[must_use]
    pub fn outline(&self) -> Outline {
        Outline {
            id: self.id,
            account_id: self.account_id,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            charge_nusd: self.charge_nusd,
            ended_at: self.ended_at,
        }
    }

    #[must_use]
    pub fn is_billable(&self) -> bool {
        self.outline().is_billable()
    }
}

impl Outline {
    /// Whether there is anything to tell a sink.
    #[must_use]
    pub fn is_billable(&self) -> bool {
        self.prompt_tokens.0 > 0 || self.completion_tokens.0 > 0 || !self.charge_nusd.is_zero()
    }
}

/// A name from an upstream as it may go into a table: without control characters (PostgreSQL takes
/// no NUL), and not endless.
#[must_use]
pub fn shortened(name: &str) -> String {
    // As nearly all names are.
    if name.len() <= NAME_CHARS_MAX && name.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return name.to_owned();
    }
    name.chars().filter(|character| !character.is_control()).take(NAME_CHARS_MAX).collect()
}

const NAME_CHARS_MAX: usize = 200;

/// Booleans that come back from SQLite's JSON as 0 and 1.
pub mod flag {
    use serde::{Deserializer, Serializer, de};
    use std::fmt;

    struct Flag;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(*value)
    }

    /// # Errors
    /// When the value is neither a boolean nor 0 or 1.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(Flag)
    }

    impl de::Visitor<'_> for Flag {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a boolean, 0 or 1")
        }

        fn visit_bool<E>(self, value: bool) -> Result<bool, E> {
            Ok(value)
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<bool, E> {
            match value {
                0 => Ok(false),
                1 => Ok(true),
                other => Err(E::invalid_value(de::Unexpected::Signed(other), &self)),
            }
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<bool, E> {
            self.visit_i64(i64::try_from(value).unwrap_or(i64::MAX))
        }
    }
}
