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
use std::hash::Hash;
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
            // The patience begins now: what others took before says nothing of the database.
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
        let told = funds.map(|Funds { account: available, read_at: taken_at, .. }| Snapshot {
            available,
            taken_at,
        });
        latest(&self.last, account, told)
    }

    /// What a key's budget had when it was last heard of; a caller without a key has none.
    pub(super) fn key(&self, key: Option<ApiKeyId>, funds: Option<Funds>) -> Option<NanoUsd> {
        let Some(key) = key else { return Some(BOUNDLESS) };
        let told = funds.map(|Funds { key: left, read_at: taken_at, .. }| Snapshot {
            available: left.unwrap_or(BOUNDLESS),
            taken_at,
        });
        latest(&self.keys, key, told)
    }
}

/// There is no budget.
const BOUNDLESS: NanoUsd = NanoUsd(i64::MAX);

/// The later of what is remembered and what a caller was told, which is remembered then.
fn latest<K: Hash + Eq + Send + Sync + 'static>(
    remembered: &Cache<K, Snapshot>,
    of: K,
    told: Option<Snapshot>,
) -> Option<NanoUsd> {
    let last = remembered.get(&of);
    let news = told.filter(|told| last.is_none_or(|last| told.taken_at > last.taken_at));
    if let Some(news) = news {
        remembered.insert(of, news);
    }
    Some(news.or(last)?.available)
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
            tracing::warn!(
                request.id = %record.id,
                account.id = %record.account_id,
                prompt_tokens = record.prompt_tokens.0,
                completion_tokens = record.completion_tokens.0,
                price_nusd = record.charge_nusd.0,
                "this request was not settled: {other:?}"
            );
        }
    }
}
