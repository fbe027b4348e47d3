//! What an account or a key has sent in the last minute, and what of it still runs.
//!
//! Invariants: `open_requests` is the number of open holds that were counted here; a request is in
//! the window for at least a minute, so that no minute ever has more than the limit, and for less
//! than [`SLOT`] longer, so that hardly less of it can be used. Time here is a clock of its own,
//! the latest one ever seen, so that a slow one does not open the past again. Knows no limits.

use super::limits::Subject;
use super::timestamp::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt::Write as _;
use std::time::Duration;

/// One row of `rate_windows`; the members are the columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateWindow {
    pub subject: Subject,
    pub open_requests: i64,
    /// The window's clock.
    pub seen_at: Timestamp,
    slots: Slots,
}

/// Oldest first; at most one for each half second of the last minute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Slots(Vec<Slot>);

/// What was counted within half a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The last time that something was.
    at: Timestamp,
    pub requests: i64,
    pub tokens: i64,
}

const MINUTE: Duration = Duration::from_secs(60);
/// What is counted within one such span leaves together, with its last. 0.8 % of a minute, and
/// 121 slots at most: a row that PostgreSQL keeps in its page.
const SLOT: Duration = Duration::from_millis(500);

impl Slot {
    fn leaves_at(&self) -> Timestamp {
        self.at.plus(MINUTE)
    }
}

impl RateWindow {
    #[must_use]
    pub fn open(subject: Subject, now: Timestamp) -> Self {
        Self { subject, open_requests: 0, seen_at: now, slots: Slots::default() }
    }

    /// Moves the clock on, and forgets what is over.
    pub fn roll(&mut self, now: Timestamp) {
        let ahead = self.seen_at.since(now);
        if ahead > MINUTE {
            // The clock was wrong, or is now. Rather than to wait for hours until it has come there
            // again, its time starts anew, and what was counted stays as old as it was.
            for slot in &mut self.slots.0 {
                slot.at = slot.at.minus(ahead);
            }
            self.seen_at = now;
        }
        self.seen_at = self.seen_at.max(now);
        let seen_at = self.seen_at;
        self.slots.0.retain(|slot| slot.leaves_at() > seen_at);
    }

    /// What is counted now.
    #[must_use]
    pub fn used(&self, of: fn(&Slot) -> i64) -> i64 {
        self.slots.0.iter().fold(0, |sum, slot| sum.saturating_add(of(slot)))
    }

    /// How long until so much has left.
    #[must_use]
    pub fn until_left(&self, amount: i64, of: fn(&Slot) -> i64) -> Duration {
        let mut left = 0_i64;
        for slot in &self.slots.0 {
            left = left.saturating_add(of(slot));
            if left >= amount {
                return slot.leaves_at().since(self.seen_at);
            }
        }
        MINUTE
    }

    /// How long until all has left.
    #[must_use]
    pub fn until_empty(&self, of: fn(&Slot) -> i64) -> Duration {
        let last = self.slots.0.iter().rfind(|slot| of(slot) > 0);
        last.map(|slot| slot.leaves_at().since(self.seen_at)).unwrap_or_default()
    }

    /// Counts a request that begins now.
    pub fn begin(&mut self, tokens: i64) {
        self.open_requests = self.open_requests.saturating_add(1);
        self.count(1, tokens);
    }

    /// A request that was counted at `at` with `reserved` tokens has ended with `used`. What it did
    /// not use is taken out again where it was put in; what it used beyond it counts from now.
    pub fn end(&mut self, at: Timestamp, reserved: i64, used: i64) {
        self.open_requests = self.open_requests.saturating_sub(1);
        let unused = reserved.saturating_sub(used);
        if unused < 0 {
            self.count(0, unused.saturating_neg());
        } else if let Some(slot) = self.slots.0.iter_mut().find(|slot| is_same(slot.at, at)) {
            slot.tokens = slot.tokens.saturating_sub(unused).max(0);
        }
    }

    fn count(&mut self, requests: i64, tokens: i64) {
        let at = self.seen_at;
        match self.slots.0.last_mut().filter(|slot| is_same(slot.at, at)) {
            Some(slot) => {
                slot.at = at;
                slot.requests = slot.requests.saturating_add(requests);
                slot.tokens = slot.tokens.saturating_add(tokens);
            }
            None => self.slots.0.push(Slot { at, requests, tokens }),
        }
    }
}

/// Whether two times are of one slot.
fn is_same(one: Timestamp, other: Timestamp) -> bool {
    one.floor(SLOT) == other.floor(SLOT)
}

// === as a column: "microseconds since the slot before, requests, tokens;" for each slot ===

impl Serialize for Slots {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (mut text, mut before) = (String::new(), 0);
        for Slot { at, requests, tokens } in &self.0 {
            let at = at.unix_micros();
            // Writing to a string has no way to fail.
            let _ = write!(text, "{},{requests},{tokens};", at.saturating_sub(before));
            before = at;
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Slots {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut before = 0_i64;
        let slots = text.split_terminator(';').map(|slot| {
            let slot = read(slot, before)?;
            before = slot.at.unix_micros();
            Some(slot)
        });
        slots.collect::<Option<_>>().map(Self).ok_or_else(|| de::Error::custom("not slots"))
    }
}

fn read(slot: &str, before: i64) -> Option<Slot> {
    let mut numbers = slot.split(',').map(|number| number.parse::<i64>().ok());
    let mut next = || numbers.next().flatten();
    let (after, requests, tokens) = (next()?, next()?, next()?);
    let at = Timestamp::from_unix_micros(before.checked_add(after)?);
    Some(Slot { at, requests, tokens })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn at(millis: u64) -> Timestamp {
        Timestamp::parse("2026-11-24T12:00:00Z").unwrap().plus(Duration::from_millis(millis))
    }

    fn window(now: Timestamp) -> RateWindow {
        RateWindow::open(Subject(Uuid::from_u128(1)), now)
    }

    fn requests(window: &RateWindow) -> i64 {
        window.used(|slot| slot.requests)
    }

    fn tokens(window: &RateWindow) -> i64 {
        window.used(|slot| slot.tokens)
    }

    #[test]
    fn a_request_is_counted_for_a_minute_and_not_half_a_second_longer() {
        let mut window = window(at(0));
        window.begin(7);
        window.roll(at(499));
        window.begin(5);
        window.roll(at(60_498));
        assert_eq!((requests(&window), tokens(&window)), (2, 12), "the second is not over");
        assert_eq!(window.until_left(1, |slot| slot.requests), Duration::from_millis(1));
        window.roll(at(60_499));
        assert_eq!((requests(&window), tokens(&window)), (0, 0));
        assert_eq!(window.until_empty(|slot| slot.requests), Duration::ZERO);
        assert_eq!(window.open_requests, 2, "both run on");
    }

    #[test]
    fn what_was_not_used_is_taken_out_where_it_was_put_in() {
        let mut window = window(at(0));
        window.begin(100);
        window.roll(at(30_000));
        window.begin(50);
        window.end(at(0), 100, 40);
        assert_eq!(tokens(&window), 90);
        window.roll(at(60_000));
        assert_eq!(tokens(&window), 50, "the first is over");
        window.end(at(0), 100, 40);
        assert_eq!(tokens(&window), 50, "what is over gives nothing back");
        window.end(at(30_000), 50, 80);
        assert_eq!(tokens(&window), 80, "more than was reserved counts too");
        window.roll(at(90_000));
        assert_eq!(tokens(&window), 30, "from when it was known");
    }

    #[test]
    fn a_slow_clock_does_not_open_the_past_again() {
        let mut window = window(at(50_000));
        window.begin(0);
        window.roll(at(45_000));
        assert_eq!(window.seen_at, at(50_000));
        window.begin(0);
        window.roll(at(109_999));
        assert_eq!(requests(&window), 2, "counted by the fast clock");
        window.roll(at(110_000));
        assert_eq!(requests(&window), 0);
    }

    #[test]
    fn a_clock_that_was_hours_ahead_does_not_stop_the_window_for_hours() {
        let mut window = window(at(25 * 3_600_000));
        window.begin(0);
        window.roll(at(10_000));
        assert_eq!(requests(&window), 1, "not forgotten");
        window.roll(at(70_000));
        assert_eq!(requests(&window), 0, "and over after a minute");
    }

    #[test]
    fn it_comes_back_from_its_row() {
        let mut window = window(at(0));
        for millis in [0, 700, 1_400, 59_000] {
            window.roll(at(millis));
            window.begin(i64::try_from(millis).unwrap());
        }
        let row = serde_json::to_string(&window).unwrap();
        assert_eq!(serde_json::from_str::<RateWindow>(&row).unwrap(), window);
        assert!(serde_json::from_str::<RateWindow>(&row.replace("700000", "x")).is_err());
    }

    #[test]
    fn a_row_fits_into_a_page_whatever_comes() {
        let mut window = window(at(0));
        for millis in 0..200_000_u64 {
            window.roll(at(millis * 3));
            window.begin(100_000);
        }
        let row = serde_json::to_string(&window).unwrap();
        assert!(row.len() < 4_000, "{}", row.len());
    }
}
