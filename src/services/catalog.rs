//! The models: the upstreams' lists in one, with each model's prices, cached, refreshed behind the
//! scenes.
//!
//! Invariants: a request never waits for an upstream's list; a list that cannot be fetched leaves
//! the last one in force; a price is in the store before a request is made with it. Which upstream
//! says what is in `sources`; one state of the whole is in `listing`.

mod listing;
mod plans;
mod reload;
mod sources;
mod table;

use crate::config::MoneyConfig;
use crate::error::Error;
use crate::models::limits::LimitsInForce;
use crate::models::price::Terms;
use crate::models::timestamp::Timestamp;
use crate::services::tokens::Vocabularies;
use crate::services::upstream::Upstream;
use crate::services::upstreams::Upstreams;
use crate::store::{Store, in_time};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use listing::Listing;
use serde::Serialize;
use sources::{Offer, Source};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;

pub use listing::Model;
pub use plans::PlanInForce;
pub use table::{OperatorTable, Plan};

pub struct Catalog {
    store: Arc<dyn Store>,
    vocabularies: Vocabularies,
    money: MoneyConfig,
    upstreams: Arc<Upstreams>,
    operator: RwLock<Arc<Operator>>,
    /// The upstreams' newest; locked while a list is made of it.
    sources: Mutex<Vec<Source>>,
    look_again: Notify,
    listing: RwLock<Arc<Listing>>,
    is_filled: watch::Sender<bool>,
}

/// The operator's table in force.
#[derive(Clone)]
struct Operator {
    /// `None`: it is a file, or there is none.
    version: Option<i64>,
    table: OperatorTable,
}

/// A price as it is shown to whoever runs this.
#[derive(Serialize)]
pub struct PriceInForce {
    /// Model and plan, and the upstream where there are several.
    pub key: String,
    /// Of the version, as usage records name it.
    pub id: String,
    #[serde(flatten)]
    pub terms: Terms,
}

/// OpenRouter's names for ways to choose among a model's providers: what `provider.sort` says. They
/// are not in its list, and are the same model at its price.
/// <https://openrouter.ai/docs/guides/routing/model-variants>
const VARIANTS: [&str; 3] = [":nitro", ":floor", ":exacto"];
const WELL_KNOWN_MODEL: &str = "openai/gpt-4o-mini";
/// What an upstream was found to list.
type Fetched = (Arc<Upstream>, Result<Vec<Offer>, Error>);
/// Lists under way.
type Fetching = FuturesUnordered<BoxFuture<'static, Fetched>>;

/// Lists that come within so long of each other are taken together: one that hangs does not keep
/// the others' models from being served.
const TOGETHER_WAIT: Duration = Duration::from_secs(5);
/// The list is made anew this often at least.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// After the store has failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);

impl Catalog {
    /// An empty catalog; [`Catalog::run`] fills it.
    ///
    /// # Errors
    /// [`Error::Internal`] when the operator's prices cannot be read.
    pub fn new(
        upstreams: Arc<Upstreams>,
        store: Arc<dyn Store>,
        vocabularies: Vocabularies,
        money: MoneyConfig,
    ) -> Result<Self, Error> {
        let table = OperatorTable::read(money.prices.as_deref())
            .map_err(|error| Error::Internal(error.to_string()))?;
        let operator = RwLock::new(Arc::new(Operator { version: None, table }));
        Ok(Self {
            store,
            vocabularies,
            money,
            operator,
            sources: Mutex::new(upstreams.all().iter().cloned().map(Source::new).collect()),
            upstreams,
            look_again: Notify::new(),
            listing: RwLock::default(),
            is_filled: watch::Sender::new(false),
        })
    }

    /// Keeps the list fresh until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            let (operator, began) = (self.operator(), Timestamp::now());
            let wait = match self.refresh().await {
                Ok(due) => self.until_next_change(began).min(due),
                Err(error) => {
                    tracing::warn!("the model list could not be refreshed: {error}");
                    STORE_PAUSE
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.changed(&operator) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Fetches the lists that are due, and makes one of all; gives the time until the next is due.
    async fn refresh(&self) -> Result<Duration, Error> {
        self.take_table().await?;
        let mut fetching = self.fetching().await;
        // Once also when none is due: a price may begin to count, or the store is back.
        loop {
            let in_time = tokio::time::sleep(TOGETHER_WAIT);
            let fetched: Vec<_> = fetching.by_ref().take_until(in_time).collect().await;
            let mut sources = self.sources.lock().await;
            for (upstream, offers) in fetched {
                let mut asked = sources.iter_mut();
                // It may have left meanwhile.
                if let Some(it) = asked.find(|it| Arc::ptr_eq(&it.upstream, &upstream)) {
                    it.take(offers);
                }
            }
            if sources.iter().any(Source::has_offers) {
                self.relist(&sources, self.operator()).await?;
            }
            if fetching.is_empty() {
                let now = Instant::now();
                let due = sources.iter().map(|source| source.wait(now)).min();
                return Ok(due.unwrap_or(LOOK_EVERY));
            }
        }
    }

    /// Asks for the lists that are due. Nobody waits for it who sets a table meanwhile.
    async fn fetching(&self) -> Fetching {
        let (sources, now) = (self.sources.lock().await, Instant::now());
        let due = sources.iter().filter(|source| source.is_due(now));
        due.map(|source| fetch(source.upstream.clone()).boxed()).collect()
    }

    /// Puts the table in force that was set while running, unless there is a file.
    ///
    /// # Errors
    /// The store's.
    pub async fn take_table(&self) -> Result<(), Error> {
        if self.money.prices.is_some() {
            return Ok(());
        }
        let stored = in_time(self.store.price_table()).await?;
        let Some(stored) = stored.filter(|it| self.operator().version != Some(it.version)) else {
            return Ok(());
        };
        let table = OperatorTable::stored(&stored.text).map_err(Error::Internal)?;
        let operator = Arc::new(Operator { version: Some(stored.version), table });
        let sources = self.sources.lock().await;
        if !sources.iter().any(Source::has_offers) {
            // There is no list yet; its plans are known.
            self.put_in_force(operator);
            return Ok(());
        }
        self.relist(&sources, operator).await
    }

    /// Makes a new list; a price is written down before it can be asked for.
    async fn relist(&self, sources: &[Source], operator: Arc<Operator>) -> Result<(), Error> {
        let listing = Listing::new(sources, &operator.table, self.money.markup)?;
        let prices = listing.prices();
        in_time(self.store.put_prices(&prices, Timestamp::now())).await?;
        self.load_vocabularies(&listing).await?;
        tracing::info!(models = listing.models.len(), priced = prices.len(), "model list");
        self.put_in_force(operator);
        *self.listing.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(listing);
        self.is_filled.send_replace(true);
        Ok(())
    }

    /// The operator's table may have changed.
    pub fn look_again(&self) {
        self.look_again.notify_one();
    }

    /// Returns when another table than this one, or another list of upstreams, is in force: also
    /// the times at which prices begin to count are others.
    async fn changed(&self, operator: &Arc<Operator>) {
        loop {
            self.look_again.notified().await;
            if let Err(error) = self.take_table().await {
                tracing::warn!("the table of prices could not be read: {error}");
            }
            if !Arc::ptr_eq(&self.operator(), operator) {
                return;
            }
        }
    }

    fn put_in_force(&self, operator: Arc<Operator>) {
        *self.operator.write().unwrap_or_else(PoisonError::into_inner) = operator;
    }

    fn operator(&self) -> Arc<Operator> {
        self.operator.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What accounts of a plan start with.
    #[must_use]
    pub fn plan(&self, name: &str) -> Option<Plan> {
        self.operator().table.plan(name).cloned()
    }

    /// The plans in force whose name comes after `after`, in the order of names.
    #[must_use]
    pub fn plans_after(&self, after: &str) -> Vec<PlanInForce> {
        PlanInForce::after(&self.operator().table, self.money.markup, after)
    }

    /// Until a price begins to count that did not at `began`: it may have begun meanwhile.
    fn until_next_change(&self, began: Timestamp) -> Duration {
        let next = self.operator().table.next_change(began);
        next.map_or(LOOK_EVERY, |at| at.since(Timestamp::now()))
    }

    /// Returns when there has been a list.
    pub async fn filled(&self) {
        // The sender lives as long as `self`.
        let _ = self.is_filled.subscribe().wait_for(|is_filled| *is_filled).await;
    }

    #[must_use]
    pub fn is_filled(&self) -> bool {
        *self.is_filled.borrow()
    }

    /// The model of this name, and by which variant of OpenRouter's it is asked for.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], or [`Error::NoModels`] before there has been a list.
    pub fn model<'a>(&self, id: &'a str) -> Result<(Arc<Model>, Option<&'a str>), Error> {
        if !self.is_filled() {
            return Err(Error::NoModels);
        }
        let listing = self.current();
        if let Some(model) = listing.models.get(id) {
            return Ok((model.clone(), None));
        }
        let unknown = || Error::UnknownModel { model: id.to_owned() };
        let (base, variant) = id
            .rfind(':')
            .map(|at| id.split_at(at))
            .filter(|(_, variant)| VARIANTS.contains(variant))
            .ok_or_else(unknown)?;
        let model = listing.models.get(base).filter(|model| model.has_variants());
        Ok((model.cloned().ok_or_else(unknown)?, Some(variant)))
    }

    /// How fast accounts of this plan, and their keys, may go.
    #[must_use]
    pub fn plan_rates(&self, plan: Option<&str>) -> LimitsInForce {
        let rates = |plan: &str| Some(self.operator().table.plan(plan)?.rates);
        plan.and_then(rates).unwrap_or_default()
    }

    /// A model to show in an example: a well-known one, else the first that has a price.
    #[must_use]
    pub fn example(&self) -> String {
        let listing = self.current();
        let priced = listing.models.values().filter(|model| !model.candidates(None).is_empty());
        let mut names: Vec<&str> = priced.map(|model| model.id.as_str()).collect();
        names.sort_unstable();
        let known = names.iter().find(|name| **name == WELL_KNOWN_MODEL);
        known.or(names.first()).copied().unwrap_or(WELL_KNOWN_MODEL).to_owned()
    }

    /// The prices in force whose key comes after `after`, in the order of keys.
    ///
    /// # Errors
    /// [`Error::NoModels`] before there has been a list.
    pub fn prices_after(&self, after: &str) -> Result<Vec<PriceInForce>, Error> {
        if !self.is_filled() {
            return Err(Error::NoModels);
        }
        let listing = self.current();
        let mut rows: Vec<_> = listing
            .prices()
            .into_iter()
            .map(|price| PriceInForce {
                key: key(&price.terms),
                id: price.id.clone(),
                terms: price.terms.clone(),
            })
            .filter(|row| row.key.as_str() > after)
            .collect();
        rows.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(rows)
    }

    /// The list as `GET /v1/models` shows it.
    ///
    /// # Errors
    /// [`Error::NoModels`] before there has been a list.
    pub fn json(&self) -> Result<Bytes, Error> {
        if self.is_filled() { Ok(self.current().json.clone()) } else { Err(Error::NoModels) }
    }

    fn current(&self) -> Arc<Listing> {
        self.listing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reading a vocabulary takes a good part of a second: off the async threads.
    async fn load_vocabularies(&self, listing: &Listing) -> Result<(), Error> {
        let vocabularies = self.vocabularies.clone();
        let models: Vec<String> = listing.models.keys().cloned().collect();
        let load = move || vocabularies.prepare(models.iter().map(String::as_str));
        tokio::task::spawn_blocking(load)
            .await
            .map_err(|error| Error::Internal(format!("loading a vocabulary: {error}")))
    }
}

async fn fetch(upstream: Arc<Upstream>) -> Fetched {
    let offers = sources::fetch(&upstream).await;
    (upstream, offers)
}

fn key(terms: &Terms) -> String {
    let Terms { model, plan, upstream, .. } = terms;
    if upstream.is_empty() {
        format!("{model}:{plan}")
    } else {
        format!("{model}:{plan}:{upstream}")
    }
}
