//! What goes on beside requests, until the process is about to end.
//!
//! Invariant: a task that panics ends the process, in good order. Without it leases would not be
//! renewed, orphans not found or usage not exported, and nobody would know.

use std::future::Future;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

pub struct Background {
    pub stop: CancellationToken,
    tasks: JoinSet<Result<(), JoinError>>,
}

impl Background {
    pub fn new() -> Self {
        Self { stop: CancellationToken::new(), tasks: JoinSet::new() }
    }

    /// Runs what ends by itself, in good order, when it is told to.
    pub fn run<T>(&mut self, task: impl FnOnce(CancellationToken) -> T)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        self.watch(tokio::spawn(task(self.stop.clone())));
    }

    /// Looks after a task that somebody else waits for.
    pub fn watch(&mut self, task: JoinHandle<()>) {
        self.tasks.spawn(task);
    }

    /// Runs what may be dropped wherever it is.
    pub fn run_until_stop(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.run(|stop| async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Ends when one of them has panicked. Some have nothing to do, and end at once.
    pub async fn panicked(&mut self) -> anyhow::Error {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended.and_then(|task| task) {
                return anyhow::Error::new(error).context("a task beside the requests");
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_panic_is_seen_and_an_end_is_not() {
        let mut background = Background::new();
        background.run(|_| async {});
        background.run_until_stop(std::future::pending());
        let quiet = tokio::time::timeout(Duration::from_millis(20), background.panicked()).await;
        assert!(quiet.is_err());
        background.run_until_stop(async { panic!("as a test") });
        assert!(background.panicked().await.to_string().contains("beside the requests"));
    }
}
