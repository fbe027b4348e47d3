//! Room for the bodies of requests while they are read: for all together, and in it a share for
//! each account.
//!
//! Invariants: what is taken is given back when its body has been read, given up or refused; a
//! small body needs none, so that nobody's large ones keep another's ordinary requests out. What
//! small ones come to is bounded by the number of connections alone, and what a request keeps once
//! it is admitted by its account's money and limits.

use crate::error::Error;
use crate::models::ids::AccountId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Of one account's bodies that have not ended, so many of the largest at once. A caller without
/// credit can send as much as one that has some.
const LARGEST_OF_ONE: usize = 2;
/// So many accounts can take their share at once.
const SHARES: usize = 4;
/// Nearly all requests are smaller.
const SMALL_BYTES_MAX: usize = 128 << 10;

pub struct Bodies {
    share: usize,
    all: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by: HashMap<AccountId, usize>,
}

/// What one body has taken.
pub struct Room<'a> {
    bodies: &'a Bodies,
    account: AccountId,
    read: usize,
    taken: usize,
}

impl Bodies {
    /// `largest`: no body is larger.
    #[must_use]
    pub fn new(largest: usize) -> Self {
        let share = largest.saturating_mul(LARGEST_OF_ONE).max(SMALL_BYTES_MAX);
        Self { share, all: share.saturating_mul(SHARES), taken: Mutex::default() }
    }

    /// For a body of this account, of which nothing has been read.
    #[must_use]
    pub fn room(&self, account: AccountId) -> Room<'_> {
        Room { bodies: self, account, read: 0, taken: 0 }
    }
}

impl Room<'_> {
    /// So much more has been read.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when there is no room for it.
    pub fn take(&mut self, bytes: usize) -> Result<(), Error> {
        self.read = self.read.saturating_add(bytes);
        if self.read <= SMALL_BYTES_MAX {
            return Ok(());
        }
        let more = self.read.saturating_sub(self.taken);
        let mut taken = self.bodies.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by.get(&self.account).copied().unwrap_or_default();
        let (all, own) = (taken.all.saturating_add(more), own.saturating_add(more));
        if all > self.bodies.all || own > self.bodies.share {
            // At once: others may need it before all that was read is thrown away.
            taken.give_back(self.account, std::mem::take(&mut self.taken));
            return Err(Error::Overloaded);
        }
        taken.all = all;
        taken.by.insert(self.account, own);
        self.taken = self.read;
        Ok(())
    }
}

impl Taken {
    fn give_back(&mut self, account: AccountId, bytes: usize) {
        self.all = self.all.saturating_sub(bytes);
        let own = self.by.get(&account).copied().unwrap_or_default();
        match own.saturating_sub(bytes) {
            0 => drop(self.by.remove(&account)),
            left => drop(self.by.insert(account, left)),
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.taken > 0 {
            let mut taken = self.bodies.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.give_back(self.account, self.taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_share_for_each_and_room_for_all() {
        let bodies = Bodies::new(1 << 20);
        let (share, shares) = (bodies.share, bodies.all / bodies.share);
        let [own, other] = [AccountId::generate(), AccountId::generate()];
        let mut first = bodies.room(own);
        assert!(first.take(share).is_ok());
        assert!(bodies.room(own).take(SMALL_BYTES_MAX).is_ok(), "a small one needs none");
        assert!(bodies.room(own).take(SMALL_BYTES_MAX + 1).is_err());
        let mut second = bodies.room(other);
        assert!(second.take(share - 1).is_ok() && second.take(1).is_ok());
        let others: Vec<_> = (2..shares)
            .map(|_| {
                let mut room = bodies.room(AccountId::generate());
                assert!(room.take(share).is_ok());
                room
            })
            .collect();
        let third = AccountId::generate();
        assert!(bodies.room(third).take(SMALL_BYTES_MAX + 1).is_err(), "all of it is taken");
        drop(first);
        assert!(bodies.room(third).take(share).is_ok());
        assert!(second.take(1).is_err());
        assert!(bodies.room(other).take(share).is_ok(), "what was refused gave its room back");
        drop((second, others));
        let taken = bodies.taken.into_inner().unwrap();
        assert_eq!((taken.all, taken.by.len()), (0, 0));
    }
}
