//! What accounts have: what the books said last, less what is on its way to them.
//!
//! Invariants: it decides nothing but whether a call may overlap with its hold; a balance that was
//! forgotten is not known again before the books have said it; what is on its way is counted until
//! it is decided, whatever the books say of others meanwhile.

use crate::models::ids::AccountId;
use crate::models::money::NanoUsd;
use crate::store::{LedgerOp, Placement};
use moka::sync::Cache;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Accounts that are remembered.
const SNAPSHOTS_MAX: u64 = 100_000;

/// Cheap to clone.
#[derive(Clone)]
pub struct Snapshots(Arc<State>);

struct State {
    accounts: Cache<AccountId, Shared>,
    /// How often all that the books said was forgotten.
    forgotten: AtomicU64,
}

/// What an account had when its last operation was committed.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    pub available: NanoUsd,
    pub taken_at: Instant,
}

/// An operation on its way to the books, which may take so much. Ends when it is decided.
pub struct Coming {
    account: Shared,
    amount: NanoUsd,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// By the books, and how often that had been forgotten before.
    said: Option<(u64, Snapshot)>,
    coming: NanoUsd,
}

impl Snapshots {
    pub fn new() -> Self {
        let (accounts, forgotten) = (Cache::new(SNAPSHOTS_MAX), AtomicU64::new(0));
        Self(Arc::new(State { accounts, forgotten }))
    }

    /// What there is when all that is on its way has come.
    pub fn of(&self, account: AccountId) -> Option<Snapshot> {
        let known = self.0.accounts.get(&account)?;
        let known = known.lock();
        let (as_of, Snapshot { available, taken_at }) = known.said?;
        if as_of != self.0.forgotten.load(Ordering::Acquire) {
            return None;
        }
        let available = available.minus(known.coming).unwrap_or(NanoUsd::ZERO);
        Some(Snapshot { available, taken_at })
    }

    /// What the books say.
    pub fn put(&self, account: AccountId, snapshot: Snapshot) {
        let as_of = self.0.forgotten.load(Ordering::Acquire);
        self.account(account).lock().said = Some((as_of, snapshot));
    }

    /// Counts what an operation that is about to be sent may take, so that a burst does not see the
    /// same money many times, nor a client that asks again at once what its last answer costs,
    /// where that is known at its end.
    pub fn coming(&self, op: &LedgerOp) -> Option<Coming> {
        let (account, amount) = taken_by(op)?;
        let account = self.account(account);
        account.lock().add(amount);
        Some(Coming { account, amount })
    }

    /// Forgets what the books have said; what is on its way still counts.
    pub fn forget(&self) {
        self.0.forgotten.fetch_add(1, Ordering::AcqRel);
    }

    /// A change in place costs a fraction of an entry that is made anew.
    fn account(&self, account: AccountId) -> Shared {
        let accounts = &self.0.accounts;
        accounts.get(&account).unwrap_or_else(|| accounts.get_with(account, Shared::default))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // A panic elsewhere leaves what is known as good as it was.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn add(&mut self, amount: NanoUsd) {
        self.coming = self.coming.plus(amount).unwrap_or(NanoUsd(i64::MAX));
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        let mut known = self.account.lock();
        known.coming = known.coming.minus(self.amount).unwrap_or(NanoUsd::ZERO);
    }
}

/// What an operation takes of an account beyond what was taken for it before.
fn taken_by(op: &LedgerOp) -> Option<(AccountId, NanoUsd)> {
    let (account, amount) = match op {
        LedgerOp::Place(Placement { hold, .. }) => (hold.account_id, hold.amount_nusd),
        LedgerOp::Extend(extension) => (extension.account_id, extension.add_nusd),
        // A model that thinks unseen costs more than its hold when all is over.
        LedgerOp::Settle(settlement) => {
            let record = &settlement.record;
            (record.account_id, record.charge_nusd.minus(record.hold_nusd).ok()?)
        }
        LedgerOp::Note(_) | LedgerOp::Correct(_) | LedgerOp::Enter(_) | LedgerOp::Abandon(_) => {
            return None;
        }
    };
    (amount > NanoUsd::ZERO).then_some((account, amount))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ids::RequestId;
    use crate::store::Extension;

    fn extension(account_id: AccountId, add: i64) -> LedgerOp {
        LedgerOp::Extend(Extension {
            request_id: RequestId::generate(),
            account_id,
            api_key_id: None,
            held_nusd: NanoUsd::ZERO,
            add_nusd: NanoUsd(add),
            floor_nusd: NanoUsd::ZERO,
        })
    }

    #[test]
    fn what_is_on_its_way_counts_until_it_is_decided() {
        let snapshots = Snapshots::new();
        let account = AccountId::generate();
        let said = |available| {
            snapshots.put(account, Snapshot { available, taken_at: Instant::now() });
        };
        let available = || snapshots.of(account).map(|snapshot| snapshot.available.0);
        let first = snapshots.coming(&extension(account, 30));
        assert_eq!(available(), None, "the books have said nothing");
        said(NanoUsd(100));
        assert_eq!(available(), Some(70));
        let second = snapshots.coming(&extension(account, 50));
        said(NanoUsd(70));
        drop(first);
        assert_eq!(available(), Some(20), "what the books say of the first leaves the second");
        drop(second);
        assert_eq!(available(), Some(70));
        let both = [10, 20].map(|add| snapshots.coming(&extension(account, add)));
        snapshots.forget();
        assert_eq!(available(), None);
        let [third, fourth] = both;
        said(NanoUsd(60));
        drop(third);
        assert_eq!(available(), Some(40), "what is on its way is not forgotten");
        drop(fourth);
        assert_eq!(available(), Some(60));
        assert!(snapshots.coming(&extension(account, 0)).is_none());
    }
}
