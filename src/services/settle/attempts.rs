//! The calls of one request: where it is now, where it has been, and what that has cost.
//!
//! Invariant: what is under way at one upstream is never mixed with what another one said: moving
//! on forgets it. A failed call's cost is the operator's, and is on the record where it is known.

use super::OpenHold;
use crate::models::attempt::{Attempt, Attempts, Failure};
use crate::services::choice::Candidate;
use axum::http::StatusCode;
use std::time::{Duration, Instant};

/// How long what a failed call cost is asked for. The hold of the answer stays open meanwhile, and
/// its client has no part in it.
const LOOK_UP_WAIT: Duration = Duration::from_secs(10);

impl OpenHold {
    /// A call is made.
    pub fn begin_attempt(&mut self) {
        self.trace_call();
        self.attempt_began = Some(Instant::now());
    }

    /// The call has come to its answer, or failed. `generation_id`: what it may be looked up by.
    pub fn end_attempt(
        &mut self,
        failure: Option<Failure>,
        status: Option<StatusCode>,
        generation_id: Option<String>,
    ) {
        if let Some(began) = self.attempt_began {
            self.upstream.measured.ended(failure, began.elapsed());
            self.note_attempt(failure, status, generation_id);
        }
    }

    fn note_attempt(
        &mut self,
        failure: Option<Failure>,
        status: Option<StatusCode>,
        generation_id: Option<String>,
    ) {
        let Some(began) = self.attempt_began.take() else { return };
        self.tried.0.push(Attempt {
            upstream: self.upstream.name.clone(),
            status: status.map(|status| status.as_u16()),
            failure,
            ms: i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX),
            generation_id,
            cost_pusd: None,
        });
    }

    /// The next call goes to another upstream, at its price.
    pub fn move_on(&mut self, candidate: &Candidate) {
        self.upstream = candidate.upstream.clone();
        self.price = candidate.price.clone();
        self.hold.upstream.clone_from(&self.upstream.name);
        self.hold.price_id.clone_from(&self.price.id);
        self.hold.generation_id = None;
        self.hold.tried = self.tried.clone();
        self.upstream_status = None;
        self.cost_header = None;
        self.first_byte_at = None;
        self.has_moved = true;
    }

    /// For the record: nothing where one call was made and answered, which the record says itself.
    pub(super) fn listed(&mut self) -> Attempts {
        // Its client has left it.
        if self.attempt_began.is_some() {
            self.upstream.measured.left();
            self.note_attempt(None, self.upstream_status, None);
        }
        match &self.tried.0[..] {
            [] | [Attempt { failure: None, .. }] => Attempts::default(),
            _ => self.tried.clone(),
        }
    }

    pub(super) fn has_costs_to_ask_for(&self) -> bool {
        self.tried.0.iter().any(is_of_unknown_cost)
    }

    /// Asks what failed calls have cost, where their upstreams can be asked.
    pub(super) async fn ask_for_costs(&mut self) {
        let settler = self.settler.clone();
        let asked = self.tried.0.iter_mut().filter(|attempt| is_of_unknown_cost(attempt));
        let asking = asked.map(async |attempt| {
            let upstream = settler.upstreams.get(&attempt.upstream)?;
            let id = attempt.generation_id.as_deref()?;
            let found = tokio::time::timeout(LOOK_UP_WAIT, upstream.look_up(id, &settler.stop));
            let cost = found.await.ok()??.reported.cost_pico?;
            attempt.cost_pusd = i64::try_from(cost).ok();
            Some(())
        });
        futures::future::join_all(asking).await;
    }
}

fn is_of_unknown_cost(attempt: &Attempt) -> bool {
    attempt.failure.is_some() && attempt.generation_id.is_some() && attempt.cost_pusd.is_none()
}
