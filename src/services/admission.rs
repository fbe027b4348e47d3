//! Admission: may this principal have this model, and can its account pay the worst case?
//!
//! Invariant: there is no [`Admitted`] without a hold that was sent to the ledger, and nothing
//! reaches the client before [`Admitted::forward`] has seen it committed. The check in memory only
//! decides whether the upstream call may overlap with the commit; the ledger decides the rest.

use crate::config::{Config, UpstreamKind};
use crate::error::Error;
use crate::models::hold::Hold;
use crate::models::ids::{AccountId, InstanceId, RequestId};
use crate::models::money::{NanoUsd, Tokens};
use crate::models::openai::request::ChatRequest;
use crate::models::price::Price;
use crate::models::timestamp::Timestamp;
use crate::services::auth::Principal;
use crate::services::catalog::{Catalog, Model};
use crate::services::exchange::{Exchange, Form};
use crate::services::ledger::{Answer, Failed, Ledger};
use crate::services::pricing;
use crate::services::settle::{OpenHold, Settler};
use crate::services::tokens::{Vocabularies, estimate_prompt};
use crate::store::{LedgerOp, Outcome};
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

/// A request whose hold is on its way, and the body that the upstream will get.
#[must_use]
pub struct Admitted {
    exchange: Exchange,
    commit: Commit,
    body: Bytes,
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
    /// Places the hold. When the account is comfortable this returns before the hold is committed.
    ///
    /// # Errors
    /// Why the request may not be forwarded.
    pub async fn admit(
        &self,
        id: RequestId,
        principal: &Principal,
        request: &ChatRequest<'_>,
        body: &Bytes,
    ) -> Result<Admitted, Error> {
        let (model, price) = self.priced_model(principal, request)?;
        let slot = self.ledger.reserve().map_err(|_| Error::Overloaded)?;
        let hold = self.hold(id, principal, request, &model, &price)?;
        let is_comfortable = self.is_comfortable(hold.account_id, hold.amount_nusd);
        let placed =
            self.ledger.submit(LedgerOp::Place(hold.clone())).map_err(|_| Error::Overloaded)?;
        let user = hold.account_id.to_string();
        let open = OpenHold {
            hold,
            price,
            tokenizer: self.vocabularies.for_model(&request.model),
            request: body.clone(),
            upstream_status: None,
            cost_header: None,
            first_byte_at: None,
            slot,
            settler: self.settler.clone(),
        };
        let mut admitted = Admitted {
            exchange: Exchange::new(open, request.stream, request.include_usage),
            commit: Commit::Waiting(placed, self.terms.database_wait),
            body: Bytes::from(request.forwarded(&user)),
        };
        if !is_comfortable {
            admitted.committed().await?;
        }
        Ok(admitted)
    }

    fn priced_model(
        &self,
        principal: &Principal,
        request: &ChatRequest<'_>,
    ) -> Result<(Arc<Model>, Arc<Price>), Error> {
        let model = self.catalog.model(&request.model)?;
        if !principal.key.allows(&model.id) {
            return Err(Error::ModelNotAllowed { model: model.id.clone() });
        }
        match &model.price {
            Some(price) => Ok((model.clone(), price.clone())),
            None => Err(Error::ModelNotPriced { model: model.id.clone() }),
        }
    }

    fn hold(
        &self,
        id: RequestId,
        principal: &Principal,
        request: &ChatRequest<'_>,
        model: &Model,
        price: &Price,
    ) -> Result<Hold, Error> {
        let tools = request.tools.map(serde_json::value::RawValue::get);
        let prompt = Tokens(estimate_prompt(request.messages.get(), tools));
        let completion_max = self.completion_max(request, model);
        let amount = pricing::worst_case(price, prompt, completion_max, request.choices)
            .map_err(|_| Error::InsufficientQuota)?;
        let now = Timestamp::now();
        Ok(Hold {
            request_id: id,
            account_id: principal.account_id,
            api_key_id: Some(principal.key.id),
            amount_nusd: amount,
            owner: self.instance,
            lease_expires_at: now.plus(self.terms.lease),
            upstream: self.terms.upstream.name().to_owned(),
            model: model.id.clone(),
            price_id: price.id.clone(),
            prompt_tokens_estimate: prompt,
            completion_tokens_seen: Tokens(0),
            generation_id: None,
            streamed: request.stream,
            placed_at: now,
        })
    }

    /// The client's cap, else the operator's; never more than the model's.
    fn completion_max(&self, request: &ChatRequest<'_>, model: &Model) -> Tokens {
        let wanted = request.completion_tokens_max.unwrap_or(self.terms.completion_tokens_max.0);
        Tokens(model.completion_tokens_max.map_or(wanted, |max| wanted.min(max)))
    }

    fn is_comfortable(&self, account: AccountId, amount: NanoUsd) -> bool {
        self.ledger.snapshot(account).is_some_and(|snapshot| {
            snapshot.taken_at.elapsed() < SNAPSHOT_FRESH
                && snapshot.available.0 / COMFORTABLE_HOLDS >= amount.0
        })
    }
}

impl Admitted {
    /// Calls the upstream, and gives the answer's form when the hold is committed as well. An
    /// exchange that fails here is voided: its client has got nothing.
    ///
    /// # Errors
    /// The upstream's, or why the hold does not stand.
    pub async fn forward(self) -> Result<(Exchange, Form), Error> {
        let Self { mut exchange, mut commit, body } = self;
        // Whichever fails first ends the other: a refused hold drops the upstream call.
        let both = futures::future::try_join(exchange.call(body), commit.wait()).await;
        match both {
            Ok((form, ())) => Ok((exchange, form)),
            Err(error) => {
                exchange.void();
                Err(error)
            }
        }
    }

    async fn committed(&mut self) -> Result<(), Error> {
        let committed = self.commit.wait().await;
        if committed.is_err() {
            self.exchange.void();
        }
        committed
    }
}

impl Commit {
    async fn wait(&mut self) -> Result<(), Error> {
        let Self::Waiting(answer, wait) = self else {
            return Ok(());
        };
        let unanswered = |what: &str| Error::Database(what.to_owned());
        let outcome = tokio::time::timeout(*wait, answer)
            .await
            .map_err(|_| unanswered("the hold was not committed in time"))?
            .map_err(|_| unanswered("the ledger writer has stopped"))?;
        *self = Self::Stands;
        match outcome {
            Ok(Outcome::Placed { .. }) => Ok(()),
            Ok(Outcome::Refused { .. } | Outcome::OutOfRange) => Err(Error::InsufficientQuota),
            Ok(Outcome::Suspended) => Err(Error::Suspended),
            Ok(Outcome::NoAccount) => Err(Error::WrongKey),
            Ok(other) => Err(Error::Internal(format!("placing a hold: {other:?}"))),
            Err(Failed) => Err(Error::Internal("the hold could not be placed".to_owned())),
        }
    }
}
