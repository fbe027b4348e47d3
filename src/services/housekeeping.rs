//! The store's housekeeping: what nobody will ask for any more goes.
//!
//! Invariant: it waits for nothing else, and nothing waits for it.

use crate::models::timestamp::Timestamp;
use crate::store::{Store, in_time};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

const SWEEP_EVERY: Duration = Duration::from_secs(3_600);

/// Sweeps now and then.
pub async fn run(store: &dyn Store) {
    let mut sweeps = interval(SWEEP_EVERY);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        sweeps.tick().await;
        if let Err(error) = in_time(store.sweep(Timestamp::now())).await {
            tracing::warn!("housekeeping: {error}");
        }
    }
}
