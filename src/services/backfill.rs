//! Billing events that are missing: of what was settled by a process that did not know of a sink,
//! because another had begun with it a moment before.
//!
//! Invariants: an event is made only where `verify` misses it, with the id that follows from its
//! row, so that it is there once whoever makes it; none is made for a sink that has ended, which
//! nobody would send, nor for a month that may be archived, whose events are in a file.

use crate::models::archive::Month;
use crate::models::ids::RequestId;
use crate::models::timestamp::Timestamp;
use crate::models::usage::UsageRecord;
use crate::services::verify::Due;
use crate::store::{Store, StoreError};

/// Makes them; gives their number.
///
/// # Errors
/// The store's. What was made by then stays.
pub async fn backfill(store: &dyn Store, now: Timestamp) -> Result<u64, StoreError> {
    let due = Due::load(store).await?.of_open_sinks();
    let first = first_request(now);
    Ok(of_records(store, &due, first).await? + of_corrections(store, &due, first).await?)
}

/// Of the oldest month that is not over.
fn first_request(now: Timestamp) -> RequestId {
    let (this, last) = (Month::of(now), Month::of(now).minus(1));
    let (first, _) = if last.is_over(now) { this.ids() } else { last.ids() };
    first
}

async fn of_records(store: &dyn Store, due: &Due, first: RequestId) -> Result<u64, StoreError> {
    let (mut after, mut count) = (first, 0);
    loop {
        let records = store.usage_after(Some(after)).await?;
        let Some(last) = records.last() else { return Ok(count) };
        after = last.id;
        let outlines: Vec<_> = records.iter().map(UsageRecord::outline).collect();
        let missing = due.missing_of_records(store, &outlines).await?;
        count += store.add_events(&missing).await?;
    }
}

async fn of_corrections(store: &dyn Store, due: &Due, first: RequestId) -> Result<u64, StoreError> {
    let (mut after, mut count) = (first, 0);
    loop {
        let corrections = store.corrections_after(Some(after)).await?;
        let Some(last) = corrections.last() else { return Ok(count) };
        after = last.request_id;
        let missing = due.missing_of_corrections(store, &corrections).await?;
        count += store.add_events(&missing).await?;
    }
}
