//! Hurrying the writer: somebody waits now for what was sent ahead.
//!
//! Invariant: what is said while the writer is at work holds for what it takes up next. It carries
//! no operation, and that it is said once too often costs a smaller batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Hurry(Arc<State>);

#[derive(Default)]
struct State {
    /// Since the writer began to gather.
    waiting: AtomicUsize,
    said: Notify,
}

impl Hurry {
    /// One more waits.
    pub fn say(&self) {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        self.0.said.notify_one();
    }

    /// How many have come to wait since this was last asked.
    pub(super) fn take(&self) -> usize {
        self.0.waiting.swap(0, Ordering::Relaxed)
    }

    /// Until somebody says so.
    pub(super) async fn said(&self) {
        self.0.said.notified().await;
    }
}
