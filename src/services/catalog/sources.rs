//! Where models and prices come from: the upstream's list, LiteLLM's model info, the operator's
//! table.
//!
//! Invariant: a price that is missing, negative or unreadable is unknown, never zero.

use crate::config::UpstreamKind;
use crate::error::Error;
use crate::models::account::matches_pattern;
use crate::models::money::PicoUsd;
use crate::models::price::Rates;
use crate::services::upstream::Upstream;
use async_openai::types::models::Model as WireModel;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::path::Path;

/// A model as its upstream offers it.
pub struct Offer {
    pub id: String,
    created: u32,
    owned_by: String,
    pub completion_tokens_max: Option<i64>,
    /// What the operator pays.
    pub rates: Option<Rates>,
}

/// Models read from one list at most.
const MODELS_MAX: usize = 20_000;
const MODEL_ID_BYTES_MAX: usize = 256;

impl Offer {
    /// As OpenAI's SDKs expect it.
    pub fn wire(&self) -> WireModel {
        WireModel {
            id: self.id.clone(),
            object: "model".to_owned(),
            created: self.created,
            owned_by: self.owned_by.clone(),
            shutdown_date: None,
        }
    }
}

/// What the upstream offers now.
pub async fn fetch(upstream: &Upstream) -> Result<Vec<Offer>, Error> {
    let body = upstream.ask_list("/models").await?;
    let mut offers = listed(&body)?;
    if upstream.kind == UpstreamKind::LiteLlm {
        let infos = model_infos(&upstream.ask_list("/model/info").await?)?;
        for offer in &mut offers {
            if let Some(info) = infos.get(&offer.id) {
                offer.rates = info.rates();
                offer.completion_tokens_max = info.max_output_tokens;
            }
        }
    }
    Ok(offers)
}

// === `GET /models`: OpenAI's form, with OpenRouter's prices where it has them ===

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    created: Option<serde_json::Number>,
    #[serde(default)]
    owned_by: Option<String>,
    #[serde(default)]
    pricing: Option<Pricing>,
    #[serde(default)]
    top_provider: Option<TopProvider>,
}

/// Decimal dollars per unit, as text. <https://openrouter.ai/docs/api-reference/list-available-models>
#[derive(Deserialize)]
struct Pricing {
    prompt: Option<String>,
    completion: Option<String>,
    input_cache_read: Option<String>,
    input_cache_write: Option<String>,
    internal_reasoning: Option<String>,
    request: Option<String>,
}

#[derive(Deserialize)]
struct TopProvider {
    max_completion_tokens: Option<i64>,
}

fn listed(body: &[u8]) -> Result<Vec<Offer>, Error> {
    let unreadable = |error| Error::UpstreamUnavailable(format!("the model list: {error}"));
    let list: List<'_> = serde_json::from_slice(body).map_err(unreadable)?;
    // One odd entry does not cost the others.
    let entries = list.data.into_iter().take(MODELS_MAX);
    let readable = entries.filter_map(|raw| serde_json::from_str::<Listed>(raw.get()).ok());
    Ok(readable.filter(|model| model.id.len() <= MODEL_ID_BYTES_MAX).map(Listed::offer).collect())
}

impl Listed {
    fn offer(self) -> Offer {
        let created = self.created.and_then(|created| created.as_u64());
        let vendor = self.id.split_once('/').map(|(vendor, _)| vendor.to_owned());
        Offer {
            created: created.and_then(|at| u32::try_from(at).ok()).unwrap_or_default(),
            owned_by: self.owned_by.or(vendor).unwrap_or_else(|| "upstream".to_owned()),
            completion_tokens_max: self
                .top_provider
                .and_then(|provider| provider.max_completion_tokens)
                .filter(|tokens| *tokens > 0),
            rates: self.pricing.and_then(|pricing| pricing.rates()),
            id: self.id,
        }
    }
}

impl Pricing {
    fn rates(&self) -> Option<Rates> {
        let read = |text: &Option<String>| text.as_deref().and_then(PicoUsd::parse_usd);
        Some(Rates {
            prompt: read(&self.prompt)?,
            completion: read(&self.completion)?,
            cache_read: read(&self.input_cache_read),
            cache_write: read(&self.input_cache_write),
            // OpenRouter says "0" where reasoning has no price of its own.
            reasoning: read(&self.internal_reasoning).filter(|rate| rate.0 > 0),
            request: read(&self.request),
        })
    }
}

// === LiteLLM's `GET /model/info` ===

#[derive(Deserialize)]
struct ModelInfos<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct NamedInfo {
    model_name: String,
    model_info: ModelInfo,
}

#[derive(Deserialize)]
struct ModelInfo {
    input_cost_per_token: Option<Box<RawValue>>,
    output_cost_per_token: Option<Box<RawValue>>,
    cache_read_input_token_cost: Option<Box<RawValue>>,
    cache_creation_input_token_cost: Option<Box<RawValue>>,
    output_cost_per_reasoning_token: Option<Box<RawValue>>,
    max_output_tokens: Option<i64>,
}

fn model_infos(body: &[u8]) -> Result<HashMap<String, ModelInfo>, Error> {
    let unreadable = |error| Error::UpstreamUnavailable(format!("the model info: {error}"));
    let infos: ModelInfos<'_> = serde_json::from_slice(body).map_err(unreadable)?;
    let entries = infos.data.into_iter().take(MODELS_MAX);
    let readable = entries.filter_map(|raw| serde_json::from_str::<NamedInfo>(raw.get()).ok());
    Ok(readable.map(|named| (named.model_name, named.model_info)).collect())
}

impl ModelInfo {
    /// LiteLLM writes 0 for models that its cost map does not know: zero for both is unknown, and
    /// an operator whose models are free says so in the table.
    fn rates(&self) -> Option<Rates> {
        let read = |raw: &Option<Box<RawValue>>| {
            raw.as_ref().and_then(|raw| PicoUsd::parse_usd(raw.get()))
        };
        let prompt = read(&self.input_cost_per_token)?;
        let completion = read(&self.output_cost_per_token)?;
        (prompt.0 > 0 || completion.0 > 0).then(|| Rates {
            prompt,
            completion,
            cache_read: read(&self.cache_read_input_token_cost),
            cache_write: read(&self.cache_creation_input_token_cost),
            reasoning: read(&self.output_cost_per_reasoning_token).filter(|rate| rate.0 > 0),
            request: None,
        })
    }
}

// === the operator's table ===

/// Retail prices by model pattern; the first match counts.
#[derive(Default)]
pub struct OperatorPrices {
    rows: Vec<(String, Rates)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    price: Vec<Row>,
}

/// Prices are texts, because a TOML number with a fraction is a float.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    model: String,
    prompt_usd_per_mtok: String,
    completion_usd_per_mtok: String,
    cached_usd_per_mtok: Option<String>,
    cache_write_usd_per_mtok: Option<String>,
    reasoning_usd_per_mtok: Option<String>,
    request_usd: Option<String>,
}

impl OperatorPrices {
    pub fn read(path: &Path) -> Result<Self, Error> {
        let fault = |what: String| Error::Internal(format!("TOLLGATE_PRICES: {what}"));
        let text = std::fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
        let table: Table = toml::from_str(&text).map_err(|error| fault(error.to_string()))?;
        let rows = table.price.into_iter().map(|row| {
            let rates = row.rates();
            rates.map(|rates| (row.model, rates))
        });
        rows.collect::<Option<Vec<_>>>()
            .map(|rows| Self { rows })
            .ok_or_else(|| fault("a price is not a decimal number in quotes".to_owned()))
    }

    pub fn rates(&self, model: &str) -> Option<Rates> {
        let row = self.rows.iter().find(|(pattern, _)| matches_pattern(pattern, model));
        row.map(|(_, rates)| *rates)
    }
}

impl Row {
    fn rates(&self) -> Option<Rates> {
        let per_million = |text: &Option<String>| match text {
            Some(text) => PicoUsd::parse_usd_per_million(text).map(Some),
            None => Some(None),
        };
        Some(Rates {
            prompt: PicoUsd::parse_usd_per_million(&self.prompt_usd_per_mtok)?,
            completion: PicoUsd::parse_usd_per_million(&self.completion_usd_per_mtok)?,
            cache_read: per_million(&self.cached_usd_per_mtok)?,
            cache_write: per_million(&self.cache_write_usd_per_mtok)?,
            reasoning: per_million(&self.reasoning_usd_per_mtok)?,
            request: match &self.request_usd {
                Some(text) => Some(PicoUsd::parse_usd(text)?),
                None => None,
            },
        })
    }
}
