//! What owners and operators look at: times, margins, drift, open holds.
//!
//! Invariants: reads only; sums are made in the database, and every answer is bounded in rows and
//! in time. Nothing that a caller wrote is part of a statement.

use crate::models::hold::Hold;
use crate::models::ids::AccountId;
use crate::models::overview::{Dimension, DriftSum, LatencySum, MarginQuestion, MarginSum};
use crate::models::report::Span;
use crate::store::StoreError;
use crate::store::reconcile;
use crate::store::reports::GROUPS_MAX;
use crate::store::reports::statements::ids_of;
use async_trait::async_trait;

/// Open holds that are listed at most: more are a crowd, not a list.
pub const HOLDS_MAX: usize = 100;

/// In what the statements differ between the databases.
pub(super) struct Dialect {
    /// The buckets as `b`, from a JSON array of pairs of ids.
    pub buckets: fn(&str) -> String,
    /// A bucket's place, its beginning and its end.
    pub bucket: &'static str,
    pub from: &'static str,
    pub until: &'static str,
    /// Milliseconds from one time to another.
    pub millis: fn(&str, &str) -> String,
    /// Whether a column is true.
    pub holds: fn(&str) -> String,
    /// For what is in a record's `tried`.
    pub attempts: reconcile::Dialect,
}

/// A statement and the names of its columns.
pub(super) type Statement = (String, &'static [&'static str]);

/// The parameter that has the buckets.
pub(super) fn parameter(buckets: &[Span]) -> Result<String, StoreError> {
    let ids = buckets.iter().map(|span| {
        let (from, until) = ids_of(span);
        [from.to_string(), until.to_string()]
    });
    Ok(serde_json::to_string(&ids.collect::<Vec<_>>())?)
}

/// Buckets `$1` of account `$2`. The percentile is the first value that so many do not pass, so
/// that it is the same on both databases and a time that was really taken.
pub(super) fn latencies(dialect: &Dialect) -> Statement {
    let Dialect { buckets, bucket, from, until, millis, holds, .. } = dialect;
    let of_records = format!(
        "FROM {} JOIN usage_records u ON u.account_id = $2 AND u.id >= {from} AND u.id < {until} \
         WHERE u.source <> 'none'",
        buckets("$1")
    );
    let statement = format!(
        "SELECT bucket, kind, COUNT(*) AS requests, \
         MIN(CASE WHEN place * 100 >= n * 50 THEN ms END) AS p50_ms, \
         MIN(CASE WHEN place * 100 >= n * 95 THEN ms END) AS p95_ms FROM \
         (SELECT bucket, kind, ms, \
           row_number() OVER (PARTITION BY bucket, kind ORDER BY ms) AS place, \
           COUNT(*) OVER (PARTITION BY bucket, kind) AS n FROM \
           (SELECT {bucket} AS bucket, 'whole' AS kind, {whole} AS ms {of_records} \
            UNION ALL \
            SELECT {bucket} AS bucket, 'first_byte' AS kind, {first} AS ms {of_records} \
            AND {streamed} AND u.first_byte_at IS NOT NULL) t) p \
         GROUP BY bucket, kind ORDER BY bucket, kind",
        whole = millis("u.started_at", "u.ended_at"),
        first = millis("u.started_at", "u.first_byte_at"),
        streamed = holds("u.streamed"),
    );
    (statement, &["bucket", "kind", "requests", "p50_ms", "p95_ms"])
}

/// Buckets `$1`, of all accounts. A cost is the corrected one where there is one.
pub(super) fn margins(dialect: &Dialect, by: Dimension) -> Statement {
    let Dialect { buckets, bucket, from, until, attempts, .. } = dialect;
    let (name, account_name, join) = match by {
        Dimension::Whole => ("CAST(NULL AS TEXT)", "CAST(NULL AS TEXT)", ""),
        Dimension::Model => ("u.model", "CAST(NULL AS TEXT)", ""),
        Dimension::Upstream => ("u.upstream", "CAST(NULL AS TEXT)", ""),
        Dimension::Account => {
            ("CAST(u.account_id AS TEXT)", "a.name", "LEFT JOIN accounts a ON a.id = u.account_id")
        }
    };
    let failed = format!(
        "COALESCE((SELECT SUM(CAST({} AS BIGINT)) FROM {}), 0)",
        (attempts.member)("cost_pusd"),
        attempts.attempts,
    );
    let statement = format!(
        "SELECT bucket, name, MAX(account_name) AS account_name, \
         SUM(CASE WHEN source <> 'none' THEN 1 ELSE 0 END) AS requests, \
         CAST(SUM(charge) AS BIGINT) AS charge_nusd, \
         CAST(SUM(shortfall) AS BIGINT) AS shortfall_nusd, \
         CAST(COALESCE(SUM(cost / 1000), 0) AS BIGINT) AS cost_nusd, \
         CAST(COALESCE(SUM(cost % 1000), 0) AS BIGINT) AS cost_rest_pusd, \
         CAST(SUM(failed / 1000) AS BIGINT) AS failed_nusd, \
         CAST(SUM(failed % 1000) AS BIGINT) AS failed_rest_pusd, \
         SUM(CASE WHEN source <> 'none' AND cost IS NULL THEN 1 ELSE 0 END) AS without_cost, \
         CAST(SUM(CASE WHEN cost IS NULL THEN charge ELSE 0 END) AS BIGINT) \
          AS charge_without_cost_nusd FROM \
         (SELECT {bucket} AS bucket, {name} AS name, {account_name} AS account_name, u.source, \
          u.charge_nusd - COALESCE(c.difference_nusd, 0) AS charge, \
          u.shortfall_nusd AS shortfall, \
          CASE WHEN c.request_id IS NULL THEN u.upstream_cost_pusd \
           ELSE c.upstream_cost_pusd END AS cost, \
          CAST({failed} AS BIGINT) AS failed \
          FROM {} JOIN usage_records u ON u.id >= {from} AND u.id < {until} \
          LEFT JOIN usage_corrections c ON c.request_id = u.id {join}) t \
         GROUP BY bucket, name ORDER BY bucket, charge_nusd DESC, name LIMIT {}",
        buckets("$1"),
        GROUPS_MAX + 1,
    );
    let columns = &[
        "bucket",
        "name",
        "account_name",
        "requests",
        "charge_nusd",
        "shortfall_nusd",
        "cost_nusd",
        "cost_rest_pusd",
        "failed_nusd",
        "failed_rest_pusd",
        "without_cost",
        "charge_without_cost_nusd",
    ];
    (statement, columns)
}

/// Bucket `$1`, of all accounts. Whole answers only: of a broken one the two cannot be the same. A
/// prompt is counted only where the upstream says nothing of it. Reasoning is counted as far as it
/// is shown: any part of it.
pub(super) fn drift(dialect: &Dialect) -> Statement {
    let Dialect { buckets, from, until, holds, .. } = dialect;
    let statement = format!(
        "SELECT u.model, u.upstream, COUNT(*) AS requests, \
         SUM(CASE WHEN {exact} THEN 1 ELSE 0 END) AS exact, \
         SUM(CASE WHEN u.counted_completion_tokens \
          BETWEEN u.completion_tokens - u.reasoning_tokens AND u.completion_tokens \
          THEN 0 ELSE 1 END) AS different, \
         CAST(SUM(u.completion_tokens) AS BIGINT) AS completion_tokens, \
         CAST(SUM(u.reasoning_tokens) AS BIGINT) AS reasoning_tokens, \
         CAST(SUM(u.counted_completion_tokens) AS BIGINT) AS counted_completion_tokens \
         FROM {} JOIN usage_records u ON u.id >= {from} AND u.id < {until} \
         WHERE u.source = 'upstream' AND u.ending = 'completed' \
         AND u.counted_completion_tokens IS NOT NULL \
         GROUP BY u.model, u.upstream ORDER BY different DESC, u.model, u.upstream LIMIT {}",
        buckets("$1"),
        GROUPS_MAX + 1,
        exact = holds("u.counter_exact"),
    );
    let columns = &[
        "model",
        "upstream",
        "requests",
        "exact",
        "different",
        "completion_tokens",
        "reasoning_tokens",
        "counted_completion_tokens",
    ];
    (statement, columns)
}

/// Of account `$1`, the oldest first.
pub(super) fn holds_of() -> String {
    format!("WHERE t.account_id = $1 ORDER BY t.placed_at, t.request_id LIMIT {}", HOLDS_MAX + 1)
}

#[async_trait]
pub trait OverviewStore: Send + Sync {
    /// How long the answers to an account's requests took, by bucket and kind.
    async fn latencies(
        &self,
        account: AccountId,
        buckets: &[Span],
    ) -> Result<Vec<LatencySum>, StoreError>;

    /// An account's open holds, at most [`HOLDS_MAX`] and one more, which says that there are more.
    async fn holds_of(&self, account: AccountId) -> Result<Vec<Hold>, StoreError>;

    /// Charges and costs of all accounts, by bucket and group, the largest charge of a bucket
    /// first; at most [`GROUPS_MAX`] and one more.
    async fn margins(&self, question: &MarginQuestion) -> Result<Vec<MarginSum>, StoreError>;

    /// The upstream's tokens and ours, by model and upstream, those that differ most often first.
    async fn drift(&self, span: Span) -> Result<Vec<DriftSum>, StoreError>;
}
