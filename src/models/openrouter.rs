//! OpenRouter's answers about a key and an account's credits, as Tollgate writes them.
//!
//! Invariant: the members are OpenRouter's, all of them; amounts are exact decimals of integers.
//! <https://openrouter.ai/docs/api-reference/api-keys/get-current-key>
//! <https://openrouter.ai/docs/api-reference/credits/get-credits>

use super::ids::UserId;
use super::money::Usd;
use super::timestamp::Timestamp;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Data<T> {
    pub data: T,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are OpenRouter's members")]
pub struct KeyInfo {
    pub label: String,
    pub limit: Option<Usd>,
    pub limit_remaining: Option<Usd>,
    /// `daily`, `weekly` or `monthly`; `None`: never.
    pub limit_reset: Option<&'static str>,
    pub usage: Usd,
    pub usage_daily: Usd,
    pub usage_weekly: Usd,
    pub usage_monthly: Usd,
    pub byok_usage: Usd,
    pub byok_usage_daily: Usd,
    pub byok_usage_weekly: Usd,
    pub byok_usage_monthly: Usd,
    pub include_byok_in_limit: bool,
    pub is_free_tier: bool,
    pub is_management_key: bool,
    pub is_provisioning_key: bool,
    pub creator_user_id: Option<UserId>,
    pub expires_at: Option<Timestamp>,
    pub rate_limit: RateLimit,
}

/// The key's own, in requests; -1 where it has none.
#[derive(Debug, Serialize)]
pub struct RateLimit {
    pub requests: i64,
    pub interval: &'static str,
    pub note: &'static str,
}

#[derive(Debug, Serialize)]
pub struct Credits {
    pub total_credits: Usd,
    pub total_usage: Usd,
}
