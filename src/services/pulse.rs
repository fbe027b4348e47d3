//! Whether the database answers, asked once for all who want to know.
//!
//! Invariant: however many ask, the database is asked at most so often, and by one at a time.

use crate::store::{Store, within};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// A database that takes longer does not answer.
const PING_WAIT: Duration = Duration::from_secs(2);
/// An answer is good for so long: whoever asks for readiness asks once a second or less.
const FRESH_FOR: Duration = Duration::from_millis(500);

#[derive(Default)]
pub struct Pulse(Mutex<Option<(Instant, bool)>>);

impl Pulse {
    pub async fn beats(&self, store: &dyn Store) -> bool {
        let mut last = self.0.lock().await;
        if let Some((at, beats)) = *last
            && at.elapsed() < FRESH_FOR
        {
            return beats;
        }
        let beats = within(PING_WAIT, store.ping()).await.is_ok();
        *last = Some((Instant::now(), beats));
        beats
    }
}
