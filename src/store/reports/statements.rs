//! The statements of reports, for either dialect.
//!
//! Invariant: each is about account `$1`, and nothing that a caller wrote is part of its text.

use crate::models::ids::RequestId;
use crate::models::report::{Question, Span};

/// What is summed: its name, of a usage record `u`, and what a correction `c` of it changes.
const SUMS: &[(&str, &str, &str)] = &[
    ("requests", "1", "0"),
    ("prompt_tokens", "u.prompt_tokens", "c.prompt_tokens - u.prompt_tokens"),
    ("cached_tokens", "u.cached_tokens", "0"),
    ("cache_write_tokens", "u.cache_write_tokens + u.cache_write_1h_tokens", "0"),
    ("audio_prompt_tokens", "u.audio_prompt_tokens", "0"),
    ("completion_tokens", "u.completion_tokens", "c.completion_tokens - u.completion_tokens"),
    ("audio_completion_tokens", "u.audio_completion_tokens", "0"),
    ("image_completion_tokens", "u.image_completion_tokens", "0"),
    ("charge_nusd", "u.charge_nusd", "-c.difference_nusd"),
];

/// The members of a usage line: its name, and what it is of a usage record `u`, its correction `c`
/// and its key `k`.
const LINE: &[(&str, &str)] = &[
    ("id", "u.id"),
    ("started_at", "u.started_at"),
    ("ended_at", "u.ended_at"),
    ("api_key_id", "u.api_key_id"),
    ("api_key_name", "k.name"),
    ("user_id", "u.user_id"),
    ("model", "u.model"),
    ("model_served", "u.model_served"),
    ("streamed", "u.streamed"),
    ("ending", "u.ending"),
    ("finish_reason", "u.finish_reason"),
    ("source", "CASE WHEN c.request_id IS NULL THEN u.source ELSE 'lookup' END"),
    ("prompt_tokens", "COALESCE(c.prompt_tokens, u.prompt_tokens)"),
    ("cached_tokens", "u.cached_tokens"),
    ("cache_write_tokens", "u.cache_write_tokens + u.cache_write_1h_tokens"),
    ("audio_prompt_tokens", "u.audio_prompt_tokens"),
    ("completion_tokens", "COALESCE(c.completion_tokens, u.completion_tokens)"),
    ("reasoning_tokens", "u.reasoning_tokens"),
    ("audio_completion_tokens", "u.audio_completion_tokens"),
    ("image_completion_tokens", "u.image_completion_tokens"),
    ("web_searches", "u.web_searches"),
    ("charge_nusd", "u.charge_nusd - COALESCE(c.difference_nusd, 0)"),
    ("corrected_at", "c.created_at"),
];

/// In what the statements below differ between the databases.
pub struct Dialect {
    /// Where a bucket begins and ends, as ids.
    pub from: &'static str,
    pub until: &'static str,
    /// Whether model, key and user are among those asked for, `$4`, `$5` and `$6`.
    pub is_asked: &'static str,
    pub no_text: &'static str,
    pub no_id: &'static str,
}

/// The groups of one bucket of account `$1`, as a query: those of its records, and what corrections
/// changed of them. Each is grouped by itself, so that few rows are left to put together.
pub fn groups(question: &Question, dialect: &Dialect) -> String {
    let Dialect { from, until, is_asked, no_text, no_id } = dialect;
    let dimensions = [
        ("model", question.by_model, no_text),
        ("api_key_id", question.by_key, no_id),
        ("user_id", question.by_user, no_id),
    ];
    let grouped: Vec<String> = dimensions
        .iter()
        .filter(|(_, is_wanted, _)| *is_wanted)
        .map(|(name, ..)| format!("u.{name}"))
        .collect();
    let grouped = match grouped.join(", ") {
        // An empty bucket has no group.
        none if none.is_empty() => "HAVING COUNT(*) > 0".to_owned(),
        columns => format!("GROUP BY {columns}"),
    };
    let dimensions = dimensions.map(|(name, is_wanted, nothing)| {
        if is_wanted { format!("u.{name} AS {name}") } else { format!("{nothing} AS {name}") }
    });
    let dimensions = dimensions.join(", ");
    let of_record = sums(|(name, record, _)| format!("SUM({record}) AS {name}"));
    let of_correction = sums(|(name, _, correction)| format!("SUM({correction}) AS {name}"));
    format!(
        "SELECT {dimensions}, {of_record} FROM usage_records u \
         WHERE u.account_id = $1 AND u.id >= {from} AND u.id < {until} \
         AND u.source <> 'none' AND {is_asked} {grouped} \
         UNION ALL \
         SELECT {dimensions}, {of_correction} FROM usage_corrections c \
         JOIN usage_records u ON u.id = c.request_id \
         WHERE c.account_id = $1 AND c.request_id >= {from} AND c.request_id < {until} \
         AND {is_asked} {grouped}"
    )
}

/// The sums of what [`groups`] gave as `s`. A sum that does not fit is an error, never a float.
pub fn totals() -> String {
    sums(|(name, ..)| format!("CAST(SUM(s.{name}) AS BIGINT) AS {name}"))
}

/// The names in [`totals`], in their order.
pub fn sum_names() -> impl Iterator<Item = &'static str> {
    SUMS.iter().map(|(name, ..)| *name)
}

fn sums(column: impl Fn(&(&str, &str, &str)) -> String) -> String {
    SUMS.iter().map(column).collect::<Vec<_>>().join(", ")
}

/// The records of account `$1` with ids after `$2` and before `$3`, `$4` of them.
pub fn lines() -> String {
    let columns: Vec<String> =
        LINE.iter().map(|(name, expression)| format!("{expression} AS {name}")).collect();
    format!(
        "SELECT {} FROM usage_records u \
         LEFT JOIN usage_corrections c ON c.request_id = u.id \
         LEFT JOIN api_keys k ON k.id = u.api_key_id \
         WHERE u.account_id = $1 AND u.id > $2 AND u.id < $3 ORDER BY u.id LIMIT $4",
        columns.join(", ")
    )
}

/// The names in [`lines`], in their order.
pub fn line_names() -> impl Iterator<Item = &'static str> {
    LINE.iter().map(|(name, _)| *name)
}

/// Where a span begins and ends, as ids.
pub fn ids_of(span: &Span) -> (RequestId, RequestId) {
    (RequestId::floor(span.from), RequestId::floor(span.until))
}
