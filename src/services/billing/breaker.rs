//! A circuit breaker: a sink in trouble is left alone for a while, then asked with one call.
//!
//! Pure: the time is an argument.

use super::exporter::{Trouble, Verdict};
use std::time::{Duration, Instant};

/// So many bad calls in a row are trouble.
const FAILURES_MAX: u32 = 3;
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// No outage is noticed to be over later than this.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// No sink is believed when it asks for more.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

/// How much may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    All,
    /// One call, to see whether the trouble is over.
    One,
    Nothing(Duration),
}

impl Breaker {
    pub fn leave(&self, now: Instant) -> Leave {
        match self.open_until {
            None => Leave::All,
            Some(until) if until > now => Leave::Nothing(until - now),
            Some(_) => Leave::One,
        }
    }

    /// Whether calls may go on within a round.
    pub fn is_closed(&self) -> bool {
        self.open_until.is_none()
    }

    /// Learns from a call. True when this opened the circuit.
    pub fn learn(&mut self, verdicts: &[Verdict], now: Instant) -> bool {
        let trouble = verdicts.iter().find_map(|verdict| match verdict {
            Verdict::Later(trouble) if trouble.is_sinks => Some(trouble),
            _ => None,
        });
        let Some(trouble) = trouble else {
            if verdicts.iter().any(|verdict| *verdict != Verdict::Untouched) {
                *self = Self::default();
            }
            return false;
        };
        self.failures = self.failures.saturating_add(1);
        let pause = self.pause(trouble);
        let was_closed = self.is_closed();
        if let Some(pause) = pause {
            self.open_until = Some(now + pause);
        }
        was_closed && pause.is_some()
    }

    fn pause(&self, trouble: &Trouble) -> Option<Duration> {
        if let Some(after) = trouble.after {
            return Some(after.min(RETRY_AFTER_MAX));
        }
        let over = self.failures.checked_sub(FAILURES_MAX)?;
        Some(doubled(PAUSE_FIRST, over).min(PAUSE_MAX))
    }
}

/// `first`, doubled so often.
fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times.min(20)))
}

/// How long a parcel waits after its `attempts`-th try: doubled each time, up to five minutes, and
/// from half to all of that, so that many do not come back at once. `random` is any byte.
pub fn backoff(attempts: i64, after: Option<Duration>, random: u8) -> Duration {
    if let Some(after) = after {
        return after.min(RETRY_AFTER_MAX);
    }
    let times = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0);
    let whole = doubled(PAUSE_FIRST, times).min(BACKOFF_MAX);
    whole / 2 + whole / 2 * u32::from(random) / 255
}

const BACKOFF_MAX: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn silence() -> Vec<Verdict> {
        vec![Verdict::Later(Trouble::silence("no answer".to_owned()))]
    }

    #[test]
    fn it_opens_on_the_third_failure_and_closes_on_success() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!(!breaker.learn(&silence(), now) && !breaker.learn(&silence(), now));
        assert_eq!(breaker.leave(now), Leave::All);
        assert!(breaker.learn(&silence(), now));
        assert_eq!(breaker.leave(now), Leave::Nothing(PAUSE_FIRST));
        assert_eq!(breaker.leave(now + PAUSE_FIRST), Leave::One);
        assert!(!breaker.learn(&silence(), now), "it was open");
        assert_eq!(breaker.leave(now), Leave::Nothing(PAUSE_FIRST * 2));
        breaker.learn(&[Verdict::Delivered], now);
        assert_eq!(breaker.leave(now), Leave::All);
    }

    #[test]
    fn a_parcels_own_trouble_is_not_the_sinks() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let busy = [Verdict::Later(Trouble::of_parcel("lock_timeout".to_owned(), None))];
        assert!(!(0..10).any(|_| breaker.learn(&busy, now)));
        assert_eq!(breaker.leave(now), Leave::All);
    }

    #[test]
    fn what_the_sink_asks_for_counts_at_once_and_within_reason() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let hour = Duration::from_secs(3_600);
        let asked = Trouble::of_sink("429".to_owned(), Some(hour * 24));
        assert!(breaker.learn(&[Verdict::Later(asked)], now));
        assert_eq!(breaker.leave(now), Leave::Nothing(hour));
    }

    #[test]
    fn pauses_double_and_are_spread() {
        assert_eq!(backoff(1, None, 255), Duration::from_secs(1));
        assert_eq!(backoff(1, None, 0), Duration::from_millis(500));
        assert!(backoff(5, None, 0) >= Duration::from_secs(8));
        assert!(backoff(i64::MAX, None, 255) <= BACKOFF_MAX);
        assert_eq!(backoff(9, Some(Duration::from_secs(3)), 9), Duration::from_secs(3));
    }
}
