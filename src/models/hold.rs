//! Money set aside for one request before its upstream is called.
//!
//! Invariant: a hold row is open; a closed one is gone and its usage record says how it ended. It
//! carries all that recovery needs when the process that placed it is dead.

use super::ids::{AccountId, ApiKeyId, InstanceId, RequestId};
use super::money::{NanoUsd, Tokens};
use super::timestamp::Timestamp;
use super::usage::flag;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub request_id: RequestId,
    pub account_id: AccountId,
    pub api_key_id: Option<ApiKeyId>,
    pub amount_nusd: NanoUsd,
    pub owner: InstanceId,
    pub lease_expires_at: Timestamp,
    pub upstream: String,
    pub model: String,
    pub price_id: String,
    pub prompt_tokens_estimate: Tokens,
    /// Counted so far and noted now and then: what recovery charges when nobody knows better.
    pub completion_tokens_seen: Tokens,
    pub generation_id: Option<String>,
    pub idempotency_key: Option<String>,
    #[serde(with = "flag")]
    pub streamed: bool,
    pub placed_at: Timestamp,
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
    /// Under which name its idempotency key is kept.
    #[must_use]
    pub fn idempotency_id(&self) -> Option<String> {
        self.idempotency_key.as_ref().map(|key| format!("{}:{key}", self.account_id))
    }
}
