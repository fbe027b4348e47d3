//! What is asked of the books in sums, and what comes back: time in buckets, tokens and money.
//!
//! Invariant: the buckets of one question are in order, do not overlap, and each has its beginning
//! and not its end. Days and hours are those of UTC. A record belongs where its id's time is.

use super::ids::{AccountId, ApiKeyId, RequestId, UserId};
use super::money::{NanoUsd, Tokens};
use super::timestamp::Timestamp;
use super::usage::flag;
use serde::{Deserialize, Serialize};

/// A stretch of time, its end not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub from: Timestamp,
    pub until: Timestamp,
}

/// How wide a bucket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Minute,
    Hour,
    Day,
}

impl Width {
    #[must_use]
    pub fn seconds(self) -> i64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }

    /// The first boundary after `at`: boundaries are where UTC's minutes, hours and days begin.
    #[must_use]
    pub fn next_boundary(self, at: Timestamp) -> Timestamp {
        let seconds = at.unix_seconds();
        Timestamp::from_unix_seconds(seconds - seconds.rem_euclid(self.seconds()) + self.seconds())
    }
}

impl Span {
    /// The first `limit` buckets, cut at the boundaries of UTC. The first and the last are narrower
    /// where the span begins or ends beside a boundary.
    #[must_use]
    pub fn buckets(self, width: Width, limit: usize) -> Vec<Self> {
        let mut buckets = Vec::new();
        let mut from = self.from;
        while from < self.until && buckets.len() < limit {
            let until = width.next_boundary(from).min(self.until);
            buckets.push(Self { from, until });
            from = until;
        }
        buckets
    }
}

/// What usage is summed of, and by what.
#[derive(Clone, Debug)]
pub struct Question {
    pub account_id: AccountId,
    pub buckets: Vec<Span>,
    pub by_model: bool,
    pub by_key: bool,
    pub by_user: bool,
    /// `None`: of all of them.
    pub models: Option<Vec<String>>,
    pub keys: Option<Vec<ApiKeyId>>,
    pub users: Option<Vec<UserId>>,
}

/// The sum of one group in one bucket, corrections taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct UsageSum {
    /// The bucket's place in the question.
    pub bucket: usize,
    /// `None`: not grouped by it.
    pub model: Option<String>,
    /// `None`: not grouped by it, or asked without a key.
    pub api_key_id: Option<ApiKeyId>,
    /// `None`: not grouped by it, or asked with a key.
    pub user_id: Option<UserId>,
    /// Those that used something.
    pub requests: i64,
    pub prompt_tokens: Tokens,
    /// Within `prompt_tokens`.
    pub cached_tokens: Tokens,
    /// Within `prompt_tokens`, long-lived ones too.
    pub cache_write_tokens: Tokens,
    /// Within `prompt_tokens`.
    pub audio_prompt_tokens: Tokens,
    pub completion_tokens: Tokens,
    /// Within `completion_tokens`.
    pub audio_completion_tokens: Tokens,
    /// Within `completion_tokens`.
    pub image_completion_tokens: Tokens,
    pub charge_nusd: NanoUsd,
}

/// What was entered by hand into one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Adjustment {
    pub bucket: usize,
    /// What it adds to the balance.
    pub amount_nusd: NanoUsd,
}

/// What one group cost in one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    pub bucket: usize,
    pub item: CostItem,
    pub api_key_id: Option<ApiKeyId>,
    pub user_id: Option<UserId>,
    /// What the account paid, net of corrections.
    pub amount_nusd: NanoUsd,
    /// Prompt and completion together; `None` for what no tokens were used for.
    pub tokens: Option<Tokens>,
}

/// What was paid for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CostItem {
    /// Not told apart.
    Any,
    Model(String),
    /// Corrections that were entered by hand.
    Adjustment,
}

/// What an account was credited in all, and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct CreditTotals {
    pub credited_nusd: NanoUsd,
    pub balance_nusd: NanoUsd,
}

/// A usage record as its payer may see it, its correction taken in. What the operator pays, to whom
/// and by which price, is not here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageLine {
    pub id: RequestId,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
    pub api_key_id: Option<ApiKeyId>,
    pub api_key_name: Option<String>,
    pub user_id: Option<UserId>,
    pub model: String,
    pub model_served: Option<String>,
    #[serde(with = "flag")]
    pub streamed: bool,
    pub ending: String,
    pub finish_reason: Option<String>,
    /// Where the numbers are from: `lookup` once they were corrected.
    pub source: String,
    pub prompt_tokens: Tokens,
    pub cached_tokens: Tokens,
    pub cache_write_tokens: Tokens,
    pub audio_prompt_tokens: Tokens,
    pub completion_tokens: Tokens,
    pub reasoning_tokens: Tokens,
    pub audio_completion_tokens: Tokens,
    pub image_completion_tokens: Tokens,
    pub web_searches: i64,
    /// Net of the correction.
    pub charge_nusd: NanoUsd,
    pub corrected_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: &str, until: &str) -> Span {
        let at = |text| Timestamp::parse(text).unwrap();
        Span { from: at(from), until: at(until) }
    }

    #[test]
    fn buckets_cover_the_span_once_and_end_at_utc_boundaries() {
        let whole = span("2026-11-23T22:30:00Z", "2026-11-26T01:00:00Z");
        let days = whole.buckets(Width::Day, 31);
        let expected = [
            span("2026-11-23T22:30:00Z", "2026-11-24T00:00:00Z"),
            span("2026-11-24T00:00:00Z", "2026-11-25T00:00:00Z"),
            span("2026-11-25T00:00:00Z", "2026-11-26T00:00:00Z"),
            span("2026-11-26T00:00:00Z", "2026-11-26T01:00:00Z"),
        ];
        assert_eq!(days, expected);
        assert_eq!(whole.buckets(Width::Day, 2), expected[..2]);
        assert_eq!(whole.buckets(Width::Hour, 1_000).len(), 51);
        let minutes = whole.buckets(Width::Minute, 10_000);
        assert_eq!(minutes.len(), 51 * 60 - 30);
        assert!(minutes.windows(2).all(|pair| pair[0].until == pair[1].from));
    }

    #[test]
    fn a_boundary_is_after_its_instant() {
        let at = Timestamp::parse("2026-11-24T00:00:00Z").unwrap();
        let next = Timestamp::parse("2026-11-25T00:00:00Z").unwrap();
        assert_eq!(Width::Day.next_boundary(at), next);
        assert_eq!(
            Width::Day.next_boundary(Timestamp::from_unix_seconds(0)).unix_seconds(),
            86_400
        );
    }
}
