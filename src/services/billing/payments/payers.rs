//! Who is being sent to Stripe: a few times at once for each account.
//!
//! Invariant: whoever asks more often is turned away, so that nobody's repeated asking takes the
//! turns at Stripe from others, or from what was used.

use crate::error::Error;
use crate::models::ids::AccountId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// People of one account who click at the same time, some of them twice.
const AT_ONCE_MAX: usize = 8;

#[derive(Default)]
pub struct Payers(Mutex<HashMap<AccountId, usize>>);

/// A place of an account, until this is dropped.
pub struct Paying<'a> {
    payers: &'a Payers,
    account: AccountId,
}

impl Payers {
    /// # Errors
    /// [`Error::Overloaded`] when the account has all of its places.
    pub fn begin(&self, account: AccountId) -> Result<Paying<'_>, Error> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = places.entry(account).or_default();
        if *taken >= AT_ONCE_MAX {
            return Err(Error::Overloaded);
        }
        *taken += 1;
        Ok(Paying { payers: self, account })
    }
}

impl Drop for Paying<'_> {
    fn drop(&mut self) {
        let mut places = self.payers.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = places.get(&self.account).copied().unwrap_or_default();
        match taken.saturating_sub(1) {
            0 => drop(places.remove(&self.account)),
            left => drop(places.insert(self.account, left)),
        }
    }
}
