//! How fast an account or a key may go, and what a request is told about it.
//!
//! Invariant: a limit holds in every span of a minute, not only in aligned ones; what was counted
//! is in `window`, and what may still be counted is decided by the ledger's batch (`store::books`).

use super::ids::{AccountId, ApiKeyId};
use super::money::Tokens;
use super::timestamp::Timestamp;
use super::usage::flag;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use uuid::Uuid;

/// `None`: no limit of this kind here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    pub requests_per_minute: Option<i64>,
    /// Prompt and completion together.
    pub tokens_per_minute: Option<i64>,
    /// Requests that run at the same time.
    pub concurrent_requests: Option<i64>,
}

impl RateLimits {
    /// Each of these, else the other's.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            requests_per_minute: self.requests_per_minute.or(other.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.or(other.tokens_per_minute),
            concurrent_requests: self.concurrent_requests.or(other.concurrent_requests),
        }
    }

    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What is in force for one request. A caller without a key has none of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsInForce {
    pub account: RateLimits,
    pub key: RateLimits,
}

impl LimitsInForce {
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.account.is_none() && self.key.is_none()
    }

    /// The tighter one.
    #[must_use]
    pub fn tokens_per_minute(&self) -> Option<Tokens> {
        let limits = [self.account.tokens_per_minute, self.key.tokens_per_minute];
        limits.into_iter().flatten().min().map(Tokens)
    }
}

/// Whose requests are counted: an account or a key. Their ids are made by one generator and never
/// meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Subject(pub Uuid);

impl From<AccountId> for Subject {
    fn from(id: AccountId) -> Self {
        Self(id.0)
    }
}

impl From<ApiKeyId> for Subject {
    fn from(id: ApiKeyId) -> Self {
        Self(id.0)
    }
}

/// What a hold has taken from the windows of its account and its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    #[serde(with = "flag")]
    pub counted_account: bool,
    #[serde(with = "flag")]
    pub counted_key: bool,
    pub counted_tokens: Tokens,
    /// By the windows' clock. `None`: nothing was taken.
    pub counted_at: Option<Timestamp>,
}

/// Whose limit stood in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Account,
    Key,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    Requests,
    Tokens,
    Concurrent,
}

/// A limit and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gauge {
    pub limit: i64,
    pub remaining: i64,
    /// Until all of it is left again.
    pub reset: Duration,
}

/// What is left to the caller: of its account or of its key, whichever has less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub requests: Option<Gauge>,
    pub tokens: Option<Gauge>,
}

/// Why there was no room for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    pub by: Limit,
    pub rate: Rate,
    pub limit: i64,
    pub used: i64,
    pub requested: i64,
    /// When it would fit, if nothing else came first. `None`: it never does.
    pub wait: Option<Duration>,
    pub room: Room,
}

impl Room {
    /// Headers as OpenAI names and writes them.
    /// <https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers>
    #[must_use]
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        const REQUESTS: [&str; 3] = [
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
        ];
        const TOKENS: [&str; 3] = [
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
        ];
        let mut headers = Vec::new();
        for (names, gauge) in [(REQUESTS, self.requests), (TOKENS, self.tokens)] {
            let Some(Gauge { limit, remaining, reset }) = gauge else { continue };
            let values = [limit.to_string(), remaining.to_string(), written(reset)];
            headers.extend(names.into_iter().zip(values));
        }
        headers
    }
}

impl Limited {
    /// In OpenAI's words, which clients look for.
    #[must_use]
    pub fn message(&self, model: &str) -> String {
        let Self { limit, used, requested, .. } = self;
        let whose = match self.by {
            Limit::Account => "account",
            Limit::Key => "API key",
        };
        let what = match self.rate {
            Rate::Requests => "requests per min (RPM)",
            Rate::Tokens => "tokens per min (TPM)",
            Rate::Concurrent => "concurrent requests",
        };
        match self.wait {
            Some(wait) => format!(
                "Rate limit reached for {model} in this {whose} on {what}: Limit {limit}, Used \
                 {used}, Requested {requested}. Please try again in {}.",
                written(Duration::from_millis(millis_up(wait)))
            ),
            None => format!(
                "Request too large for {model} in this {whose} on {what}: Limit {limit}, Requested \
                 {requested}. The input or output tokens must be reduced in order to run \
                 successfully."
            ),
        }
    }
}

/// Whole milliseconds, rounded up: who waits so long has waited long enough.
#[must_use]
pub fn millis_up(wait: Duration) -> u64 {
    u64::try_from(wait.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}

/// A duration as Go prints it, to the millisecond: `20ms`, `1.5s`, `6m0s`.
fn written(duration: Duration) -> String {
    let millis = millis_up(duration);
    if millis < 1_000 {
        return if millis == 0 { "0s".to_owned() } else { format!("{millis}ms") };
    }
    let (minutes, seconds, millis) = (millis / 60_000, millis / 1_000 % 60, millis % 1_000);
    let minutes = if minutes > 0 { format!("{minutes}m") } else { String::new() };
    let fraction = format!("{millis:03}");
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{minutes}{seconds}{point}{fraction}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_does() {
        for (millis, text) in [
            (0, "0s"),
            (20, "20ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (20_050, "20.05s"),
            (60_000, "1m0s"),
            (61_001, "1m1.001s"),
            (360_000, "6m0s"),
        ] {
            assert_eq!(written(Duration::from_millis(millis)), text);
        }
        assert_eq!(written(Duration::from_micros(1)), "1ms", "rounded up");
    }

    #[test]
    fn an_own_limit_goes_before_the_plans() {
        let own = RateLimits { requests_per_minute: Some(5), ..RateLimits::default() };
        let plan = RateLimits {
            requests_per_minute: Some(9),
            tokens_per_minute: Some(10),
            concurrent_requests: None,
        };
        let both = own.or(plan);
        assert_eq!((both.requests_per_minute, both.tokens_per_minute), (Some(5), Some(10)));
        assert_eq!(both.concurrent_requests, None);
    }
}
