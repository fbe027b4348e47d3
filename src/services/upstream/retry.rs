//! Whether and when a call that failed before its first byte is made again.
//!
//! Invariants: only what may help is tried again; a failing upstream gets at most a fifth more
//! calls by it, whatever the number of clients. One hold and one charge stand for all attempts.

use crate::error::Error;
use axum::http::{HeaderValue, StatusCode};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

pub struct Retries {
    /// Attempts after the first.
    max: u32,
    /// What may be spent on further attempts: each first attempt adds one, each further one takes
    /// `COST`.
    budget: AtomicI64,
}

const COST: i64 = 5;
/// Saved up at most, and to begin with: bursts of 20 further attempts.
const BUDGET_MAX: i64 = 20 * COST;
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// An upstream that asks for more patience gets it from the client, who is told how long.
const PAUSE_MAX: Duration = Duration::from_secs(5);

impl Retries {
    #[must_use]
    pub fn new(max: u32) -> Self {
        Self { max, budget: AtomicI64::new(BUDGET_MAX) }
    }

    /// Counts a first attempt.
    pub fn deposit(&self) {
        let add = |saved: i64| (saved < BUDGET_MAX).then_some(saved + 1);
        // Full: nothing to add.
        let _ = self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// How long to wait before the next attempt after so many; `None`: it is not to be made.
    /// `chance` spreads the attempts of clients that failed together.
    #[must_use]
    pub fn pause(&self, attempts: u32, error: &Error, chance: u8) -> Option<Duration> {
        if attempts > self.max || !may_help(error) {
            return None;
        }
        let usual = PAUSE_FIRST * 2_u32.saturating_pow(attempts.saturating_sub(1));
        // From half of it to the whole.
        let spread = usual / 2 + usual * u32::from(chance) / 512;
        let pause = asked(error).unwrap_or(spread);
        (pause <= PAUSE_MAX && self.withdraw()).then_some(pause)
    }

    fn withdraw(&self) -> bool {
        let take = |saved: i64| (saved >= COST).then_some(saved - COST);
        self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// Whether another attempt may help, and is not one more to be paid for.
fn may_help(error: &Error) -> bool {
    match error {
        Error::UpstreamUnavailable(_) | Error::UpstreamRateLimited { .. } => true,
        Error::UpstreamFailed { status, .. } => {
            status.is_server_error() || *status == StatusCode::REQUEST_TIMEOUT
        }
        _ => false,
    }
}

/// What the upstream asks to wait.
fn asked(error: &Error) -> Option<Duration> {
    match error {
        Error::UpstreamRateLimited { retry_after } | Error::UpstreamFailed { retry_after, .. } => {
            seconds(retry_after.as_ref()?)
        }
        _ => None,
    }
}

/// `Retry-After` in seconds; a date is not read.
fn seconds(header: &HeaderValue) -> Option<Duration> {
    header.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(status: u16, retry_after: Option<&'static str>) -> Error {
        Error::UpstreamFailed {
            status: StatusCode::from_u16(status).unwrap(),
            reason: "its status",
            retry_after: retry_after.map(HeaderValue::from_static),
        }
    }

    #[test]
    fn only_what_may_help_is_tried_again() {
        let retries = Retries::new(2);
        assert!(retries.pause(1, &failed(503, None), 0).is_some());
        assert!(retries.pause(2, &failed(408, None), 0).is_some());
        assert!(retries.pause(3, &failed(503, None), 0).is_none(), "twice at most");
        assert!(retries.pause(1, &failed(302, None), 0).is_none());
        assert!(retries.pause(1, &failed(200, None), 0).is_none());
        let rejected =
            Error::UpstreamRejected { status: StatusCode::BAD_REQUEST, message: String::new() };
        assert!(retries.pause(1, &rejected, 0).is_none());
        assert!(retries.pause(1, &Error::UpstreamTimeout("x"), 0).is_none(), "it may be at work");
    }

    #[test]
    fn the_upstream_says_how_long() {
        let retries = Retries::new(2);
        let pause = |after| retries.pause(1, &failed(503, Some(after)), 0);
        assert_eq!(pause("2"), Some(Duration::from_secs(2)));
        assert_eq!(pause("0"), Some(Duration::ZERO));
        assert_eq!(pause("60"), None, "the client may wait as long");
        assert_eq!(retries.pause(1, &failed(503, None), 0), Some(Duration::from_millis(125)));
        let second = retries.pause(2, &failed(503, None), 255).unwrap();
        assert!(second > Duration::from_millis(490) && second < Duration::from_millis(500));
    }

    #[test]
    fn a_failing_upstream_gets_a_fifth_more() {
        let retries = Retries::new(1);
        let mut again = 0;
        for _ in 0..1_000 {
            retries.deposit();
            again += i32::from(retries.pause(1, &failed(500, None), 0).is_some());
        }
        assert!((200..=220).contains(&again), "{again}");
    }
}
