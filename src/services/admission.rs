//! Admission: may this principal have this model, can its account pay the worst case, and is there
//! room for it in the limits of rate?
//!
//! Invariant: there is no [`Admitted`] without a hold that was sent to the ledger, and nothing
//! reaches the client before [`Forwarding`] has seen it committed. The check in memory only
//! decides whether the upstream call may overlap with the commit; the ledger decides the rest.

use crate::config::Config;
use crate::error::Error;
use crate::models::attempt::Attempts;
use crate::models::hold::Hold;
use crate::models::ids::{AccountId, InstanceId, RequestId};
use crate::models::limits::{Counted, LimitsInForce, Room};
use crate::models::money::{NanoUsd, Tokens};
use crate::models::openai::request::{ChatRequest, Invalid};
use crate::models::timestamp::Timestamp;
use crate::services::auth::Principal;
use crate::services::bodies::{self, Bodies};
use crate::services::catalog::{Catalog, Model};
use crate::services::choice::{self, Candidate};
use crate::services::commit::{Commit, Placed};
use crate::services::exchange::{DOCUMENT_BYTES_MAX, Exchange, Trip};
use crate::services::forwarding::Forwarding;
use crate::services::ledger::Ledger;
use crate::services::pricing::{Extras, WorstCase};
use crate::services::settle::{OpenHold, Settler};
use crate::services::tokens::{
    Vocabularies, count_files, count_images, estimate_prompt, long_media,
};
use crate::services::trace::RequestTrace;
use crate::store::{Demand, LedgerOp, Placement};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

pub struct Admission {
    pub catalog: Arc<Catalog>,
    pub ledger: Ledger,
    pub settler: Arc<Settler>,
    pub vocabularies: Vocabularies,
    pub instance: InstanceId,
    /// For large answers.
    pub answers: Arc<Bodies>,
    pub terms: HoldTerms,
}

/// What holds are made with.
#[derive(Clone, Copy, Debug)]
pub struct HoldTerms {
    pub completion_tokens_max: Tokens,
    pub lease: Duration,
    pub database_wait: Duration,
}

/// Whose request it is.
pub struct Caller<'a> {
    pub id: RequestId,
    pub principal: &'a Principal,
    pub idempotency_key: Option<String>,
    pub trace: Option<RequestTrace>,
}

/// A request whose hold is on its way, and where it may go.
#[must_use]
pub struct Admitted {
    exchange: Exchange,
    commit: Commit,
    trip: Trip,
    lowered_cap: Option<Tokens>,
    room: Room,
}

/// The most that a request may come to.
struct Size {
    prompt: Tokens,
    /// The prompt, for the money alone: with what long media in it may come to.
    prompt_paid_for: Tokens,
    extras: Extras,
    /// Of each choice.
    completion: Tokens,
    /// What the model's context leaves for it, by the estimate of the prompt.
    context_room: Option<Tokens>,
    /// The context alone bounds the completion: many refuse a cap for which it has no room.
    is_bounded: bool,
    /// The completion was made shorter than it had to be, to fit into the limit of tokens.
    is_fitted: bool,
    limits: LimitsInForce,
}

/// "Comfortable": the account has this many times the hold …
const COMFORTABLE_HOLDS: i64 = 16;
/// … and had it this recently.
const SNAPSHOT_FRESH: Duration = Duration::from_secs(10);
/// A token of a plain answer, and its probability with its own text and bytes, as JSON.
const TOKEN_BYTES: i64 = 8;
const PROBABILITY_BYTES: i64 = 128;
/// Plain answers that can be no longer need no room: nearly all, without a cap of their own too.
const ORDINARY_BYTES_MAX: usize = 1 << 20;
/// Bodies shorter than this are copied where they are kept.
const COPIED_MAX: usize = 4 << 10;
/// An answer of fewer tokens is of no use: the account is refused instead.
const COMPLETION_TOKENS_FLOOR: i64 = 16;

impl HoldTerms {
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            completion_tokens_max: config.money.completion_tokens_max,
            lease: config.database.lease,
            database_wait: config.database.wait,
        }
    }
}

impl Admission {
    /// Places the hold. When the account is comfortable this returns before the hold is committed;
    /// else after it, with the request's cap lowered to what the account can pay for.
    ///
    /// # Errors
    /// Why the request may not be forwarded.
    pub async fn admit(
        &self,
        caller: Caller<'_>,
        request: &ChatRequest<'_>,
        body: &Bytes,
    ) -> Result<Admitted, Error> {
        let (model, candidates) = self.candidates(&caller, request)?;
        let (first, others) = candidates.split_first().ok_or_else(|| not_priced(&model))?;
        let slot = self.ledger.reserve().map_err(|_| Error::Overloaded)?;
        let size = self.size(caller.principal, request, &model, &candidates);
        let kept_for_answer = self.room(caller.principal.account_id, &size, request)?;
        let worst = size.worst_case(first, others, request);
        let trace = caller.trace.clone();
        let is_limited = caller.principal.has_key_limits || !size.limits.is_none();
        let placement = self.placement(caller, request, &size, &model, first, &worst)?;
        let hold = placement.hold.clone();
        let comfort = if is_limited { None } else { self.comfort(&hold) };
        let limit = model.smallest_limit();
        let mut commit = self.place(placement, model, comfort.is_some())?;
        let (user, amount) = (hold.account_id.to_string(), hold.amount_nusd);
        let tokenizer = self.vocabularies.for_model(&request.model);
        let settler = self.settler.clone();
        let open = OpenHold::new(hold, first, tokenizer, kept(body), slot, settler, trace);
        let mut exchange =
            Exchange::new(open, request, size.prompt_paid_for, size.extras, kept_for_answer);
        let placed = match comfort {
            Some(funds) => Placed { amount, funds, room: Room::default() },
            None => commit.committed(&mut exchange).await?,
        };
        let room = placed.room;
        let cap = affordable(request, &size, &worst, &placed, limit);
        if let Some(tokens) = cap.sent {
            exchange.capped(tokens);
        }
        let trip = Trip::new(first, others.iter().cloned(), request, user, cap.sent);
        Ok(Admitted { exchange, commit, trip, lowered_cap: cap.lowered, room })
    }

    /// Room in memory for a plain answer that may be large.
    fn room(
        &self,
        account: AccountId,
        size: &Size,
        request: &ChatRequest<'_>,
    ) -> Result<Option<bodies::Room>, Error> {
        match size.document_bytes(request) {
            ..=ORDINARY_BYTES_MAX => Ok(None),
            // What is too long to be read could not be charged.
            bytes if bytes > DOCUMENT_BYTES_MAX => Err(too_long(request).into()),
            bytes => {
                let mut room = self.answers.room(account);
                room.take(bytes)?;
                Ok(Some(room))
            }
        }
    }

    /// Who serves the model at a known price, in the order in which they are to be tried.
    fn candidates(
        &self,
        caller: &Caller<'_>,
        request: &ChatRequest<'_>,
    ) -> Result<(Arc<Model>, Vec<Candidate>), Error> {
        let (model, variant) = self.catalog.model(&request.model)?;
        if !caller.principal.allows(&model.id) {
            return Err(Error::ModelNotAllowed { model: model.id.clone() });
        }
        let candidates = model.candidates(caller.principal.plan.as_deref());
        let candidates = match variant {
            Some(variant) => candidates.into_iter().filter_map(|to| to.variant(variant)).collect(),
            None => candidates,
        };
        // The random part of the id.
        let (_, seed) = caller.id.0.as_u64_pair();
        let candidates = choice::in_order(candidates, &model.id, seed);
        Ok((model, candidates))
    }

    fn size(
        &self,
        principal: &Principal,
        request: &ChatRequest<'_>,
        model: &Model,
        candidates: &[Candidate],
    ) -> Size {
        let limits = principal.limits(self.catalog.plan_rates(principal.plan.as_deref()));
        let prompt = prompt_estimate(request);
        let beyond = long_media(request.messages.get());
        let prompt_paid_for = Tokens(prompt.0.saturating_add(beyond));
        let wanted = self.completion_max(request, model);
        let context_room = context_room(request, model, prompt);
        let fitting = fitting(&limits, prompt, request)
            .map(|fitting| fitting.min(context_room.unwrap_or(fitting)))
            .filter(|fitting| *fitting < wanted);
        let is_bounded = !can_be_ended(request, &limits)
            && fitting.is_none()
            && context_room.is_some_and(|room| room < wanted);
        let longest = [model.context_tokens_max, model.completion_tokens_max];
        let longest = longest.into_iter().flatten().min().filter(|_| is_bounded);
        let completion = fitting.or(longest).unwrap_or(wanted);
        let extras = Extras {
            has_searches: request.has_fees,
            images: paid_images(request, candidates),
            files: paid_files(request, candidates),
        };
        let is_fitted = fitting.is_some();
        Size {
            prompt,
            prompt_paid_for,
            extras,
            completion,
            context_room,
            is_bounded,
            is_fitted,
            limits,
        }
    }

    fn placement(
        &self,
        caller: Caller<'_>,
        request: &ChatRequest<'_>,
        size: &Size,
        model: &Model,
        first: &Candidate,
        worst: &WorstCase,
    ) -> Result<Placement, Error> {
        let wanted = size.completion;
        let floor = Tokens(wanted.0.min(COMPLETION_TOKENS_FLOOR));
        let amount = |tokens| worst.amount(tokens).map_err(|_| Error::InsufficientQuota);
        let now = Timestamp::now();
        let hold = Hold {
            request_id: caller.id,
            account_id: caller.principal.account_id,
            api_key_id: caller.principal.key_id(),
            user_id: caller.principal.user_id(),
            amount_nusd: amount(wanted)?,
            owner: self.instance,
            lease_expires_at: now.plus(self.terms.lease),
            upstream: first.upstream.name.clone(),
            model: model.id.clone(),
            price_id: first.price.id.clone(),
            prompt_tokens_estimate: size.prompt,
            input_images: Some(size.extras.images).filter(|images| *images > 0),
            completion_tokens_seen: Tokens(0),
            generation_id: None,
            idempotency_key: caller.idempotency_key,
            streamed: request.stream,
            placed_at: now,
            counted: Counted::default(),
            tried: Attempts::default(),
        };
        let demand = size.demand(request.choices);
        let (floor_nusd, funds) = (amount(floor)?, Some(caller.principal.funds));
        Ok(Placement { hold, floor_nusd, demand, funds, is_granted: false })
    }

    /// Sends the hold on its way to the books; `is_ahead`: nobody waits for it yet.
    fn place(
        &self,
        placement: Placement,
        model: Arc<Model>,
        is_ahead: bool,
    ) -> Result<Commit, Error> {
        let place = LedgerOp::Place(placement);
        let sent =
            if is_ahead { self.ledger.submit_ahead(place) } else { self.ledger.submit(place) };
        let answer = sent.map_err(|_| Error::Overloaded)?;
        let hurry = self.ledger.hurry().clone();
        Ok(Commit::Waiting { answer, wait: self.terms.database_wait, model, hurry })
    }

    /// The smallest of the client's cap, the model's and the operator's. A stream that outgrows it
    /// extends its hold.
    fn completion_max(&self, request: &ChatRequest<'_>, model: &Model) -> Tokens {
        let caps = [request.completion_tokens_max, model.completion_tokens_max];
        let own = self.terms.completion_tokens_max;
        caps.into_iter().flatten().fold(own, Tokens::min)
    }

    /// What the account has, when it is comfortable. Who has limits never is, nor a request that
    /// may be refused for its name, nor anybody while the database is away: calling the upstream
    /// for nothing is at the operator's cost.
    fn comfort(&self, hold: &Hold) -> Option<NanoUsd> {
        if hold.idempotency_key.is_some() || self.ledger.away().is_away() {
            return None;
        }
        let snapshot = self.ledger.snapshot(hold.account_id)?;
        let is_fresh = snapshot.taken_at.elapsed() < SNAPSHOT_FRESH;
        let is_plenty = snapshot.available.0 / COMFORTABLE_HOLDS >= hold.amount_nusd.0;
        (is_fresh && is_plenty).then_some(snapshot.available)
    }
}

/// The cap that the upstream gets, and the one the client is told of.
#[derive(Default)]
struct Cap {
    sent: Option<Tokens>,
    lowered: Option<Tokens>,
}

/// The cap that what there is pays for; `limit`: the model's own.
fn affordable(
    request: &ChatRequest<'_>,
    size: &Size,
    worst: &WorstCase,
    placed: &Placed,
    limit: Option<Tokens>,
) -> Cap {
    let Size { completion: wanted, is_fitted, limits, .. } = size;
    if let Some(paid) = worst.tokens(placed.amount).filter(|paid| paid < wanted) {
        let paid = paid.min(size.context_room.unwrap_or(paid));
        return Cap { sent: Some(paid), lowered: Some(paid) };
    }
    // The others are capped where the client has not done so.
    if can_be_ended(request, limits) {
        let cap = unseen_cap(request, size, worst.tokens(placed.funds), limit);
        return Cap { sent: cap, lowered: cap };
    }
    let is_open = request.completion_tokens_max.is_none_or(|max| max > *wanted);
    if !is_open || size.is_bounded {
        return Cap::default();
    }
    let is_less = *is_fitted || request.completion_tokens_max.is_some();
    Cap { sent: Some(*wanted), lowered: is_less.then_some(*wanted) }
}

/// A stream can be ended where its money does, but not where a limit of tokens does, and a plain
/// answer not at all.
fn can_be_ended(request: &ChatRequest<'_>, limits: &LimitsInForce) -> bool {
    request.stream && limits.tokens_per_minute().is_none()
}

/// What a model thinks unseen is known at the end of its answer only, when no stream can be ended
/// any more: it may come to no more than all that the caller could pay for. `None`: it cannot, or
/// the client has named no cap and there is none that every upstream takes, because the limit is
/// not known or has no room for the prompt beside it.
fn unseen_cap(
    request: &ChatRequest<'_>,
    size: &Size,
    paid: Option<Tokens>,
    limit: Option<Tokens>,
) -> Option<Tokens> {
    let paid = paid?;
    if let Some(own) = request.completion_tokens_max {
        return (paid < own.min(limit.unwrap_or(own))).then_some(paid);
    }
    (paid.0.saturating_add(size.prompt.0) < limit?.0).then_some(paid)
}

/// The longest answer to a request without a cap of its own that the limit of tokens has room for;
/// `None`: as long as it is, or of no use.
fn fitting(limits: &LimitsInForce, prompt: Tokens, request: &ChatRequest<'_>) -> Option<Tokens> {
    let limit = limits.tokens_per_minute().filter(|_| request.completion_tokens_max.is_none())?;
    let each = limit.0.saturating_sub(prompt.0) / request.choices.max(1);
    (each >= COMPLETION_TOKENS_FLOOR).then_some(Tokens(each))
}

impl Size {
    /// Whoever answers in the end.
    fn worst_case(
        &self,
        first: &Candidate,
        others: &[Candidate],
        request: &ChatRequest<'_>,
    ) -> WorstCase {
        let of = |to: &Candidate| WorstCase::new(&to.price, self.prompt_paid_for, request.choices);
        let dearest = others.iter().map(of).fold(of(first), WorstCase::or);
        dearest.with(self.extras)
    }

    /// Of a plain answer, which is held in memory, at its longest.
    fn document_bytes(&self, request: &ChatRequest<'_>) -> usize {
        if request.stream {
            return 0;
        }
        let token = PROBABILITY_BYTES.saturating_mul(request.probabilities);
        let token = token.saturating_add(TOKEN_BYTES);
        let tokens = self.completion.0.saturating_mul(request.choices);
        usize::try_from(tokens.saturating_mul(token)).unwrap_or(usize::MAX)
    }

    fn demand(&self, choices: i64) -> Option<Demand> {
        let completion = self.completion.0.saturating_mul(choices.max(1));
        let tokens = Tokens(self.prompt.0.saturating_add(completion));
        (!self.limits.is_none()).then_some(Demand { tokens, limits: self.limits })
    }
}

/// What the context leaves to an answer that has no cap of its own; `None`: it is not known, or too
/// little to go by.
fn context_room(request: &ChatRequest<'_>, model: &Model, prompt: Tokens) -> Option<Tokens> {
    let context = model.context_tokens_max.filter(|_| request.completion_tokens_max.is_none())?;
    let room = context.0.saturating_sub(prompt.0);
    Some(Tokens(room.max(COMPLETION_TOKENS_FLOOR)))
}

/// Pictures in the prompt, where somebody takes a fee for each.
fn paid_images(request: &ChatRequest<'_>, candidates: &[Candidate]) -> i64 {
    let has_fee = candidates.iter().any(|to| to.price.terms.has_image_fee());
    if has_fee { count_images(request.messages.get()) } else { 0 }
}

/// Files in the prompt, where somebody takes a fee for reading them.
fn paid_files(request: &ChatRequest<'_>, candidates: &[Candidate]) -> i64 {
    let has_fee = candidates.iter().any(|to| to.charges_for_files(request.file_engine));
    if has_fee { count_files(request.messages.get()) } else { 0 }
}

fn too_long(request: &ChatRequest<'_>) -> Invalid {
    let message = "The answer may be too long: please stream it, or ask for fewer tokens, choices \
        or 'top_logprobs'.";
    let param = if request.probabilities > 0 { "top_logprobs" } else { "n" };
    Invalid { message: message.to_owned(), param: Some(param.into()) }
}

/// A body for as long as its answer runs. As a slice, a short one would keep the whole buffer (of
/// 8 KiB) that it was read into.
fn kept(body: &Bytes) -> Bytes {
    if body.len() < COPIED_MAX { Bytes::copy_from_slice(body) } else { body.clone() }
}

fn prompt_estimate(request: &ChatRequest<'_>) -> Tokens {
    let rest = Some(request.rest.as_str()).filter(|rest| !rest.is_empty());
    Tokens(estimate_prompt(request.messages.get(), rest))
}

impl Admitted {
    /// The completion tokens that the account could pay for, when that is less than was asked.
    #[must_use]
    pub fn lowered_cap(&self) -> Option<Tokens> {
        self.lowered_cap
    }

    /// What is left to the caller in its limits of rate, where it has some.
    #[must_use]
    pub fn room(&self) -> Room {
        self.room
    }

    /// Calls upstreams.
    pub fn forward(self) -> Forwarding {
        Forwarding::new(self.exchange, self.commit, self.trip)
    }
}

fn not_priced(model: &Model) -> Error {
    Error::ModelNotPriced { model: model.id.clone() }
}
