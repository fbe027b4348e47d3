//! What callers see of their own books: usage and costs in OpenAI's form, key and credits in
//! OpenRouter's, and records as CSV. Every figure is held against the rows.

mod bad_input;
mod export;
mod own;
mod sums;
mod users;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::app::books::UsageRecord;
use crate::app::{Store, TestApp, question, streamed};
use crate::client::Ask;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{FREE_MODEL, MODEL, OLD_MODEL};
use crate::upstream::script::Script;

pub const USAGE: &str = "/v1/organization/usage/completions";
pub const COSTS: &str = "/v1/organization/costs";
pub const CSV: &str = "/v1/usage.csv";

/// Asks with a key, and takes only a good answer.
pub async fn see(app: &TestApp, key: &str, path: &str) -> Value {
    let got = app.ask(&Ask::get(path).bearer(key)).await;
    got.ok();
    got.json()
}

/// Every result of all buckets, with the beginning of its bucket.
pub fn results(page: &Value) -> Vec<(i64, Value)> {
    let mut found = Vec::new();
    for bucket in page["data"].as_array().expect("buckets") {
        assert_eq!(bucket["object"], json!("bucket"));
        let start = bucket["start_time"].as_i64().expect("a time");
        assert!(start < bucket["end_time"].as_i64().expect("a time"), "{bucket}");
        for result in bucket["results"].as_array().expect("results") {
            found.push((start, result.clone()));
        }
    }
    found
}

/// Nano-USD of an exact JSON number of dollars.
pub fn nano(amount: &Value) -> i64 {
    crate::upstream::answer::nano_usd(&amount.to_string()).expect("a decimal number")
}

/// Some calls of one key: plain, streamed, free, dear, and one that came to nothing.
pub async fn traffic(app: &TestApp, key: &str) {
    for (model, prompt, completion, cost) in [
        (MODEL, 12, 7, "0.000123"),
        (MODEL, 100, 30, "0.0004"),
        (FREE_MODEL, 9, 3, "0"),
        (OLD_MODEL, 50, 60, "0.0051"),
    ] {
        let answer = Answer::openrouter().model(model).tokens(prompt, completion).cost(cost);
        app.upstream.script(answer.clone().parts(5, 2).plain());
        app.ask(&app.chat_ask(&question(model)).bearer(key)).await.ok();
        app.upstream.script(answer.stream());
        app.ask(&app.chat_ask(&streamed(model)).bearer(key)).await.ok();
    }
    app.upstream.script(Script::json(500, "{}"));
    let last = app.ask(&app.chat_ask(&question(MODEL)).bearer(key)).await;
    // Settled in order: when the last record is there, all are.
    app.record_of(&last).await;
    app.settled().await;
}

/// Requests, tokens in, tokens out and nano-USD, by model and key.
pub type Sums = BTreeMap<(String, String), [i64; 4]>;

pub fn expected(records: &[UsageRecord], account: &str) -> Sums {
    let mut sums = Sums::new();
    let own = records.iter().filter(|record| record.account_id == account);
    for record in own.filter(|record| record.source != "none") {
        let key = record.api_key_id.clone().unwrap_or_default();
        let sum = sums.entry((record.model.clone(), key)).or_default();
        let more = [1, record.prompt_tokens, record.completion_tokens, record.charge_nusd];
        for (sum, more) in sum.iter_mut().zip(more) {
            *sum += more;
        }
    }
    sums
}

/// Copies a usage record under other ids, behind the program's back: `forget` takes them away
/// again, before the books are checked.
pub async fn copy(app: &TestApp, store: Store, record: &str, ids: &[String]) {
    let row = app.books.rows("SELECT * FROM usage_records").await.remove(0);
    let columns: Vec<_> = row.as_object().expect("a row").keys().collect();
    let columns: Vec<_> = columns.iter().filter(|name| **name != "id").collect();
    let columns = columns.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let id = match store {
        Store::Sqlite => "ids.id",
        Store::Postgres => "ids.id::uuid",
    };
    for some in ids.chunks(500) {
        let values: Vec<_> = some.iter().map(|id| format!("('{id}')")).collect();
        app.books
            .tamper(&format!(
                "WITH ids(id) AS (VALUES {}) INSERT INTO usage_records (id, {columns}) \
                 SELECT {id}, {columns} FROM usage_records CROSS JOIN ids \
                 WHERE usage_records.id = '{record}'",
                values.join(", ")
            ))
            .await;
    }
}

pub async fn forget(app: &TestApp, ids: &[String]) {
    for some in ids.chunks(500) {
        let list: Vec<_> = some.iter().map(|id| format!("'{id}'")).collect();
        let list = list.join(", ");
        app.books.tamper(&format!("DELETE FROM usage_records WHERE id IN ({list})")).await;
    }
}

/// A UUIDv7 of an instant in milliseconds since 1970.
pub fn id_at(millis: u64, number: u64) -> String {
    let bits = u128::from(millis) << 80 | 7 << 76 | 2 << 62 | u128::from(number);
    uuid::Uuid::from_u128(bits).to_string()
}

/// Seconds since 1970, some hours from now.
pub fn hours_from_now(hours: i64) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.expect("a clock").as_secs()).expect("a time") + hours * 3_600
}
