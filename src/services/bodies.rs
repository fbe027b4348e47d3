//! Room for the bodies of requests while they are read: for all together, and in it a share for
//! each account.
//!
//! Invariants: what is taken is given back when its body has been read or given up; a small body
//! needs none, so that nobody's large ones keep another's ordinary requests out. What a request
//! keeps once it is admitted is bounded by its account's money and limits, and not here.

use crate::error::Error;
use crate::models::ids::AccountId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Of bodies that have not ended. A caller without credit can send as much as one that has some.
const BODIES_BYTES_MAX: usize = 256 << 20;
/// Of one account: two of the largest at once.
const SHARE_BYTES_MAX: usize = 64 << 20;
/// Most requests are smaller; as many of these as there may be connections are as much as the room.
const SMALL_BYTES_MAX: usize = 16 << 10;

#[derive(Default)]
pub struct Bodies(Mutex<Taken>);

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
        let mut taken = self.bodies.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by.get(&self.account).copied().unwrap_or_default();
        let (all, own) = (taken.all.saturating_add(more), own.saturating_add(more));
        if all > BODIES_BYTES_MAX || own > SHARE_BYTES_MAX {
            return Err(Error::Overloaded);
        }
        taken.all = all;
        taken.by.insert(self.account, own);
        self.taken = self.read;
        Ok(())
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.taken == 0 {
            return;
        }
        let mut taken = self.bodies.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(self.taken);
        let own = taken.by.get(&self.account).copied().unwrap_or_default();
        match own.saturating_sub(self.taken) {
            0 => drop(taken.by.remove(&self.account)),
            left => drop(taken.by.insert(self.account, left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_share_for_each_and_room_for_all() {
        let bodies = Bodies::default();
        let [own, other] = [AccountId::generate(), AccountId::generate()];
        let mut first = bodies.room(own);
        assert!(first.take(SHARE_BYTES_MAX).is_ok());
        assert!(bodies.room(own).take(SMALL_BYTES_MAX).is_ok(), "a small one needs none");
        assert!(bodies.room(own).take(SMALL_BYTES_MAX + 1).is_err());
        let mut second = bodies.room(other);
        assert!(second.take(SHARE_BYTES_MAX - 1).is_ok() && second.take(1).is_ok());
        assert!(second.take(1).is_err());
        let others: Vec<_> = (2..BODIES_BYTES_MAX / SHARE_BYTES_MAX)
            .map(|_| {
                let mut room = bodies.room(AccountId::generate());
                assert!(room.take(SHARE_BYTES_MAX).is_ok());
                room
            })
            .collect();
        let third = AccountId::generate();
        assert!(bodies.room(third).take(SMALL_BYTES_MAX + 1).is_err(), "all of it is taken");
        drop(first);
        assert!(bodies.room(third).take(SHARE_BYTES_MAX).is_ok());
        drop((second, others));
        let taken = bodies.0.into_inner().unwrap();
        assert_eq!((taken.all, taken.by.len()), (0, 0));
    }
}
