//! Recomputes the books from their entries and names every difference.
//!
//! Invariant: reads pages, so a large store takes time and not memory; changes nothing. Run beside
//! a busy server it may see an account between two of its changes; run again before alarm.

use crate::models::account::Account;
use crate::models::ids::AccountId;
use crate::models::ledger::record_hash;
use crate::models::money::NanoUsd;
use crate::models::usage::UsageRecord;
use crate::store::{Store, StoreError};
use std::collections::HashMap;

/// What was looked at, and what does not fit.
#[derive(Debug, Default)]
pub struct Report {
    pub accounts: usize,
    pub entries: usize,
    pub records: usize,
    pub open_holds: usize,
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
    let mut charges = charges_of_records(store, &mut report).await?;
    let held = held_by_account(store, &mut report).await?;
    let mut after = None;
    loop {
        let accounts = store.accounts_after(after).await?;
        let Some(last) = accounts.last() else { break };
        after = Some(last.id);
        for account in &accounts {
            report.accounts += 1;
            check_chain(store, account, &mut charges, &mut report).await?;
            let holds = held.get(&account.id).copied().unwrap_or_default();
            report.check(account.held_nusd == holds, || {
                format!(
                    "account {}: held {} but open holds are {holds}",
                    account.id, account.held_nusd
                )
            });
        }
    }
    for record in charges.into_keys() {
        report.check(false, || format!("usage record {record}: charged but not in the ledger"));
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

/// Hash and charge of every charged record, by id.
async fn charges_of_records(
    store: &dyn Store,
    report: &mut Report,
) -> Result<HashMap<String, (String, NanoUsd)>, StoreError> {
    let mut charges = HashMap::new();
    let mut after = None;
    loop {
        let records = store.usage_after(after).await?;
        let Some(last) = records.last() else {
            return Ok(charges);
        };
        after = Some(last.id);
        report.records += records.len();
        for record in &records {
            check_record(record, report);
            if !record.charge_nusd.is_zero() {
                let charge = (record_hash(record), record.charge_nusd);
                charges.insert(record.id.to_string(), charge);
            }
        }
    }
}

fn check_record(record: &UsageRecord, report: &mut Report) {
    let parts = record.cached_tokens.0.saturating_add(record.cache_write_tokens.0);
    report.check(
        parts <= record.prompt_tokens.0 && record.reasoning_tokens <= record.completion_tokens,
        || format!("usage record {}: a part is larger than its whole", record.id),
    );
    report.check(record.charge_nusd >= NanoUsd::ZERO, || {
        format!("usage record {}: a negative charge", record.id)
    });
}

async fn held_by_account(
    store: &dyn Store,
    report: &mut Report,
) -> Result<HashMap<AccountId, NanoUsd>, StoreError> {
    let mut held: HashMap<AccountId, NanoUsd> = HashMap::new();
    let mut after = None;
    loop {
        let holds = store.holds_after(after).await?;
        let Some(last) = holds.last() else {
            return Ok(held);
        };
        after = Some(last.request_id);
        report.open_holds += holds.len();
        for hold in &holds {
            let sum = held.entry(hold.account_id).or_default();
            sum.0 = sum.0.saturating_add(hold.amount_nusd.0);
        }
    }
}

/// Follows an account's entries from the first to the head that the account names.
async fn check_chain(
    store: &dyn Store,
    account: &Account,
    charges: &mut HashMap<String, (String, NanoUsd)>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let id = account.id;
    let (mut seq, mut balance, mut hash) = (0_i64, NanoUsd::ZERO, String::new());
    loop {
        let entries = store.ledger_after(id, seq).await?;
        if entries.is_empty() {
            break;
        }
        report.entries += entries.len();
        for entry in &entries {
            let at = format!("ledger entry {id}/{}", entry.seq);
            balance = NanoUsd(balance.0.saturating_add(entry.amount_nusd.0));
            report.check(entry.seq == seq + 1, || format!("{at}: an entry before it is missing"));
            report.check(entry.hash == entry.computed_hash(), || format!("{at}: was changed"));
            report.check(entry.previous_hash == hash, || format!("{at}: the chain is broken"));
            report.check(entry.balance_nusd == balance, || format!("{at}: a wrong balance"));
            if let Some(request) = entry.request_id {
                let charge = charges.remove(&request.to_string());
                let is_same = charge.is_some_and(|(record_hash, charge)| {
                    Some(record_hash) == entry.record_hash
                        && entry.amount_nusd.0.checked_neg() == Some(charge.0)
                });
                report.check(is_same, || format!("{at}: differs from usage record {request}"));
            }
            seq = entry.seq;
            hash.clone_from(&entry.hash);
        }
    }
    report.check(account.ledger_seq == seq && account.ledger_hash == hash, || {
        format!("account {id}: its newest ledger entry is missing")
    });
    report.check(account.balance_nusd == balance, || {
        format!("account {id}: balance {} but its entries sum to {balance}", account.balance_nusd)
    });
    Ok(())
}
