//! Room for bodies in memory, of requests while they are read and of plain answers until they are
//! delivered: for all together, and in it a share for each account.
//!
//! Invariants: what is taken is given back when its body has gone its way or is given up; small
//! bodies have a share of their own, so that nobody's large ones keep another's ordinary requests
//! out, nor one account's many keep out another's. What a request keeps once it is admitted is
//! bounded by its account's money and limits.

use crate::error::Error;
use crate::models::ids::AccountId;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

/// Of one account's bodies that have not ended, so many of the largest at once. A caller without
/// credit can send as much as one that has some.
const LARGEST_OF_ONE: usize = 2;
/// So many accounts can take their share at once.
const SHARES: usize = 4;
/// Nearly all requests are smaller.
const SMALL_BYTES_MAX: usize = 128 << 10;
/// Of one account's small bodies that have not ended: as many as one connection over HTTP/2 can
/// carry, else some connections could fill the memory.
const SMALL_SHARE: usize = 256 * SMALL_BYTES_MAX;

pub struct Bodies {
    share: usize,
    all: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// By large ones.
    all: usize,
    by: HashMap<AccountId, Held>,
}

/// Bytes of bodies that have not ended.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    small: usize,
    large: usize,
}

/// What one body has taken.
pub struct Room {
    bodies: Arc<Bodies>,
    account: AccountId,
    read: usize,
    held: Held,
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
    pub fn room(self: &Arc<Self>, account: AccountId) -> Room {
        Room { bodies: self.clone(), account, read: 0, held: Held::default() }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// So much more has been read.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when there is no room for it.
    pub fn take(&mut self, bytes: usize) -> Result<(), Error> {
        self.read = self.read.saturating_add(bytes);
        let wanted = match self.read {
            small @ ..=SMALL_BYTES_MAX => Held { small, large: 0 },
            large => Held { small: 0, large },
        };
        let mut taken = self.bodies.taken();
        // Where there is none, others may need it before all that was read is thrown away.
        taken.give_back(self.account, std::mem::take(&mut self.held));
        let own = taken.by.get(&self.account).copied().unwrap_or_default().plus(wanted);
        let all = taken.all.saturating_add(wanted.large);
        let is_beyond = own.small > SMALL_SHARE
            || wanted.large > 0 && (own.large > self.bodies.share || all > self.bodies.all);
        if is_beyond {
            return Err(Error::Overloaded);
        }
        taken.all = all;
        taken.by.insert(self.account, own);
        self.held = wanted;
        Ok(())
    }
}

impl Held {
    fn plus(self, more: Self) -> Self {
        Self {
            small: self.small.saturating_add(more.small),
            large: self.large.saturating_add(more.large),
        }
    }

    fn minus(self, less: Self) -> Self {
        Self {
            small: self.small.saturating_sub(less.small),
            large: self.large.saturating_sub(less.large),
        }
    }
}

impl Taken {
    fn give_back(&mut self, account: AccountId, held: Held) {
        self.all = self.all.saturating_sub(held.large);
        let Some(own) = self.by.get_mut(&account) else { return };
        *own = own.minus(held);
        if *own == Held::default() {
            self.by.remove(&account);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.bodies.taken().give_back(self.account, self.held);
    }
}

/// A body that keeps its room until it has been delivered, or its client has gone.
pub struct Kept {
    body: Full<Bytes>,
    _room: Room,
}

impl Kept {
    #[must_use]
    pub fn new(body: Bytes, room: Room) -> Self {
        Self { body: Full::new(body), _room: room }
    }
}

impl Body for Kept {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_share_for_each_and_room_for_all() {
        let bodies = Arc::new(Bodies::new(1 << 20));
        let (share, shares) = (bodies.share, bodies.all / bodies.share);
        let [own, other] = [AccountId::generate(), AccountId::generate()];
        let mut first = bodies.room(own);
        assert!(first.take(share).is_ok());
        assert!(bodies.room(own).take(SMALL_BYTES_MAX).is_ok(), "small ones have their own");
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
        let taken = bodies.taken();
        assert_eq!((taken.all, taken.by.len()), (0, 0));
    }

    #[test]
    fn many_small_ones_of_one_account_keep_out_no_others() {
        let bodies = Arc::new(Bodies::new(1 << 20));
        let own = AccountId::generate();
        let filled: Vec<_> = (0..SMALL_SHARE / SMALL_BYTES_MAX)
            .map(|_| {
                let mut room = bodies.room(own);
                assert!(room.take(1).is_ok() && room.take(SMALL_BYTES_MAX - 1).is_ok());
                room
            })
            .collect();
        assert!(bodies.room(own).take(1).is_err());
        assert!(bodies.room(own).take(SMALL_BYTES_MAX + 1).is_ok(), "a large one");
        assert!(bodies.room(AccountId::generate()).take(1).is_ok());
        drop(filled);
        assert!(bodies.room(own).take(1).is_ok());
        assert_eq!(bodies.taken().by.len(), 0);
    }
}
