//! How an upstream has been doing, by its answers to clients: there are no probes.
//!
//! Invariants: what is known decides the order in which upstreams are tried, and never keeps a call
//! from being made; a failure that a model's provider may be the cause of counts against that model
//! there, one of the whole against all; who comes back is let in with one call.

use super::retry::{asked, failure};
use crate::error::Error;
use crate::models::attempt::Failure;
use crate::services::breaker::{Breaker, Heard, Leave, Patience};
use axum::http::StatusCode;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

#[derive(Default)]
pub struct Health {
    /// Where there is none, a request takes no lock.
    is_troubled: AtomicBool,
    troubles: Mutex<Troubles>,
}

#[derive(Default)]
struct Troubles {
    whole: Breaker,
    /// Those that failed last.
    models: HashMap<String, Breaker>,
}

/// How much may be sent to an upstream, and for models there where that is less than all.
pub struct Seen {
    pub whole: Leave,
    pub models: Vec<(String, Leave)>,
}

const PATIENCE: Patience = Patience {
    failures_max: 3,
    pause_first: Duration::from_secs(1),
    pause_max: Duration::from_secs(60),
    asked_max: Duration::from_secs(300),
};
/// The next call is let through when the one before has not been heard of for so long.
const PROBE_WAIT: Duration = Duration::from_secs(30);
/// Models in trouble that are remembered.
const MODELS_MAX: usize = 1_024;

/// What a failure is to be blamed on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blame {
    Whole,
    Model,
    /// The request, or whoever sent it.
    Nobody,
}

fn blame(error: &Error) -> Blame {
    match failure(error) {
        // Also what moderation says of a prompt.
        Some(Failure::Refused) if error.upstream_status() == Some(StatusCode::FORBIDDEN) => {
            Blame::Nobody
        }
        Some(Failure::Refused) => Blame::Whole,
        Some(Failure::Unreachable) if matches!(error, Error::UpstreamUnavailable(_)) => {
            Blame::Whole
        }
        // A model that nobody serves in the way that is asked for: with tools, or by a provider.
        Some(Failure::Rejected | Failure::NoModel) | None => Blame::Nobody,
        Some(_) => Blame::Model,
    }
}

/// Whether a failure would count against the model that was asked for.
#[must_use]
pub fn is_of_model(error: &Error) -> bool {
    blame(error) == Blame::Model
}

impl Health {
    /// It has answered.
    pub fn note_success(&self, model: &str) {
        if !self.is_troubled.load(Ordering::Acquire) {
            return;
        }
        let mut troubles = self.troubles();
        troubles.whole = Breaker::default();
        troubles.models.remove(model);
        self.is_troubled.store(!troubles.models.is_empty(), Ordering::Release);
    }

    /// It has failed; true when it is left alone from now on.
    pub fn note_failure(&self, model: &str, error: &Error, now: Instant) -> bool {
        let heard = Heard::Bad { after: asked(error, SystemTime::now()) };
        let mut troubles = self.troubles();
        let opened = match blame(error) {
            Blame::Nobody => return false,
            Blame::Whole => troubles.whole.learn(heard, &PATIENCE, now),
            Blame::Model => {
                let models = &mut troubles.models;
                let has_room = models.len() < MODELS_MAX || models.contains_key(model);
                let mut learn = || {
                    let breaker = models.entry(model.to_owned()).or_default();
                    breaker.learn(heard, &PATIENCE, now)
                };
                has_room && learn()
            }
        };
        self.is_troubled.store(true, Ordering::Release);
        opened
    }

    /// How much may be sent there.
    pub fn leave(&self, model: &str, now: Instant) -> Leave {
        if !self.is_troubled.load(Ordering::Acquire) {
            return Leave::All;
        }
        let troubles = self.troubles();
        let of_model = troubles.models.get(model).map_or(Leave::All, |model| model.leave(now));
        match (troubles.whole.leave(now), of_model) {
            (Leave::Nothing(one), Leave::Nothing(other)) => Leave::Nothing(one.max(other)),
            (Leave::Nothing(wait), _) | (_, Leave::Nothing(wait)) => Leave::Nothing(wait),
            (Leave::One, _) | (_, Leave::One) => Leave::One,
            (Leave::All, Leave::All) => Leave::All,
        }
    }

    /// What is left alone now, in no order; models that are well are left out.
    pub fn seen(&self, now: Instant) -> Seen {
        let troubles = self.troubles();
        let models = troubles.models.iter().map(|(model, own)| (model.clone(), own.leave(now)));
        let models = models.filter(|(_, leave)| *leave != Leave::All).collect();
        Seen { whole: troubles.whole.leave(now), models }
    }

    /// Takes the one call that is let through; false when another request has it.
    pub fn probe(&self, model: &str, now: Instant) -> bool {
        let mut troubles = self.troubles();
        let Troubles { whole, models } = &mut *troubles;
        let breakers = || std::iter::once(whole).chain(models.get_mut(model));
        let mut breakers: Vec<&mut Breaker> = breakers().collect();
        if breakers.iter().any(|breaker| matches!(breaker.leave(now), Leave::Nothing(_))) {
            return false;
        }
        for breaker in breakers.iter_mut().filter(|breaker| breaker.leave(now) == Leave::One) {
            breaker.lend(now, PROBE_WAIT);
        }
        true
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::About;

    fn failed(status: u16) -> Error {
        let status = StatusCode::from_u16(status).unwrap();
        Error::UpstreamFailed { status, reason: "its status", retry_after: None }
    }

    fn unreachable() -> Error {
        Error::UpstreamUnavailable("connect".to_owned())
    }

    #[test]
    fn a_models_trouble_is_not_the_others() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(!health.note_failure("a", &failed(500), now));
        assert!(!health.note_failure("a", &failed(502), now));
        assert!(health.note_failure("a", &failed(503), now), "the third in a row");
        assert_eq!(health.leave("a", now), Leave::Nothing(PATIENCE.pause_first));
        assert_eq!(health.leave("b", now), Leave::All);
        let seen = health.seen(now);
        assert_eq!(seen.whole, Leave::All);
        assert_eq!(seen.models, [("a".to_owned(), Leave::Nothing(PATIENCE.pause_first))]);
        health.note_success("b");
        assert_ne!(health.leave("a", now), Leave::All, "another model says nothing of it");
        health.note_success("a");
        assert_eq!(health.leave("a", now), Leave::All);
    }

    #[test]
    fn who_cannot_be_reached_is_so_for_all_models() {
        let (health, now) = (Health::default(), Instant::now());
        for model in ["a", "b", "c"] {
            health.note_failure(model, &unreachable(), now);
        }
        assert!(matches!(health.leave("d", now), Leave::Nothing(_)));
    }

    #[test]
    fn one_call_is_let_through_and_its_verdict_counts() {
        let (health, now) = (Health::default(), Instant::now());
        for _ in 0..3 {
            health.note_failure("a", &unreachable(), now);
        }
        assert!(!health.probe("a", now));
        let later = now + PATIENCE.pause_first;
        assert_eq!(health.leave("a", later), Leave::One);
        assert!(health.probe("a", later));
        assert!(!health.probe("b", later), "one for all of them");
        health.note_failure("a", &unreachable(), later);
        assert_eq!(health.leave("a", later), Leave::Nothing(PATIENCE.pause_first * 2));
        health.note_success("a");
        assert_eq!(health.leave("b", later), Leave::All);
    }

    #[test]
    fn what_a_client_can_bring_about_harms_nobody_else() {
        let (health, now) = (Health::default(), Instant::now());
        let forbidden = Error::UpstreamRefused { status: StatusCode::FORBIDDEN };
        let (status, message) = (StatusCode::BAD_REQUEST, String::new());
        let rejected = |about| Error::UpstreamRejected { status, message: message.clone(), about };
        for _ in 0..10 {
            health.note_failure("a", &rejected(About::Model), now);
            health.note_failure("a", &forbidden, now);
            health.note_failure("a", &rejected(About::Request), now);
        }
        assert_eq!(health.leave("a", now), Leave::All);
    }
}
