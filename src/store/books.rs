//! Decides a batch of ledger operations on the rows that a store has locked and loaded.
//!
//! Invariants, whatever the order and repetition of operations: `balance = credits - charges`,
//! `held = sum of open holds` for accounts and for keys and is never negative, and a request is
//! charged, and counted in its limits, at most once. No charge takes a prepaid balance below zero.
//! Only an entry does, which takes back what was paid and is spent already; then nothing is charged
//! until that is made good. Pure: both stores load, let this decide, and write the changes down.

mod limits;
mod needs;
mod posting;

use super::{Correction, Entry, Extension, LedgerOp, Limit, LookUpPlan, Note, Outcome};
use super::{Placement, Rest, Settlement};
use crate::models::account::{Account, AccountStatus};
use crate::models::alert::Standing;
use crate::models::audit::AuditEntry;
use crate::models::billing::{BillingEvent, ChargeOf, EventTerms};
use crate::models::hold::{Hold, IdempotencyKey, PendingLookup};
use crate::models::ids::{AccountId, ApiKeyId, RequestId};
use crate::models::key::KeyBudget;
use crate::models::ledger::{EntryKind, LedgerEntry, record_hash};
use crate::models::limits::{Counted, Room, Subject};
use crate::models::money::{NanoUsd, OutOfRange, Tokens};
use crate::models::timestamp::Timestamp;
use crate::models::usage::{UsageCorrection, UsageRecord, UsageSource};
use crate::models::window::RateWindow;
pub use needs::Needs;
use posting::{Posting, charge_of, post};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The rows that a batch touches.
#[derive(Debug, Default)]
pub struct Books {
    pub accounts: BTreeMap<AccountId, Account>,
    pub budgets: BTreeMap<ApiKeyId, KeyBudget>,
    pub holds: BTreeMap<RequestId, Hold>,
    pub idempotency: BTreeMap<String, IdempotencyKey>,
    /// Of accounts and keys with limits of rate, those that have been used.
    pub windows: BTreeMap<Subject, RateWindow>,
    /// The windows' clock: the database's, where processes have clocks of their own.
    pub clock: Option<Timestamp>,
    /// Which of the batch's requests have a usage record, and which a correction.
    pub settled: BTreeSet<RequestId>,
    pub corrected: BTreeSet<RequestId>,
    /// Which of the batch's references have an entry.
    pub entered: BTreeSet<String>,
    pub events: Arc<EventTerms>,
    pub changes: Changes,
    pub touched: Touched,
}

/// What a store has to write. Ids are sorted, so that two writers lock in the same order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub accounts: BTreeMap<AccountId, Account>,
    pub budgets: BTreeMap<ApiKeyId, KeyBudget>,
    pub placed: BTreeMap<RequestId, Hold>,
    pub changed: BTreeMap<RequestId, Hold>,
    pub closed: BTreeSet<RequestId>,
    /// `None`: forgotten.
    pub idempotency: BTreeMap<String, Option<IdempotencyKey>>,
    pub windows: BTreeMap<Subject, RateWindow>,
    pub usage_records: Vec<UsageRecord>,
    pub ledger_entries: Vec<LedgerEntry>,
    pub billing_events: Vec<BillingEvent>,
    pub lookups: Vec<PendingLookup>,
    pub corrections: Vec<UsageCorrection>,
    pub audit: Vec<AuditEntry>,
}

/// Which of the rows a batch has changed: copied when it has been decided, not by each operation.
#[derive(Debug, Default)]
pub struct Touched {
    accounts: BTreeSet<AccountId>,
    budgets: BTreeSet<ApiKeyId>,
    placed: BTreeSet<RequestId>,
    changed: BTreeSet<RequestId>,
    windows: BTreeSet<Subject>,
}

/// How long a used idempotency key is remembered after its request.
const IDEMPOTENCY_FOR: Duration = Duration::from_secs(24 * 3_600);

/// An account and, where there is one, its key's budget: working copies of one decision.
struct Payer {
    account: Account,
    budget: Option<KeyBudget>,
}

impl Payer {
    /// What both leave, and which of them leaves less.
    fn available(&self, now: Timestamp) -> Result<(NanoUsd, Limit), OutOfRange> {
        let Rest { account, key } = self.rest(now)?;
        Ok(match key {
            Some(key) if key < account => (key, Limit::Key),
            _ => (account, Limit::Account),
        })
    }

    fn rest(&self, now: Timestamp) -> Result<Rest, OutOfRange> {
        let key = self.budget.as_ref().map(KeyBudget::available).transpose()?;
        Ok(Rest { account: self.account.available(now)?, key })
    }

    fn hold(&mut self, amount: NanoUsd) -> Result<(), OutOfRange> {
        self.account.held_nusd = self.account.held_nusd.plus(amount)?;
        if let Some(budget) = &mut self.budget {
            budget.held_nusd = budget.held_nusd.plus(amount)?;
        }
        Ok(())
    }

    fn release(&mut self, amount: NanoUsd) -> Result<(), OutOfRange> {
        self.account.held_nusd = self.account.held_nusd.minus(amount)?;
        if let Some(budget) = &mut self.budget {
            budget.held_nusd = budget.held_nusd.minus(amount)?;
        }
        Ok(())
    }

    fn standing(&self) -> Standing {
        Standing::of(&self.account, self.budget.as_ref())
    }

    /// When what is spent now is dated: not before the windows that it is counted in, which a
    /// process whose clock is ahead may have begun.
    fn dated(&self, now: Timestamp) -> Timestamp {
        let budget = self.budget.as_ref();
        let starts = budget.map(|it| [it.day_start, it.week_start, it.month_start]);
        let starts = starts.into_iter().flatten();
        starts.fold(now.max(self.account.period_start), Timestamp::max)
    }

    fn spend(&mut self, charge: NanoUsd, request: RequestId) -> Result<(), OutOfRange> {
        let account = &mut self.account;
        account.period_charged_nusd = account.period_charged_nusd.plus(charge)?;
        if let Some(budget) = &mut self.budget {
            budget.spend(charge, request.began_at())?;
        }
        Ok(())
    }
}

impl Books {
    /// Decides the batch in its order. The rows are then as the changes make them.
    #[must_use]
    pub fn apply(&mut self, batch: &[LedgerOp], now: Timestamp) -> (Vec<Outcome>, Changes) {
        let outcomes =
            batch.iter().map(|op| self.decide(op, now).unwrap_or(Outcome::OutOfRange)).collect();
        (outcomes, self.take_changes())
    }

    fn take_changes(&mut self) -> Changes {
        let Touched { accounts, budgets, placed, changed, windows } =
            std::mem::take(&mut self.touched);
        Changes {
            accounts: copies(&self.accounts, accounts),
            budgets: copies(&self.budgets, budgets),
            placed: copies(&self.holds, placed),
            changed: copies(&self.holds, changed),
            windows: copies(&self.windows, windows),
            ..std::mem::take(&mut self.changes)
        }
    }

    /// An operation that fails must not have changed anything: each works on copies and keeps them
    /// at its end.
    pub fn decide(&mut self, op: &LedgerOp, now: Timestamp) -> Result<Outcome, OutOfRange> {
        match op {
            LedgerOp::Place(placement) => self.place(placement, now),
            LedgerOp::Extend(extension) => self.extend(extension, now),
            LedgerOp::Note(note) => Ok(self.note(note)),
            LedgerOp::Settle(settlement) => self.settle(settlement, now),
            LedgerOp::Correct(correction) => self.correct(correction, now),
            LedgerOp::Enter(entry) => self.enter(entry, now),
            // Not of the books: the writer hands it to the store when the batch is done.
            LedgerOp::Abandon(_) => Ok(Outcome::Abandoned),
        }
    }

    fn payer(&self, account: AccountId, key: Option<ApiKeyId>, now: Timestamp) -> Option<Payer> {
        let mut account = self.accounts.get(&account)?.clone();
        account.roll_period(now);
        let mut budget = key.and_then(|key| self.budgets.get(&key)).cloned();
        if let Some(budget) = &mut budget {
            // The account's month may have begun by a clock that is ahead: spending is dated so.
            budget.roll(now.max(account.period_start));
        }
        Some(Payer { account, budget })
    }

    fn place(&mut self, placement: &Placement, now: Timestamp) -> Result<Outcome, OutOfRange> {
        let Placement { hold, floor_nusd, demand, is_granted, .. } = placement;
        if self.settled.contains(&hold.request_id) {
            return Ok(Outcome::AlreadySettled);
        }
        let Some(mut payer) = self.payer(hold.account_id, hold.api_key_id, now) else {
            return Ok(Outcome::NoAccount);
        };
        let (available, by) = payer.available(now)?;
        if let Some(placed) = self.holds.get(&hold.request_id) {
            let (amount, room) = (placed.amount_nusd, self.room_of(hold, *demand, now));
            let (rest, left) = (payer.rest(now)?, available);
            return Ok(Outcome::Placed { amount, rest, left, room });
        }
        if *is_granted {
            return self.place_granted(hold, payer, now);
        }
        if payer.account.status == AccountStatus::Suspended {
            return Ok(Outcome::Suspended);
        }
        if self.is_repeated(hold, now) {
            return Ok(Outcome::Repeated);
        }
        let amount = hold.amount_nusd.min(available);
        if amount < *floor_nusd {
            return Ok(Outcome::Refused { rest: payer.rest(now)?, by });
        }
        payer.hold(amount)?;
        let (left, _) = payer.available(now)?;
        let rest = payer.rest(now)?;
        let (counted, room) = match self.count(hold, *demand, now) {
            Ok(counted) => counted,
            Err(limited) => return Ok(Outcome::Limited(limited)),
        };

        let hold = Hold { amount_nusd: amount, counted, ..hold.clone() };
        self.keep(payer);
        if let Some(id) = hold.idempotency_id() {
            // Until its request has ended; settling puts the day after that.
            let expires_at = now.plus(IDEMPOTENCY_FOR);
            self.remember(IdempotencyKey { id, request_id: hold.request_id, expires_at });
        }
        self.put(hold);
        Ok(Outcome::Placed { amount, rest, left, room })
    }

    /// It runs, or has run: what there is is set aside, if only nothing. It was counted in its
    /// limits where it was let in.
    fn place_granted(
        &mut self,
        hold: &Hold,
        mut payer: Payer,
        now: Timestamp,
    ) -> Result<Outcome, OutOfRange> {
        let (available, _) = payer.available(now)?;
        let amount = hold.amount_nusd.min(available).max(NanoUsd::ZERO);
        payer.hold(amount)?;
        let hold = Hold { amount_nusd: amount, counted: Counted::default(), ..hold.clone() };
        let (left, _) = payer.available(now)?;
        let rest = payer.rest(now)?;
        self.keep(payer);
        self.put(hold);
        Ok(Outcome::Placed { amount, rest, left, room: Room::default() })
    }

    fn put(&mut self, hold: Hold) {
        self.touched.placed.insert(hold.request_id);
        self.holds.insert(hold.request_id, hold);
    }

    fn is_repeated(&self, hold: &Hold, now: Timestamp) -> bool {
        let known = hold.idempotency_id().and_then(|id| self.idempotency.get(&id));
        known.is_some_and(|known| known.expires_at > now && known.request_id != hold.request_id)
    }

    fn extend(&mut self, extension: &Extension, now: Timestamp) -> Result<Outcome, OutOfRange> {
        let Some(hold) = self.holds.get(&extension.request_id).cloned() else {
            return Ok(Outcome::NoHold);
        };
        let Some(mut payer) = self.payer(hold.account_id, hold.api_key_id, now) else {
            return Ok(Outcome::NoAccount);
        };
        if hold.amount_nusd > extension.held_nusd {
            // It was extended before, and the answer was lost.
            return Ok(Outcome::Extended { amount: hold.amount_nusd, rest: payer.rest(now)? });
        }
        let (available, by) = payer.available(now)?;
        let add = extension.add_nusd.min(available);
        if add < extension.floor_nusd {
            return Ok(Outcome::Refused { rest: payer.rest(now)?, by });
        }
        payer.hold(add)?;
        let rest = payer.rest(now)?;
        let amount = hold.amount_nusd.plus(add)?;
        self.keep(payer);
        self.change(Hold { amount_nusd: amount, ..hold });
        Ok(Outcome::Extended { amount, rest })
    }

    fn note(&mut self, note: &Note) -> Outcome {
        let Some(mut hold) = self.holds.get(&note.request_id).cloned() else {
            return Outcome::NoHold;
        };
        if let Some(moved) = &note.moved {
            if moved.upstream != hold.upstream {
                // What is known is of the call that failed, and of use to none other.
                hold.generation_id = None;
                hold.completion_tokens_seen = Tokens(0);
            }
            hold.upstream.clone_from(&moved.upstream);
            hold.price_id.clone_from(&moved.price_id);
            hold.tried.clone_from(&moved.tried);
        }
        hold.completion_tokens_seen = hold.completion_tokens_seen.max(note.completion_tokens_seen);
        if note.generation_id.is_some() {
            hold.generation_id.clone_from(&note.generation_id);
        }
        self.change(hold);
        Outcome::Noted
    }

    fn settle(&mut self, settlement: &Settlement, now: Timestamp) -> Result<Outcome, OutOfRange> {
        let wanted = &settlement.record;
        if self.settled.contains(&wanted.id) {
            return Ok(Outcome::AlreadySettled);
        }
        let Some(hold) = self.holds.get(&wanted.id).cloned() else {
            return Ok(Outcome::NoHold);
        };
        let Some(mut payer) = self.payer(hold.account_id, hold.api_key_id, now) else {
            return Ok(Outcome::NoAccount);
        };
        payer.release(hold.amount_nusd)?;
        let before = payer.standing();
        // Never more than there is: what is missing is the operator's loss, and shown as such. A
        // key's budget does not make what was used free: the account's funds decide.
        let funds = payer.account.funds(now)?.max(NanoUsd::ZERO);
        let charge = wanted.charge_nusd.min(funds);
        let record = UsageRecord {
            hold_nusd: hold.amount_nusd,
            charge_nusd: charge,
            shortfall_nusd: wanted.charge_nusd.minus(charge)?,
            ..wanted.clone()
        };
        payer.spend(charge, record.id)?;
        // Also of zero: every usage record is in the chain, so that none can be changed unseen.
        let dated = payer.dated(now);
        let entry = post(&mut payer.account, charge_of(&record)?, dated)?;
        let rest = payer.rest(now)?;

        self.warn(&before, &payer.standing(), ChargeOf::Usage(&record));
        self.keep(payer);
        self.discount(&hold, &record, now);
        self.close(&hold, &record, now);
        self.look_up_later(&record, settlement.look_up);
        self.changes.ledger_entries.push(entry);
        self.changes.usage_records.push(record);
        Ok(Outcome::Settled { charge, rest })
    }

    fn close(&mut self, hold: &Hold, record: &UsageRecord, now: Timestamp) {
        self.holds.remove(&record.id);
        self.settled.insert(record.id);
        self.touched.changed.remove(&record.id);
        // Placed and settled in one batch: the hold never reaches the table.
        if !self.touched.placed.remove(&record.id) {
            self.changes.closed.insert(record.id);
        }
        let outline = record.outline();
        if outline.is_billable() {
            let events = self.events.sinks.iter().map(|sink| BillingEvent::usage(&outline, sink));
            self.changes.billing_events.extend(events);
        }
        let Some(id) = hold.idempotency_id() else { return };
        if record.source == UsageSource::None {
            // Nothing was used: the client may try again under the same key.
            self.idempotency.remove(&id);
            self.changes.idempotency.insert(id, None);
        } else {
            let expires_at = now.plus(IDEMPOTENCY_FOR);
            self.remember(IdempotencyKey { id, request_id: record.id, expires_at });
        }
    }

    fn look_up_later(&mut self, record: &UsageRecord, plan: Option<LookUpPlan>) {
        let (Some(plan), Some(generation_id)) = (plan, &record.generation_id) else {
            return;
        };
        self.changes.lookups.push(PendingLookup {
            request_id: record.id,
            account_id: record.account_id,
            generation_id: generation_id.clone(),
            attempts: 0,
            next_attempt_at: plan.first_at,
            give_up_at: plan.give_up_at,
        });
    }

    fn correct(&mut self, correction: &Correction, now: Timestamp) -> Result<Outcome, OutOfRange> {
        let Correction { api_key_id, charged_nusd, correction } = correction;
        let request = correction.request_id;
        if self.corrected.contains(&request) || !self.settled.contains(&request) {
            return Ok(Outcome::AlreadySettled);
        }
        let Some(mut payer) = self.payer(correction.account_id, *api_key_id, now) else {
            return Ok(Outcome::NoAccount);
        };
        let before = payer.standing();
        // Positive gives back. What it takes is bounded by what there is, as a charge is.
        let funds = payer.account.funds(now)?.max(NanoUsd::ZERO);
        let difference = charged_nusd.minus(correction.charge_nusd)?;
        let difference = difference.max(NanoUsd::ZERO.minus(funds)?);
        payer.spend(NanoUsd::ZERO.minus(difference)?, request)?;
        let correction = UsageCorrection { difference_nusd: difference, ..correction.clone() };
        let posting = Posting {
            kind: EntryKind::Correction,
            amount: difference,
            request: Some(request),
            record_hash: Some(record_hash(&correction)),
            reason: "the upstream's numbers came late".to_owned(),
            reference: None,
        };
        let dated = payer.dated(now);
        let entry = post(&mut payer.account, posting, dated)?;
        self.changes.ledger_entries.push(entry);
        self.warn(&before, &payer.standing(), ChargeOf::Correction(&correction));
        self.keep(payer);
        self.corrected.insert(request);
        let sinks = self.events.sinks.iter();
        let events = sinks.map(|sink| BillingEvent::correction(&correction, sink));
        self.changes.billing_events.extend(events);
        self.changes.corrections.push(correction);
        Ok(Outcome::Corrected { difference })
    }

    fn enter(&mut self, entry: &Entry, now: Timestamp) -> Result<Outcome, OutOfRange> {
        if entry.reference.as_ref().is_some_and(|reference| self.entered.contains(reference)) {
            return Ok(Outcome::AlreadyEntered);
        }
        let Some(mut payer) = self.payer(entry.account_id, None, now) else {
            return Ok(Outcome::NoAccount);
        };
        let posting = Posting {
            kind: entry.kind,
            amount: entry.amount_nusd,
            request: None,
            record_hash: None,
            reason: entry.reason.clone(),
            reference: entry.reference.clone(),
        };
        let posted = post(&mut payer.account, posting, now)?;
        let balance = payer.account.balance_nusd;
        self.keep(payer);
        self.changes.ledger_entries.push(posted);
        self.changes.audit.extend(entry.audit.clone());
        self.entered.extend(entry.reference.clone());
        Ok(Outcome::Entered { balance })
    }

    /// Each crossing is told once: the request is charged once, and its event is named after it.
    fn warn(&mut self, before: &Standing, after: &Standing, charge: ChargeOf<'_>) {
        let Some((sink, terms)) = &self.events.alerts else { return };
        let alerts = terms.crossed(before, after).into_iter();
        let events = alerts.map(|alert| BillingEvent::alert(&alert, charge, sink));
        self.changes.billing_events.extend(events);
    }

    fn keep(&mut self, payer: Payer) {
        let Payer { account, budget } = payer;
        self.touched.accounts.insert(account.id);
        self.accounts.insert(account.id, account);
        if let Some(budget) = budget {
            self.touched.budgets.insert(budget.api_key_id);
            self.budgets.insert(budget.api_key_id, budget);
        }
    }

    /// A hold placed in this very batch is written with its changes in it.
    fn change(&mut self, hold: Hold) {
        let id = hold.request_id;
        self.holds.insert(id, hold);
        if !self.touched.placed.contains(&id) {
            self.touched.changed.insert(id);
        }
    }

    fn remember(&mut self, key: IdempotencyKey) {
        self.changes.idempotency.insert(key.id.clone(), Some(key.clone()));
        self.idempotency.insert(key.id.clone(), key);
    }
}

/// Those of the rows that are there: a hold may have been closed again.
fn copies<K: Ord, V: Clone>(rows: &BTreeMap<K, V>, of: BTreeSet<K>) -> BTreeMap<K, V> {
    let copy = |key| rows.get(&key).cloned().map(|row| (key, row));
    of.into_iter().filter_map(copy).collect()
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod warnings;

#[cfg(test)]
pub(super) use properties::{Step, World, now, request_id, steps};
