//! Entries of an account's chain, each sealed with the one before it.
//!
//! Invariant: the balance after an entry is the one before it and its amount; the account and its
//! last entry say the same. What an entry is for is decided elsewhere.

use crate::models::account::Account;
use crate::models::ids::RequestId;
use crate::models::ledger::{EntryKind, LedgerEntry, record_hash};
use crate::models::money::{NanoUsd, OutOfRange};
use crate::models::timestamp::Timestamp;
use crate::models::usage::UsageRecord;

pub struct Posting {
    pub kind: EntryKind,
    pub amount: NanoUsd,
    pub request: Option<RequestId>,
    pub record_hash: Option<String>,
    pub reason: String,
    pub reference: Option<String>,
}

pub fn charge_of(record: &UsageRecord) -> Result<Posting, OutOfRange> {
    Ok(Posting {
        kind: EntryKind::Charge,
        amount: NanoUsd::ZERO.minus(record.charge_nusd)?,
        request: Some(record.id),
        record_hash: Some(record_hash(record)),
        reason: record.model.clone(),
        reference: None,
    })
}

/// Appends to the account's chain.
pub fn post(
    account: &mut Account,
    posting: Posting,
    now: Timestamp,
) -> Result<LedgerEntry, OutOfRange> {
    account.balance_nusd = account.balance_nusd.plus(posting.amount)?;
    account.ledger_seq = account.ledger_seq.checked_add(1).ok_or(OutOfRange)?;
    let entry = LedgerEntry {
        account_id: account.id,
        seq: account.ledger_seq,
        kind: posting.kind,
        amount_nusd: posting.amount,
        balance_nusd: account.balance_nusd,
        request_id: posting.request,
        record_hash: posting.record_hash,
        reason: posting.reason,
        reference: posting.reference,
        created_at: now,
        previous_hash: account.ledger_hash.clone(),
        hash: String::new(),
    }
    .sealed();
    account.ledger_hash.clone_from(&entry.hash);
    Ok(entry)
}
