//! The ledger writer: its batches, how long they take, and how long operations wait for them.

use super::times::{Sizes, Times};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone)]
pub struct LedgerMetrics {
    /// Operations of one transaction.
    pub batch: Sizes,
    pub commit: Times,
    /// From sending an operation to its commit.
    pub wait: Times,
    /// The database was away.
    pub retries: Counter,
    /// Operations that the database refuses.
    pub failures: Counter,
    pub queued: Gauge,
}

impl LedgerMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let batch = Sizes(Sizes::histogram());
        registry.register("ledger_batch_ops", "Operations in one transaction", batch.0.clone());
        let commit = Times(Times::ours());
        registry.register(
            "ledger_commit_seconds",
            "How long a batch takes, with all that it waits for",
            commit.0.clone(),
        );
        let wait = Times(Times::ours());
        registry.register(
            "ledger_wait_seconds",
            "From sending an operation to its commit",
            wait.0.clone(),
        );
        let retries = Counter::default();
        registry.register(
            "ledger_retries",
            "Batches tried again because the database was away",
            retries.clone(),
        );
        let failures = Counter::default();
        registry.register(
            "ledger_failures",
            "Operations that the database refused",
            failures.clone(),
        );
        let queued = Gauge::default();
        registry.register(
            "ledger_queue_ops",
            "Places taken in the ledger's queue, reserved ones included",
            queued.clone(),
        );
        Self { batch, commit, wait, retries, failures, queued }
    }
}
