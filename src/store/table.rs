//! Tables as lists of columns, and the statements made from them for either dialect.
//!
//! A batch of rows goes in as one JSON array in one parameter; rows come out as JSON texts. The
//! column lists are held against the structs by a test.

use crate::models::price::Price;
use std::sync::Arc;

/// A table and its columns, in the order of its struct.
pub struct Table {
    pub name: &'static str,
    columns: &'static [&'static str],
}

pub const ACCOUNTS: Table = Table {
    name: "accounts",
    columns: &[
        "id",
        "name",
        "kind",
        "status",
        "limit_nusd",
        "balance_nusd",
        "held_nusd",
        "period_start",
        "period_charged_nusd",
        "ledger_seq",
        "ledger_hash",
        "stripe_customer_id",
        "created_at",
    ],
};

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
        "created_at",
        "expires_at",
        "revoked_at",
    ],
};

pub const HOLDS: Table = Table {
    name: "holds",
    columns: &[
        "request_id",
        "account_id",
        "api_key_id",
        "amount_nusd",
        "owner",
        "lease_expires_at",
        "upstream",
        "model",
        "price_id",
        "prompt_tokens_estimate",
        "completion_tokens_seen",
        "generation_id",
        "streamed",
        "placed_at",
    ],
};

/// What a note may change of a hold.
pub const HOLD_NOTES: &[&str] = &["completion_tokens_seen", "generation_id"];

pub const USAGE_RECORDS: Table = Table {
    name: "usage_records",
    columns: &[
        "id",
        "account_id",
        "api_key_id",
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
        "completion_tokens",
        "reasoning_tokens",
        "counted_prompt_tokens",
        "counted_completion_tokens",
        "counter",
        "counter_exact",
        "upstream_cost_nusd",
        "charge_nusd",
        "shortfall_nusd",
        "hold_nusd",
        "price_id",
        "attempts",
        "started_at",
        "first_byte_at",
        "ended_at",
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
        "request_id",
        "account_id",
        "state",
        "attempts",
        "next_attempt_at",
        "leased_until",
        "reason",
        "created_at",
    ],
};

/// Rows of `prices`: id, model, terms.
pub fn price_rows(prices: &[Arc<Price>]) -> Vec<(&str, &str, String)> {
    prices
        .iter()
        .map(|price| (price.id.as_str(), price.terms.model.as_str(), price.terms.canonical()))
        .collect()
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

    /// Rows as JSON; `condition` may name the table's columns with `t.`.
    pub fn select(table: &Table, condition: &str) -> String {
        let pairs: Vec<String> =
            table.columns.iter().map(|name| format!("'{name}', t.{name}")).collect();
        format!("SELECT json_object({}) FROM {} t {condition}", pairs.join(", "), table.name)
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
