//! The ledger writer: everything that waits becomes one transaction.
//!
//! Invariants: operations are decided in the order they were sent; an operation whose [`Slot`] was
//! reserved can always be sent, from anywhere, without waiting or failing; what was sent is not
//! lost. While the database is away the writer waits for it, or goes on with a journal where that
//! is configured (`outage`). Prices and endings are decided elsewhere.

mod committer;
mod exposure;
mod hurry;
mod journal;
mod leftovers;
mod measured;
mod outage;
mod queue;
mod snapshots;
mod writer;

use crate::models::ids::AccountId;
use crate::models::money::NanoUsd;
use crate::services::metrics::Metrics;
use crate::store::{LedgerOp, Outcome, Store};
use committer::{Committer, Decided};
pub use hurry::Hurry;
pub use journal::Journal;
pub use leftovers::Leftovers;
use measured::Measured;
use queue::{Queue, Queued, Wanted};
pub use snapshots::Snapshot;
use snapshots::Snapshots;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
pub use writer::Writer;

/// Requests in flight at most, each with a place for its settlement, its hold and a note.
const QUEUE_OPS_MAX: usize = 65_536;

/// The way to the writer. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    sender: mpsc::Sender<Queued>,
    hurry: Hurry,
    snapshots: Snapshots,
    away: Away,
    measured: Measured,
}

/// A reserved place in the writer's queue.
#[must_use]
pub struct Slot {
    permit: mpsc::OwnedPermit<Queued>,
    snapshots: Snapshots,
}

/// The answer to an operation that was sent for one.
pub type Answer = oneshot::Receiver<Result<Outcome, Failed>>;

/// Why an operation is not committed; the cause is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    #[error("the ledger could not commit the operation")]
    Refused,
    #[error("the database is away, and the journal does not take its place")]
    Away,
}

/// The queue is full: more requests at once than this process was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// How the writer goes on while the database is away.
pub struct OutageTerms {
    /// The most that is let in meanwhile.
    pub exposure: NanoUsd,
    /// Of a hold that is put into the books afterwards.
    pub lease: Duration,
    /// How long a database is waited for before it is away.
    pub patience: Duration,
    pub journal: Journal,
}

/// Whether the database is away, and whether that matters. Cheap to clone.
#[derive(Clone)]
pub struct Away(Arc<State>);

struct State {
    patience: Option<Duration>,
    is_away: AtomicBool,
    can_serve: AtomicBool,
}

/// A ledger and the writer that has to run for it.
#[must_use]
pub fn new(
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    outage: Option<OutageTerms>,
) -> (Ledger, Writer) {
    let (sender, receiver) = mpsc::channel(QUEUE_OPS_MAX);
    let hurry = Hurry::default();
    let snapshots = Snapshots::new();
    let away = Away::new(outage.as_ref().map(|terms| terms.patience));
    let measured = Measured::new(metrics);
    let committer = Committer::new(store, measured.clone());
    let queue = Queue::new(receiver, hurry.clone());
    let writer = Writer::new(committer, queue, snapshots.clone(), away.clone(), outage);
    (Ledger { sender, hurry, snapshots, away, measured }, writer)
}

// === impl Ledger ===

impl Ledger {
    /// A place for a settlement, before there is anything to settle.
    ///
    /// # Errors
    /// [`Full`] when too many requests are in flight.
    pub fn reserve(&self) -> Result<Slot, Full> {
        let permit = self.sender.clone().try_reserve_owned().map_err(|_| Full)?;
        Ok(Slot { permit, snapshots: self.snapshots.clone() })
    }

    /// Sends an operation and gives the way to its answer.
    ///
    /// # Errors
    /// [`Full`] when too many requests are in flight.
    pub fn submit(&self, op: LedgerOp) -> Result<Answer, Full> {
        self.submit_wanted(op, Wanted::Now)
    }

    /// Sends an operation whose answer is not waited for yet: what the caller does meanwhile may
    /// give others to go with it. Whoever then waits says so by [`Ledger::hurry`].
    ///
    /// # Errors
    /// [`Full`] when too many requests are in flight.
    pub fn submit_ahead(&self, op: LedgerOp) -> Result<Answer, Full> {
        self.submit_wanted(op, Wanted::Soon)
    }

    /// For those that were sent ahead.
    #[must_use]
    pub fn hurry(&self) -> &Hurry {
        &self.hurry
    }

    fn submit_wanted(&self, op: LedgerOp, wanted: Wanted) -> Result<Answer, Full> {
        let (sender, answer) = oneshot::channel();
        let queued = self.snapshots.queued(op, Some(sender), wanted);
        self.sender.try_send(queued).map_err(|_| Full)?;
        Ok(answer)
    }

    /// Sends an operation that may be lost: recovery then knows a little less.
    pub fn note(&self, op: LedgerOp) {
        let _ = self.sender.try_send(self.snapshots.queued(op, None, Wanted::InTime));
    }

    /// What the account has when all that was sent is decided; `None`: it has to be asked for.
    #[must_use]
    pub fn snapshot(&self, account: AccountId) -> Option<Snapshot> {
        self.snapshots.of(account)
    }

    /// Forgets balances: another process has changed accounts.
    pub fn forget_snapshots(&self) {
        self.snapshots.forget();
    }

    #[must_use]
    pub fn away(&self) -> &Away {
        &self.away
    }

    /// What committing is measured by.
    #[must_use]
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// Places taken in the writer's queue, reserved ones included.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.sender.max_capacity().saturating_sub(self.sender.capacity())
    }
}

impl Snapshots {
    /// An operation that counts until it is decided.
    fn queued(
        &self,
        op: LedgerOp,
        answer: Option<oneshot::Sender<Decided>>,
        wanted: Wanted,
    ) -> Queued {
        let coming = self.coming(&op);
        Queued::new(op, answer, wanted, coming)
    }
}

// === impl Slot ===

impl Slot {
    /// Sends the operation the place was kept for. Does not wait and cannot fail.
    pub fn send(self, op: LedgerOp) {
        self.permit.send(self.snapshots.queued(op, None, Wanted::InTime));
    }
}

// === impl Away ===

impl Away {
    fn new(patience: Option<Duration>) -> Self {
        let (is_away, can_serve) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(State { patience, is_away, can_serve }))
    }

    /// The ledger has given up waiting for the database, and writes its journal.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.0.is_away.load(Ordering::Relaxed)
    }

    /// Requests of those who are known can be served without the database.
    #[must_use]
    pub fn can_serve(&self) -> bool {
        self.0.can_serve.load(Ordering::Relaxed)
    }

    /// How long the database is waited for; `None`: there is no journal to go on with.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        self.0.patience
    }

    fn set_away(&self, is_away: bool) {
        self.0.is_away.store(is_away, Ordering::Relaxed);
    }

    fn set_can_serve(&self, can_serve: bool) {
        self.0.can_serve.store(can_serve, Ordering::Relaxed);
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
