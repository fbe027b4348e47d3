//! What committing is measured by: each operation once, when it is decided for good.
//!
//! Invariant: while [`Measured::busy`] is held by nobody, all that this process has committed is
//! counted, so that whoever waits for [`Measured::quiet`] can hold the counts against the books.

use super::{Failed, committer::Decided};
use crate::models::ids::RequestId;
use crate::models::usage::{Ending, UsageRecord};
use crate::services::metrics::Metrics;
use crate::store::{LedgerOp, Outcome};
use std::sync::{self, Arc, PoisonError};
use std::time::Instant;
use tokio::sync::{Mutex, OwnedMutexGuard};

#[derive(Clone)]
pub struct Measured {
    pub metrics: Arc<Metrics>,
    own: Arc<Mutex<()>>,
    /// Another, for a journal that another process has left may wait for the database long: as long
    /// the own writer would not see that it is away.
    others: Arc<Mutex<()>>,
    /// What was settled and not looked at since.
    settled: Arc<sync::Mutex<Vec<RequestId>>>,
    /// The holds are this process's, and not those of one that died.
    is_own: bool,
}

/// Settled requests remembered for whoever looks at them: what is settled between two looks.
const SETTLED_MAX: usize = 10_000;

impl Measured {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let (own, others, settled) = (Arc::default(), Arc::default(), Arc::default());
        Self { metrics, own, others, settled, is_own: true }
    }

    /// For what a process that died has left behind.
    #[must_use]
    pub fn of_others(&self) -> Self {
        Self { is_own: false, ..self.clone() }
    }

    /// Held while something is committed and counted.
    pub async fn busy(&self) -> OwnedMutexGuard<()> {
        let lock = if self.is_own { &self.own } else { &self.others };
        lock.clone().lock_owned().await
    }

    /// While it is held nothing is committed or counted. The others' lock comes first: a replay may
    /// keep it for long, and our own commits must not wait for us meanwhile.
    pub async fn quiet(&self) -> [OwnedMutexGuard<()>; 2] {
        let others = self.others.clone().lock_owned().await;
        [others, self.own.clone().lock_owned().await]
    }

    pub fn batch(&self, sent: impl ExactSizeIterator<Item = Instant>, began: Instant) {
        let (measured, now) = (&self.metrics.ledger, Instant::now());
        measured.batch.observe(sent.len());
        measured.commit.observe(now.duration_since(began));
        for at in sent {
            measured.wait.observe(now.duration_since(at));
        }
    }

    /// An operation is decided. `found`: the record that was there when it was tried again.
    pub fn decided(&self, op: &LedgerOp, decided: &Decided, found: Option<&UsageRecord>) {
        let books = &self.metrics.books;
        match (op, decided) {
            (_, Err(Failed::Away)) => {}
            (LedgerOp::Settle(settlement), Ok(Outcome::AlreadySettled)) => {
                // That of another process is an estimate, for a dead one's.
                let ours = found.filter(|found| found.ending != Ending::Killed);
                if settlement.record.ending != Ending::Killed {
                    books.found(settlement.record.id, ours, self.is_own);
                }
                self.settled(ours.map(|found| found.id));
            }
            (op, decided) => {
                books.committed(op, decided.as_ref().ok(), self.is_own);
                if let (LedgerOp::Settle(settlement), Ok(Outcome::Settled { .. })) = (op, decided) {
                    self.settled(Some(settlement.record.id));
                }
            }
        }
    }

    fn settled(&self, request: Option<RequestId>) {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if settled.len() < SETTLED_MAX {
            settled.extend(request);
        }
    }

    /// The requests settled since this was last asked, but for those beyond a bound.
    #[must_use]
    pub fn take_settled(&self) -> Vec<RequestId> {
        std::mem::take(&mut *self.settled.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn the_own_writer_does_not_wait_for_what_others_have_left() {
        let own = Measured::new(Arc::default());
        let others = own.of_others();
        let busy = others.busy().now_or_never();
        assert!(busy.is_some() && others.busy().now_or_never().is_none());
        assert!(own.quiet().now_or_never().is_none(), "nothing is to be committed then");
        let writing = own.busy().now_or_never();
        assert!(writing.is_some(), "though somebody waits for quiet");
        drop(busy);
        assert!(own.quiet().now_or_never().is_none());
        drop(writing);
        let quiet = own.quiet().now_or_never();
        assert!(quiet.is_some() && own.busy().now_or_never().is_none());
    }
}
