//! What is about to leave for the client, gathered.
//!
//! Invariant: bytes leave in the order in which they were put, each once.
//!
//! Short pieces are copied together. A slice would keep the whole buffer that it was read into (of
//! 8 KiB) from being read into again, and each would be a write of its own. Long ones stay where
//! they are.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::ops::Range;

#[derive(Debug, Default)]
pub struct Outgoing {
    /// Before what is in `last`.
    first: VecDeque<Bytes>,
    last: BytesMut,
    /// In both.
    len: usize,
}

/// A piece of this length or more is not copied.
const LONG: usize = 4 << 10;
/// A buffer that has grown to this length …
const GROWN: usize = 1 << 10;
/// … gets room for about as much as leaves together.
const ROOM: usize = 16 << 10;

impl Outgoing {
    pub fn put(&mut self, bytes: &Bytes) {
        let len = bytes.len();
        self.put_part(bytes, 0..len);
    }

    /// A part of `frame`.
    ///
    /// # Panics
    /// When the frame has no such part.
    pub fn put_part(&mut self, frame: &Bytes, part: Range<usize>) {
        self.len += part.len();
        if part.len() < LONG {
            let has_no_room = self.last.capacity() - self.last.len() < part.len();
            if has_no_room && self.last.len() >= GROWN {
                self.last.reserve(ROOM);
            }
            self.last.extend_from_slice(&frame[part]);
            return;
        }
        let last = self.take_last();
        self.first.extend(last);
        self.first.push_back(frame.slice(part));
    }

    /// The next bytes that leave, as many as lie together.
    pub fn take(&mut self) -> Option<Bytes> {
        let taken = match self.first.pop_front() {
            Some(first) => first,
            None => self.take_last()?,
        };
        self.len -= taken.len();
        Some(taken)
    }

    /// With its buffer: thousands of streams wait most of their time, and keep none.
    fn take_last(&mut self) -> Option<Bytes> {
        (!self.last.is_empty()).then(|| std::mem::take(&mut self.last).freeze())
    }

    /// Bytes that have not left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Nobody wants them.
    pub fn clear(&mut self) {
        self.first.clear();
        self.last.clear();
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(out: &mut Outgoing) -> Vec<u8> {
        std::iter::from_fn(|| out.take()).flatten().collect()
    }

    #[test]
    fn short_pieces_leave_together() {
        let mut out = Outgoing::default();
        for piece in ["data: a\n\n", "", "data: b\n\n"] {
            out.put(&Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!(out.take().as_deref(), Some(&b"data: a\n\ndata: b\n\n"[..]));
        assert_eq!(out.take(), None);
    }

    #[test]
    fn long_pieces_are_not_copied() {
        let mut out = Outgoing::default();
        let frame = Bytes::from(vec![b'x'; 2 * LONG]);
        out.put_part(&frame, 1..3);
        out.put_part(&frame, 3..2 * LONG);
        out.put_part(&frame, 0..1);
        assert_eq!(out.take().map(|taken| taken.len()), Some(2));
        assert_eq!(out.take().map(|taken| taken.as_ptr()), Some(frame[3..].as_ptr()));
        assert_eq!(out.take().map(|taken| taken.len()), Some(1));
        assert!(out.is_empty());
    }

    #[test]
    fn no_buffer_is_kept() {
        let mut out = Outgoing::default();
        for length in [1, 200, 2 * GROWN] {
            out.put(&Bytes::from(vec![b'x'; length]));
            assert_eq!(out.take().map(|taken| taken.len()), Some(length));
            assert_eq!(out.last.capacity(), 0);
        }
    }

    proptest! {
        #[test]
        fn bytes_leave_in_their_order(
            steps in prop::collection::vec(
                prop_oneof![Just(None), (0..3 * LONG).prop_map(Some), (0..9_usize).prop_map(Some)],
                0..40,
            ),
        ) {
            let (mut out, mut put, mut left) = (Outgoing::default(), Vec::new(), Vec::new());
            for (number, step) in (0_u8..).zip(steps) {
                match step {
                    Some(length) => {
                        put.extend(vec![number; length]);
                        out.put(&Bytes::from(vec![number; length]));
                    }
                    None => left.extend(out.take().into_iter().flatten()),
                }
                prop_assert_eq!(out.len(), put.len() - left.len());
            }
            left.extend(all(&mut out));
            prop_assert_eq!(left, put);
            prop_assert!(out.is_empty());
        }
    }
}
