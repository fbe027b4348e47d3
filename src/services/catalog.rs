//! The models: the upstream's list with each model's price, cached, refreshed behind the scenes.
//!
//! Invariants: a request never waits for the upstream's list; a list that cannot be fetched leaves
//! the last one in force; a price is in the store before a request is made with it. Which upstream
//! says what, and how the operator's table overrides it, is in `sources`.

mod plans;
mod sources;
mod table;

use crate::config::MoneyConfig;
use crate::error::Error;
use crate::models::limits::LimitsInForce;
use crate::models::money::Markup;
use crate::models::price::{Price, Rule, Terms};
use crate::models::timestamp::Timestamp;
use crate::services::tokens::Vocabularies;
use crate::services::upstream::Upstream;
use crate::store::Store;
use async_openai::types::models::{ListModelResponse, Model as WireModel};
use bytes::Bytes;
use serde::Serialize;
use sources::Offer;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;

pub use plans::PlanInForce;
pub use table::{OperatorTable, Plan};

pub struct Catalog {
    upstream: Arc<Upstream>,
    store: Arc<dyn Store>,
    vocabularies: Vocabularies,
    money: MoneyConfig,
    operator: RwLock<Arc<Operator>>,
    /// The upstream's newest; locked while a list is made of it.
    offers: Mutex<Vec<Offer>>,
    look_again: Notify,
    listing: RwLock<Arc<Listing>>,
    is_filled: watch::Sender<bool>,
}

/// The operator's table in force.
struct Operator {
    /// `None`: it is a file, or there is none.
    version: Option<i64>,
    table: OperatorTable,
}

/// One state of the list.
#[derive(Default)]
struct Listing {
    models: HashMap<String, Arc<Model>>,
    json: Bytes,
}

/// A model that can be asked for.
pub struct Model {
    pub id: String,
    /// `None`: its price is not known, and it is refused.
    price: Option<Arc<Price>>,
    /// For accounts of a plan whose price differs.
    plan_prices: HashMap<String, Arc<Price>>,
    /// The most that it can answer, when the upstream says so.
    pub completion_tokens_max: Option<i64>,
    /// As `GET /v1/models/{id}` shows it.
    pub json: Bytes,
}

/// A price as it is shown to whoever runs this.
#[derive(Serialize)]
pub struct PriceInForce {
    /// Model and plan.
    pub key: String,
    /// Of the version, as usage records name it.
    pub id: String,
    #[serde(flatten)]
    pub terms: Terms,
}

const WELL_KNOWN_MODEL: &str = "openai/gpt-4o-mini";
const REFRESH_EVERY: Duration = Duration::from_secs(300);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

impl Catalog {
    /// An empty catalog; [`Catalog::run`] fills it.
    ///
    /// # Errors
    /// [`Error::Internal`] when the operator's prices cannot be read.
    pub fn new(
        upstream: Arc<Upstream>,
        store: Arc<dyn Store>,
        vocabularies: Vocabularies,
        money: MoneyConfig,
    ) -> Result<Self, Error> {
        let table = OperatorTable::read(money.prices.as_deref())
            .map_err(|error| Error::Internal(error.to_string()))?;
        let operator = RwLock::new(Arc::new(Operator { version: None, table }));
        Ok(Self {
            upstream,
            store,
            vocabularies,
            money,
            operator,
            offers: Mutex::default(),
            look_again: Notify::new(),
            listing: RwLock::default(),
            is_filled: watch::Sender::new(false),
        })
    }

    /// Keeps the list fresh until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut pause = RETRY_FIRST;
        loop {
            let wait = match self.refresh().await {
                Ok(()) => {
                    pause = RETRY_FIRST;
                    self.until_next_change().min(REFRESH_EVERY)
                }
                Err(error) => {
                    tracing::warn!("the model list could not be refreshed: {error}");
                    let wait = pause;
                    pause = (pause * 2).min(RETRY_MAX);
                    wait
                }
            };
            let version = self.operator().version;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.table_changed(version) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Fetches the list once.
    ///
    /// # Errors
    /// The upstream's or the store's.
    pub async fn refresh(&self) -> Result<(), Error> {
        self.take_table().await?;
        let fetched = sources::fetch(&self.upstream).await?;
        if fetched.is_empty() {
            // An upstream in trouble; the list before it is worth more.
            return Err(Error::UpstreamUnavailable("an empty model list".to_owned()));
        }
        let mut offers = self.offers.lock().await;
        *offers = fetched;
        self.relist(&offers, self.operator()).await
    }

    /// Puts the table in force that was set while running, unless there is a file.
    ///
    /// # Errors
    /// The store's.
    pub async fn take_table(&self) -> Result<(), Error> {
        if self.money.prices.is_some() {
            return Ok(());
        }
        let offers = self.offers.lock().await;
        let stored = self.store.price_table().await?;
        let Some(stored) = stored.filter(|it| self.operator().version != Some(it.version)) else {
            return Ok(());
        };
        let table = OperatorTable::parse(&stored.text).map_err(Error::Internal)?;
        let operator = Arc::new(Operator { version: Some(stored.version), table });
        if offers.is_empty() {
            // There is no list yet; its plans are known.
            self.put_in_force(operator);
            return Ok(());
        }
        self.relist(&offers, operator).await
    }

    /// Makes a new list; a price is written down before it can be asked for.
    async fn relist(&self, offers: &[Offer], operator: Arc<Operator>) -> Result<(), Error> {
        let listing = self.list(offers, &operator.table)?;
        let prices: Vec<_> = listing.models.values().flat_map(|model| model.prices()).collect();
        self.store.put_prices(&prices, Timestamp::now()).await?;
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

    /// Returns when another table than `version` is in force: also the times at which its prices
    /// begin to count are others.
    async fn table_changed(&self, version: Option<i64>) {
        loop {
            self.look_again.notified().await;
            if let Err(error) = self.take_table().await {
                tracing::warn!("the table of prices could not be read: {error}");
            }
            if self.operator().version != version {
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

    fn until_next_change(&self) -> Duration {
        let now = Timestamp::now();
        self.operator().table.next_change(now).map_or(REFRESH_EVERY, |at| at.since(now))
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

    /// The model of this name.
    ///
    /// # Errors
    /// [`Error::UnknownModel`], or [`Error::NoModels`] before there has been a list.
    pub fn model(&self, id: &str) -> Result<Arc<Model>, Error> {
        if !self.is_filled() {
            return Err(Error::NoModels);
        }
        let unknown = || Error::UnknownModel { model: id.to_owned() };
        self.current().models.get(id).cloned().ok_or_else(unknown)
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
        let priced = listing.models.values().filter(|model| model.price.is_some());
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
        let prices = listing.models.values().flat_map(|model| model.prices());
        let mut rows: Vec<_> = prices
            .map(|price| PriceInForce {
                key: format!("{}:{}", price.terms.model, price.terms.plan),
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

    fn list(&self, offers: &[Offer], operator: &OperatorTable) -> Result<Listing, Error> {
        let wire: Vec<WireModel> = offers.iter().map(Offer::wire).collect();
        let list = ListModelResponse { object: "list".to_owned(), data: wire.clone() };
        let mut models = HashMap::with_capacity(offers.len());
        for (offer, wire) in offers.iter().zip(wire) {
            let model = Model {
                id: offer.id.clone(),
                price: self.price(operator, offer, ""),
                plan_prices: self.plan_prices(operator, offer),
                completion_tokens_max: offer.completion_tokens_max,
                json: to_json(&wire)?,
            };
            models.insert(offer.id.clone(), Arc::new(model));
        }
        Ok(Listing { models, json: to_json(&list)? })
    }

    /// The operator's table first: it says retail prices. Else the upstream's price and a markup.
    fn price(&self, operator: &OperatorTable, offer: &Offer, plan: &str) -> Option<Arc<Price>> {
        let (model, plan) = (offer.id.clone(), plan.to_owned());
        let terms = match operator.rates(&model, &plan, Timestamp::now()) {
            Some(rates) => {
                let (rule, markup_ppm) = (Rule::List, Markup::NONE);
                Terms { model, plan, rule, markup_ppm, rates, overrides: vec![] }
            }
            None => Terms {
                markup_ppm: operator.markup(&model, &plan).unwrap_or(self.money.markup),
                model,
                plan,
                rule: Rule::CostPlus,
                rates: offer.rates?,
                overrides: offer.overrides.clone(),
            },
        };
        Some(Arc::new(Price::new(terms)))
    }

    fn plan_prices(&self, operator: &OperatorTable, offer: &Offer) -> HashMap<String, Arc<Price>> {
        let priced = |plan: &str| Some((plan.to_owned(), self.price(operator, offer, plan)?));
        operator.plans().filter_map(priced).collect()
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

impl Model {
    /// What it costs an account of this plan.
    #[must_use]
    pub fn price(&self, plan: Option<&str>) -> Option<&Arc<Price>> {
        plan.and_then(|plan| self.plan_prices.get(plan)).or(self.price.as_ref())
    }

    fn prices(&self) -> impl Iterator<Item = Arc<Price>> {
        self.price.iter().chain(self.plan_prices.values()).cloned()
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Bytes, Error> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|error| Error::Internal(format!("writing a model as JSON: {error}")))
}
