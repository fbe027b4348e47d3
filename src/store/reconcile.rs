//! What the books sum to by day and model, for comparison with upstreams and sinks.
//!
//! Invariants: reads only; sums are made in the database, and what comes back is bounded in rows
//! and in time, whatever the number of calls. A charge is the ledger entry's; what a correction
//! changed is the correction's row, which `verify` holds against its entry.

use crate::models::billing::reasons;
use crate::models::ids::RequestId;
use crate::models::reconcile::{Call, CallSum, ExportSum, FailedSum, SinkSum};
use crate::models::report::Span;
use crate::store::StoreError;
use async_trait::async_trait;
use std::time::Duration;

/// Most groups in one answer: about 50 MB of JSON.
pub const SUMS_MAX: i64 = 200_000;
/// A statement is given up after this: nobody waits for it but the command that asks.
pub const SUMS_WAIT: Duration = Duration::from_secs(300);

/// In what the statements differ between the databases.
pub(super) struct Dialect {
    /// The day of a time.
    pub day: fn(&str) -> String,
    /// A parameter as a time.
    pub time: fn(&str) -> String,
    /// A record's `tried`, each of its attempts as `a.value`.
    pub attempts: &'static str,
    /// A member of an attempt, as a text or a number.
    pub member: fn(&str) -> String,
}

const CALL_SUM: &[&str] = &[
    "model",
    "model_served",
    "calls",
    "prompt_tokens",
    "completion_tokens",
    "cost_pusd",
    "without_cost",
    "untold",
];
const CALL: &[&str] = &[
    "id",
    "account_id",
    "generation_id",
    "model",
    "model_served",
    "source",
    "prompt_tokens",
    "completion_tokens",
    "cost_pusd",
    "started_at",
    "ended_at",
];
const FAILED_SUM: &[&str] = &["day", "calls", "without_cost", "cost_pusd"];
const SINK_SUM: &[&str] =
    &["day", "account_id", "model", "customer", "state", "is_tried", "events", "charge_nusd"];
const EXPORT_SUM: &[&str] =
    &["day", "customer", "meter", "unit", "state", "is_tried", "exports", "amount", "value"];

/// A statement and the names of its columns.
pub(super) type Statement = (String, &'static [&'static str]);

/// Corrected calls `u` to upstream `$1` with ids from `$2` until before `$3`.
const CALLS: &str = "(SELECT u.id, u.account_id, u.generation_id, u.model, u.model_served, \
     CASE WHEN c.request_id IS NULL THEN u.source ELSE 'lookup' END AS source, \
     COALESCE(c.prompt_tokens, u.prompt_tokens) AS prompt_tokens, \
     COALESCE(c.completion_tokens, u.completion_tokens) AS completion_tokens, \
     CASE WHEN c.request_id IS NULL THEN u.upstream_cost_pusd \
      ELSE c.upstream_cost_pusd END AS cost_pusd, u.started_at, u.ended_at \
     FROM usage_records u LEFT JOIN usage_corrections c ON c.request_id = u.id \
     WHERE u.upstream = $1 AND u.id >= $2 AND u.id < $3) u";

/// `$4`: most rows. A sum that does not fit is an error, never a float.
pub(super) fn call_sums() -> Statement {
    let statement = format!(
        "SELECT model, model_served, COUNT(*) AS calls, \
         CAST(SUM(prompt_tokens) AS BIGINT) AS prompt_tokens, \
         CAST(SUM(completion_tokens) AS BIGINT) AS completion_tokens, \
         CAST(COALESCE(SUM(cost_pusd), 0) AS BIGINT) AS cost_pusd, \
         SUM(CASE WHEN cost_pusd IS NULL THEN 1 ELSE 0 END) AS without_cost, \
         SUM(CASE WHEN source IN ('upstream', 'lookup') THEN 0 ELSE 1 END) AS untold \
         FROM {CALLS} WHERE source <> 'none' GROUP BY model, model_served LIMIT $4"
    );
    (statement, CALL_SUM)
}

/// Attempts at upstream `$1` for requests from `$2` until before `$3`, `$4`: most rows. What
/// was refused, or has no id by which to ask for its cost, has cost nothing: but for those of which
/// no answer came.
pub(super) fn failed_sums(dialect: &Dialect) -> Statement {
    let Dialect { day, attempts, member, .. } = dialect;
    let statement = format!(
        "SELECT {day} AS day, COUNT(*) AS calls, \
         SUM(CASE WHEN cost IS NULL THEN 1 ELSE 0 END) AS without_cost, \
         CAST(COALESCE(SUM(cost), 0) AS BIGINT) AS cost_pusd FROM \
         (SELECT u.started_at, CAST({cost} AS BIGINT) AS cost FROM usage_records u, {attempts} \
          WHERE u.id >= $2 AND u.id < $3 AND u.tried IS NOT NULL AND {upstream} = $1 \
          AND {failure} IS NOT NULL AND ({generation} IS NOT NULL \
           OR {failure} IN ('unreachable', 'timed_out'))) t \
         WHERE cost IS NULL OR cost > 0 GROUP BY 1 LIMIT $4",
        day = day("started_at"),
        cost = member("cost_pusd"),
        upstream = member("upstream"),
        failure = member("failure"),
        generation = member("generation_id"),
    );
    (statement, FAILED_SUM)
}

/// `$4`: the call after which the page begins; `$5`: most rows.
pub(super) fn calls() -> Statement {
    (format!("SELECT * FROM {CALLS} WHERE id > $4 ORDER BY id LIMIT $5"), CALL)
}

/// `among`: whether `place` is one of `$4`. Numbered in one pass over the records alone.
pub(super) fn calls_at(among: &str) -> Statement {
    let statement = format!(
        "SELECT * FROM {CALLS} WHERE id IN (SELECT id FROM \
          (SELECT id, row_number() OVER (ORDER BY id) AS place FROM usage_records \
           WHERE upstream = $1 AND id >= $2 AND id < $3 AND generation_id IS NOT NULL) n \
          WHERE {among}) ORDER BY id"
    );
    (statement, CALL)
}

pub(super) const NAMED_CALLS: &str = "SELECT COUNT(*) FROM usage_records WHERE upstream = $1 \
     AND id >= $2 AND id < $3 AND generation_id IS NOT NULL";

/// Sink `$1`, from `$2` until before `$3`, `$4`: most rows. Of a group's exports only that of the
/// charge has a unit other than 1. What was dismissed unmerged is not at the sink. What takes and
/// what gives back are groups of their own: a sink may have one and not the other.
pub(super) fn sink_sums(Dialect { day, time, .. }: &Dialect) -> Statement {
    let statement = format!(
        "SELECT {day} AS day, e.account_id, u.model, x.customer, e.state, \
         CASE WHEN e.attempts > 0 THEN 1 ELSE 0 END AS is_tried, COUNT(*) AS events, \
         CAST(SUM({charge}) AS BIGINT) AS charge_nusd \
         FROM billing_events e JOIN usage_records u ON u.id = e.request_id \
         LEFT JOIN ledger_entries l ON l.request_id = e.request_id AND l.kind = 'charge' \
         LEFT JOIN usage_corrections c ON c.request_id = e.request_id \
         LEFT JOIN exports x ON x.event_group = e.export_group AND x.unit <> 1 \
          AND x.state <> 'void' \
         WHERE e.sink = $1 AND e.kind IN ('usage', 'correction') \
         AND e.created_at >= {from} AND e.created_at < {until} \
         AND NOT (e.export_group IS NULL AND e.state = 'exported' \
          AND COALESCE(e.reason, '') = '{dismissed}') \
         GROUP BY 1, 2, 3, 4, 5, 6, {charge} < 0 LIMIT $4",
        day = day("e.created_at"),
        from = time("$2"),
        until = time("$3"),
        dismissed = reasons::DISMISSED,
        charge = "(CASE e.kind WHEN 'usage' THEN COALESCE(-l.amount_nusd, 0) \
          ELSE COALESCE(-c.difference_nusd, 0) END)",
    );
    (statement, SINK_SUM)
}

/// As [`sink_sums`].
pub(super) fn export_sums(Dialect { day, time, .. }: &Dialect) -> Statement {
    let statement = format!(
        "SELECT {day} AS day, customer, meter, unit, state, \
         CASE WHEN first_sent_at IS NULL THEN 0 ELSE 1 END AS is_tried, COUNT(*) AS exports, \
         CAST(SUM(amount) AS BIGINT) AS amount, CAST(SUM(value) AS BIGINT) AS value \
         FROM exports WHERE sink = $1 AND state <> 'void' \
         AND used_at >= {from} AND used_at < {until} \
         GROUP BY 1, 2, 3, 4, 5, 6, value < 0 LIMIT $4",
        day = day("used_at"),
        from = time("$2"),
        until = time("$3"),
    );
    (statement, EXPORT_SUM)
}

/// More groups than fit: their sums would be wrong if some were left out.
pub(super) fn whole<T>(rows: Vec<T>) -> Result<Vec<T>, StoreError> {
    if i64::try_from(rows.len()).unwrap_or(i64::MAX) > SUMS_MAX {
        let message = format!("more than {SUMS_MAX} groups: ask for one day at a time");
        return Err(StoreError::Setup(message));
    }
    Ok(rows)
}

#[async_trait]
pub trait ReconcileStore: Send + Sync {
    /// The calls to an upstream that began in a span, by model.
    async fn call_sums(&self, upstream: &str, span: Span) -> Result<Vec<CallSum>, StoreError>;

    /// The same calls one by one, in their order, a page of them after `after`; those that used
    /// nothing too.
    async fn calls(
        &self,
        upstream: &str,
        span: Span,
        after: Option<RequestId>,
    ) -> Result<Vec<Call>, StoreError>;

    /// Those of the calls that the upstream gave an id, by their place in their order: 1, 2, 3 …
    async fn calls_at(
        &self,
        upstream: &str,
        span: Span,
        places: &[i64],
    ) -> Result<Vec<Call>, StoreError>;

    /// How many calls of a span the upstream gave an id.
    async fn named_calls(&self, upstream: &str, span: Span) -> Result<i64, StoreError>;

    /// What failed at an upstream for requests that began in a span, by day.
    async fn failed_sums(&self, upstream: &str, span: Span) -> Result<Vec<FailedSum>, StoreError>;

    /// What was to be told to a sink for a span.
    async fn sink_sums(&self, sink: &str, span: Span) -> Result<Vec<SinkSum>, StoreError>;

    /// What that was merged into.
    async fn export_sums(&self, sink: &str, span: Span) -> Result<Vec<ExportSum>, StoreError>;
}
