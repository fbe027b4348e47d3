//! Waiting for what happens beside the test: by asking again, bounded, never by a fixed sleep.

use std::time::Duration;

use tokio::time::Instant;

/// Longer than anything takes that is going to happen at all, on a loaded machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until there is an answer, and fails the test when none comes in time.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}
