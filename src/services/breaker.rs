//! A circuit breaker: who is in trouble is left alone for a while, then asked with one call.
//!
//! Invariant: a pause grows with the failures in a row and is bounded; one good call ends it. Pure:
//! the time is an argument. What counts as good or bad is for its callers to say.

use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// So many bad calls in a row are trouble.
    pub failures_max: u32,
    /// Doubled with each further one …
    pub pause_first: Duration,
    /// … up to this: no outage is noticed to be over later.
    pub pause_max: Duration,
    /// Nobody is believed who asks for more.
    pub asked_max: Duration,
}

/// What a call has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Good,
    Bad {
        /// What was asked for: it counts at once.
        after: Option<Duration>,
    },
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

    /// The one call begins: the next is let through when this one has not been heard of for `wait`.
    pub fn lend(&mut self, now: Instant, wait: Duration) {
        self.open_until = Some(now + wait);
    }

    /// Learns from a call. True when this opened the circuit.
    pub fn learn(&mut self, heard: Heard, patience: &Patience, now: Instant) -> bool {
        let Heard::Bad { after } = heard else {
            *self = Self::default();
            return false;
        };
        self.failures = self.failures.saturating_add(1);
        let pause = self.pause(after, patience);
        let was_closed = self.is_closed();
        if let Some(pause) = pause {
            self.open_until = Some(now + pause);
        }
        was_closed && pause.is_some()
    }

    fn pause(&self, after: Option<Duration>, patience: &Patience) -> Option<Duration> {
        if let Some(after) = after {
            return Some(after.min(patience.asked_max));
        }
        let over = self.failures.checked_sub(patience.failures_max)?;
        Some(doubled(patience.pause_first, over).min(patience.pause_max))
    }
}

/// `first`, doubled so often.
pub fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times.min(20)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Patience = Patience {
        failures_max: 3,
        pause_first: SECOND,
        pause_max: Duration::from_secs(60),
        asked_max: Duration::from_secs(3_600),
    };
    const SILENCE: Heard = Heard::Bad { after: None };

    #[test]
    fn it_opens_on_the_third_failure_and_closes_on_success() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let learn = |breaker: &mut Breaker, heard| breaker.learn(heard, &PATIENCE, now);
        assert!(!learn(&mut breaker, SILENCE) && !learn(&mut breaker, SILENCE));
        assert_eq!(breaker.leave(now), Leave::All);
        assert!(learn(&mut breaker, SILENCE));
        assert_eq!(breaker.leave(now), Leave::Nothing(SECOND));
        assert_eq!(breaker.leave(now + SECOND), Leave::One);
        assert!(!learn(&mut breaker, SILENCE), "it was open");
        assert_eq!(breaker.leave(now), Leave::Nothing(SECOND * 2));
        learn(&mut breaker, Heard::Good);
        assert_eq!(breaker.leave(now), Leave::All);
    }

    #[test]
    fn pauses_grow_to_their_bound_and_one_call_is_lent() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..1_000 {
            breaker.learn(SILENCE, &PATIENCE, now);
        }
        assert_eq!(breaker.leave(now), Leave::Nothing(PATIENCE.pause_max));
        let later = now + PATIENCE.pause_max;
        assert_eq!(breaker.leave(later), Leave::One);
        breaker.lend(later, SECOND);
        assert_eq!(breaker.leave(later), Leave::Nothing(SECOND), "the others wait for it");
        assert_eq!(breaker.leave(later + SECOND), Leave::One, "it was never heard of");
    }

    #[test]
    fn what_is_asked_for_counts_at_once_and_within_reason() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let asked = Heard::Bad { after: Some(PATIENCE.asked_max * 24) };
        assert!(breaker.learn(asked, &PATIENCE, now));
        assert_eq!(breaker.leave(now), Leave::Nothing(PATIENCE.asked_max));
    }
}
