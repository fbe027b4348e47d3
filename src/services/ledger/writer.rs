//! The writer's task: takes what waits, has it committed, and answers.
//!
//! Invariant: it runs until every way to it is gone and all that was sent is in the books or, when
//! the database is away then, in the journal.

use super::committer::{Committer, Deadline, Decided, Earlier, RETRY_MAX, settled_before};
use super::outage::Outage;
use super::queue::{BATCH_OPS_MAX, Queue, Queued};
use super::snapshots::Snapshots;
use super::{Away, Failed, OutageTerms, Snapshot};
use crate::models::ids::{AccountId, ApiKeyId};
use crate::models::money::NanoUsd;
use crate::store::{Funds, LedgerOp, Outcome, Placement, Rest};
use moka::sync::Cache;
use std::time::Instant;

/// Accounts and keys whose money is remembered for an outage.
const LAST_MAX: u64 = 100_000;

pub struct Writer {
    committer: Committer,
    queue: Queue,
    memory: Memory,
    away: Away,
    /// `None`: the database is waited for, however long.
    outage: Option<Outage>,
}

/// What the books said last.
#[derive(Clone)]
pub struct Memory {
    /// For whether a call may overlap with its hold: forgotten at any news.
    snapshots: Snapshots,
    /// For an outage: not forgotten, because there is nobody to be asked.
    last: Cache<AccountId, Snapshot>,
    keys: Cache<ApiKeyId, Snapshot>,
}

impl Writer {
    pub(super) fn new(
        committer: Committer,
        queue: Queue,
        snapshots: Snapshots,
        away: Away,
        terms: Option<OutageTerms>,
    ) -> Self {
        let memory = Memory { snapshots, last: Cache::new(LAST_MAX), keys: Cache::new(LAST_MAX) };
        let outage =
            terms.map(|terms| Outage::new(terms, committer.clone(), memory.clone(), away.clone()));
        Self { committer, queue, memory, away, outage }
    }

    /// Runs until every way to it is gone and all that was sent is written down.
    pub async fn run(mut self) {
        let mut queued = Vec::with_capacity(BATCH_OPS_MAX);
        while let Some(awaited) = self.queue.next(&mut queued).await {
            let (ops, sent): (Vec<_>, Vec<_>) =
                queued.drain(..).map(|queued| (queued.op, queued.sent)).unzip();
            let measured = self.committer.measured();
            let busy = measured.busy().await;
            // From now on: whoever was at work before is no sign that the database is away.
            let deadline = Deadline::after(self.away.patience());
            let began = Instant::now();
            let mut outcomes = self.committer.commit(&ops, deadline).await;
            self.queue.took(began.elapsed(), awaited);
            measured.batch(sent.iter().map(|sent| sent.at), began);
            let earlier = self.earlier(&ops, &mut outcomes).await;
            let mut undecided = Vec::new();
            for ((op, sent), outcome) in ops.into_iter().zip(sent).zip(outcomes) {
                undecided.extend(self.finish(Queued { op, sent }, outcome, &earlier).await);
            }
            drop(busy);
            if let Some(outage) = self.outage.as_mut().filter(|_| !undecided.is_empty()) {
                outage.outlast(undecided, self.queue.receiver()).await;
            }
        }
        if let Some(outage) = self.outage {
            outage.end();
        }
    }

    /// Until it can be read, or, where the database is not waited for, is to be decided again.
    async fn earlier(&self, ops: &[LedgerOp], outcomes: &mut [Decided]) -> Earlier {
        loop {
            let deadline = Deadline::after(self.away.patience());
            match self.committer.earlier(ops, outcomes, deadline).await {
                Ok(earlier) => return earlier,
                Err(_) if self.outage.is_some() => break,
                Err(_) => tokio::time::sleep(RETRY_MAX).await,
            }
        }
        for (op, outcome) in ops.iter().zip(outcomes) {
            if settled_before((op, outcome)).is_some() {
                *outcome = Err(Failed::Away);
            }
        }
        Earlier::default()
    }

    /// Answers what is decided; gives back what is to be decided again.
    async fn finish(&self, queued: Queued, outcome: Decided, earlier: &Earlier) -> Option<Queued> {
        if outcome == Err(Failed::Away) {
            return Some(queued);
        }
        let Queued { op, sent } = queued;
        let found = earlier.of(&op);
        loop {
            let deadline = Deadline::after(self.away.patience());
            match self.committer.follow_up(&op, &outcome, found, deadline).await {
                Ok(()) => break,
                Err(_) if self.outage.is_some() => return Some(Queued { op, sent }),
                Err(_) => tokio::time::sleep(RETRY_MAX).await,
            }
        }
        self.committer.measured().decided(&op, &outcome, found);
        self.memory.remember(&op, &outcome, &self.away);
        report(&op, &outcome);
        if let Some(answer) = sent.answer {
            // Who asked may have gone; its settlement follows in the queue.
            let _ = answer.send(outcome);
        }
        None
    }
}

impl Memory {
    /// What an operation's outcome says of its account.
    pub(super) fn remember(&self, op: &LedgerOp, outcome: &Decided, away: &Away) {
        let (account, key) = match op {
            LedgerOp::Place(Placement { hold, .. }) => (hold.account_id, hold.api_key_id),
            LedgerOp::Extend(extension) => (extension.account_id, extension.api_key_id),
            LedgerOp::Settle(settlement) => {
                (settlement.record.account_id, settlement.record.api_key_id)
            }
            LedgerOp::Note(_)
            | LedgerOp::Correct(_)
            | LedgerOp::Enter(_)
            | LedgerOp::Abandon(_) => return,
        };
        let rest = match outcome {
            Ok(
                Outcome::Placed { rest, .. }
                | Outcome::Extended { rest, .. }
                | Outcome::Refused { rest, .. }
                | Outcome::Settled { rest, .. },
            ) => *rest,
            Ok(Outcome::Suspended | Outcome::NoAccount) => {
                Rest { account: NanoUsd::ZERO, key: Some(NanoUsd::ZERO) }
            }
            _ => return,
        };
        let taken_at = Instant::now();
        let snapshot = Snapshot { available: rest.account, taken_at };
        self.snapshots.put(account, snapshot);
        if away.patience().is_some() {
            self.last.insert(account, snapshot);
            if let Some(key) = key {
                let available = rest.key.unwrap_or(BOUNDLESS);
                self.keys.insert(key, Snapshot { available, taken_at });
            }
            // Whether an outage of its own can be, once it is here, is for the outage to say.
            if !away.is_away() {
                away.set_can_serve(true);
            }
        }
    }

    /// What an account had when it was last heard of, here or by its caller.
    pub(super) fn account(&self, account: AccountId, funds: Option<Funds>) -> Option<NanoUsd> {
        let last = self.last.get(&account);
        if last.is_none()
            && let Some(Funds { account: available, read_at: taken_at, .. }) = funds
        {
            self.last.insert(account, Snapshot { available, taken_at });
        }
        latest(last, funds, |funds| funds.account)
    }

    /// What a key's budget had when it was last heard of; a caller without a key has none.
    pub(super) fn key(&self, key: Option<ApiKeyId>, funds: Option<Funds>) -> Option<NanoUsd> {
        let Some(key) = key else { return Some(BOUNDLESS) };
        let last = self.keys.get(&key);
        let available = latest(last, funds, |funds| funds.key.unwrap_or(BOUNDLESS))?;
        if last.is_none()
            && let Some(funds) = funds
        {
            self.keys.insert(key, Snapshot { available, taken_at: funds.read_at });
        }
        Some(available)
    }
}

/// There is no budget.
const BOUNDLESS: NanoUsd = NanoUsd(i64::MAX);

fn latest(
    last: Option<Snapshot>,
    funds: Option<Funds>,
    of: impl FnOnce(Funds) -> NanoUsd,
) -> Option<NanoUsd> {
    match (last, funds) {
        (Some(last), Some(funds)) if funds.read_at > last.taken_at => Some(of(funds)),
        (Some(last), _) => Some(last.available),
        (None, funds) => funds.map(of),
    }
}

/// Says aloud what should not happen to a settlement.
pub(super) fn report(op: &LedgerOp, outcome: &Decided) {
    let LedgerOp::Settle(settlement) = op else { return };
    let record = &settlement.record;
    match outcome {
        Ok(Outcome::Settled { charge, .. }) if *charge < record.charge_nusd => {
            tracing::warn!(
                request.id = %record.id,
                account.id = %record.account_id,
                charge_nusd = charge.0,
                price_nusd = record.charge_nusd.0,
                "the account could not pay for all of this request"
            );
        }
        Ok(Outcome::Settled { .. }) | Err(_) => {}
        // A voided request that never had its hold: nothing was lost.
        Ok(Outcome::NoHold) if !record.is_billable() => {}
        Ok(other) => {
            tracing::warn!(request.id = %record.id, "this request was not settled: {other:?}");
        }
    }
}
