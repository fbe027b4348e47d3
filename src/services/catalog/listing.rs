//! One state of the list: every model that some upstream serves, and each one's price for it.
//!
//! Invariant: pure; a model is shown once, as the first upstream that serves it has it. The
//! operator's table says retail prices, whoever answers; else a price is made of the costs of one
//! upstream, and counts for its answers.

use super::sources::{Offer, Source};
use super::table::OperatorTable;
use crate::config::UpstreamKind;
use crate::error::Error;
use crate::models::money::{Markup, Tokens};
use crate::models::price::{Price, Rule, Terms};
use crate::models::timestamp::Timestamp;
use crate::services::choice::Candidate;
use crate::services::upstream::Upstream;
use async_openai::types::models::{ListModelResponse, Model as WireModel};
use bytes::Bytes;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

#[derive(Default)]
pub struct Listing {
    pub models: HashMap<String, Arc<Model>>,
    pub json: Bytes,
}

/// A model that can be asked for.
pub struct Model {
    pub id: String,
    /// Who serves it, the lowest order first.
    routes: Vec<Route>,
    /// The most that it can answer, when every upstream says so.
    pub completion_tokens_max: Option<Tokens>,
    /// Prompt and completion together, where it is the longest; when every upstream says so.
    pub context_tokens_max: Option<Tokens>,
    /// As `GET /v1/models/{id}` shows it.
    pub json: Bytes,
}

/// A model at one upstream.
struct Route {
    upstream: Arc<Upstream>,
    /// Its name there, where that is another.
    name: Option<Arc<str>>,
    completion_tokens_max: Option<Tokens>,
    context_tokens_max: Option<Tokens>,
    reads_files: bool,
    /// `None`: its price is not known, and it is not called for it.
    price: Option<Arc<Price>>,
    /// For accounts of a plan whose price differs.
    plan_prices: HashMap<String, Arc<Price>>,
}

impl Listing {
    /// Lists what the sources offer.
    ///
    /// # Errors
    /// [`Error::Internal`] when a model cannot be written as JSON.
    pub fn new(sources: &[Source], table: &OperatorTable, markup: Markup) -> Result<Self, Error> {
        let (mut data, mut routes) = (Vec::new(), BTreeMap::<String, Vec<Route>>::new());
        for source in sources {
            for offer in source.offers.iter() {
                for id in source.upstream.names_of(&offer.id) {
                    let known = routes.entry(id.clone()).or_default();
                    if known.is_empty() {
                        data.push(offer.wire(&id));
                    }
                    // Two of its models that are renamed to one: the first of its list.
                    if known.iter().all(|route| !Arc::ptr_eq(&route.upstream, &source.upstream)) {
                        known.push(Route::new(&source.upstream, offer, &id, table, markup));
                    }
                }
            }
        }
        let mut models = HashMap::with_capacity(data.len());
        for wire in &data {
            let routes = routes.remove(&wire.id).unwrap_or_default();
            models.insert(wire.id.clone(), Arc::new(Model::new(wire, routes)?));
        }
        let json = to_json(&ListModelResponse { object: "list".to_owned(), data })?;
        Ok(Self { models, json })
    }

    /// Each version once.
    pub fn prices(&self) -> Vec<Arc<Price>> {
        let all = self.models.values().flat_map(|model| &model.routes).flat_map(Route::prices);
        let by_id: BTreeMap<&str, &Arc<Price>> =
            all.map(|price| (price.id.as_str(), price)).collect();
        by_id.into_values().cloned().collect()
    }
}

impl Model {
    fn new(wire: &WireModel, routes: Vec<Route>) -> Result<Self, Error> {
        // One that does not say may answer at any length.
        let largest = |of: fn(&Route) -> Option<Tokens>| {
            routes.iter().map(of).reduce(|one, other| Some(one?.max(other?))).flatten()
        };
        Ok(Self {
            id: wire.id.clone(),
            completion_tokens_max: largest(|route| route.completion_tokens_max),
            context_tokens_max: largest(|route| route.context_tokens_max),
            json: to_json(wire)?,
            routes,
        })
    }

    /// Of completion tokens, at whoever allows the fewest; `None` where somebody does not say.
    #[must_use]
    pub fn smallest_limit(&self) -> Option<Tokens> {
        let limits = self.routes.iter().map(|route| route.completion_tokens_max);
        limits.reduce(|one, other| Some(one?.min(other?))).flatten()
    }

    /// Somebody knows variants of it.
    #[must_use]
    pub fn has_variants(&self) -> bool {
        self.routes.iter().any(|route| route.upstream.kind == UpstreamKind::OpenRouter)
    }

    /// Who serves it to accounts of this plan at a known price.
    #[must_use]
    pub fn candidates(&self, plan: Option<&str>) -> Vec<Candidate> {
        let priced = self.routes.iter().filter_map(|route| {
            let of_plan = plan.and_then(|plan| route.plan_prices.get(plan));
            let price = of_plan.or(route.price.as_ref())?.clone();
            let (upstream, model) = (route.upstream.clone(), route.name.clone());
            let Route { completion_tokens_max, reads_files, .. } = *route;
            Some(Candidate { upstream, model, price, completion_tokens_max, reads_files })
        });
        priced.collect()
    }
}

impl Route {
    fn new(
        upstream: &Arc<Upstream>,
        offer: &Offer,
        id: &str,
        table: &OperatorTable,
        markup: Markup,
    ) -> Self {
        let of = |plan: &str| price(upstream, offer, id, plan, table, markup);
        let priced = |plan: &str| Some((plan.to_owned(), of(plan)?));
        Self {
            name: (offer.id != id).then(|| Arc::from(offer.id.as_str())),
            completion_tokens_max: offer
                .completion_tokens_max
                .or_else(|| table.completion_tokens_max(id)),
            context_tokens_max: offer.context_tokens_max,
            reads_files: offer.reads_files,
            price: of(""),
            plan_prices: table.plans().filter_map(priced).collect(),
            upstream: upstream.clone(),
        }
    }

    fn prices(&self) -> impl Iterator<Item = &Arc<Price>> {
        self.price.iter().chain(self.plan_prices.values())
    }
}

/// The operator's table first: it says retail prices. Else the upstream's price and a markup.
fn price(
    upstream: &Upstream,
    offer: &Offer,
    id: &str,
    plan: &str,
    table: &OperatorTable,
    markup: Markup,
) -> Option<Arc<Price>> {
    let (model, plan_name) = (id.to_owned(), plan.to_owned());
    let terms = match table.rates(id, plan, Timestamp::now()) {
        Some(rates) => Terms {
            model,
            plan: plan_name,
            upstream: String::new(),
            rule: Rule::List,
            markup_ppm: Markup::NONE,
            rates,
            overrides: vec![],
        },
        None => Terms {
            model,
            plan: plan_name,
            upstream: if upstream.offer.is_one_of_several {
                upstream.name.clone()
            } else {
                String::new()
            },
            rule: Rule::CostPlus,
            markup_ppm: table.markup(id, plan).unwrap_or(markup),
            rates: offer.rates?,
            overrides: offer.overrides.clone(),
        },
    };
    Some(Arc::new(Price::new(terms)))
}

fn to_json<T: Serialize>(value: &T) -> Result<Bytes, Error> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|error| Error::Internal(format!("writing a model as JSON: {error}")))
}
