//! Admission: may this principal have this model, and can its account pay the worst case?
//!
//! Invariant: there is no [`Admitted`] without a hold that was sent to the ledger, and nothing
//! reaches the client before [`Admitted::forward`] has seen it committed. The check in memory only
//! decides whether the upstream call may overlap with the commit; the ledger decides the rest.

use crate::config::{Config, UpstreamKind};
use crate::error::Error;
use crate::models::hold::Hold;
use crate::models::ids::{InstanceId, RequestId};
use crate::models::money::{NanoUsd, Tokens};
use crate::models::openai::request::ChatRequest;
use crate::models::price::Price;
use crate::models::timestamp::Timestamp;
use crate::services::auth::Principal;
use crate::services::catalog::{Catalog, Model};
use crate::services::exchange::{Exchange, Form};
use crate::services::ledger::{Answer, Failed, Ledger};
use crate::services::pricing::WorstCase;
use crate::services::settle::{OpenHold, Settler};
use crate::services::tokens::{Vocabularies, estimate_prompt};
use crate::store::{LedgerOp, Limit, Outcome, Placement};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

pub struct Admission {
    pub catalog: Arc<Catalog>,
    pub ledger: Ledger,
    pub settler: Arc<Settler>,
    pub vocabularies: Vocabularies,
    pub instance: InstanceId,
    pub terms: HoldTerms,
}

/// What holds are made with.
#[derive(Clone, Copy, Debug)]
pub struct HoldTerms {
    pub upstream: UpstreamKind,
    pub completion_tokens_max: Tokens,
    pub lease: Duration,
    pub database_wait: Duration,
}

/// Whose request it is.
pub struct Caller<'a> {
    pub id: RequestId,
    pub principal: &'a Principal,
    pub idempotency_key: Option<String>,
}

/// A request whose hold is on its way, and the body that the upstream will get.
#[must_use]
pub struct Admitted {
    exchange: Exchange,
    commit: Commit,
    body: Bytes,
    lowered_cap: Option<i64>,
}

/// Whether the hold stands.
enum Commit {
    Waiting(Answer, Duration),
    Stands,
}

/// «Comfortable»: the account has this many times the hold …
const COMFORTABLE_HOLDS: i64 = 16;
/// … and had it this recently.
const SNAPSHOT_FRESH: Duration = Duration::from_secs(10);
/// Searches of one request that are held for.
const SEARCHES_MAX: i64 = 5;
/// An answer of fewer tokens is of no use: the account is refused instead.
const COMPLETION_TOKENS_FLOOR: i64 = 16;

impl HoldTerms {
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            upstream: config.upstream.kind,
            completion_tokens_max: Tokens(config.money.completion_tokens_max),
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
        let (model, price) = self.priced_model(caller.principal, request)?;
        let slot = self.ledger.reserve().map_err(|_| Error::Overloaded)?;
        let has_key_limits = caller.principal.has_key_limits;
        let placement = self.placement(caller, request, &model, &price)?;
        let hold = placement.hold.clone();
        let is_comfortable = self.is_comfortable(&hold, has_key_limits);
        self.ledger.expect_hold(hold.account_id, hold.amount_nusd);
        let placed =
            self.ledger.submit(LedgerOp::Place(placement)).map_err(|_| Error::Overloaded)?;
        let (user, wanted) = (hold.account_id.to_string(), hold.amount_nusd);
        let open = OpenHold {
            hold,
            price: price.clone(),
            tokenizer: self.vocabularies.for_model(&request.model),
            request: body.clone(),
            upstream_status: None,
            attempts: 0,
            cost_header: None,
            first_byte_at: None,
            slot: Some(slot),
            settler: self.settler.clone(),
        };
        let mut admitted = Admitted {
            exchange: Exchange::new(open, request),
            commit: Commit::Waiting(placed, self.terms.database_wait),
            body: Bytes::new(),
            lowered_cap: None,
        };
        let held = if is_comfortable { wanted } else { admitted.committed().await? };
        let cap = self.affordable(request, &model, &price, held);
        if let Some(tokens) = cap.sent {
            admitted.exchange.capped(tokens);
        }
        admitted.lowered_cap = cap.lowered;
        admitted.body = Bytes::from(request.forwarded(&user, cap.sent, self.cap_member()));
        Ok(admitted)
    }

    fn priced_model(
        &self,
        principal: &Principal,
        request: &ChatRequest<'_>,
    ) -> Result<(Arc<Model>, Arc<Price>), Error> {
        let model = self.catalog.model(&request.model)?;
        if !principal.allows(&model.id) {
            return Err(Error::ModelNotAllowed { model: model.id.clone() });
        }
        match model.price(principal.plan.as_deref()) {
            Some(price) => Ok((model.clone(), price.clone())),
            None => Err(Error::ModelNotPriced { model: model.id.clone() }),
        }
    }

    fn placement(
        &self,
        caller: Caller<'_>,
        request: &ChatRequest<'_>,
        model: &Model,
        price: &Price,
    ) -> Result<Placement, Error> {
        let prompt = prompt_estimate(request);
        let worst = worst_case(price, request);
        let wanted = self.completion_max(request, model);
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
            upstream: self.terms.upstream.name().to_owned(),
            model: model.id.clone(),
            price_id: price.id.clone(),
            prompt_tokens_estimate: prompt,
            completion_tokens_seen: Tokens(0),
            generation_id: None,
            idempotency_key: caller.idempotency_key,
            streamed: request.stream,
            placed_at: now,
        };
        Ok(Placement { hold, floor_nusd: amount(floor)? })
    }

    /// The smallest of the client's cap, the model's and the operator's. A stream that outgrows it
    /// extends its hold.
    fn completion_max(&self, request: &ChatRequest<'_>, model: &Model) -> Tokens {
        let caps = [request.completion_tokens_max, model.completion_tokens_max];
        let smallest = caps.into_iter().flatten().min().unwrap_or(i64::MAX);
        Tokens(smallest.min(self.terms.completion_tokens_max.0))
    }

    fn is_comfortable(&self, hold: &Hold, has_key_limits: bool) -> bool {
        // A key that may be refused for itself, or a request for its name, waits for the answer:
        // calling the upstream for nothing is at the operator's cost.
        if has_key_limits || hold.idempotency_key.is_some() {
            return false;
        }
        self.ledger.snapshot(hold.account_id).is_some_and(|snapshot| {
            snapshot.taken_at.elapsed() < SNAPSHOT_FRESH
                && snapshot.available.0 / COMFORTABLE_HOLDS >= hold.amount_nusd.0
        })
    }

    /// The cap that what was set aside pays for.
    fn affordable(
        &self,
        request: &ChatRequest<'_>,
        model: &Model,
        price: &Price,
        held: NanoUsd,
    ) -> Cap {
        let wanted = self.completion_max(request, model);
        let worst = worst_case(price, request);
        let Some(Tokens(paid)) = worst.tokens(held) else { return Cap::default() };
        if paid < wanted.0 {
            return Cap { sent: Some(paid), lowered: Some(paid) };
        }
        // A stream can be ended where its money does, a plain answer cannot: it is capped where
        // the client has not done so.
        let is_open = request.completion_tokens_max.is_none_or(|max| max > wanted.0);
        if request.stream || !is_open {
            return Cap::default();
        }
        Cap { sent: Some(wanted.0), lowered: request.completion_tokens_max.map(|_| wanted.0) }
    }

    /// OpenAI's newer models know the newer name only; the others know the older one.
    fn cap_member(&self) -> &'static str {
        match self.terms.upstream {
            UpstreamKind::OpenAi => "max_completion_tokens",
            UpstreamKind::OpenRouter | UpstreamKind::LiteLlm => "max_tokens",
        }
    }
}

/// The cap that the upstream gets, and the one the client is told of.
#[derive(Default)]
struct Cap {
    sent: Option<i64>,
    lowered: Option<i64>,
}

fn worst_case<'a>(price: &'a Price, request: &ChatRequest<'_>) -> WorstCase<'a> {
    let searches = if request.has_fees { SEARCHES_MAX } else { 0 };
    WorstCase::new(price, prompt_estimate(request), request.choices).with_searches(searches)
}

fn prompt_estimate(request: &ChatRequest<'_>) -> Tokens {
    let rest = Some(request.rest.as_str()).filter(|rest| !rest.is_empty());
    Tokens(estimate_prompt(request.messages.get(), rest))
}

impl Admitted {
    /// The completion tokens that the account could pay for, when that is less than was asked.
    #[must_use]
    pub fn lowered_cap(&self) -> Option<i64> {
        self.lowered_cap
    }

    /// Calls the upstream, and gives the answer's form when the hold is committed as well. An
    /// exchange that fails here is voided: its client has got nothing.
    ///
    /// # Errors
    /// The upstream's, or why the hold does not stand.
    pub async fn forward(self) -> Result<(Exchange, Form), Error> {
        let Self { mut exchange, mut commit, body, .. } = self;
        // Whichever fails first ends the other: a refused hold drops the upstream call.
        let both = futures::future::try_join(exchange.call(body), commit.wait()).await;
        match both {
            Ok((form, held)) => {
                if let Some(held) = held {
                    exchange.held(held);
                }
                Ok((exchange, form))
            }
            Err(error) => {
                exchange.void(&error);
                Err(error)
            }
        }
    }

    /// Waits for the hold; what was set aside.
    async fn committed(&mut self) -> Result<NanoUsd, Error> {
        match self.commit.wait().await {
            Ok(held) => {
                let held = held.unwrap_or_default();
                self.exchange.held(held);
                Ok(held)
            }
            Err(error) => {
                self.exchange.void(&error);
                Err(error)
            }
        }
    }
}

impl Commit {
    /// The amount when it has just been told.
    async fn wait(&mut self) -> Result<Option<NanoUsd>, Error> {
        let Self::Waiting(answer, wait) = self else { return Ok(None) };
        let unanswered = |what: &str| Error::Database(what.to_owned());
        let outcome = tokio::time::timeout(*wait, answer)
            .await
            .map_err(|_| unanswered("the hold was not committed in time"))?
            .map_err(|_| unanswered("the ledger writer has stopped"))?;
        *self = Self::Stands;
        match outcome {
            Ok(Outcome::Placed { amount, .. }) => Ok(Some(amount)),
            Ok(Outcome::Refused { by: Limit::Key, .. }) => Err(Error::KeyBudget),
            Ok(Outcome::Refused { .. } | Outcome::OutOfRange) => Err(Error::InsufficientQuota),
            Ok(Outcome::Repeated) => Err(Error::Repeated),
            Ok(Outcome::Suspended) => Err(Error::Suspended),
            Ok(Outcome::NoAccount) => Err(Error::WrongKey),
            Ok(other) => Err(Error::Internal(format!("placing a hold: {other:?}"))),
            Err(Failed) => Err(Error::Internal("the hold could not be placed".to_owned())),
        }
    }
}
