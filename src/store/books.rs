//! Decides a batch of ledger operations on the rows that a store has locked and loaded.
//!
//! Invariants, whatever the order and repetition of operations: `balance = credits - charges`,
//! `held = sum of open holds`, neither is ever negative on a prepaid account, and a request is
//! charged at most once. Pure: both stores load, let this decide, and write the changes down.

use super::{BillingEvent, Entry, LedgerOp, Note, Outcome};
use crate::models::account::{Account, AccountStatus};
use crate::models::hold::Hold;
use crate::models::ids::{AccountId, RequestId};
use crate::models::ledger::{EntryKind, LedgerEntry, record_hash};
use crate::models::money::{NanoUsd, OutOfRange};
use crate::models::timestamp::Timestamp;
use crate::models::usage::UsageRecord;
use std::collections::{BTreeMap, BTreeSet};

/// The rows that a batch touches.
#[derive(Debug, Default)]
pub struct Books {
    accounts: BTreeMap<AccountId, Account>,
    holds: BTreeMap<RequestId, Hold>,
    settled: BTreeSet<RequestId>,
    /// Each billable usage record goes to each of these.
    sinks: Vec<String>,
    changes: Changes,
}

/// What a store has to write. Ids are sorted, so that two writers lock in the same order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub accounts: BTreeMap<AccountId, Account>,
    pub placed: BTreeMap<RequestId, Hold>,
    pub noted: BTreeMap<RequestId, Hold>,
    pub closed: BTreeSet<RequestId>,
    pub usage_records: Vec<UsageRecord>,
    pub ledger_entries: Vec<LedgerEntry>,
    pub billing_events: Vec<BillingEvent>,
}

/// The ids that a batch needs loaded.
#[derive(Debug, Default)]
pub struct Needs {
    pub accounts: BTreeSet<AccountId>,
    pub requests: BTreeSet<RequestId>,
}

impl Needs {
    #[must_use]
    pub fn of(batch: &[LedgerOp]) -> Self {
        let mut needs = Self::default();
        for op in batch {
            let (account, request) = match op {
                LedgerOp::Place(hold) => (hold.account_id, Some(hold.request_id)),
                LedgerOp::Note(note) => (note.account_id, Some(note.request_id)),
                LedgerOp::Settle(record) => (record.account_id, Some(record.id)),
                LedgerOp::Enter(entry) => (entry.account_id, None),
            };
            needs.accounts.insert(account);
            needs.requests.extend(request);
        }
        needs
    }
}

impl Books {
    /// `settled`: which of the batch's requests have a usage record already.
    #[must_use]
    pub fn new(
        accounts: Vec<Account>,
        holds: Vec<Hold>,
        settled: Vec<RequestId>,
        sinks: &[String],
    ) -> Self {
        Self {
            accounts: accounts.into_iter().map(|account| (account.id, account)).collect(),
            holds: holds.into_iter().map(|hold| (hold.request_id, hold)).collect(),
            settled: settled.into_iter().collect(),
            sinks: sinks.to_vec(),
            changes: Changes::default(),
        }
    }

    /// Decides the batch in its order.
    #[must_use]
    pub fn apply(mut self, batch: &[LedgerOp], now: Timestamp) -> (Vec<Outcome>, Changes) {
        let outcomes =
            batch.iter().map(|op| self.decide(op, now).unwrap_or(Outcome::OutOfRange)).collect();
        (outcomes, self.changes)
    }

    /// An operation that fails must not have changed anything: each works on copies and keeps them
    /// at its end.
    fn decide(&mut self, op: &LedgerOp, now: Timestamp) -> Result<Outcome, OutOfRange> {
        match op {
            LedgerOp::Place(hold) => self.place(hold, now),
            LedgerOp::Note(note) => Ok(self.note(note)),
            LedgerOp::Settle(record) => self.settle(record, now),
            LedgerOp::Enter(entry) => self.enter(entry, now),
        }
    }

    fn place(&mut self, hold: &Hold, now: Timestamp) -> Result<Outcome, OutOfRange> {
        if self.settled.contains(&hold.request_id) {
            return Ok(Outcome::AlreadySettled);
        }
        let Some(mut account) = self.accounts.get(&hold.account_id).cloned() else {
            return Ok(Outcome::NoAccount);
        };
        let available = account.available(now)?;
        if self.holds.contains_key(&hold.request_id) {
            return Ok(Outcome::Placed { available });
        }
        if account.status == AccountStatus::Suspended {
            return Ok(Outcome::Suspended);
        }
        if hold.amount_nusd > available {
            return Ok(Outcome::Refused { available });
        }
        account.held_nusd = account.held_nusd.plus(hold.amount_nusd)?;
        let available = account.available(now)?;
        self.keep(account);
        self.holds.insert(hold.request_id, hold.clone());
        self.changes.placed.insert(hold.request_id, hold.clone());
        Ok(Outcome::Placed { available })
    }

    fn note(&mut self, note: &Note) -> Outcome {
        let Some(hold) = self.holds.get_mut(&note.request_id) else {
            return Outcome::NoHold;
        };
        hold.completion_tokens_seen = hold.completion_tokens_seen.max(note.completion_tokens_seen);
        if note.generation_id.is_some() {
            hold.generation_id.clone_from(&note.generation_id);
        }
        // A hold placed in this very batch is written with the note in it.
        match self.changes.placed.get_mut(&note.request_id) {
            Some(placed) => placed.clone_from(hold),
            None => {
                self.changes.noted.insert(note.request_id, hold.clone());
            }
        }
        Outcome::Noted
    }

    fn settle(&mut self, wanted: &UsageRecord, now: Timestamp) -> Result<Outcome, OutOfRange> {
        if self.settled.contains(&wanted.id) {
            return Ok(Outcome::AlreadySettled);
        }
        let Some(hold) = self.holds.get(&wanted.id) else {
            return Ok(Outcome::NoHold);
        };
        let Some(mut account) = self.accounts.get(&hold.account_id).cloned() else {
            return Ok(Outcome::NoAccount);
        };
        account.held_nusd = account.held_nusd.minus(hold.amount_nusd)?;
        account.roll_period(now);
        // Never more than there is: what is missing is the operator's loss, and shown as such.
        let funds = account.available(now)?.max(NanoUsd::ZERO);
        let charge = wanted.charge_nusd.min(funds);
        let record = UsageRecord {
            hold_nusd: hold.amount_nusd,
            charge_nusd: charge,
            shortfall_nusd: wanted.charge_nusd.minus(charge)?,
            ..wanted.clone()
        };
        account.period_charged_nusd = account.period_charged_nusd.plus(charge)?;
        let entry = (!charge.is_zero())
            .then(|| post(&mut account, charge_of(&record)?, now))
            .transpose()?;
        let available = account.available(now)?;

        self.keep(account);
        self.close(&record);
        self.changes.ledger_entries.extend(entry);
        self.changes.usage_records.push(record);
        Ok(Outcome::Settled { charge, available })
    }

    fn close(&mut self, record: &UsageRecord) {
        self.holds.remove(&record.id);
        self.settled.insert(record.id);
        self.changes.noted.remove(&record.id);
        // Placed and settled in one batch: the hold never reaches the table.
        if self.changes.placed.remove(&record.id).is_none() {
            self.changes.closed.insert(record.id);
        }
        if record.is_billable() {
            let events = self.sinks.iter().map(|sink| event(record, sink));
            self.changes.billing_events.extend(events);
        }
    }

    fn enter(&mut self, entry: &Entry, now: Timestamp) -> Result<Outcome, OutOfRange> {
        let Some(mut account) = self.accounts.get(&entry.account_id).cloned() else {
            return Ok(Outcome::NoAccount);
        };
        let posting = Posting {
            kind: entry.kind,
            amount: entry.amount_nusd,
            request: None,
            record_hash: None,
            reason: entry.reason.clone(),
        };
        let entry = post(&mut account, posting, now)?;
        let balance = account.balance_nusd;
        self.keep(account);
        self.changes.ledger_entries.push(entry);
        Ok(Outcome::Entered { balance })
    }

    fn keep(&mut self, account: Account) {
        self.changes.accounts.insert(account.id, account.clone());
        self.accounts.insert(account.id, account);
    }
}

struct Posting {
    kind: EntryKind,
    amount: NanoUsd,
    request: Option<RequestId>,
    record_hash: Option<String>,
    reason: String,
}

fn charge_of(record: &UsageRecord) -> Result<Posting, OutOfRange> {
    Ok(Posting {
        kind: EntryKind::Charge,
        amount: NanoUsd::ZERO.minus(record.charge_nusd)?,
        request: Some(record.id),
        record_hash: Some(record_hash(record)),
        reason: record.model.clone(),
    })
}

/// Appends to the account's chain.
fn post(
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
        created_at: now,
        previous_hash: account.ledger_hash.clone(),
        hash: String::new(),
    }
    .sealed();
    account.ledger_hash.clone_from(&entry.hash);
    Ok(entry)
}

fn event(record: &UsageRecord, sink: &str) -> BillingEvent {
    BillingEvent {
        id: format!("{}:{sink}", record.id),
        sink: sink.to_owned(),
        request_id: record.id,
        account_id: record.account_id,
        state: "waiting".to_owned(),
        attempts: 0,
        next_attempt_at: record.ended_at,
        leased_until: None,
        reason: None,
        created_at: record.ended_at,
    }
}
