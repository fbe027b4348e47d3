//! Whether and when a call that failed before its first byte is made again, here or elsewhere.
//!
//! Invariants: only what may help is tried again; a failing upstream gets at most a fifth more
//! calls by it, whatever the number of clients. One hold and one charge stand for all attempts.

use crate::error::{About, Error};
use crate::models::attempt::Failure;
use crate::services::http::asked_pause;
use axum::http::StatusCode;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

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
/// An upstream that asks for more patience gets it from the client, who is told how long …
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// … and where another one can be asked meanwhile, that is what is done.
const PAUSE_MAX_BEFORE_ANOTHER: Duration = Duration::from_secs(1);

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
    pub fn pause(
        &self,
        attempts: u32,
        error: &Error,
        has_another: bool,
        chance: u8,
    ) -> Option<Duration> {
        if attempts > self.max || !may_help(error) {
            return None;
        }
        let usual = PAUSE_FIRST * 2_u32.saturating_pow(attempts.saturating_sub(1));
        // From half of it to the whole.
        let spread = usual / 2 + usual * u32::from(chance) / 512;
        let pause = asked(error, SystemTime::now()).unwrap_or(spread);
        let longest = if has_another { PAUSE_MAX_BEFORE_ANOTHER } else { PAUSE_MAX };
        (pause <= longest && self.withdraw()).then_some(pause)
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
pub fn asked(error: &Error, now: SystemTime) -> Option<Duration> {
    match error {
        Error::UpstreamRateLimited { retry_after } | Error::UpstreamFailed { retry_after, .. } => {
            asked_pause(retry_after.as_ref()?, now)
        }
        _ => None,
    }
}

/// What kind of failure it was; `None`: it was not the upstream's.
pub fn failure(error: &Error) -> Option<Failure> {
    Some(match error {
        Error::UpstreamUnavailable(_) | Error::UpstreamTruncated => Failure::Unreachable,
        Error::UpstreamTimeout(_) => Failure::TimedOut,
        Error::UpstreamRateLimited { .. } => Failure::RateLimited,
        Error::UpstreamRefused { .. } => Failure::Refused,
        Error::UpstreamRejected { about: About::Model, .. } => Failure::NoModel,
        Error::UpstreamRejected { .. } => Failure::Rejected,
        Error::UpstreamFailed { .. } => Failure::Failed,
        _ => return None,
    })
}

/// Whether another upstream may do better. A request that is at fault is so everywhere.
pub fn may_go_elsewhere(error: &Error) -> bool {
    failure(error).is_some_and(|failure| failure != Failure::Rejected)
}

/// Of two failures, the one that tells the client more: one after which it may try again, before
/// one that is the operator's doing, before a model's absence. Of equals the later.
pub fn more_telling(before: Option<Error>, error: Error) -> Error {
    let rank = |error: &Error| match failure(error) {
        Some(Failure::NoModel) => 0,
        Some(Failure::Refused) => 1,
        _ => 2,
    };
    match before {
        Some(before) if rank(&before) > rank(&error) => before,
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn failed(status: u16, retry_after: Option<&'static str>) -> Error {
        Error::UpstreamFailed {
            status: StatusCode::from_u16(status).unwrap(),
            reason: "its status",
            retry_after: retry_after.map(HeaderValue::from_static),
        }
    }

    fn rejected(about: About) -> Error {
        let status = StatusCode::BAD_REQUEST;
        Error::UpstreamRejected { status, message: String::new(), about }
    }

    #[test]
    fn only_what_may_help_is_tried_again() {
        let retries = Retries::new(2);
        let pause = |attempts, error: &Error| retries.pause(attempts, error, false, 0);
        assert!(pause(1, &failed(503, None)).is_some());
        assert!(pause(2, &failed(408, None)).is_some());
        assert!(pause(3, &failed(503, None)).is_none(), "twice at most");
        assert!(pause(1, &failed(302, None)).is_none());
        assert!(pause(1, &failed(200, None)).is_none());
        assert!(pause(1, &rejected(About::Request)).is_none());
        assert!(pause(1, &Error::UpstreamTimeout("x")).is_none(), "it may be at work");
    }

    #[test]
    fn the_upstream_says_how_long() {
        let retries = Retries::new(2);
        let pause = |after| retries.pause(1, &failed(503, Some(after)), false, 0);
        assert_eq!(pause("2"), Some(Duration::from_secs(2)));
        assert_eq!(pause("0"), Some(Duration::ZERO));
        assert_eq!(pause("60"), None, "the client may wait as long");
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO), "it is past");
        let usual = |attempts, chance| retries.pause(attempts, &failed(503, None), false, chance);
        assert_eq!(usual(1, 0), Some(Duration::from_millis(125)));
        let second = usual(2, 255).unwrap();
        assert!(second > Duration::from_millis(490) && second < Duration::from_millis(500));
    }

    #[test]
    fn nobody_waits_for_one_while_another_can_be_asked() {
        let retries = Retries::new(2);
        let pause = |after| retries.pause(1, &failed(503, Some(after)), true, 0);
        assert_eq!(pause("2"), None);
        assert_eq!(pause("1"), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_failing_upstream_gets_a_fifth_more() {
        let retries = Retries::new(1);
        let mut again = 0;
        for _ in 0..1_000 {
            retries.deposit();
            again += i32::from(retries.pause(1, &failed(500, None), false, 0).is_some());
        }
        assert!((200..=220).contains(&again), "{again}");
    }

    #[test]
    fn a_request_at_fault_is_so_everywhere() {
        assert!(!may_go_elsewhere(&rejected(About::Request)));
        assert!(may_go_elsewhere(&rejected(About::Model)), "another may have the model");
        assert!(!may_go_elsewhere(&Error::InsufficientQuota));
        for error in [
            failed(500, None),
            failed(200, None),
            failed(302, None),
            Error::UpstreamTimeout("x"),
            Error::UpstreamTruncated,
            Error::UpstreamRefused { status: StatusCode::UNAUTHORIZED },
            Error::UpstreamRateLimited { retry_after: None },
            Error::UpstreamUnavailable(String::new()),
        ] {
            assert!(may_go_elsewhere(&error), "{error}");
        }
    }

    #[test]
    fn the_client_is_told_what_helps_it_most() {
        let refused = || Error::UpstreamRefused { status: StatusCode::UNAUTHORIZED };
        let code = |before, error| more_telling(before, error).code();
        assert_eq!(code(None, rejected(About::Model)), Some("model_not_found"));
        assert_eq!(code(Some(failed(503, None)), rejected(About::Model)), Some("upstream_error"));
        assert_eq!(code(Some(rejected(About::Model)), refused()), Some("upstream_refused"));
        assert_eq!(code(Some(failed(503, None)), refused()), Some("upstream_error"));
        let limited = Error::UpstreamRateLimited { retry_after: None };
        assert_eq!(code(Some(limited), failed(503, None)), Some("upstream_error"), "the later");
    }
}
