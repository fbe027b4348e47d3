//! `verify` against every column of the books: each value is changed, and the row is named.
//!
//! The columns come from the schema, so that a new one is either covered or excused here.

use serde_json::{Value, json};

use super::{corrected, one};
use crate::app::books::Pool;
use crate::app::{Setup, Store, TestApp, both_stores, streamed};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{FREE_MODEL, MODEL};
use crate::upstream::script::Script;

both_stores!(verify_names_every_flipped_value);

/// The tables that say what was used, what was charged and what there is, with their keys.
const TABLES: [(&str, &str); 6] = [
    ("usage_records", "id"),
    ("usage_corrections", "request_id"),
    ("ledger_entries", "account_id"),
    ("accounts", "id"),
    ("key_budgets", "api_key_id"),
    ("prices", "id"),
];

/// Columns that may say anything, and why.
const EXCUSED: &[(&str, &[&str], &str)] = &[
    (
        "accounts",
        &["name", "kind", "status", "plan", "limit_nusd", "stripe_customer_id", "created_at"],
        "what an operator has set; the audit log tells of its changes",
    ),
    (
        "accounts",
        &["requests_per_minute", "tokens_per_minute", "concurrent_requests"],
        "what an operator has set",
    ),
    ("accounts", &["id"], "other rows name it: the database refuses"),
    (
        "key_budgets",
        &["day_limit_nusd", "week_limit_nusd", "month_limit_nusd", "total_limit_nusd"],
        "what an operator has set",
    ),
    ("key_budgets", &["api_key_id"], "each key has one already: the database refuses"),
    ("prices", &["id"], "other rows name it: the database refuses"),
    ("prices", &["model"], "for people who look: the program reads the terms, which say it too"),
];

/// What has to be put in the place of a value, where any other would be refused.
const VALUES: &[(&str, &str, &str)] = &[
    ("ledger_entries", "kind", "CASE kind WHEN 'credit' THEN 'charge' ELSE 'credit' END"),
    ("ledger_entries", "seq", "seq + 1000"),
    ("usage_records", "ending", "'cut_off'"),
    ("usage_records", "source", "'estimated'"),
    ("usage_records", "tried", TRIED),
    ("prices", "terms", r#"replace(terms, '"markup_ppm":1200000', '"markup_ppm":1200001')"#),
];

const TRIED: &str = r#"'[{"upstream":"openrouter","status":500,"failure":"failed","ms":271828}]'"#;

/// What makes a record's charge.
const PRICED: [&str; 6] = [
    "prompt_tokens",
    "completion_tokens",
    "upstream_cost_pusd",
    "charge_nusd",
    "shortfall_nusd",
    "source",
];

/// A column with the type that its table gives it.
struct Column {
    name: String,
    kind: String,
}

async fn columns(app: &TestApp, table: &str) -> Vec<Column> {
    let query = match app.books.pool {
        Pool::Sqlite(_) => format!("SELECT name, type AS kind FROM pragma_table_info('{table}')"),
        Pool::Postgres(_) => format!(
            "SELECT column_name AS name, data_type AS kind FROM information_schema.columns \
             WHERE table_schema = 'public' AND table_name = '{table}'"
        ),
    };
    let text = |value: &Value| value.as_str().expect("a text").to_lowercase();
    let rows = app.books.rows(&query).await;
    rows.iter().map(|row| Column { name: text(&row["name"]), kind: text(&row["kind"]) }).collect()
}

fn is_excused(table: &str, column: &str) -> bool {
    let mut own = EXCUSED.iter().filter(|(of, ..)| *of == table);
    own.any(|(_, columns, _)| columns.contains(&column))
}

/// SQL for another value of the same type.
fn another(table: &str, Column { name, kind }: &Column, was: &Value, stranger: &str) -> String {
    let mut known = VALUES.iter().filter(|(of, ..)| *of == table);
    if let Some((.., value)) = known.find(|(_, column, _)| column == name) {
        return (*value).to_string();
    }
    let is_flag = ["streamed", "counter_exact"].contains(&name.as_str());
    match (kind.as_str(), was) {
        // Of a table that has only real accounts.
        _ if name == "account_id" => format!("'{stranger}'"),
        ("boolean", _) => format!("NOT {name}"),
        _ if is_flag => format!("1 - {name}"),
        ("bigint" | "integer" | "smallint", Value::Null) => "1".to_string(),
        ("bigint" | "integer" | "smallint", _) => format!("{name} + 1"),
        _ if name.ends_with("_at") || name.ends_with("_start") => {
            "'2999-01-01T00:00:00.000000Z'".to_string()
        }
        // Another id of the same month.
        (_, Value::String(text)) if text.len() == 36 && text.matches('-').count() == 4 => {
            let last = if text.ends_with('0') { '1' } else { '0' };
            format!("'{}{last}'", &text[..35])
        }
        (_, Value::Null) if name.ends_with("_id") => format!("'{stranger}'"),
        _ => "'another'".to_string(),
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::String(text) => format!("'{}'", text.replace('\'', "''")),
        other => other.to_string(),
    }
}

/// The rows of a table of which every value has to be right.
async fn rows(app: &TestApp, table: &str, column: &str, plain_key: &str) -> Vec<Value> {
    let mut rows = app.books.rows(&format!("SELECT * FROM {table}")).await;
    let used = app.books.records().await;
    rows.retain(|row| match table {
        "prices" => {
            let is_used = used.iter().any(|record| row["id"] == json!(record.price_id));
            is_used && row["terms"].to_string().contains("1200000")
        }
        // What is given back may be of an older window: of such a key they cannot be told.
        "key_budgets" if is_windowed(column) => row["api_key_id"] == json!(plain_key),
        _ => true,
    });
    // Of the columns that are but under the record's hash, one record is as good as another.
    if table == "usage_records" && !PRICED.contains(&column) {
        rows.truncate(2);
    }
    rows
}

fn is_windowed(column: &str) -> bool {
    ["day_", "week_", "month_"].iter().any(|window| column.starts_with(window))
}

async fn verify_names_every_flipped_value(store: Store) {
    let app = Setup::new(store).env("TOLLGATE_SLOW_LOOKUP_EVERY_SECONDS", "1").start().await;
    corrected(&app).await;
    one(&app, &Answer::openrouter(), MODEL).await;
    one(&app, &Answer::openrouter().no_cost().model(FREE_MODEL), FREE_MODEL).await;
    app.upstream.script(Script::json(500, "{}"));
    assert_eq!(app.chat(&streamed(MODEL)).await.status, 502);
    let other = app.create_key("test", &[]).await;
    app.upstream.script(Answer::openrouter().stream());
    let got = app.ask(&app.chat_ask(&streamed(MODEL)).bearer(&other)).await;
    let plain_key = app.record_of(&got).await.api_key_id.expect("a key");
    let stranger = app.create_account("stranger", &[]).await;
    app.settled().await;
    app.cli(&["verify"]).await;
    let mut unseen = Vec::new();
    let mut flipped = 0;
    for (table, key) in TABLES {
        for column in columns(&app, table).await {
            let name = &column.name;
            if is_excused(table, name) {
                continue;
            }
            let rows = rows(&app, table, name, &plain_key).await;
            assert!(!rows.is_empty(), "nothing in {table}");
            for row in rows.iter().filter(|row| row[key] != json!(stranger)) {
                let value = another(table, &column, &row[name], &stranger);
                let id = row[key].as_str().expect("an id");
                // Also when it is the key itself that was changed.
                let mut place = format!("{key} = '{id}'");
                let mut back = place.clone();
                if name == key {
                    back = format!("{key} = {value}");
                }
                if table == "ledger_entries" {
                    place.extend([" AND seq = ", &row["seq"].to_string()]);
                    let seq = row["seq"].as_i64().expect("a number")
                        + if name == "seq" { 1_000 } else { 0 };
                    back.extend([" AND seq = ", &seq.to_string()]);
                }
                let was = literal(&row[name]);
                app.books
                    .tamper(&format!("UPDATE {table} SET {name} = {value} WHERE {place}"))
                    .await;
                let verified = app.try_cli(&["verify"]).await;
                app.books.tamper(&format!("UPDATE {table} SET {name} = {was} WHERE {back}")).await;
                flipped += 1;
                let said = verified.stdout + &verified.stderr;
                let is_entry = table == "ledger_entries" && said.contains("ledger");
                if verified.status.success() || !(said.contains(id) || is_entry) {
                    unseen.push(format!("{table}.{name} {was} -> {value} of {row}: {said}"));
                }
            }
        }
    }
    println!("{flipped} values were changed");
    app.cli(&["verify"]).await;
    assert!(unseen.is_empty(), "{} flips are not found:\n{}", unseen.len(), unseen.join("\n"));
    app.finish().await;
}
