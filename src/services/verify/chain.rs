//! An account's chain of entries, followed from the first to the head that the account names, a
//! page of them in memory.

use super::Report;
use super::archived::Archived;
use super::keys::Spending;
use super::payments::Entered;
use super::rows::{CHARGE, CORRECTION, Rows};
use crate::models::account::Account;
use crate::models::ledger::{EntryKind, LedgerEntry};
use crate::models::money::NanoUsd;
use crate::store::{Store, StoreError};

/// How far the chain has been followed.
#[derive(Default)]
struct Link {
    seq: i64,
    balance: NanoUsd,
    hash: String,
}

/// What entries are added up for.
pub struct Counted<'a> {
    pub spending: &'a mut Spending,
    pub entered: &'a mut Entered,
    pub archived: &'a mut Archived,
}

/// Checks every entry against the one before it and against the row it is for.
pub async fn check(
    store: &dyn Store,
    account: &Account,
    counted: Counted<'_>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let id = account.id;
    let mut link = Link::default();
    let mut charged = 0_i64;
    loop {
        let entries = store.ledger_after(id, link.seq).await?;
        if entries.is_empty() {
            break;
        }
        report.entries += entries.len();
        let rows = rows_of(store, &entries).await?;
        for entry in &entries {
            link = link.follow(entry, report);
            check_row(entry, &rows, counted.spending, counted.archived, report);
            counted.entered.count(entry);
            if entry.request_id.is_some() && entry.created_at >= account.period_start {
                charged = charged.saturating_sub(entry.amount_nusd.0);
            }
        }
    }
    report.check(account.ledger_seq == link.seq && account.ledger_hash == link.hash, || {
        format!("account {id}: its newest ledger entry is missing")
    });
    report.check(account.period_charged_nusd.0 == charged, || {
        let said = account.period_charged_nusd;
        format!(
            "account {id}: charged {said} this month but its entries sum to {}",
            NanoUsd(charged)
        )
    });
    report.check(account.balance_nusd == link.balance, || {
        let balance = account.balance_nusd;
        format!("account {id}: balance {balance} but its entries sum to {}", link.balance)
    });
    Ok(())
}

fn name(entry: &LedgerEntry) -> String {
    format!("ledger entry {}/{}", entry.account_id, entry.seq)
}

impl Link {
    fn follow(self, entry: &LedgerEntry, report: &mut Report) -> Self {
        let balance = NanoUsd(self.balance.0.saturating_add(entry.amount_nusd.0));
        let mut check = |holds: bool, what: &str| {
            report.check(holds, || format!("{}: {what}", name(entry)));
        };
        check(entry.seq == self.seq + 1, "an entry before it is missing");
        check(entry.hash == entry.computed_hash(), "was changed");
        check(entry.previous_hash == self.hash, "the chain is broken");
        check(entry.balance_nusd == balance, "a wrong balance");
        Self { seq: entry.seq, balance, hash: entry.hash.clone() }
    }
}

/// The rows that a page of entries is for.
async fn rows_of(store: &dyn Store, entries: &[LedgerEntry]) -> Result<Rows, StoreError> {
    let records: Vec<_> = entries.iter().filter_map(|entry| entry.request_id).collect();
    let corrections = entries.iter().filter(|entry| entry.kind == EntryKind::Correction);
    let corrections: Vec<_> = corrections.filter_map(|entry| entry.request_id).collect();
    Rows::of(store, &records, &corrections).await
}

fn check_row(
    entry: &LedgerEntry,
    rows: &Rows,
    spending: &mut Spending,
    archived: &mut Archived,
    report: &mut Report,
) {
    let kind = match entry.kind {
        EntryKind::Charge => CHARGE,
        EntryKind::Correction => CORRECTION,
        EntryKind::Credit => return,
    };
    // A correction by hand is for no request.
    let Some(request) = entry.request_id else { return };
    let row = rows.expected(request, kind);
    if archived.has(request) {
        archived.count(request, entry);
        // What is still there has to be right.
        if row.is_none() {
            return;
        }
    } else if let Some(key) = rows.key(request) {
        spending.count(key, entry);
    }
    let is_same = row.is_some_and(|row| {
        entry.record_hash.as_ref() == Some(&row.hash) && entry.amount_nusd == row.amount
    });
    report.check(is_same, || format!("{}: differs from the {kind} of {request}", name(entry)));
}
