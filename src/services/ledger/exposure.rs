//! What is let in while the books cannot be asked.
//!
//! Invariants: what the books do not know of is never more than the exposure in all, nor more than
//! an account or a key had when it was last read; a request gives back what it did not use. So the
//! most that can be overspent is the exposure, by as much as others spent of the same money
//! meanwhile. Pure.

use crate::models::hold::Hold;
use crate::models::ids::{AccountId, ApiKeyId, RequestId};
use crate::models::limits::Limit;
use crate::models::money::NanoUsd;
use crate::models::usage::UsageRecord;
use crate::store::Extension;
use std::collections::HashMap;
use std::hash::Hash;

pub struct Exposure {
    limit: NanoUsd,
    total: NanoUsd,
    accounts: HashMap<AccountId, NanoUsd>,
    keys: HashMap<ApiKeyId, NanoUsd>,
    taken: HashMap<RequestId, Taken>,
}

/// What a request has taken that the books do not know of.
struct Taken {
    account: AccountId,
    key: Option<ApiKeyId>,
    amount: NanoUsd,
    /// The books know of no hold of it either.
    is_whole: bool,
}

/// What account and key had when they were last read.
#[derive(Clone, Copy)]
pub struct Left {
    pub account: NanoUsd,
    pub key: NanoUsd,
}

/// Why nothing is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// By what was last read there is no money.
    NoMoney(Limit),
    /// There may be; nobody can tell.
    Exposed,
}

impl Exposure {
    pub fn new(limit: NanoUsd) -> Self {
        let (accounts, keys, taken) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { limit, total: NanoUsd::ZERO, accounts, keys, taken }
    }

    /// Lets a hold in: with what is wanted, or what there is down to a floor.
    pub fn place(&mut self, hold: &Hold, floor: NanoUsd, left: Left) -> Result<NanoUsd, Denied> {
        let (account, key) = (hold.account_id, hold.api_key_id);
        let amount = self.grant(account, key, hold.amount_nusd, floor, left)?;
        self.take(hold.request_id, Taken { account, key, amount, is_whole: true });
        Ok(amount)
    }

    /// Adds to a hold, which the books may know.
    pub fn extend(&mut self, extension: &Extension, left: Left) -> Result<NanoUsd, Denied> {
        let Extension { request_id, account_id: account, api_key_id: key, .. } = *extension;
        let floor = extension.floor_nusd;
        let amount = self.grant(account, key, extension.add_nusd, floor, left)?;
        match self.give_back(request_id) {
            Some(taken) => {
                let sum = taken.amount.plus(amount).unwrap_or(NanoUsd(i64::MAX));
                self.take(request_id, Taken { amount: sum, ..taken });
            }
            None => self.take(request_id, Taken { account, key, amount, is_whole: false }),
        }
        Ok(amount)
    }

    fn grant(
        &self,
        account: AccountId,
        key: Option<ApiKeyId>,
        wanted: NanoUsd,
        floor: NanoUsd,
        left: Left,
    ) -> Result<NanoUsd, Denied> {
        let rest = |left: NanoUsd, taken: Option<&NanoUsd>| {
            left.minus(taken.copied().unwrap_or_default()).unwrap_or_default()
        };
        let of_account = rest(left.account, self.accounts.get(&account));
        let of_key = rest(left.key, key.and_then(|key| self.keys.get(&key)));
        let by = if of_key < of_account { Limit::Key } else { Limit::Account };
        let own = of_account.min(of_key);
        if wanted.min(own) < floor {
            return Err(Denied::NoMoney(by));
        }
        let amount = wanted.min(own).min(self.left());
        // Also what costs nothing is only let in while something may be.
        if amount < floor || self.left() <= NanoUsd::ZERO {
            return Err(Denied::Exposed);
        }
        Ok(amount)
    }

    /// A request has ended, with this record.
    pub fn settled(&mut self, record: &UsageRecord) {
        if !self.taken.get(&record.id).is_some_and(|taken| taken.is_whole) {
            return;
        }
        if let Some(taken) = self.give_back(record.id) {
            self.take(record.id, Taken { amount: record.charge_nusd, ..taken });
        }
    }

    /// How much more may be let in.
    pub fn left(&self) -> NanoUsd {
        self.limit.minus(self.total).unwrap_or_default().max(NanoUsd::ZERO)
    }

    fn take(&mut self, id: RequestId, taken: Taken) {
        add(&mut self.total, taken.amount);
        add(self.accounts.entry(taken.account).or_default(), taken.amount);
        if let Some(key) = taken.key {
            add(self.keys.entry(key).or_default(), taken.amount);
        }
        self.taken.insert(id, taken);
    }

    /// It is not let in after all, or the books know of it now.
    pub fn forget(&mut self, id: RequestId) {
        self.give_back(id);
    }

    fn give_back(&mut self, id: RequestId) -> Option<Taken> {
        let taken = self.taken.remove(&id)?;
        self.total = self.total.minus(taken.amount).unwrap_or_default();
        less(&mut self.accounts, &taken.account, taken.amount);
        if let Some(key) = taken.key {
            less(&mut self.keys, &key, taken.amount);
        }
        Some(taken)
    }
}

/// A sum beyond its range lets nothing more in.
fn add(sum: &mut NanoUsd, amount: NanoUsd) {
    *sum = sum.plus(amount).unwrap_or(NanoUsd(i64::MAX));
}

fn less<K: Eq + Hash>(sums: &mut HashMap<K, NanoUsd>, of: &K, amount: NanoUsd) {
    let Some(sum) = sums.get_mut(of) else { return };
    *sum = sum.minus(amount).unwrap_or_default();
    if sum.is_zero() {
        sums.remove(of);
    }
}

#[cfg(test)]
mod tests;
