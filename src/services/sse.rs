//! Splits a body of server-sent events into whole events, where they are. Pure.
//!
//! Invariants: the bytes that go out are the bytes that came in, in order, except where the judge
//! says otherwise; a whole event leaves with the frame that completes it; each byte is looked at
//! once, whatever the framing. Knows lines and events, not what is in them.
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>

mod outgoing;

use bytes::{Bytes, BytesMut};
use memchr::memchr2;
pub use outgoing::Outgoing;
use std::borrow::Cow;

/// What to do with an event.
pub enum Verdict {
    Pass,
    Drop,
    Replace(Bytes),
}

/// Finds the events in frames that may be cut anywhere.
#[derive(Debug, Default)]
pub struct Splitter {
    /// The beginning of an event whose end has not come.
    carry: BytesMut,
    /// The current line has bytes in it already.
    is_line_open: bool,
    /// The last byte was a CR: an LF right after it belongs to it.
    after_cr: bool,
}

/// An event longer than this is a fault: pictures in base64 are a few megabytes.
pub const EVENT_BYTES_MAX: usize = 16 << 20;

/// An event passed [`EVENT_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is too long")]
pub struct TooLong;

impl Splitter {
    /// Takes a frame and puts out what may leave; `judge` sees every whole event once.
    ///
    /// # Errors
    /// [`TooLong`]; nothing may be pushed after it.
    pub fn push(
        &mut self,
        frame: &Bytes,
        out: &mut Outgoing,
        mut judge: impl FnMut(&[u8]) -> Verdict,
    ) -> Result<(), TooLong> {
        let mut event_start = 0;
        // Events that pass one after the other leave as one piece.
        let mut pass_start = 0;
        let mut from = 0;
        while let Some(end) = self.next_event_end(frame, &mut from) {
            if self.carry.is_empty() {
                let verdict = judge(&frame[event_start..end]);
                if !matches!(verdict, Verdict::Pass) {
                    out.put_part(frame, pass_start..event_start);
                    pass_start = end;
                }
                if let Verdict::Replace(with) = verdict {
                    out.put(&with);
                }
            } else {
                self.carry.extend_from_slice(&frame[event_start..end]);
                let event = self.carry.split().freeze();
                match judge(&event) {
                    Verdict::Pass => out.put(&event),
                    Verdict::Replace(with) => out.put(&with),
                    Verdict::Drop => {}
                }
                pass_start = end;
            }
            event_start = end;
        }
        out.put_part(frame, pass_start..event_start);
        self.carry.extend_from_slice(&frame[event_start..]);
        if self.carry.len() > EVENT_BYTES_MAX { Err(TooLong) } else { Ok(()) }
    }

    /// What is left when the body ends: an event without its blank line, or nothing.
    #[must_use]
    pub fn take_rest(&mut self) -> Bytes {
        self.carry.split().freeze()
    }

    /// The end of the next event in `frame`, looking from `from` on; moves `from` along.
    fn next_event_end(&mut self, frame: &[u8], from: &mut usize) -> Option<usize> {
        while let Some(found) = memchr2(b'\n', b'\r', &frame[*from..]) {
            let at = *from + found;
            let is_second_half = frame[at] == b'\n' && found == 0 && self.after_cr;
            let is_blank_line = found == 0 && !self.is_line_open;
            self.after_cr = frame[at] == b'\r';
            *from = at + 1;
            if is_second_half {
                continue;
            }
            self.is_line_open = false;
            if is_blank_line {
                if self.after_cr && frame.get(*from) == Some(&b'\n') {
                    self.after_cr = false;
                    *from += 1;
                }
                return Some(*from);
            }
        }
        if *from < frame.len() {
            self.is_line_open = true;
            self.after_cr = false;
            *from = frame.len();
        }
        None
    }
}

/// The `data` of an event: its data lines, joined by newlines. `None` for comments and the like.
#[must_use]
pub fn data(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    if let Some(value) = single_line(event) {
        return Some(Cow::Borrowed(value));
    }
    let mut data: Option<Cow<'_, [u8]>> = None;
    for line in lines(event) {
        let Some(value) = data_of(line) else { continue };
        match &mut data {
            None => data = Some(Cow::Borrowed(value)),
            Some(joined) => {
                let joined = joined.to_mut();
                joined.push(b'\n');
                joined.extend_from_slice(value);
            }
        }
    }
    data
}

/// Nearly every event is one line of data.
fn single_line(event: &[u8]) -> Option<&[u8]> {
    let line = event.strip_prefix(b"data: ")?.strip_suffix(b"\n\n")?;
    memchr2(b'\n', b'\r', line).is_none().then_some(line)
}

fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    // A CRLF makes an empty line between its halves, which no one looks at.
    event.split(|byte| matches!(byte, b'\n' | b'\r'))
}

fn data_of(line: &[u8]) -> Option<&[u8]> {
    match line.strip_prefix(b"data")? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

/// Whether an event's type is this one.
#[must_use]
pub fn is_of_type(event: &[u8], kind: &[u8]) -> bool {
    let types = lines(event).filter_map(|line| line.strip_prefix(b"event:"));
    types.map(|value| value.strip_prefix(b" ").unwrap_or(value)).any(|value| value == kind)
}

/// A byte order mark before the first event is not part of it.
#[must_use]
pub fn without_bom(event: &[u8]) -> &[u8] {
    event.strip_prefix(b"\xef\xbb\xbf").unwrap_or(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All that left, and the events that the judge saw.
    fn split(frames: &[&[u8]]) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut splitter = Splitter::default();
        let mut out = Outgoing::default();
        let mut events = Vec::new();
        for frame in frames {
            let frame = Bytes::copy_from_slice(frame);
            let judge = |event: &[u8]| {
                events.push(event.to_vec());
                Verdict::Pass
            };
            splitter.push(&frame, &mut out, judge).unwrap();
        }
        out.put(&splitter.take_rest());
        (std::iter::from_fn(|| out.take()).flatten().collect(), events)
    }

    fn datas(events: &[Vec<u8>]) -> Vec<Vec<u8>> {
        events.iter().filter_map(|event| data(event).map(Cow::into_owned)).collect()
    }

    #[test]
    fn every_line_ending_ends_an_event() {
        for body in
            ["data: a\n\ndata: b\n\n", "data: a\r\n\r\ndata: b\r\n\r\n", "data:a\r\rdata:b\r\r"]
        {
            let (out, events) = split(&[body.as_bytes()]);
            assert_eq!(out, body.as_bytes());
            assert_eq!(datas(&events), [b"a", b"b"], "{body:?}");
        }
    }

    #[test]
    fn the_type_of_an_event_is_that_of_its_line() {
        for event in ["event: error\ndata: x\n\n", "id: 1\r\nevent:error\r\ndata:\r\n\r\n"] {
            assert!(is_of_type(event.as_bytes(), b"error"), "{event:?}");
        }
        for event in ["event: errors\n\n", "data: event: error\n\n", ": event: error\n\n", ""] {
            assert!(!is_of_type(event.as_bytes(), b"error"), "{event:?}");
        }
    }

    #[test]
    fn a_whole_event_leaves_while_the_next_is_partial() {
        let mut splitter = Splitter::default();
        let mut out = Outgoing::default();
        let frame = Bytes::from_static(b"data: a\n\ndata: b");
        splitter.push(&frame, &mut out, |_| Verdict::Pass).unwrap();
        assert_eq!(out.take().unwrap(), b"data: a\n\n"[..]);
        assert!(out.is_empty());
    }

    #[test]
    fn an_event_is_dropped_from_among_others() {
        let mut splitter = Splitter::default();
        let mut out = Outgoing::default();
        let frame = Bytes::from_static(b"data: a\n\ndata: b\n\ndata: c\n\n");
        let judge = |event: &[u8]| {
            if event == b"data: b\n\n" { Verdict::Drop } else { Verdict::Pass }
        };
        splitter.push(&frame, &mut out, judge).unwrap();
        assert_eq!(out.take().unwrap(), b"data: a\n\ndata: c\n\n"[..]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut splitter = Splitter::default();
        let mut out = Outgoing::default();
        let frame = Bytes::from(vec![b'x'; 1 << 20]);
        let results: Vec<_> =
            (0..=16).map(|_| splitter.push(&frame, &mut out, |_| Verdict::Pass)).collect();
        assert_eq!(results.last(), Some(&Err(TooLong)));
        assert!(results[..16].iter().all(Result::is_ok));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_bytes_and_events(
            parts in prop::collection::vec(prop::sample::select(vec![
                "data: {\"a\":1}", "data:é", "data", ": comment", "event: x", "id: 1", "\n", "\r",
                "\r\n", "\n\n", "\r\r", "\r\n\r\n", "\u{feff}", "x", "data: [DONE]", "",
            ]), 0..40),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let body = parts.concat().into_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            at.extend([0, body.len()]);
            at.sort_unstable();
            let frames: Vec<&[u8]> = at.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect();
            let (whole_out, whole_events) = split(&[&body]);
            let (out, events) = split(&frames);
            prop_assert_eq!(&whole_out, &body);
            prop_assert_eq!(&out, &body);
            prop_assert_eq!(datas(&events), datas(&whole_events));
        }
    }
}
