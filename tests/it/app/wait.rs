//! Waiting for what happens beside the test: by asking again, bounded, never by a fixed sleep.

use std::time::Duration;

use tokio::time::Instant;

/// Longer than anything takes that is going to happen at all, on a loaded machine too.
pub const PATIENCE: Duration = Duration::from_secs(45);
/// A program that starts, a command that runs to its end (it may have an hour's books to read), and
/// what takes many calls, some of which fail.
const PATIENCE_FOR_PROGRAMS: Duration = Duration::from_secs(120);
const OFTEN: Duration = Duration::from_millis(15);
const SELDOM: Duration = Duration::from_millis(100);

/// Asks until there is an answer, and fails the test when none comes in time.
pub async fn eventually<T>(what: &str, check: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, check).await
}

/// The same, with the patience that a program of its own needs.
pub async fn in_its_time<T>(what: &str, check: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE_FOR_PROGRAMS, what, check).await
}

async fn within<T>(patience: Duration, what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    let deadline = began + patience;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain: {what}");
        // What takes long is asked for less often: the asking is what others wait for.
        tokio::time::sleep((began.elapsed() / 8).clamp(OFTEN, SELDOM)).await;
    }
}
