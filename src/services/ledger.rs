//! The ledger writer: everything that waits becomes one transaction.
//!
//! Invariants: operations are decided in the order they were sent; an operation whose [`Slot`] was
//! reserved can always be sent, from anywhere, without waiting or failing; a batch that the
//! database is away for is tried again until it succeeds, and one that it refuses is split until
//! the bad operation is alone. Prices and endings are decided elsewhere.

use crate::models::ids::AccountId;
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{Ending, UsageCorrection, UsageSource};
use crate::store::{Correction, LedgerOp, Outcome, Store, StoreError};
use moka::sync::Cache;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Operations of one transaction. Larger batches gain nothing and answer later.
const BATCH_OPS_MAX: usize = 256;
/// Requests in flight at most, each with a place for its settlement, its hold and a note.
const QUEUE_OPS_MAX: usize = 65_536;
/// A batch that takes longer is given up and tried again: the database is not there.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Accounts whose balance is remembered.
const SNAPSHOTS_MAX: u64 = 100_000;

/// The way to the writer. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    sender: mpsc::Sender<Queued>,
    snapshots: Cache<AccountId, Snapshot>,
}

/// A reserved place in the writer's queue.
#[must_use]
pub struct Slot(mpsc::OwnedPermit<Queued>);

/// The answer to an operation that was sent for one.
pub type Answer = oneshot::Receiver<Result<Outcome, Failed>>;

/// The operation cannot be committed; the cause is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger could not commit the operation")]
pub struct Failed;

/// The queue is full: more requests at once than this process was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What an account had when its last operation was committed.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    pub available: NanoUsd,
    pub taken_at: Instant,
}

struct Queued {
    op: LedgerOp,
    answer: Option<oneshot::Sender<Result<Outcome, Failed>>>,
}

/// The task's side.
pub struct Writer {
    store: Arc<dyn Store>,
    receiver: mpsc::Receiver<Queued>,
    snapshots: Cache<AccountId, Snapshot>,
}

/// A ledger and the writer that has to run for it.
#[must_use]
pub fn new(store: Arc<dyn Store>) -> (Ledger, Writer) {
    let (sender, receiver) = mpsc::channel(QUEUE_OPS_MAX);
    let snapshots = Cache::new(SNAPSHOTS_MAX);
    let ledger = Ledger { sender, snapshots: snapshots.clone() };
    (ledger, Writer { store, receiver, snapshots })
}

// === impl Ledger ===

impl Ledger {
    /// A place for a settlement, before there is anything to settle.
    ///
    /// # Errors
    /// [`Full`] when too many requests are in flight.
    pub fn reserve(&self) -> Result<Slot, Full> {
        self.sender.clone().try_reserve_owned().map(Slot).map_err(|_| Full)
    }

    /// Sends an operation and gives the way to its answer.
    ///
    /// # Errors
    /// [`Full`] when too many requests are in flight.
    pub fn submit(&self, op: LedgerOp) -> Result<Answer, Full> {
        let (sender, answer) = oneshot::channel();
        self.sender.try_send(Queued { op, answer: Some(sender) }).map_err(|_| Full)?;
        Ok(answer)
    }

    /// Sends an operation that may be lost: recovery then knows a little less.
    pub fn note(&self, op: LedgerOp) {
        let _ = self.sender.try_send(Queued { op, answer: None });
    }

    /// Counts a hold that is on its way, so that a burst does not see the same money many times.
    pub fn expect_hold(&self, account: AccountId, amount: NanoUsd) {
        if let Some(snapshot) = self.snapshots.get(&account) {
            let available = snapshot.available.minus(amount).unwrap_or(NanoUsd::ZERO);
            self.snapshots.insert(account, Snapshot { available, ..snapshot });
        }
    }

    #[must_use]
    pub fn snapshot(&self, account: AccountId) -> Option<Snapshot> {
        self.snapshots.get(&account)
    }

    /// Forgets balances: another process has changed accounts.
    pub fn forget_snapshots(&self) {
        self.snapshots.invalidate_all();
    }
}

// === impl Slot ===

impl Slot {
    /// Sends the operation the place was kept for. Does not wait and cannot fail.
    pub fn send(self, op: LedgerOp) {
        self.0.send(Queued { op, answer: None });
    }
}

// === impl Writer ===

impl Writer {
    /// Runs until every [`Ledger`] and [`Slot`] is gone and all that was sent is committed.
    pub async fn run(mut self) {
        let mut queued = Vec::with_capacity(BATCH_OPS_MAX);
        while self.receiver.recv_many(&mut queued, BATCH_OPS_MAX).await > 0 {
            let (ops, answers): (Vec<_>, Vec<_>) =
                queued.drain(..).map(|queued| (queued.op, queued.answer)).unzip();
            let outcomes = self.commit(&ops).await;
            self.abandon_lost(&ops, &outcomes).await;
            for ((op, answer), outcome) in ops.iter().zip(answers).zip(outcomes) {
                self.remember(op, &outcome);
                report(op, &outcome);
                self.correct_takeover(op, &outcome).await;
                if let Some(answer) = answer {
                    // Who asked may have gone; its settlement follows in the queue.
                    let _ = answer.send(outcome);
                }
            }
        }
    }

    /// Commits a batch. Halves those that the database refuses; the depth is bounded by the size.
    async fn commit(&self, ops: &[LedgerOp]) -> Vec<Result<Outcome, Failed>> {
        let mut waiting = vec![ops];
        let mut outcomes = Vec::with_capacity(ops.len());
        while let Some(part) = waiting.pop() {
            match self.commit_once_there(part).await {
                Ok(decided) => outcomes.extend(decided.into_iter().map(Ok)),
                Err(_) if part.len() > 1 => {
                    let (first, second) = part.split_at(part.len() / 2);
                    waiting.push(second);
                    waiting.push(first);
                }
                Err(error) => {
                    tracing::error!(ledger.op = name(&part[0]), "not committed: {error}");
                    outcomes.push(self.commit_plainly(&part[0]).await);
                }
            }
        }
        outcomes
    }

    /// A settlement that the database refuses is tried again without the upstream's words: what is
    /// owed must be written down, whatever an upstream calls its model.
    async fn commit_plainly(&self, op: &LedgerOp) -> Result<Outcome, Failed> {
        let LedgerOp::Settle(settlement) = op else { return Err(Failed) };
        let mut plain = settlement.clone();
        plain.record.forget_names();
        plain.look_up = None;
        match self.commit_once_there(&[LedgerOp::Settle(plain)]).await {
            Ok(mut outcomes) => outcomes.pop().ok_or(Failed),
            Err(error) => {
                tracing::error!("not committed in its plainest form either: {error}");
                Err(Failed)
            }
        }
    }

    /// Waits for a database that is away: what is to be written down must not be lost, and who
    /// cannot wait has a deadline of its own.
    async fn commit_once_there(&self, ops: &[LedgerOp]) -> Result<Vec<Outcome>, StoreError> {
        let mut pause = RETRY_FIRST;
        loop {
            let commit = self.store.commit(ops, Timestamp::now());
            let reason = match tokio::time::timeout(COMMIT_TIMEOUT, commit).await {
                Ok(Err(error)) if error.is_transient() => error.to_string(),
                Ok(decided) => return decided,
                Err(_) => "no answer in time".to_owned(),
            };
            tracing::warn!(ledger.ops = ops.len(), "the ledger waits for the database: {reason}");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Another process took our hold for a dead one's and settled it by an estimate: we know the
    /// truth, and put it right by a correction.
    async fn correct_takeover(&self, op: &LedgerOp, outcome: &Result<Outcome, Failed>) {
        let (LedgerOp::Settle(settlement), Ok(Outcome::AlreadySettled)) = (op, outcome) else {
            return;
        };
        let truth = &settlement.record;
        let settled = self.store.usage_record(truth.id).await;
        let Ok(Some(settled)) = settled else { return };
        if settled.ending != Ending::Killed || settled.source != UsageSource::Estimated {
            return;
        }
        let correction = Correction {
            api_key_id: truth.api_key_id,
            charged_nusd: settled.charge_nusd,
            correction: UsageCorrection {
                request_id: truth.id,
                account_id: truth.account_id,
                generation_id: truth.generation_id.clone().unwrap_or_default(),
                prompt_tokens: truth.prompt_tokens,
                completion_tokens: truth.completion_tokens,
                upstream_cost_pusd: truth.upstream_cost_pusd,
                charge_nusd: truth.charge_nusd,
                difference_nusd: NanoUsd::ZERO,
                created_at: Timestamp::now(),
            },
        };
        // Its own failure is in the log, and the estimate stands.
        let _ = self.commit(&[LedgerOp::Correct(Box::new(correction))]).await;
    }

    /// A hold whose settlement was lost must not be kept alive by our renewing its lease.
    async fn abandon_lost(&self, ops: &[LedgerOp], outcomes: &[Result<Outcome, Failed>]) {
        for (op, outcome) in ops.iter().zip(outcomes) {
            let lost = match (op, outcome) {
                (LedgerOp::Settle(settlement), Err(Failed)) => settlement.record.id,
                (LedgerOp::Abandon(request), _) => *request,
                _ => continue,
            };
            if let Err(error) = self.store.abandon_hold(lost).await {
                tracing::error!(request.id = %lost, "a hold without a settlement: {error}");
            }
        }
    }

    fn remember(&self, op: &LedgerOp, outcome: &Result<Outcome, Failed>) {
        let account = match op {
            LedgerOp::Place(placement) => placement.hold.account_id,
            LedgerOp::Extend(extension) => extension.account_id,
            LedgerOp::Settle(settlement) => settlement.record.account_id,
            LedgerOp::Note(_)
            | LedgerOp::Correct(_)
            | LedgerOp::Enter(_)
            | LedgerOp::Abandon(_) => return,
        };
        let Ok(
            Outcome::Placed { available, .. }
            | Outcome::Extended { available, .. }
            | Outcome::Refused { available, .. }
            | Outcome::Settled { available, .. },
        ) = outcome
        else {
            return;
        };
        let snapshot = Snapshot { available: *available, taken_at: Instant::now() };
        self.snapshots.insert(account, snapshot);
    }
}

/// Says aloud what should not happen to a settlement.
fn report(op: &LedgerOp, outcome: &Result<Outcome, Failed>) {
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
        Ok(Outcome::Settled { .. }) | Err(Failed) => {}
        // A voided request that never had its hold: nothing was lost.
        Ok(Outcome::NoHold) if !record.is_billable() => {}
        Ok(other) => {
            tracing::warn!(request.id = %record.id, "this request was not settled: {other:?}");
        }
    }
}

fn name(op: &LedgerOp) -> &'static str {
    match op {
        LedgerOp::Place(_) => "place",
        LedgerOp::Note(_) => "note",
        LedgerOp::Extend(_) => "extend",
        LedgerOp::Settle(_) => "settle",
        LedgerOp::Correct(_) => "correct",
        LedgerOp::Enter(_) => "enter",
        LedgerOp::Abandon(_) => "abandon",
    }
}
