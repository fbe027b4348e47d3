//! Tables as lists of columns, and the statements made from them for either dialect.
//!
//! A batch of rows goes in as one JSON array in one parameter, where the store has no better way
//! for it; rows come out as JSON texts. The column lists are held against the structs by a test.

use super::StoreError;
use crate::models::price::{Price, Terms};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::sync::Arc;

/// A table and its columns, in the order of its struct.
pub struct Table {
    pub name: &'static str,
    pub columns: &'static [&'static str],
}

pub const ACCOUNTS: Table = Table {
    name: "accounts",
    columns: &[
        "id",
        "name",
        "kind",
        "status",
        "plan",
        "limit_nusd",
        "balance_nusd",
        "held_nusd",
        "period_start",
        "period_charged_nusd",
        "ledger_seq",
        "ledger_hash",
        "stripe_customer_id",
        "requests_per_minute",
        "tokens_per_minute",
        "concurrent_requests",
        "created_at",
    ],
};

/// What an operator may change of an account.
pub const ACCOUNT_SETTINGS: &[&str] = &[
    "name",
    "kind",
    "status",
    "plan",
    "limit_nusd",
    "stripe_customer_id",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
];

/// What a batch of the ledger may change of an account.
pub const ACCOUNT_BALANCES: &[&str] = &[
    "balance_nusd",
    "held_nusd",
    "period_start",
    "period_charged_nusd",
    "ledger_seq",
    "ledger_hash",
];

pub const API_KEYS: Table = Table {
    name: "api_keys",
    columns: &[
        "id",
        "account_id",
        "name",
        "secret_hash",
        "hint",
        "models",
        "role",
        "created_by",
        "requests_per_minute",
        "tokens_per_minute",
        "concurrent_requests",
        "created_at",
        "expires_at",
        "revoked_at",
        "last_used_at",
        "previous_secret_hash",
        "previous_expires_at",
    ],
};

/// What may be changed of a key.
pub const KEY_SETTINGS: &[&str] = &[
    "name",
    "models",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
    "expires_at",
    "revoked_at",
    "secret_hash",
    "hint",
    "previous_secret_hash",
    "previous_expires_at",
];

pub const PRICE_TABLES: Table =
    Table { name: "price_tables", columns: &["version", "text", "actor", "created_at"] };

pub const MEMBERS: Table =
    Table { name: "members", columns: &["user_id", "account_id", "created_at"] };

pub const AUDIT_LOG: Table = Table {
    name: "audit_log",
    columns: &["id", "actor", "action", "subject", "account_id", "before", "after", "created_at"],
};

pub const KEY_BUDGETS: Table = Table {
    name: "key_budgets",
    columns: &[
        "api_key_id",
        "day_limit_nusd",
        "week_limit_nusd",
        "month_limit_nusd",
        "total_limit_nusd",
        "held_nusd",
        "day_start",
        "day_nusd",
        "week_start",
        "week_nusd",
        "month_start",
        "month_nusd",
        "total_nusd",
    ],
};

/// What may be changed of a key's budget.
pub const KEY_BUDGET_LIMITS: &[&str] =
    &["day_limit_nusd", "week_limit_nusd", "month_limit_nusd", "total_limit_nusd"];

/// What a batch of the ledger may change of a key's budget.
pub const KEY_SPENDING: &[&str] = &[
    "held_nusd",
    "day_start",
    "day_nusd",
    "week_start",
    "week_nusd",
    "month_start",
    "month_nusd",
    "total_nusd",
];

pub const LOOKUPS: Table = Table {
    name: "lookups",
    columns: &[
        "request_id",
        "account_id",
        "generation_id",
        "attempts",
        "next_attempt_at",
        "give_up_at",
    ],
};

pub const IDEMPOTENCY_KEYS: Table =
    Table { name: "idempotency_keys", columns: &["id", "request_id", "expires_at"] };

pub const USAGE_CORRECTIONS: Table = Table {
    name: "usage_corrections",
    columns: &[
        "request_id",
        "account_id",
        "generation_id",
        "prompt_tokens",
        "completion_tokens",
        "upstream_cost_pusd",
        "charge_nusd",
        "difference_nusd",
        "created_at",
    ],
};

pub const HOLDS: Table = Table {
    name: "holds",
    columns: &[
        "request_id",
        "account_id",
        "api_key_id",
        "user_id",
        "amount_nusd",
        "owner",
        "lease_expires_at",
        "upstream",
        "model",
        "price_id",
        "prompt_tokens_estimate",
        "input_images",
        "completion_tokens_seen",
        "generation_id",
        "idempotency_key",
        "streamed",
        "placed_at",
        "counted_account",
        "counted_key",
        "counted_tokens",
        "counted_at",
        "tried",
    ],
};

pub const RATE_WINDOWS: Table =
    Table { name: "rate_windows", columns: &["subject", "open_requests", "seen_at", "slots"] };

/// What a batch of the ledger may change of a window.
pub const WINDOW_CHANGES: &[&str] = &["open_requests", "seen_at", "slots"];

/// What a batch of the ledger may change of a hold.
pub const HOLD_CHANGES: &[&str] =
    &["amount_nusd", "upstream", "price_id", "completion_tokens_seen", "generation_id", "tried"];

pub const USAGE_RECORDS: Table = Table {
    name: "usage_records",
    columns: &[
        "id",
        "account_id",
        "api_key_id",
        "user_id",
        "upstream",
        "model",
        "model_served",
        "provider",
        "generation_id",
        "streamed",
        "ending",
        "finish_reason",
        "upstream_status",
        "source",
        "prompt_tokens",
        "cached_tokens",
        "cache_write_tokens",
        "cache_write_1h_tokens",
        "audio_prompt_tokens",
        "completion_tokens",
        "reasoning_tokens",
        "audio_completion_tokens",
        "image_completion_tokens",
        "web_searches",
        "input_images",
        "counted_prompt_tokens",
        "counted_completion_tokens",
        "counter",
        "counter_exact",
        "upstream_cost_pusd",
        "charge_nusd",
        "shortfall_nusd",
        "hold_nusd",
        "price_id",
        "attempts",
        "started_at",
        "first_byte_at",
        "ended_at",
        "tried",
    ],
};

pub const LEDGER_ENTRIES: Table = Table {
    name: "ledger_entries",
    columns: &[
        "account_id",
        "seq",
        "kind",
        "amount_nusd",
        "balance_nusd",
        "request_id",
        "record_hash",
        "reason",
        "reference",
        "created_at",
        "previous_hash",
        "hash",
    ],
};

pub const BILLING_EVENTS: Table = Table {
    name: "billing_events",
    columns: &[
        "id",
        "sink",
        "kind",
        "request_id",
        "account_id",
        "state",
        "attempts",
        "next_attempt_at",
        "leased_until",
        "reason",
        "export_group",
        "detail",
        "created_at",
    ],
};

pub const ARCHIVES: Table = Table {
    name: "archives",
    columns: &[
        "month",
        "records",
        "charge_nusd",
        "corrections",
        "difference_nusd",
        "manifest_hash",
        "state",
        "archived_at",
    ],
};

pub const ARCHIVED_SPENDING: Table = Table {
    name: "archived_spending",
    columns: &["month", "api_key_id", "spent_nusd", "corrections"],
};

/// The columns in which two states of a row differ, of those that may be changed. Only these are
/// written, so that two changes at the same time do not undo each other.
pub fn differing<T: Serialize>(
    before: &T,
    after: &T,
    may_change: &'static [&'static str],
) -> Result<Vec<&'static str>, StoreError> {
    let (before, after) = (serde_json::to_value(before)?, serde_json::to_value(after)?);
    let columns = may_change.iter().copied();
    Ok(columns.filter(|name| before.get(name) != after.get(name)).collect())
}
/// What planning and sending change of an event.
pub const EVENT_PROGRESS: &[&str] =
    &["state", "next_attempt_at", "leased_until", "reason", "export_group"];

/// What the end of an attempt changes of an event; its lease is over, so that is set to nothing.
pub const EVENT_DONE: &[&str] = &["state", "next_attempt_at", "leased_until", "reason"];

pub const BILLING_SINKS: Table =
    Table { name: "billing_sinks", columns: &["name", "since", "until"] };

pub const EXPORTS: Table = Table {
    name: "exports",
    columns: &[
        "id",
        "sink",
        "event_group",
        "customer",
        "meter",
        "seq",
        "used_at",
        "members",
        "amount",
        "unit",
        "value",
        "state",
        "attempts",
        "refusals",
        "first_sent_at",
        "next_attempt_at",
        "reason",
        "created_at",
    ],
};

/// What sending changes of an export.
pub const EXPORT_PROGRESS: &[&str] = &["state", "refusals", "next_attempt_at", "reason"];

pub const EXPORT_LANES: Table = Table {
    name: "export_lanes",
    columns: &[
        "sink",
        "customer",
        "carried_nusd",
        "seq",
        "next_attempt_at",
        "leased_until",
        "leased_by",
    ],
};

/// What planning changes of a lane; `sink` is here because it is half of the key.
pub const LANE_PROGRESS: &[&str] = &["sink", "carried_nusd", "seq", "next_attempt_at"];

/// Rows as they come from either database.
pub fn parse<T: DeserializeOwned>(rows: &[String]) -> Result<Vec<T>, StoreError> {
    rows.iter().map(|row| Ok(serde_json::from_str(row)?)).collect()
}

/// Those rows that can be read; one that cannot, perhaps of a newer version, is said aloud.
pub fn readable<T, E: Display>(rows: impl Iterator<Item = Result<T, E>>) -> Vec<T> {
    let said = |error: &E| tracing::error!("a row cannot be read: {error}");
    rows.filter_map(|row| row.inspect_err(said).ok()).collect()
}

/// Prices as rows: id, model, plan, terms, upstream.
pub fn price_rows(prices: &[Arc<Price>]) -> Vec<(&str, &str, &str, String, &str)> {
    prices
        .iter()
        .map(|price| {
            let terms = &price.terms;
            let Terms { model, plan, upstream, .. } = terms;
            (price.id.as_str(), model.as_str(), plan.as_str(), terms.canonical(), upstream.as_str())
        })
        .collect()
}

/// The same words in both dialects.
pub fn on_conflict(key: &str, columns: &[&str]) -> String {
    let set: Vec<String> = columns.iter().map(|name| format!("{name} = excluded.{name}")).collect();
    format!("ON CONFLICT ({key}) DO UPDATE SET {}", set.join(", "))
}

/// SQL of PostgreSQL.
pub mod postgres {
    use super::Table;

    /// `$1`: the rows.
    pub fn insert(table: &Table) -> String {
        let columns = table.columns.join(", ");
        let Table { name, .. } = table;
        format!(
            "INSERT INTO {name} ({columns}) SELECT {columns} \
             FROM json_populate_recordset(NULL::{name}, $1::json)"
        )
    }

    /// `$1`: the rows; those whose `key` is there already get `columns`.
    pub fn upsert(table: &Table, key: &str, columns: &[&str]) -> String {
        format!("{} {}", insert(table), super::on_conflict(key, columns))
    }

    /// Rows as JSON; `condition` may name the table's columns with `t.`.
    pub fn select(table: &Table, condition: &str) -> String {
        format!("SELECT row_to_json(t)::text FROM {} t {condition}", table.name)
    }

    /// `$1`: the rows; sets `columns` of those with the same `key`.
    pub fn update(table: &Table, key: &str, columns: &[&str]) -> String {
        let set: Vec<String> = columns.iter().map(|name| format!("{name} = r.{name}")).collect();
        let Table { name, .. } = table;
        format!(
            "UPDATE {name} t SET {} FROM json_populate_recordset(NULL::{name}, $1::json) r \
             WHERE t.{key} = r.{key}",
            set.join(", ")
        )
    }
}

/// SQL of SQLite.
pub mod sqlite {
    use super::Table;

    /// `?1`: the rows.
    pub fn insert(table: &Table) -> String {
        format!(
            "INSERT INTO {} ({}) SELECT {} FROM json_each(?1)",
            table.name,
            table.columns.join(", "),
            members(table.columns)
        )
    }

    /// `?1`: the rows; those whose `key` is there already get `columns`.
    pub fn upsert(table: &Table, key: &str, columns: &[&str]) -> String {
        // Without a WHERE, its parser takes ON for that of a join.
        // <https://www.sqlite.org/lang_upsert.html#parsing_ambiguity>
        format!("{} WHERE true {}", insert(table), super::on_conflict(key, columns))
    }

    /// Rows as JSON; `condition` may name the table's columns with `t.`.
    pub fn select(table: &Table, condition: &str) -> String {
        let pairs: Vec<String> =
            table.columns.iter().map(|name| format!("'{name}', t.{name}")).collect();
        format!("SELECT json_object({}) FROM {} t {condition}", pairs.join(", "), table.name)
    }

    /// The changed rows as JSON, at the end of an update.
    pub fn returning(table: &Table) -> String {
        let pairs: Vec<String> =
            table.columns.iter().map(|name| format!("'{name}', {name}")).collect();
        format!("RETURNING json_object({})", pairs.join(", "))
    }

    /// `?1`: the rows; sets `columns` of those with the same `key`.
    pub fn update(table: &Table, key: &str, columns: &[&str]) -> String {
        let set: Vec<String> = columns.iter().map(|name| format!("{name} = r.{name}")).collect();
        let mut wanted = vec![key];
        wanted.extend(columns);
        format!(
            "UPDATE {0} SET {1} FROM (SELECT {2} FROM json_each(?1)) r WHERE {0}.{key} = r.{key}",
            table.name,
            set.join(", "),
            members(&wanted)
        )
    }

    fn members(columns: &[&str]) -> String {
        let members: Vec<String> =
            columns.iter().map(|name| format!("value ->> '$.{name}' AS {name}")).collect();
        members.join(", ")
    }
}
