//! Recomputes the books from their entries and names every difference.
//!
//! Invariant: reads pages and changes nothing, and holds a page of entries, records and events in
//! memory, however many there are (and a row for each key, customer and open hold). Run beside a
//! busy server it may see an account between two of its changes; run it again before alarm.

mod archived;
mod chain;
mod events;
mod holds;
mod keys;
mod payments;
mod records;
mod rows;

use crate::models::ids::RequestId;
use crate::store::{Store, StoreError};
use archived::Archived;
pub use events::{Due, EventCounts};
use std::collections::{BTreeMap, HashSet};

/// What was looked at, and what does not fit.
#[derive(Debug, Default)]
pub struct Report {
    pub accounts: usize,
    pub entries: usize,
    pub records: usize,
    pub open_holds: usize,
    /// Billing events by sink.
    pub sinks: BTreeMap<String, EventCounts>,
    pub differences: Vec<String>,
}

/// Differences named one by one at most.
const DIFFERENCES_MAX: usize = 1_000;

/// Verifies everything.
///
/// # Errors
/// The store's.
pub async fn verify(store: &dyn Store) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let mut archived = Archived::load(store).await?;
    let due = events::Due::load(store).await?;
    records::check(store, &due, &archived, &mut report).await?;
    events::check(store, &mut report).await?;
    let mut held = holds::sum(store, &mut report).await?;
    holds::check_windows(store, &mut held, &mut report).await?;
    let mut spending = keys::Spending::load(store).await?;
    let mut entered = payments::Entered::default();
    let mut after = None;
    loop {
        let accounts = store.accounts_after(after).await?;
        let Some(last) = accounts.last() else { break };
        after = Some(last.id);
        for account in &accounts {
            report.accounts += 1;
            let counted = chain::Counted {
                spending: &mut spending,
                entered: &mut entered,
                archived: &mut archived,
            };
            chain::check(store, account, counted, &mut report).await?;
            let holds = held.by_account.get(&account.id).copied().unwrap_or_default();
            report.check(account.held_nusd == holds, || {
                let held = account.held_nusd;
                format!("account {}: held {held} but open holds are {holds}", account.id)
            });
        }
    }
    spending.check(&held, &archived, &mut report);
    archived.check(&mut report);
    events::check_exports(store, &archived, &mut report).await?;
    entered.check(store, &mut report).await?;
    Ok(report)
}

/// Checks that these requests, whose records have been committed, are in the ledger and with every
/// sink of their time or on their way there. Gives what does not fit.
///
/// # Errors
/// The store's.
pub async fn verify_settled(
    store: &dyn Store,
    requests: &[RequestId],
) -> Result<Vec<String>, StoreError> {
    let records = store.outlines_of(requests).await?;
    let due = events::Due::load(store).await?;
    let mut report = Report::default();
    let found: HashSet<RequestId> = records.iter().map(|record| record.id).collect();
    for id in requests {
        report.check(found.contains(id), || format!("usage record {id}: it is not there"));
    }
    // What has just been committed is in no archive.
    let archived = Archived::default();
    records::check_kept(store, &due, &archived, records, &mut report).await?;
    Ok(report.differences)
}

impl Report {
    fn check(&mut self, holds: bool, difference: impl FnOnce() -> String) {
        if !holds && self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(difference());
        }
    }
}
