//! Recomputes the books from their entries and names every difference.
//!
//! Invariant: reads pages and changes nothing. Run beside a busy server it may see an account
//! between two of its changes; run it again before alarm.

mod chain;
mod events;
mod holds;
mod keys;
mod payments;
mod records;

use crate::store::{Store, StoreError};
pub use events::EventCounts;
use std::collections::BTreeMap;

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
    let mut rows = records::check(store, &mut report).await?;
    events::check(store, &rows, &mut report).await?;
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
            let found =
                chain::Found { rows: &mut rows, spending: &mut spending, entered: &mut entered };
            chain::check(store, account, found, &mut report).await?;
            let holds = held.by_account.get(&account.id).copied().unwrap_or_default();
            report.check(account.held_nusd == holds, || {
                let held = account.held_nusd;
                format!("account {}: held {held} but open holds are {holds}", account.id)
            });
        }
    }
    spending.check(&held, &mut report);
    entered.check(store, &mut report).await?;
    for (request, kind) in rows.into_keys() {
        report.check(false, || format!("{kind} of {request}: not in the ledger"));
    }
    Ok(report)
}

impl Report {
    fn check(&mut self, holds: bool, difference: impl FnOnce() -> String) {
        if !holds && self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(difference());
        }
    }
}
