//! Usage records and corrections: each charge made again from its tokens and its price version.

use super::Report;
use crate::models::ids::{AccountId, ApiKeyId, RequestId};
use crate::models::ledger::record_hash;
use crate::models::money::NanoUsd;
use crate::models::price::Price;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{UsageRecord, UsageSource};
use crate::services::pricing;
use crate::store::{Store, StoreError};
use std::collections::HashMap;

/// What the ledger must say of a row, by its request and kind.
pub type Rows = HashMap<(RequestId, &'static str), Expected>;

/// The entry of a row.
pub struct Expected {
    pub hash: String,
    pub amount: NanoUsd,
    /// Whose budget it counts in.
    pub key: Option<ApiKeyId>,
    pub account: AccountId,
    /// Sinks that were configured then have an event of it.
    pub is_billable: bool,
    pub at: Timestamp,
}

pub const CHARGE: &str = "charge";
pub const CORRECTION: &str = "correction";

/// Checks every row, and collects what the ledger must say.
pub async fn check(store: &dyn Store, report: &mut Report) -> Result<Rows, StoreError> {
    let mut rows = Rows::new();
    let mut prices: HashMap<String, Option<Price>> = HashMap::new();
    let mut after = None;
    loop {
        let records = store.usage_after(after).await?;
        let Some(last) = records.last() else { break };
        after = Some(last.id);
        report.records += records.len();
        for record in &records {
            if !prices.contains_key(&record.price_id) {
                let price = store.price(&record.price_id).await?;
                prices.insert(record.price_id.clone(), price);
            }
            check_record(record, prices.get(&record.price_id).and_then(Option::as_ref), report);
            let amount = NanoUsd(record.charge_nusd.0.saturating_neg());
            let (hash, key) = (record_hash(record), record.api_key_id);
            let (account, is_billable, at) =
                (record.account_id, record.is_billable(), record.ended_at);
            let expected = Expected { hash, amount, key, account, is_billable, at };
            rows.insert((record.id, CHARGE), expected);
        }
    }
    collect_corrections(store, &mut rows).await?;
    Ok(rows)
}

fn check_record(record: &UsageRecord, price: Option<&Price>, report: &mut Report) {
    let id = record.id;
    let sum = |parts: &[i64]| parts.iter().fold(0_i64, |sum, part| sum.saturating_add(*part));
    let prompt_parts = sum(&[
        record.cached_tokens.0,
        record.cache_write_tokens.0,
        record.cache_write_1h_tokens.0,
        record.audio_prompt_tokens.0,
    ]);
    let completion_parts = sum(&[
        record.reasoning_tokens.0,
        record.audio_completion_tokens.0,
        record.image_completion_tokens.0,
    ]);
    report.check(
        prompt_parts <= record.prompt_tokens.0 && completion_parts <= record.completion_tokens.0,
        || format!("usage record {id}: parts are larger than their whole"),
    );
    report.check(record.charge_nusd >= NanoUsd::ZERO && record.shortfall_nusd.0 >= 0, || {
        format!("usage record {id}: a negative amount")
    });
    let Some(price) = price else {
        report.check(false, || format!("usage record {id}: no price {}", record.price_id));
        return;
    };
    report.check(price.id == record.price_id, || {
        format!("price {}: its terms have another hash", record.price_id)
    });
    let priced = match record.source {
        UsageSource::None => Ok(NanoUsd::ZERO),
        _ => pricing::charge(price, &record.used()),
    };
    let owed = record.charge_nusd.plus(record.shortfall_nusd);
    report.check(priced.is_ok() && priced == owed, || {
        format!("usage record {id}: charged {} but its price says {priced:?}", record.charge_nusd)
    });
}

async fn collect_corrections(store: &dyn Store, rows: &mut Rows) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let corrections = store.corrections_after(after).await?;
        let Some(last) = corrections.last() else { return Ok(()) };
        after = Some(last.request_id);
        for correction in &corrections {
            let (hash, amount) = (record_hash(correction), correction.difference_nusd);
            let charge = rows.get(&(correction.request_id, CHARGE));
            let key = charge.and_then(|charge| charge.key);
            let (account, at) = (correction.account_id, correction.created_at);
            let expected = Expected { hash, amount, key, account, is_billable: true, at };
            rows.insert((correction.request_id, CORRECTION), expected);
        }
    }
}
