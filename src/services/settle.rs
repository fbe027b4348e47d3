//! Settling: a hold and a reading become a usage record, once.
//!
//! Invariants: an [`OpenHold`] is consumed by settling or voiding it, so neither can happen twice;
//! the place in the ledger's queue is part of it, so settling cannot fail for want of room; a
//! record says where its numbers come from. Which numbers to take is decided here, what they cost
//! in `pricing`; where the request has been, in `attempts`.

mod attempts;
mod told;

use crate::models::attempt::Attempts;
use crate::models::hold::Hold;
use crate::models::money::Tokens;
use crate::models::openai::answer::{Reported, plausible_cost};
use crate::models::openai::request::ChatRequest;
use crate::models::price::Price;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{Ending, TokenUsage, UsageRecord, UsageSource};
use crate::services::choice::Candidate;
use crate::services::ledger::{Answer, Ledger, Slot};
use crate::services::pricing;
use crate::services::reading::Reading;
use crate::services::tokens::{Count, INLINE_BYTES_MAX, Tokenizer, count_prompt};
use crate::services::trace::{CallTrace, RequestTrace};
use crate::services::upstream::{Found, Upstream};
use crate::services::upstreams::Upstreams;
use crate::store::{LedgerOp, LookUpPlan, Moved, Note, Settlement};
use axum::http::StatusCode;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

/// Answers read on for clients that have gone, at once.
pub const DRAINS_MAX: usize = 1_024;

/// What settling needs besides the hold. One per process.
pub struct Settler {
    pub upstreams: Arc<Upstreams>,
    pub ledger: Ledger,
    /// How long an upstream is asked for the truth of what was estimated.
    pub slow_lookup: Duration,
    pub slow_lookup_every: Duration,
    /// How long a first byte waits for its generation's id to be written down.
    pub note_wait: Duration,
    /// Answers read on for clients that have gone.
    pub drains: Arc<Semaphore>,
    /// Work that goes on after its request: shutdown waits for it.
    pub tasks: TaskTracker,
    pub runtime: tokio::runtime::Handle,
    /// Settle as it stands: the process is about to end.
    pub stop: CancellationToken,
    /// Requests that take longer are in the log.
    pub slow: Option<Duration>,
}

/// A hold of ours, and the one right to close it.
#[must_use]
pub struct OpenHold {
    /// Its `upstream` and `price_id` name the two fields below.
    pub hold: Hold,
    pub upstream: Arc<Upstream>,
    pub price: Arc<Price>,
    pub tokenizer: Tokenizer,
    /// The request as it came: its prompt is counted when nobody else does.
    pub request: Bytes,
    pub upstream_status: Option<StatusCode>,
    /// Calls that have ended.
    pub tried: Attempts,
    /// When the one that has not ended began.
    attempt_began: Option<Instant>,
    /// It is at another upstream than it was placed for.
    has_moved: bool,
    /// Decimal dollars, from LiteLLM's header.
    pub cost_header: Option<String>,
    pub first_byte_at: Option<Timestamp>,
    /// `None` when it has been used.
    slot: Option<Slot>,
    pub settler: Arc<Settler>,
    /// The request's, for the log: what goes on after it has its id too.
    pub span: Span,
    /// For whoever collects traces: of the call, once it was made, and of the request, which ends
    /// after it.
    pub call_trace: Option<CallTrace>,
    trace: Option<RequestTrace>,
}

/// The numbers of a record.
struct Numbers {
    source: UsageSource,
    reported: Reported,
    counted_prompt: Option<Count>,
    counted_completion: Option<Count>,
}

impl Settler {
    /// When the truth of this record may still be asked for; `None`: it is the truth, or there is
    /// nobody to ask.
    #[must_use]
    pub fn look_up_plan(&self, record: &UsageRecord) -> Option<LookUpPlan> {
        let is_estimate = matches!(record.source, UsageSource::Counted | UsageSource::Estimated);
        let upstream = self.upstreams.get(&record.upstream)?;
        let may_ask = upstream.is_asked_after(record.ending, record.provider.as_deref());
        (is_estimate && may_ask && record.generation_id.is_some()).then(|| LookUpPlan {
            first_at: record.ended_at.plus(self.slow_lookup_every),
            give_up_at: record.ended_at.plus(self.slow_lookup),
        })
    }
}

impl OpenHold {
    /// A hold that is placed for this candidate; nobody has been called.
    pub fn new(
        hold: Hold,
        to: &Candidate,
        tokenizer: Tokenizer,
        request: Bytes,
        slot: Slot,
        settler: Arc<Settler>,
        trace: Option<RequestTrace>,
    ) -> Self {
        Self {
            hold,
            upstream: to.upstream.clone(),
            price: to.price.clone(),
            tokenizer,
            request,
            upstream_status: None,
            tried: Attempts::default(),
            attempt_began: None,
            has_moved: false,
            cost_header: None,
            first_byte_at: None,
            slot: Some(slot),
            settler,
            span: Span::current(),
            call_trace: None,
            trace,
        }
    }

    /// Nothing was used: closes the hold with a charge of zero.
    pub fn void(self, ending: Ending) {
        let numbers = Numbers {
            source: UsageSource::None,
            reported: Reported { tokens: TokenUsage::default(), cost_pico: None },
            counted_prompt: None,
            counted_completion: None,
        };
        self.send(&numbers, Named::default(), ending);
    }

    /// Closes the hold with what was read. Returns at once; what takes longer than a moment goes on
    /// as a tracked task.
    pub fn settle(self, reading: Reading, ending: Ending) {
        let settler = self.settler.clone();
        let is_known = reading.reported.is_some() && !self.has_costs_to_ask_for();
        let is_quick = is_known && is_short(&reading, None);
        if is_quick {
            let (numbers, named) = self.numbers(reading, None);
            self.send(&numbers, named, ending);
        } else {
            let span = self.span.clone();
            let task = self.settle_slowly(reading, ending).instrument(span);
            settler.tasks.spawn_on(task, &settler.runtime);
        }
    }

    async fn settle_slowly(mut self, reading: Reading, ending: Ending) {
        self.ask_for_costs().await;
        let found = self.look_up(&reading, ending).await;
        if is_short(&reading, Some(&self.request)) {
            let (numbers, named) = self.numbers(reading, found);
            self.send(&numbers, named, ending);
            return;
        }
        // Tokenising much text takes long: not on the async threads. A panic in there would cost
        // the settlement, and recovery would find the hold.
        let count = move || {
            let (numbers, named) = self.numbers(reading, found);
            self.send(&numbers, named, ending);
        };
        if tokio::task::spawn_blocking(count).await.is_err() {
            tracing::error!("counting failed; recovery will settle the hold");
        }
    }

    /// Asks the upstream where its numbers are missing and it can be asked.
    async fn look_up(&self, reading: &Reading, ending: Ending) -> Option<Found> {
        let is_asked = self.upstream.is_asked_after(ending, reading.provider.as_deref());
        if reading.reported.is_some() || !is_asked {
            return None;
        }
        self.upstream.look_up(reading.generation_id.as_deref()?, &self.settler.stop).await
    }

    fn numbers(&self, reading: Reading, found: Option<Found>) -> (Numbers, Named) {
        let named = Named::new(&reading, found.as_ref());
        let Reading { reported, counter, has_unreadable, .. } = reading;
        let mut completion = counter.finish();
        completion.estimated |= has_unreadable;
        let (source, counted_prompt, reported) = match (reported, found) {
            (Some(reported), _) => (UsageSource::Upstream, None, reported),
            (None, Some(found)) => (UsageSource::Lookup, None, found.reported),
            (None, None) => {
                let prompt = self.count_prompt();
                let is_estimate = prompt.estimated || completion.estimated;
                let source =
                    if is_estimate { UsageSource::Estimated } else { UsageSource::Counted };
                (source, Some(prompt), counted(prompt, completion))
            }
        };
        let numbers = Numbers {
            source,
            reported: Reported {
                cost_pico: reported.cost_pico.or_else(|| self.cost_from_header()),
                ..reported
            },
            counted_prompt,
            counted_completion: Some(completion),
        };
        (numbers, named)
    }

    fn count_prompt(&self) -> Count {
        // The request was parsed before it was admitted.
        match ChatRequest::parse(&self.request) {
            Ok(request) => {
                let rest = Some(request.rest.as_str()).filter(|rest| !rest.is_empty());
                count_prompt(&self.tokenizer, request.messages.get(), rest)
            }
            Err(_) => Count { tokens: self.hold.prompt_tokens_estimate.0, estimated: true },
        }
    }

    /// Zero there means that LiteLLM does not know, or answered from its cache.
    fn cost_from_header(&self) -> Option<i128> {
        self.cost_header.as_deref().and_then(plausible_cost).filter(|pico| *pico > 0)
    }

    fn send(mut self, numbers: &Numbers, named: Named, ending: Ending) {
        let record = self.record(numbers, named, ending);
        self.tell(&record);
        let look_up = self.settler.look_up_plan(&record);
        if let Some(slot) = self.slot.take() {
            slot.send(LedgerOp::Settle(Box::new(Settlement { record, look_up })));
        }
    }

    fn record(&mut self, numbers: &Numbers, named: Named, ending: Ending) -> UsageRecord {
        let counted = numbers.counted_completion.or(numbers.counted_prompt);
        let tried = self.listed();
        let attempts = i64::try_from(self.tried.0.len()).unwrap_or(i64::MAX);
        let closed = self.hold.closed(ending, numbers.source, numbers.reported, Timestamp::now());
        let mut record = UsageRecord {
            model_served: named.model,
            provider: named.provider,
            generation_id: named.generation_id.or_else(|| self.hold.generation_id.clone()),
            finish_reason: named.finish_reason,
            upstream_status: self.upstream_status.map(|status| i64::from(status.as_u16())),
            counted_prompt_tokens: numbers.counted_prompt.map(|count| Tokens(count.tokens)),
            counted_completion_tokens: numbers.counted_completion.map(|count| Tokens(count.tokens)),
            counter: counted.map(|_| self.tokenizer.vocabulary.name().to_owned()),
            counter_exact: self.tokenizer.exact && counted.is_some_and(|count| !count.estimated),
            attempts,
            first_byte_at: self.first_byte_at,
            tried,
            ..closed
        };
        if record.source != UsageSource::None {
            // A price beyond the type's range is a fault; the hold is the most that can be owed.
            record.charge_nusd =
                pricing::charge(&self.price, &record.used()).unwrap_or(self.hold.amount_nusd);
        }
        record
    }

    /// Writes down what recovery would need: best effort.
    pub fn note(&self, generation_id: Option<&str>, completion_tokens_seen: Tokens) {
        self.settler.ledger.note(self.noted(generation_id, completion_tokens_seen));
    }

    /// As [`OpenHold::note`], with an answer when it is committed.
    pub fn note_surely(&self, generation_id: Option<&str>, seen: Tokens) -> Option<Answer> {
        self.settler.ledger.submit(self.noted(generation_id, seen)).ok()
    }

    fn noted(&self, generation_id: Option<&str>, completion_tokens_seen: Tokens) -> LedgerOp {
        LedgerOp::Note(Note {
            request_id: self.hold.request_id,
            account_id: self.hold.account_id,
            moved: self.moved(),
            generation_id: generation_id.map(str::to_owned),
            completion_tokens_seen,
        })
    }

    fn moved(&self) -> Option<Moved> {
        let Hold { upstream, price_id, tried, .. } = &self.hold;
        self.has_moved.then(|| Moved {
            upstream: upstream.clone(),
            price_id: price_id.clone(),
            tried: tried.clone(),
        })
    }
}

impl Drop for OpenHold {
    /// Only when settling it panicked: recovery must find the hold.
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.send(LedgerOp::Abandon(self.hold.request_id));
        }
    }
}

/// Whether counting what is left takes a moment only.
fn is_short(reading: &Reading, prompt: Option<&Bytes>) -> bool {
    let prompt_bytes = prompt.map_or(0, Bytes::len);
    reading.counter.held_bytes().saturating_add(prompt_bytes) <= INLINE_BYTES_MAX
}

fn counted(prompt: Count, completion: Count) -> Reported {
    let tokens = TokenUsage {
        prompt: Tokens(prompt.tokens),
        completion: Tokens(completion.tokens),
        ..TokenUsage::default()
    };
    Reported { tokens, cost_pico: None }
}

/// What the upstream calls things.
#[derive(Default)]
struct Named {
    model: Option<String>,
    provider: Option<String>,
    generation_id: Option<String>,
    finish_reason: Option<String>,
}

impl Named {
    fn new(reading: &Reading, found: Option<&Found>) -> Self {
        let or = |read: &Option<String>, found: Option<&Option<String>>| {
            read.clone().or_else(|| found.cloned().flatten())
        };
        Self {
            model: or(&reading.model, found.map(|found| &found.model)),
            provider: or(&reading.provider, found.map(|found| &found.provider)),
            generation_id: reading.generation_id.clone(),
            finish_reason: or(&reading.finish_reason, found.map(|found| &found.finish_reason)),
        }
    }
}
