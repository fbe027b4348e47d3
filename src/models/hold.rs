//! Money set aside for one request before its upstream is called.
//!
//! Invariant: a hold row is open; a closed one is gone and its usage record says how it ended. It
//! carries all that recovery needs when the process that placed it is dead.

use super::attempt::Attempts;
use super::ids::{AccountId, ApiKeyId, InstanceId, RequestId, UserId};
use super::limits::{Counted, Subject};
use super::money::{NanoUsd, Tokens};
use super::openai::answer::Reported;
use super::timestamp::Timestamp;
use super::usage::{Ending, UsageRecord, UsageSource, flag};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub request_id: RequestId,
    pub account_id: AccountId,
    pub api_key_id: Option<ApiKeyId>,
    /// The user who asked, where it was not a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    pub amount_nusd: NanoUsd,
    pub owner: InstanceId,
    /// Written, it is as far from `placed_at` as the lease is long; a store that processes share
    /// counts that from its own clock.
    pub lease_expires_at: Timestamp,
    /// Name of the one that the request is at.
    pub upstream: String,
    pub model: String,
    pub price_id: String,
    pub prompt_tokens_estimate: Tokens,
    /// Pictures in the prompt, where the price has a fee for each.
    #[serde(default)]
    pub input_images: Option<i64>,
    /// Counted so far and noted now and then: what recovery charges when nobody knows better.
    pub completion_tokens_seen: Tokens,
    pub generation_id: Option<String>,
    pub idempotency_key: Option<String>,
    #[serde(with = "flag")]
    pub streamed: bool,
    pub placed_at: Timestamp,
    #[serde(flatten)]
    pub counted: Counted,
    /// The calls that failed before the one that it is at.
    #[serde(default, skip_serializing_if = "Attempts::is_empty")]
    pub tried: Attempts,
}

/// An estimated request whose upstream may still tell the truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingLookup {
    pub request_id: RequestId,
    pub account_id: AccountId,
    pub generation_id: String,
    pub attempts: i64,
    pub next_attempt_at: Timestamp,
    pub give_up_at: Timestamp,
}

/// A client's `Idempotency-Key`, so that a repetition is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    /// Account id and key.
    pub id: String,
    pub request_id: RequestId,
    pub expires_at: Timestamp,
}

impl Hold {
    /// The usage record that closes it, with the upstream's numbers and not priced yet.
    #[must_use]
    pub fn closed(
        &self,
        ending: Ending,
        source: UsageSource,
        reported: Reported,
        ended_at: Timestamp,
    ) -> UsageRecord {
        let Reported { tokens, cost_pico } = reported;
        UsageRecord {
            id: self.request_id,
            account_id: self.account_id,
            api_key_id: self.api_key_id,
            user_id: self.user_id,
            upstream: self.upstream.clone(),
            model: self.model.clone(),
            model_served: None,
            provider: None,
            generation_id: self.generation_id.clone(),
            streamed: self.streamed,
            ending,
            finish_reason: None,
            upstream_status: None,
            source,
            prompt_tokens: tokens.prompt,
            cached_tokens: tokens.cached,
            cache_write_tokens: tokens.cache_write,
            cache_write_1h_tokens: tokens.cache_write_1h,
            audio_prompt_tokens: tokens.audio_prompt,
            completion_tokens: tokens.completion,
            reasoning_tokens: tokens.reasoning,
            audio_completion_tokens: tokens.audio_completion,
            image_completion_tokens: tokens.image_completion,
            web_searches: tokens.web_searches,
            input_images: self.input_images,
            counted_prompt_tokens: None,
            counted_completion_tokens: None,
            counter: None,
            counter_exact: false,
            upstream_cost_pusd: cost_pico.and_then(|pico| i64::try_from(pico).ok()),
            charge_nusd: NanoUsd::ZERO,
            shortfall_nusd: NanoUsd::ZERO,
            hold_nusd: self.amount_nusd,
            price_id: self.price_id.clone(),
            attempts: i64::try_from(self.tried.0.len()).unwrap_or(i64::MAX).saturating_add(1),
            started_at: self.placed_at,
            first_byte_at: None,
            // A clock that was set back meanwhile.
            ended_at: ended_at.max(self.placed_at),
            tried: self.tried.clone(),
        }
    }

    /// Whose windows of rate it was counted in.
    pub fn counted_in(&self) -> impl Iterator<Item = Subject> + use<> {
        let Counted { counted_account, counted_key, .. } = self.counted;
        let account = counted_account.then(|| self.account_id.into());
        let key = self.api_key_id.filter(|_| counted_key).map(Subject::from);
        account.into_iter().chain(key)
    }

    /// Under which name its idempotency key is kept.
    #[must_use]
    pub fn idempotency_id(&self) -> Option<String> {
        self.idempotency_key.as_ref().map(|key| format!("{}:{key}", self.account_id))
    }
}
