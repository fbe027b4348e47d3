//! What owners and operators look at beside the sums of usage: how fast answers came, what the
//! operator earned on them, and how well tokens were counted.
//!
//! Invariant: sums of what the operator pays are kept in two parts, so that no sum of pico-USD has
//! to fit into 64 bits.

use super::money::{NanoUsd, Tokens};
use super::report::Span;
use serde::{Deserialize, Serialize};

/// How long answers took in one bucket, of one kind of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct LatencySum {
    /// The bucket's place in the question.
    pub bucket: usize,
    pub kind: Timing,
    pub requests: i64,
    /// Half of them, and nineteen of twenty, took no longer. Milliseconds.
    pub p50_ms: i64,
    pub p95_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// From the hold to the end.
    Whole,
    /// From the hold to the first byte of a stream.
    FirstByte,
}

/// What margins are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Not told apart.
    Whole,
    Model,
    Account,
    Upstream,
}

#[derive(Clone, Debug)]
pub struct MarginQuestion {
    pub buckets: Vec<Span>,
    pub by: Dimension,
}

/// What accounts were charged and what the operator pays for it, in one group of one bucket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MarginSum {
    pub bucket: usize,
    /// A model, an account's id or an upstream; `None`: not told apart.
    pub name: Option<String>,
    pub account_name: Option<String>,
    /// Those that used something.
    pub requests: i64,
    /// Net of corrections.
    pub charge_nusd: NanoUsd,
    /// What accounts could not pay.
    pub shortfall_nusd: NanoUsd,
    /// What the answers cost, cut to whole nano-USD each, and what was cut off.
    pub cost_nusd: i64,
    pub cost_rest_pusd: i64,
    /// The same of calls that failed before another one answered.
    pub failed_nusd: i64,
    pub failed_rest_pusd: i64,
    /// Requests whose cost is unknown, and what was charged for them.
    pub without_cost: i64,
    pub charge_without_cost_nusd: NanoUsd,
}

impl MarginSum {
    /// What the answers cost, in pico-USD. Cannot overflow: both parts are 64 bits wide.
    #[must_use]
    pub fn cost_pico(&self) -> i128 {
        i128::from(self.cost_nusd) * 1_000 + i128::from(self.cost_rest_pusd)
    }

    /// What failed calls cost, in pico-USD.
    #[must_use]
    pub fn failed_pico(&self) -> i128 {
        i128::from(self.failed_nusd) * 1_000 + i128::from(self.failed_rest_pusd)
    }

    /// What is left of the charges, in pico-USD. Where a cost is unknown nothing is taken off.
    #[must_use]
    pub fn margin_pico(&self) -> i128 {
        i128::from(self.charge_nusd.0) * 1_000 - self.cost_pico() - self.failed_pico()
    }
}

/// The upstream's numbers of completion tokens and ours, of answers for which there are both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftSum {
    pub model: String,
    pub upstream: String,
    pub requests: i64,
    /// Those of which ours claims to be exact.
    pub exact: i64,
    /// Those of which ours is neither the upstream's nor less by reasoning that was not shown.
    pub different: i64,
    pub completion_tokens: Tokens,
    /// Within `completion_tokens`: counted as far as it is shown.
    pub reasoning_tokens: Tokens,
    pub counted_completion_tokens: Tokens,
}
