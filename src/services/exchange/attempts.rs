//! The calls of one exchange until one of them gives an answer, here and elsewhere.
//!
//! Invariants: another call is made only while the client has not got a byte; one hold and one
//! charge stand for all of them; their number is bounded. A stream's answer has begun with its
//! first event, a plain one's when it is whole.

use super::{Answer, Form, Leg, Live, not_a_completion};
use crate::config::UpstreamKind;
use crate::error::Error;
use crate::models::attempt::ATTEMPTS_MAX;
use crate::models::money::Tokens;
use crate::models::openai::answer;
use crate::models::openai::request::ChatRequest;
use crate::services::choice::Candidate;
use crate::services::sse::{Outgoing, Splitter, Verdict, data};
use crate::services::tap::failure_of;
use crate::services::upstream::health::is_of_model;
use crate::services::upstream::retry::{failure, may_go_elsewhere, more_telling};
use bytes::Bytes;
use futures::FutureExt;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Where a request may go, one upstream after the other, and what it takes along.
pub struct Trip {
    /// In the order in which they are tried, without the first.
    others: VecDeque<Candidate>,
    /// For the one that it is at.
    body: Bytes,
    user: String,
    cap: Option<Tokens>,
}

/// How long a stream's first event is waited for before its client is told that there is an answer:
/// until then another upstream may give it. After that it hears of a silence, as of any other.
const FIRST_EVENT_WAIT: Duration = Duration::from_secs(10);

/// A first event that is longer is no error.
const FIRST_EVENT_BYTES_MAX: usize = 64 << 10;

/// What is to be done after a failure.
enum Next {
    Again(Duration),
    Elsewhere(Candidate),
    Nothing,
}

/// A call that came to nothing.
struct Failed {
    error: Error,
    /// It had begun to answer: it may have made something, and is not asked again.
    had_begun: bool,
}

impl Trip {
    /// `cap`: what the upstream is told that the completion may come to.
    pub fn new(
        first: &Candidate,
        others: impl IntoIterator<Item = Candidate>,
        request: &ChatRequest<'_>,
        user: String,
        cap: Option<Tokens>,
    ) -> Self {
        let others = others.into_iter().collect();
        let mut trip = Self { others, body: Bytes::new(), user, cap };
        trip.pack(first, request);
        trip
    }

    fn pack(&mut self, to: &Candidate, request: &ChatRequest<'_>) {
        let (dialect, model) = (to.upstream.dialect(), to.model.as_deref());
        // Many refuse a cap beyond their own limit.
        let cap = self.cap.map(|cap| cap.min(to.completion_tokens_max.unwrap_or(cap)));
        self.body = Bytes::from(request.forwarded(&self.user, cap, dialect, model));
    }
}

impl Live {
    /// Calls until there is an answer or nobody to call.
    pub(super) async fn call(&mut self, mut trip: Trip) -> Result<Answer, Error> {
        self.open.upstream.retries.deposit();
        let mut told = None;
        // Calls of the upstream that it is at.
        let mut here = 0;
        loop {
            here += 1;
            self.open.begin_attempt();
            self.leg = Leg::Calling(
                self.open.upstream.chat(trip.body.clone(), self.open.call_trace.as_ref()),
            );
            let failed = match self.begun(!trip.others.is_empty()).await {
                Ok(answer) => {
                    self.open.end_attempt(None, self.open.upstream_status, None);
                    self.open.upstream.health.note_success(&self.open.hold.model);
                    return Ok(answer);
                }
                Err(failed) => failed,
            };
            self.end_failed_call(&failed);
            let next = self.next(&failed, here, &mut trip);
            told = Some(more_telling(told, failed.error));
            match next {
                // Nothing is under way: a client that leaves now has used nothing.
                Next::Again(pause) => tokio::time::sleep(pause).await,
                Next::Elsewhere(candidate) => {
                    here = 0;
                    self.move_on(&candidate);
                    let request = self.open.request.clone();
                    trip.pack(&candidate, &ChatRequest::parse(&request)?);
                }
                Next::Nothing => break,
            }
        }
        Err(told.unwrap_or_else(|| Error::Internal("no upstream was called".to_owned())))
    }

    async fn begun(&mut self, has_others: bool) -> Result<Answer, Failed> {
        let head = self.answered().await;
        let form = head.map_err(|error| Failed { error, had_begun: false })?;
        let answer = match form {
            Form::Document => {
                let idle = self.open.upstream.terms.idle;
                self.document(idle).await.map(Answer::Document)
            }
            Form::Events if has_others => self.first_event().await.map(|()| Answer::Events),
            Form::Events => {
                self.glance();
                Ok(Answer::Events)
            }
        };
        answer.map_err(|error| Failed { error, had_begun: true })
    }

    /// Waits for the first event of a stream: an error in it is not yet the client's.
    async fn first_event(&mut self) -> Result<(), Error> {
        let idle = self.open.upstream.terms.idle;
        let until = tokio::time::Instant::now() + FIRST_EVENT_WAIT;
        // Comments and pieces come before it.
        while !self.peeked.as_ref().is_some_and(has_event) {
            let frame = tokio::time::timeout_at(until, self.body_frame(idle)).await;
            let Ok(frame) = frame else { break };
            let frame = frame?.ok_or(Error::UpstreamTruncated)?;
            // Kept where a drain finds it, should the client leave now.
            self.peeked = Some(match self.peeked.take() {
                Some(read) => [read, frame].concat().into(),
                None => frame,
            });
        }
        let Some(read) = self.peeked.take() else { return Ok(()) };
        if begins_with_failure(&read) {
            return Err(not_a_completion("an error in the first event"));
        }
        self.peek(read);
        Ok(())
    }

    /// Looks at what of a stream has come together with its head, where the head had no id.
    fn glance(&mut self) {
        let idle = self.open.upstream.terms.idle;
        let knows_id = self.tap.judge.reading.generation_id.is_some();
        if knows_id || !self.open.upstream.kind.has_lookup() {
            return;
        }
        // That there is nothing more, or that it broke off, shows again when the body is read.
        if let Some(Ok(Some(frame))) = self.next_frame(idle).now_or_never() {
            self.peek(frame);
        }
    }

    /// Keeps a stream's first frame for the meter. The answer's id, where it is in that, is written
    /// down with the hold: one transaction instead of two.
    fn peek(&mut self, frame: Bytes) {
        let reading = &mut self.tap.judge.reading;
        if reading.generation_id.is_none() {
            first_event(&frame, |event| {
                let data = data(event).unwrap_or_default();
                let text = std::str::from_utf8(&data).unwrap_or_default();
                answer::read(text, |answer| reading.take_id(answer))
            });
            if reading.generation_id.is_some() {
                self.note();
            }
        }
        self.peeked = Some(frame);
    }

    fn end_failed_call(&mut self, failed: &Failed) {
        let Failed { error, had_begun } = failed;
        self.leg = Leg::NotCalled;
        let status = error.upstream_status().or(self.open.upstream_status);
        let id = self.tap.judge.reading.generation_id.clone().filter(|_| *had_begun);
        let id = id.filter(|_| self.open.upstream.kind.has_lookup());
        self.open.end_attempt(failure(error), status, id);
        let upstream = &self.open.upstream;
        // The provider that its client asked for is to blame, or the client.
        let is_steered = self.is_steered && upstream.kind == UpstreamKind::OpenRouter;
        let is_news = !is_steered || !is_of_model(error);
        if is_news && upstream.health.note_failure(&self.open.hold.model, error, Instant::now()) {
            tracing::error!(upstream = upstream.name, "an upstream is left alone: {error}");
        }
    }

    fn next(&self, failed: &Failed, here: u32, trip: &mut Trip) -> Next {
        let Failed { error, had_begun } = failed;
        let open = &self.open;
        if !may_go_elsewhere(error) || open.tried.0.len() >= ATTEMPTS_MAX {
            return Next::Nothing;
        }
        let name = &open.upstream.name;
        let [.., chance] = *open.hold.request_id.0.as_bytes();
        let pause = || open.upstream.retries.pause(here, error, !trip.others.is_empty(), chance);
        if let Some(pause) = (!had_begun).then(pause).flatten() {
            tracing::debug!(upstream = name, error.code = error.code(), "calling again: {error}");
            return Next::Again(pause);
        }
        match trip.others.pop_front() {
            Some(other) => {
                let to = &other.upstream.name;
                tracing::warn!(upstream = name, to, error.code = error.code(), "moved on: {error}");
                Next::Elsewhere(other)
            }
            None => Next::Nothing,
        }
    }

    /// Forgets what the upstream has said, and turns to another.
    fn move_on(&mut self, candidate: &Candidate) {
        self.open.move_on(candidate);
        let operator = candidate.upstream.operator.clone();
        self.tap = self.tap.anew(self.open.tokenizer.clone(), candidate.price.clone(), operator);
        self.allowance.reprice(candidate.price.clone(), self.open.hold.amount_nusd);
        self.document.clear();
        self.peeked = None;
        self.noting = None;
        self.noted_tokens = 0;
        self.noted_at = Instant::now();
        // So that recovery knows where to ask, should there be something to ask for.
        self.open.note(None, Tokens(0));
    }
}

/// Whether there is a whole event with data in it, or too much for there to come one.
fn has_event(read: &Bytes) -> bool {
    first_event(read, |_| ()).is_some() || read.len() >= FIRST_EVENT_BYTES_MAX
}

/// Whether the first event in a frame that has data says that the upstream failed, in a way that
/// another might not.
fn begins_with_failure(frame: &Bytes) -> bool {
    first_event(frame, failure_of).flatten().is_some_and(|error| may_go_elsewhere(&error))
}

/// `None` when there is no event with data in it.
fn first_event<T>(frame: &Bytes, mut read: impl FnMut(&[u8]) -> T) -> Option<T> {
    let mut first = None;
    let judge = |event: &[u8]| {
        if first.is_none() && data(event).is_some_and(|data| !data.is_empty()) {
            first = Some(read(event));
        }
        Verdict::Drop
    };
    // An event beyond its bound is found when it is read.
    let _ = Splitter::default().push(frame, &mut Outgoing::default(), judge);
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_the_first_event_is_seen_before_it_leaves() {
        let fails =
            |frame: &'static str| begins_with_failure(&Bytes::from_static(frame.as_bytes()));
        assert!(fails("data: {\"error\":{\"code\":502,\"message\":\"x\"},\"choices\":[]}\n\n"));
        assert!(fails(": OPENROUTER PROCESSING\n\ndata: {\"error\":{\"message\":\"x\"}}\r\n\r\n"));
        assert!(fails("data: {\"error\":{\"code\":\"server_error\"}}\n\ndata: [DONE]\n\n"));
        assert!(fails("data: {\"text\":\"NETWORK ERROR\",\"error_code\":50001}\n\n"));
        assert!(fails("data: {\"object\":\"error\",\"message\":\"x\",\"code\":401}\n\n"));
        assert!(fails("event: error\ndata: out of memory\n\n"));
        assert!(!fails("data: {\"object\":\"error\",\"message\":\"x\",\"code\":400}\n\n"));
        assert!(!fails("data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n"));
        assert!(!fails("data: {\"error\":{\"code\":400,\"message\":\"too long\"}}\n\n"));
        assert!(!fails("data: {\"error\":{\"code\":\"422\"}}\n\n"), "the request is at fault");
        assert!(!fails("data: {\"error\":null,\"choices\":[]}\n\n"));
        assert!(!fails("data: {\"choices\":[]}\n\ndata: {\"error\":{\"code\":502}}\n\n"));
        assert!(!fails("data: [DONE]\n\n"));
        assert!(!fails(": comment\n\n"));
        assert!(!fails("data: {\"error\":{\"code\":50"), "not whole yet");
    }
}
