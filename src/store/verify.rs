//! Rows that belong to rows: what `verify` holds against each other, a page at a time.
//!
//! Invariant: reads only, by keys that have an index, so that verifying needs no more memory for a
//! million entries than for a thousand. Entries of corrections have none; they are few.

use crate::models::billing::BillingEvent;
use crate::models::ids::RequestId;
use crate::models::ledger::EntryKind;
use crate::models::money::NanoUsd;
use crate::models::usage::{Outline, UsageCorrection, UsageRecord};
use crate::store::StoreError;
use crate::store::table::Table;
use async_trait::async_trait;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What is read of usage records where not all of them is needed.
pub(super) const OUTLINES: Table = Table {
    name: "usage_records",
    columns: &["id", "account_id", "prompt_tokens", "completion_tokens", "charge_nusd", "ended_at"],
};

/// What the members of a group of merged events come to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct GroupSum {
    pub event_group: String,
    pub charge_nusd: NanoUsd,
    /// By measures that are counted in ones.
    #[serde(flatten)]
    pub counted: BTreeMap<String, i64>,
}

/// The names in [`group_sums`].
pub(super) const GROUP_SUM: [&str; 11] = [
    "event_group",
    "charge_nusd",
    "requests",
    "uncached_prompt_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "audio_prompt_tokens",
    "text_completion_tokens",
    "reasoning_tokens",
    "audio_completion_tokens",
    "image_completion_tokens",
];

/// `listed`: whether the group is one of those asked for. As `Billed` has it, which tells a sink.
pub(super) fn group_sums(listed: &str) -> String {
    let cache_write = "u.cache_write_tokens + u.cache_write_1h_tokens";
    let rest = |whole: &str, parts: &str| {
        format!("CASE WHEN {whole} > {parts} THEN {whole} - ({parts}) ELSE 0 END")
    };
    let prompt = format!("u.cached_tokens + {cache_write} + u.audio_prompt_tokens");
    let prompt = rest("u.prompt_tokens", &prompt);
    let completion = "u.reasoning_tokens + u.audio_completion_tokens + u.image_completion_tokens";
    let completion = rest("u.completion_tokens", completion);
    // In the order of the names: of usage, and of a correction.
    let sums = [
        ("u.charge_nusd", "-c.difference_nusd"),
        ("1", "0"),
        (&prompt, "c.prompt_tokens - u.prompt_tokens"),
        ("u.cached_tokens", "0"),
        (cache_write, "0"),
        ("u.audio_prompt_tokens", "0"),
        (&completion, "c.completion_tokens - u.completion_tokens"),
        ("u.reasoning_tokens", "0"),
        ("u.audio_completion_tokens", "0"),
        ("u.image_completion_tokens", "0"),
    ];
    let sums = GROUP_SUM.iter().skip(1).zip(sums).map(|(name, (usage, correction))| {
        format!(
            "CAST(SUM(CASE e.kind WHEN 'usage' THEN {usage} \
             ELSE COALESCE({correction}, 0) END) AS BIGINT) AS {name}"
        )
    });
    let sums = sums.collect::<Vec<_>>().join(", ");
    format!(
        "SELECT e.export_group AS event_group, {sums} FROM billing_events e JOIN usage_records u ON u.id = e.request_id \
         LEFT JOIN usage_corrections c ON c.request_id = e.request_id AND e.kind = 'correction' \
         WHERE e.kind IN ('usage', 'correction') AND e.export_group {listed} GROUP BY e.export_group"
    )
}

#[async_trait]
pub trait VerifyStore: Send + Sync {
    async fn records_of(&self, requests: &[RequestId]) -> Result<Vec<UsageRecord>, StoreError>;

    /// Of the same rows, less: the server looks at all that it settles.
    async fn outlines_of(&self, requests: &[RequestId]) -> Result<Vec<Outline>, StoreError>;

    async fn corrections_of(
        &self,
        requests: &[RequestId],
    ) -> Result<Vec<UsageCorrection>, StoreError>;

    /// Those of the requests that have an entry of this kind.
    async fn entered(
        &self,
        kind: EntryKind,
        requests: &[RequestId],
    ) -> Result<Vec<RequestId>, StoreError>;

    async fn events_of(&self, ids: &[String]) -> Result<Vec<BillingEvent>, StoreError>;

    async fn group_sums(&self, groups: &[String]) -> Result<Vec<GroupSum>, StoreError>;
}
