//! What accounts had when their last operations were committed.
//!
//! Invariant: it decides nothing but whether a call may overlap with its hold; a balance that was
//! forgotten is not known again before the books have said it.

use crate::models::ids::AccountId;
use crate::models::money::NanoUsd;
use moka::sync::Cache;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Accounts whose balance is remembered.
const SNAPSHOTS_MAX: u64 = 100_000;

/// Cheap to clone.
#[derive(Clone)]
pub struct Snapshots(Cache<AccountId, Arc<Mutex<Snapshot>>>);

/// What an account had when its last operation was committed.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    pub available: NanoUsd,
    pub taken_at: Instant,
}

impl Snapshots {
    pub fn new() -> Self {
        Self(Cache::new(SNAPSHOTS_MAX))
    }

    pub fn of(&self, account: AccountId) -> Option<Snapshot> {
        self.change(account, |_| ())
    }

    /// What the books say. A change in place costs a fraction of an entry that is made anew.
    pub fn put(&self, account: AccountId, snapshot: Snapshot) {
        if self.change(account, |known| *known = snapshot).is_none() {
            self.0.insert(account, Arc::new(Mutex::new(snapshot)));
        }
    }

    /// Counts what is on its way to the books.
    pub fn spend(&self, account: AccountId, amount: NanoUsd) {
        self.change(account, |known| {
            known.available = known.available.minus(amount).unwrap_or(NanoUsd::ZERO);
        });
    }

    pub fn forget(&self) {
        self.0.invalidate_all();
    }

    /// What there was before, unless the account is not known.
    fn change(&self, account: AccountId, change: impl FnOnce(&mut Snapshot)) -> Option<Snapshot> {
        let known = self.0.get(&account)?;
        // A panic elsewhere leaves a snapshot as good as it was.
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *known;
        change(&mut known);
        Some(before)
    }
}
