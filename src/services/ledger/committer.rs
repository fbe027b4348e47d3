//! A batch becomes a transaction, once the database is there.
//!
//! Invariants: operations are decided in their order; a batch that the database refuses is split
//! until the bad operation is alone; what the database may have done unheard is asked for again,
//! which changes nothing. Whoever waits says for how long.

use super::measured::Measured;
use super::{Failed, name};
use crate::models::ids::RequestId;
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{Ending, UsageCorrection, UsageRecord, UsageSource};
use crate::store::{Correction, LedgerOp, Outcome, Settlement, Store, StoreError, within};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Clone)]
pub struct Committer {
    store: Arc<dyn Store>,
    measured: Measured,
}

/// What became of one operation.
pub type Decided = Result<Outcome, Failed>;

/// Of a batch, what was settled before, by request.
#[derive(Default)]
pub struct Earlier(HashMap<RequestId, UsageRecord>);

/// A batch that takes longer is given up and tried again: the database is not there.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_FIRST: Duration = Duration::from_millis(50);
pub const RETRY_MAX: Duration = Duration::from_secs(2);

/// Until when a database that is away is waited for. `None`: until it is back.
#[derive(Clone, Copy)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    pub fn after(patience: Option<Duration>) -> Self {
        Self(patience.map(|patience| Instant::now() + patience))
    }

    fn left(self) -> Duration {
        let left = |at: Instant| at.saturating_duration_since(Instant::now());
        self.0.map_or(COMMIT_TIMEOUT, |at| left(at).min(COMMIT_TIMEOUT))
    }
}

impl Earlier {
    fn new(records: Vec<UsageRecord>) -> Self {
        Self(records.into_iter().map(|record| (record.id, record)).collect())
    }

    pub fn of(&self, op: &LedgerOp) -> Option<&UsageRecord> {
        let LedgerOp::Settle(settlement) = op else { return None };
        self.0.get(&settlement.record.id)
    }
}

impl Committer {
    pub fn new(store: Arc<dyn Store>, measured: Measured) -> Self {
        Self { store, measured }
    }

    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// Commits a batch. Halves those that the database refuses; the depth is bounded by the size.
    /// What is not decided when the time is over has [`Failed::Away`].
    pub async fn commit(&self, ops: &[LedgerOp], deadline: Deadline) -> Vec<Decided> {
        let mut waiting = vec![ops];
        let mut outcomes = Vec::with_capacity(ops.len());
        while let Some(part) = waiting.pop() {
            match self.once_there(part, deadline).await {
                Ok(decided) => outcomes.extend(decided.into_iter().map(Ok)),
                Err(error) if error.is_transient() => break,
                Err(_) if part.len() > 1 => {
                    let (first, second) = part.split_at(part.len() / 2);
                    waiting.push(second);
                    waiting.push(first);
                }
                Err(error) => {
                    tracing::error!(ledger.op = name(&part[0]), "not committed: {error}");
                    self.measured.metrics.ledger.failures.inc();
                    outcomes.push(self.commit_plainly(&part[0], deadline).await);
                }
            }
        }
        outcomes.resize(ops.len(), Err(Failed::Away));
        outcomes
    }

    /// A settlement that the database refuses is tried again without the upstream's words: what is
    /// owed must be written down, whatever an upstream calls its model.
    async fn commit_plainly(&self, op: &LedgerOp, deadline: Deadline) -> Decided {
        let LedgerOp::Settle(settlement) = op else { return Err(Failed::Refused) };
        let mut plain: Box<Settlement> = settlement.clone();
        plain.record.forget_names();
        plain.look_up = None;
        match self.once_there(&[LedgerOp::Settle(plain)], deadline).await {
            Ok(mut outcomes) => outcomes.pop().ok_or(Failed::Refused),
            Err(error) if error.is_transient() => Err(Failed::Away),
            Err(error) => {
                tracing::error!("not committed in its plainest form either: {error}");
                Err(Failed::Refused)
            }
        }
    }

    /// Waits for a database that is away: what is to be written down must not be lost, and who
    /// cannot wait has a deadline of its own.
    async fn once_there(
        &self,
        ops: &[LedgerOp],
        deadline: Deadline,
    ) -> Result<Vec<Outcome>, StoreError> {
        let mut pause = RETRY_FIRST;
        loop {
            let commit = self.store.commit(ops, Timestamp::now());
            let error = match within(deadline.left(), commit).await {
                Err(error) if error.is_transient() => error,
                decided => return decided,
            };
            if deadline.left().is_zero() {
                return Err(error);
            }
            tracing::warn!(ledger.ops = ops.len(), "the ledger waits for the database: {error}");
            self.measured.metrics.ledger.retries.inc();
            tokio::time::sleep(pause.min(deadline.left())).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// What was settled before it was tried here, by request: read at once for a whole batch, which
    /// a commit whose answer was lost makes of it. [`Failed::Away`]: it cannot be read now.
    pub async fn earlier(
        &self,
        ops: &[LedgerOp],
        decided: &[Decided],
        deadline: Deadline,
    ) -> Result<Earlier, Failed> {
        let requests: Vec<_> = ops.iter().zip(decided).filter_map(settled_before).collect();
        if requests.is_empty() {
            return Ok(Earlier::default());
        }
        match within(deadline.left(), self.store.settled(&requests)).await {
            Ok(records) => Ok(Earlier::new(records)),
            Err(error) if error.is_transient() => Err(Failed::Away),
            Err(_) => Ok(Earlier::default()),
        }
    }

    /// What follows from what was decided. `found`: the record that was there already.
    /// [`Failed::Away`]: the operation is to be decided again.
    pub async fn follow_up(
        &self,
        op: &LedgerOp,
        decided: &Decided,
        found: Option<&UsageRecord>,
        deadline: Deadline,
    ) -> Result<(), Failed> {
        match (op, decided, found) {
            (LedgerOp::Settle(lost), Err(Failed::Refused), _) => {
                return self.abandon(lost.record.id, deadline).await;
            }
            (LedgerOp::Abandon(request), Ok(_), _) => {
                return self.abandon(*request, deadline).await;
            }
            (LedgerOp::Settle(settlement), _, Some(found)) => {
                return self.correct_takeover(settlement, found, deadline).await;
            }
            _ => {}
        }
        Ok(())
    }

    /// A hold whose settlement was lost must not be kept alive by our renewing its lease.
    async fn abandon(&self, lost: RequestId, deadline: Deadline) -> Result<(), Failed> {
        match within(deadline.left(), self.store.abandon_hold(lost)).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_transient() => Err(Failed::Away),
            Err(error) => {
                tracing::error!(request.id = %lost, "a hold without a settlement: {error}");
                Ok(())
            }
        }
    }

    /// Another process took our hold for a dead one's and settled it by an estimate: we know the
    /// truth, and put it right by a correction. A hold is corrected once, so not by the same
    /// estimate, whose answer was lost.
    async fn correct_takeover(
        &self,
        settlement: &Settlement,
        settled: &UsageRecord,
        deadline: Deadline,
    ) -> Result<(), Failed> {
        let truth = &settlement.record;
        let is_estimate = |settled: &UsageRecord| {
            settled.ending == Ending::Killed && settled.source == UsageSource::Estimated
        };
        // Nor by a count, where the upstream will be asked for the truth: that would end it.
        let is_asked_after = settlement.look_up.is_some() && settled.generation_id.is_some();
        if !is_estimate(settled) || is_estimate(truth) || is_asked_after {
            return Ok(());
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
        let ops = [LedgerOp::Correct(Box::new(correction))];
        match self.commit(&ops, deadline).await.pop() {
            Some(Err(Failed::Away)) => Err(Failed::Away),
            // Another failure is in the log, and the estimate stands.
            decided => {
                if let Some(decided) = &decided {
                    self.measured.decided(&ops[0], decided, None);
                }
                Ok(())
            }
        }
    }

    /// Puts what was journalled into the books: everything is decided, or [`Failed::Away`].
    pub async fn replay(
        &self,
        mut ops: Vec<LedgerOp>,
        lease: Duration,
    ) -> Result<Vec<(LedgerOp, Decided)>, Failed> {
        let deadline = Deadline::after(Some(COMMIT_TIMEOUT));
        if ops.is_empty() {
            // Asks on the connection that commits: a reader's may hang.
            let asked = within(deadline.left(), self.store.commit(&[], Timestamp::now())).await;
            return asked.map(|_| Vec::new()).map_err(|_| Failed::Away);
        }
        for op in &mut ops {
            if let LedgerOp::Place(placement) = op {
                // Nobody is to take it for a dead process's before its settlement is replayed too:
                // it is leased from when it is written.
                placement.hold.lease_expires_at = placement.hold.placed_at.plus(lease);
            }
        }
        let busy = self.measured.busy().await;
        let decided = self.commit(&ops, deadline).await;
        let earlier = self.earlier(&ops, &decided, deadline).await?;
        for (op, decided) in ops.iter().zip(&decided) {
            if *decided == Err(Failed::Away) {
                return Err(Failed::Away);
            }
            // Each by itself: a page of many corrections must come to its end, or it never would.
            let deadline = Deadline::after(Some(COMMIT_TIMEOUT));
            self.follow_up(op, decided, earlier.of(op), deadline).await?;
        }
        for (op, decided) in ops.iter().zip(&decided) {
            self.measured.decided(op, decided, earlier.of(op));
        }
        drop(busy);
        Ok(ops.into_iter().zip(decided).collect())
    }
}

/// A settlement whose record was there already.
pub fn settled_before((op, decided): (&LedgerOp, &Decided)) -> Option<RequestId> {
    match (op, decided) {
        (LedgerOp::Settle(settlement), Ok(Outcome::AlreadySettled)) => Some(settlement.record.id),
        _ => None,
    }
}
