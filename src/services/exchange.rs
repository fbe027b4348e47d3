//! One call under way: the open hold, the upstream's leg and what was read of it so far.
//!
//! Invariant: an exchange ends exactly once, in one of three ways. Completing or failing it
//! consumes what it holds; dropping it before that means that the client has gone. Then the rest
//! is decided by policy, on a task of its own, because `Drop` only hands over.

mod attempts;
mod document;
mod drain;

use crate::config::UpstreamKind;
use crate::error::Error;
use crate::models::money::{NanoUsd, Tokens};
use crate::models::openai::request::ChatRequest;
use crate::models::timestamp::Timestamp;
use crate::models::usage::Ending;
use crate::services::allowance::Allowance;
use crate::services::bodies::Room;
use crate::services::ledger;
use crate::services::pricing::Extras;
use crate::services::reading::Reading;
use crate::services::settle::OpenHold;
use crate::services::sse::Outgoing;
use crate::services::tap::{Asked, Finish, Tap, not_a_completion};
use crate::services::upstream::{AnswerBody, Call, cost_header, generation_id};
use crate::store::Extension;
pub use attempts::Trip;
use axum::http::header::CONTENT_TYPE;
use bytes::{Bytes, BytesMut};
pub use document::DOCUMENT_BYTES_MAX;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Timeout;

pub struct Exchange {
    live: Option<Box<Live>>,
    /// The answer's id on its way to the hold, which may outlive the rest: an answer may come whole
    /// in one frame, and nothing of it leaves before its id is written down.
    noting: Option<Noting>,
}

/// What is alive until the exchange ends.
struct Live {
    open: OpenHold,
    leg: Leg,
    tap: Tap,
    /// The client asked for a stream.
    is_streamed: bool,
    /// The client has a say in which of the upstream's providers answers.
    is_steered: bool,
    /// The upstream answers with a whole document, whatever was asked for.
    is_document: bool,
    /// What has come of a plain answer. Kept here, so that a drain goes on where the client left.
    document: BytesMut,
    /// A stream's first frame, read to see whether there is an answer.
    peeked: Option<Bytes>,
    noted_at: Instant,
    noted_tokens: i64,
    allowance: Allowance,
    noting: Option<Noting>,
    /// For a plain answer that may be large, until its client has it.
    room: Option<Room>,
}

/// The generation's id on its way to the hold.
type Noting = Pin<Box<Timeout<ledger::Answer>>>;

enum Leg {
    NotCalled,
    Calling(Call),
    Reading(AnswerBody),
    Over,
}

/// What the client gets.
pub enum Answer {
    /// By way of the meter.
    Events,
    /// As it is.
    Document(Bytes),
}

/// What the upstream answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Events,
    Document,
}

/// The media type of a stream, which ignores case.
const EVENTS: &[u8] = b"text/event-stream";
/// How often a long stream's progress is written down.
const NOTE_EVERY: Duration = Duration::from_secs(5);

impl Exchange {
    /// An exchange whose upstream has not been called.
    pub fn new(
        open: OpenHold,
        request: &ChatRequest<'_>,
        prompt: Tokens,
        extras: Extras,
        room: Option<Room>,
    ) -> Self {
        let reading = Reading::new(open.tokenizer.clone());
        let hold = &open.hold;
        let asked = Asked {
            placed_at: hold.placed_at,
            images: hold.input_images.unwrap_or_default(),
            shows_usage: request.include_usage,
        };
        let operator = open.upstream.operator.clone();
        let tap = Tap::new(reading, open.price.clone(), operator, asked);
        let mut allowance =
            Allowance::new(open.price.clone(), hold, prompt, extras, request.choices);
        if let Some(cap) = request.completion_tokens_max {
            allowance.cap(cap);
        }
        // A variant of the model is another way to choose who answers.
        let is_steered = request.is_steered() || request.model != hold.model;
        let is_streamed = request.stream;
        let (leg, noted_at) = (Leg::NotCalled, Instant::now());
        let document = BytesMut::new();
        let (noted_tokens, noting, peeked) = (0, None, None);
        let live = Live {
            open,
            leg,
            tap,
            is_streamed,
            is_steered,
            is_document: false,
            document,
            peeked,
            noted_at,
            noted_tokens,
            allowance,
            noting,
            room,
        };
        Self { live: Some(Box::new(live)), noting: None }
    }

    /// Calls upstreams until one of them answers. A plain answer is whole then.
    ///
    /// # Errors
    /// What the upstreams say, or that they say nothing.
    pub async fn call(&mut self, trip: Trip) -> Result<Answer, Error> {
        self.live()?.call(trip).await
    }

    /// The longest silence within an answer, and how long it may take in all.
    #[must_use]
    pub fn waits(&self) -> [Duration; 2] {
        let terms = self.live.as_deref().map(|live| &live.open.upstream.terms);
        terms.map(|terms| [terms.idle, terms.whole]).unwrap_or_default()
    }

    /// Its client asked for a stream.
    #[must_use]
    pub fn is_streamed(&self) -> bool {
        self.live.as_deref().is_some_and(|live| live.is_streamed)
    }

    /// The whole hold that a plain answer needs, because it cannot be cut off where the money ends.
    /// `None` for a stream.
    #[must_use]
    pub fn needs(&self) -> Option<NanoUsd> {
        let plain = self.live.as_deref().filter(|live| !live.is_streamed);
        plain.map(|live| live.open.hold.amount_nusd)
    }

    /// The hold stands, with this amount.
    pub fn held(&mut self, amount: NanoUsd) {
        if let Some(live) = self.live.as_deref_mut() {
            live.open.hold.amount_nusd = amount;
            live.allowance.set(amount);
        }
    }

    /// The upstream is told this cap.
    pub fn capped(&mut self, tokens: Tokens) {
        if let Some(live) = self.live.as_deref_mut() {
            live.allowance.cap(tokens);
        }
    }

    /// Ready when the next event is paid for; asks for more money in time.
    ///
    /// # Errors
    /// [`Error::InsufficientQuota`] when there is no more.
    pub fn poll_paid(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self.live.as_deref_mut() {
            Some(live) => live.poll_paid(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Ready when the answer can be looked up should this process die now: until then no byte of
    /// it may reach the client.
    pub fn poll_noted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let live = self.live.as_deref_mut().map(|live| &mut live.noting);
        poll_noted(live.unwrap_or(&mut self.noting), cx)
    }

    /// The answer's id was sent after the hold, and somebody waits for it.
    #[must_use]
    pub fn has_noted(&self) -> bool {
        self.live.as_deref().is_some_and(|live| {
            live.open.upstream.kind.has_lookup() && live.open.hold.generation_id.is_some()
        })
    }

    /// The client has a whole answer: what was read is charged.
    ///
    /// # Errors
    /// The failure that it tells of beside its text, for the log.
    pub fn complete(&mut self) -> Result<(), Error> {
        let Some(live) = self.live.as_deref() else { return Ok(()) };
        let finish = live.tap.judge.finish();
        let (ending, ended) = match finish {
            Finish::Complete => (Ending::Completed, Ok(())),
            Finish::Failed(error) => (Ending::UpstreamFailed, Err(error)),
        };
        self.conclude(ending);
        ended
    }

    /// The account cannot pay for more: what was delivered is charged.
    pub fn cut_off(&mut self) {
        self.conclude(Ending::CutOff);
    }

    /// The upstream failed: what the client had got is charged, if anything.
    pub fn break_off(&mut self) {
        let got =
            self.live.as_deref().is_some_and(|live| live.tap.judge.reading.is_worth_something());
        if got {
            self.conclude(Ending::UpstreamFailed);
        } else {
            self.void(&Error::UpstreamTruncated);
        }
    }

    /// The upstream failed before the client got anything: nothing is charged.
    pub fn void(&mut self, error: &Error) {
        if let Some(mut live) = self.live.take() {
            live.open.upstream_status = live.open.upstream_status.or(error.upstream_status());
            live.open.void(Ending::UpstreamFailed);
        }
    }

    fn conclude(&mut self, ending: Ending) {
        if let Some(mut live) = self.live.take() {
            self.noting = live.noting.take();
            live.conclude(ending);
        }
    }

    fn live(&mut self) -> Result<&mut Live, Error> {
        let ended = || Error::Internal("the exchange has ended".to_owned());
        self.live.as_deref_mut().ok_or_else(ended)
    }

    /// What a plain answer keeps until it is delivered.
    pub fn take_room(&mut self) -> Option<Room> {
        self.live.as_deref_mut()?.room.take()
    }

    /// Whether the books of this exchange are closed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.live.is_none()
    }

    /// What has been read of the upstream's body already, for the meter to begin with.
    pub fn take_peeked(&mut self) -> Option<Bytes> {
        self.live.as_deref_mut()?.peeked.take()
    }

    /// The upstream's body, for the meter to poll; the exchange stays open.
    pub fn take_body(&mut self) -> Option<AnswerBody> {
        let live = self.live.as_deref_mut()?;
        match std::mem::replace(&mut live.leg, Leg::Over) {
            Leg::Reading(body) => Some(body),
            other => {
                live.leg = other;
                None
            }
        }
    }

    /// Gives an unfinished body back before the exchange is dropped, so that it can be drained.
    pub fn return_body(&mut self, body: AnswerBody) {
        if let Some(live) = self.live.as_deref_mut() {
            live.leg = Leg::Reading(body);
        }
    }

    /// Reads a frame; `true` when the stream has come to its `[DONE]`. What comes after that is
    /// nobody's business and passes.
    ///
    /// # Errors
    /// [`Error::UpstreamFailed`] when an event passes its bound.
    pub fn frame(&mut self, frame: &Bytes, out: &mut Outgoing) -> Result<bool, Error> {
        let Some(live) = self.live.as_deref_mut() else {
            out.put(frame);
            return Ok(false);
        };
        live.frame(frame, out)
    }

    /// The body has ended: adds what is missing and concludes.
    ///
    /// # Errors
    /// What the client was told in the stream, for the log.
    pub fn end(&mut self, out: &mut Outgoing) -> Result<(), Error> {
        let Some(live) = self.live.as_deref_mut() else { return Ok(()) };
        let finish = live.tap.end(out);
        self.finish(finish)
    }

    /// `[DONE]` has been read: ends well unless the upstream said that it failed.
    ///
    /// # Errors
    /// As [`Exchange::end`].
    pub fn done(&mut self, out: &mut Outgoing) -> Result<(), Error> {
        let Some(live) = self.live.as_deref_mut() else { return Ok(()) };
        // The beginning of something after it: bytes are bytes.
        out.put(&live.tap.rest());
        let finish = live.tap.judge.finish();
        self.finish(finish)
    }

    fn finish(&mut self, finish: Finish) -> Result<(), Error> {
        match finish {
            Finish::Complete => {
                self.conclude(Ending::Completed);
                Ok(())
            }
            Finish::Failed(error) => {
                self.break_off();
                Err(error)
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            live.client_gone();
        }
    }
}

impl Live {
    async fn answered(&mut self) -> Result<Form, Error> {
        // Polled where it lies: when this future is dropped, the call is still there to go on with.
        let answer = match &mut self.leg {
            Leg::Calling(call) => call.await,
            _ => return Err(Error::Internal("the upstream was not called".to_owned())),
        };
        let (head, body) = match answer {
            Ok(answer) => answer.into_parts(),
            Err(error) => {
                self.leg = Leg::Over;
                return Err(error);
            }
        };
        self.leg = Leg::Reading(body);
        self.open.upstream_status = Some(head.status);
        if self.open.upstream.kind == UpstreamKind::LiteLlm {
            self.open.cost_header = cost_header(&head.headers);
        }
        if let Some(id) = generation_id(&head.headers) {
            self.tap.judge.reading.generation_id = Some(id);
            self.note();
        }
        let kind = head.headers.get(CONTENT_TYPE).and_then(|it| it.as_bytes().get(..EVENTS.len()));
        let is_events = kind.is_some_and(|kind| kind.eq_ignore_ascii_case(EVENTS));
        self.is_document = !is_events;
        Ok(if self.is_plain() { Form::Document } else { Form::Events })
    }

    fn is_plain(&self) -> bool {
        !self.is_streamed || self.is_document
    }

    fn frame(&mut self, frame: &Bytes, out: &mut Outgoing) -> Result<bool, Error> {
        if self.open.first_byte_at.is_none() {
            self.open.first_byte_at = Some(Timestamp::now());
        }
        let knew_id = self.tap.judge.reading.generation_id.is_some();
        self.tap.frame(frame, out).map_err(|_| not_a_completion("an event is too long"))?;
        let learnt_id = !knew_id && self.tap.judge.reading.generation_id.is_some();
        if learnt_id || self.noted_at.elapsed() >= NOTE_EVERY {
            self.note();
        }
        Ok(self.tap.judge.is_done)
    }

    fn poll_paid(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let used = Tokens(self.tap.judge.reading.counter.tokens_so_far());
        if self.allowance.wants_more(used) {
            let (hold, held_nusd) = (&self.open.hold, self.allowance.held());
            self.allowance.ask(&self.open.settler.ledger, |add_nusd, floor_nusd| Extension {
                request_id: hold.request_id,
                account_id: hold.account_id,
                api_key_id: hold.api_key_id,
                held_nusd,
                add_nusd,
                floor_nusd,
            });
        }
        self.allowance.poll(cx, used)
    }

    /// Writes down the generation's id and how far the answer has come, where that is news.
    fn note(&mut self) {
        let reading = &self.tap.judge.reading;
        let tokens = reading.counter.tokens_so_far();
        self.noted_at = Instant::now();
        let is_first = self.open.hold.generation_id.is_none();
        if !is_first && tokens == self.noted_tokens {
            return;
        }
        self.noted_tokens = tokens;
        self.open.hold.generation_id.clone_from(&reading.generation_id);
        let id = reading.generation_id.as_deref();
        let settler = &self.open.settler;
        if is_first && self.open.upstream.kind.has_lookup() {
            let answer = self.open.note_surely(id, Tokens(tokens));
            let wait = settler.note_wait;
            self.noting = answer.map(|answer| Box::pin(tokio::time::timeout(wait, answer)));
        } else {
            self.open.note(id, Tokens(tokens));
        }
    }

    fn conclude(mut self, ending: Ending) {
        // With what it was extended by: that is taken already.
        self.open.hold.amount_nusd = self.allowance.held();
        let is_whole = ending == Ending::Completed || self.tap.judge.is_done;
        let mut reading = self.tap.judge.reading;
        if !is_whole {
            reading.discard_stale_usage();
        }
        if ending == Ending::UpstreamFailed && !reading.is_worth_something() {
            return self.open.void(ending);
        }
        self.open.settle(reading, ending);
    }
}

fn poll_noted(noting: &mut Option<Noting>, cx: &mut Context<'_>) -> Poll<()> {
    if let Some(answer) = noting {
        // Not committed in time: the database is away, and what is under way goes on.
        let _ = ready!(answer.as_mut().poll(cx));
        *noting = None;
    }
    Poll::Ready(())
}
