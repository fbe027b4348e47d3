//! When keys were last used, written down now and then.
//!
//! Invariant: no request waits for it; what a crash loses is a minute of it.

use crate::models::ids::ApiKeyId;
use crate::models::timestamp::Timestamp;
use crate::store::{Store, StoreError};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keys remembered between two writes; the uses of others are not written down.
const KEYS_MAX: usize = 100_000;

#[derive(Default)]
pub struct Uses(Mutex<HashMap<ApiKeyId, Timestamp>>);

impl Uses {
    pub fn note(&self, key: ApiKeyId, now: Timestamp) {
        let mut seen = self.seen();
        if seen.len() < KEYS_MAX || seen.contains_key(&key) {
            seen.insert(key, now.minute_start());
        }
    }

    /// Writes down what was noted; what could not be written is noted still.
    ///
    /// # Errors
    /// The store's.
    pub async fn write(&self, store: &dyn Store) -> Result<(), StoreError> {
        let mut used: Vec<_> = std::mem::take(&mut *self.seen()).into_iter().collect();
        // In one order everywhere: replicas that write the same keys wait for each other at most.
        used.sort_unstable();
        if used.is_empty() {
            return Ok(());
        }
        let written = store.touch_keys(&used).await;
        if written.is_err() {
            let mut seen = self.seen();
            for (key, at) in used {
                seen.entry(key).or_insert(at);
            }
        }
        written
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<ApiKeyId, Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
