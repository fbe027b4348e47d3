//! Usage records and corrections: each charge made again from its tokens and its price version, in
//! the ledger, and on its way to every sink of its time.

use super::Report;
use super::archived::Archived;
use super::events::Due;
use super::rows::{CHARGE, CORRECTION};
use crate::models::ids::RequestId;
use crate::models::ledger::EntryKind;
use crate::models::money::NanoUsd;
use crate::models::price::Price;
use crate::models::usage::{Outline, UsageRecord, UsageSource};
use crate::services::pricing;
use crate::store::{Store, StoreError};
use std::collections::{HashMap, HashSet};

/// Checks every row; `due` says which events they must have, but for those that are on their way to
/// an archive.
pub async fn check(
    store: &dyn Store,
    due: &Due,
    archived: &Archived,
    report: &mut Report,
) -> Result<(), StoreError> {
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
        }
        let outlines = records.iter().map(UsageRecord::outline).collect();
        check_kept(store, due, archived, outlines, report).await?;
    }
    check_corrections(store, due, archived, report).await
}

/// Each of these is in the ledger, and with every sink of its time or on its way there; of a month
/// that is being archived the events may have gone first.
pub async fn check_kept(
    store: &dyn Store,
    due: &Due,
    archived: &Archived,
    records: Vec<Outline>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let ids: Vec<RequestId> = records.iter().map(|record| record.id).collect();
    check_entered(store, EntryKind::Charge, &ids, report).await?;
    let stay = records.into_iter().filter(|record| !archived.has(record.id));
    due.check_records(store, &stay.collect::<Vec<_>>(), report).await
}

async fn check_corrections(
    store: &dyn Store,
    due: &Due,
    archived: &Archived,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let corrections = store.corrections_after(after).await?;
        let Some(last) = corrections.last() else { return Ok(()) };
        after = Some(last.request_id);
        let ids: Vec<RequestId> = corrections.iter().map(|row| row.request_id).collect();
        check_entered(store, EntryKind::Correction, &ids, report).await?;
        let stay = corrections.into_iter().filter(|row| !archived.has(row.request_id));
        due.check_corrections(store, &stay.collect::<Vec<_>>(), report).await?;
    }
}

/// Each of these has its entry.
async fn check_entered(
    store: &dyn Store,
    kind: EntryKind,
    ids: &[RequestId],
    report: &mut Report,
) -> Result<(), StoreError> {
    let name = if kind == EntryKind::Correction { CORRECTION } else { CHARGE };
    let entered: HashSet<RequestId> = store.entered(kind, ids).await?.into_iter().collect();
    for id in ids {
        report.check(entered.contains(id), || format!("{name} of {id}: not in the ledger"));
    }
    Ok(())
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
