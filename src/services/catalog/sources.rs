//! Where models and prices come from: an upstream's list, and LiteLLM's model info.
//!
//! Invariants: a price that is missing, negative or unreadable is unknown, never zero; an upstream
//! that gives no list is asked again, and its last one stays.

mod litellm;

use crate::config::UpstreamKind;
use crate::error::Error;
use crate::models::money::{PicoUsd, Tokens};
use crate::models::price::{Override, Rates};
use crate::services::upstream::Upstream;
use async_openai::types::models::Model as WireModel;
use serde::Deserialize;
use serde_json::Number;
use serde_json::value::RawValue;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An upstream and the last that it listed.
#[derive(Clone)]
pub struct Source {
    pub upstream: Arc<Upstream>,
    pub offers: Arc<[Offer]>,
    due_at: Instant,
    /// Before the next try, when one has failed.
    pause: Duration,
}

/// A model as its upstream offers it.
pub struct Offer {
    pub id: String,
    created: u32,
    owned_by: String,
    pub completion_tokens_max: Option<Tokens>,
    /// Prompt and completion together, where it says so.
    pub context_tokens_max: Option<Tokens>,
    /// It is given files as they are; else they are read for it first, at a fee.
    pub reads_files: bool,
    /// What the operator pays.
    pub rates: Option<Rates>,
    pub overrides: Vec<Override>,
}

/// Models read from one list at most.
const MODELS_MAX: usize = 20_000;
const MODEL_ID_BYTES_MAX: usize = 256;
const OVERRIDES_MAX: usize = 64;
const REFRESH_EVERY: Duration = Duration::from_secs(300);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

impl Source {
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Self { upstream, offers: Arc::default(), due_at: Instant::now(), pause: RETRY_FIRST }
    }

    /// The same server, configured anew: its list is the same.
    pub fn at(&self, upstream: Arc<Upstream>) -> Self {
        Self { upstream, ..self.clone() }
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.due_at <= now
    }

    /// How long until it is due.
    pub fn wait(&self, now: Instant) -> Duration {
        self.due_at.saturating_duration_since(now)
    }

    pub fn has_offers(&self) -> bool {
        !self.offers.is_empty()
    }

    /// Takes what has been fetched.
    pub fn take(&mut self, fetched: Result<Vec<Offer>, Error>) {
        let wait = match fetched {
            Ok(offers) => {
                self.offers = offers.into();
                self.pause = RETRY_FIRST;
                REFRESH_EVERY
            }
            Err(error) => {
                let name = &self.upstream.name;
                tracing::warn!(upstream = name, "no model list is to be had: {error}");
                let wait = self.pause;
                self.pause = (self.pause * 2).min(RETRY_MAX);
                wait
            }
        };
        self.due_at = Instant::now() + wait;
    }
}

impl Offer {
    /// As OpenAI's SDKs expect it, by its name here.
    pub fn wire(&self, id: &str) -> WireModel {
        WireModel {
            id: id.to_owned(),
            object: "model".to_owned(),
            created: self.created,
            owned_by: self.owned_by.clone(),
            shutdown_date: None,
        }
    }
}

/// What the upstream offers now. Nothing is a failure: the list before it is worth more.
pub async fn fetch(upstream: &Upstream) -> Result<Vec<Offer>, Error> {
    let body = upstream.ask_list("/models").await?;
    let mut offers = listed(&body)?;
    if offers.is_empty() {
        return Err(Error::UpstreamUnavailable("an empty model list".to_owned()));
    }
    if upstream.kind == UpstreamKind::LiteLlm {
        let body = upstream.ask_list("/model/info").await?;
        let infos = litellm::model_infos(&body)?;
        for offer in &mut offers {
            if let Some(info) = infos.get(&offer.id) {
                offer.rates = info.rates();
                offer.overrides = offer.rates.map(|base| info.overrides(base)).unwrap_or_default();
                offer.completion_tokens_max = info.completion_tokens_max();
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
    created: Option<Number>,
    #[serde(default)]
    owned_by: Option<String>,
    #[serde(default)]
    pricing: Option<Pricing>,
    #[serde(default)]
    top_provider: Option<TopProvider>,
    #[serde(default)]
    context_length: Option<i64>,
    /// vLLM's word for it.
    #[serde(default)]
    max_model_len: Option<i64>,
    #[serde(default)]
    architecture: Option<Architecture>,
}

#[derive(Deserialize)]
struct Architecture {
    #[serde(default)]
    input_modalities: Vec<String>,
}

#[derive(Deserialize)]
struct Pricing {
    #[serde(flatten)]
    units: Units,
    #[serde(default)]
    overrides: Vec<Conditional>,
}

/// Decimal dollars per unit, as text.
/// <https://openrouter.ai/docs/api-reference/list-available-models>
#[derive(Default, Deserialize)]
#[serde(default)]
struct Units {
    prompt: Option<String>,
    completion: Option<String>,
    input_cache_read: Option<String>,
    input_cache_write: Option<String>,
    input_cache_write_1h: Option<String>,
    internal_reasoning: Option<String>,
    audio: Option<String>,
    audio_output: Option<String>,
    image_output: Option<String>,
    request: Option<String>,
    web_search: Option<String>,
    /// For each picture in the prompt.
    image: Option<String>,
}

/// Rates for long prompts or a time of day; what it does not name stays.
#[derive(Deserialize)]
struct Conditional {
    #[serde(flatten)]
    units: Units,
    #[serde(default)]
    min_prompt_tokens: Option<Number>,
    #[serde(default)]
    utc_start: Option<Clock>,
    #[serde(default)]
    utc_end: Option<Clock>,
}

/// `HHMM`: the schema has a number (400 is four o'clock), examples have text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Clock {
    Number(Number),
    Text(String),
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
    let mut unreadable = 0_usize;
    let readable = entries.filter_map(|raw| {
        let read = serde_json::from_str::<Listed>(raw.get());
        unreadable += usize::from(read.is_err());
        read.ok()
    });
    let offers =
        readable.filter(|model| model.id.len() <= MODEL_ID_BYTES_MAX).map(Listed::offer).collect();
    if unreadable > 0 {
        tracing::warn!(unreadable, "a model list has entries that cannot be read");
    }
    Ok(offers)
}

impl Listed {
    fn offer(self) -> Offer {
        let created = self.created.and_then(|created| created.as_u64());
        let vendor = self.id.split_once('/').map(|(vendor, _)| vendor.to_owned());
        let priced = self.pricing.and_then(|pricing| pricing.read());
        let (rates, overrides) = priced.map_or((None, vec![]), |(r, o)| (Some(r), o));
        Offer {
            created: created.and_then(|at| u32::try_from(at).ok()).unwrap_or_default(),
            owned_by: self.owned_by.or(vendor).unwrap_or_else(|| "upstream".to_owned()),
            completion_tokens_max: self
                .top_provider
                .and_then(|provider| provider.max_completion_tokens)
                .filter(|tokens| *tokens > 0)
                .map(Tokens),
            context_tokens_max: self
                .context_length
                .or(self.max_model_len)
                .filter(|tokens| *tokens > 0)
                .map(Tokens),
            reads_files: self
                .architecture
                .is_some_and(|it| it.input_modalities.iter().any(|modality| modality == "file")),
            rates,
            overrides,
            id: self.id,
        }
    }
}

impl Pricing {
    /// `None` when the price is unknown; also when a condition cannot be read, because charging
    /// without it would be wrong under it.
    fn read(&self) -> Option<(Rates, Vec<Override>)> {
        let (prompt, completion) =
            (dollars(self.units.prompt.as_deref())?, dollars(self.units.completion.as_deref())?);
        let rates = self.units.over(Rates { prompt, completion, ..Rates::default() });
        let overrides = self.overrides.iter().take(OVERRIDES_MAX);
        let overrides: Option<Vec<_>> = overrides.map(|other| other.read(rates)).collect();
        Some((rates, overrides?))
    }
}

impl Units {
    /// These rates over `base`: what is not named stays.
    fn over(&self, base: Rates) -> Rates {
        // OpenRouter says "0" where reasoning has no price of its own, where pictures have no fee,
        // and where a search has its usual one.
        let own = |text: &Option<String>| dollars(text.as_deref()).filter(|rate| rate.0 > 0);
        Rates {
            prompt: dollars(self.prompt.as_deref()).unwrap_or(base.prompt),
            completion: dollars(self.completion.as_deref()).unwrap_or(base.completion),
            cache_read: dollars(self.input_cache_read.as_deref()).or(base.cache_read),
            cache_write: dollars(self.input_cache_write.as_deref()).or(base.cache_write),
            cache_write_1h: dollars(self.input_cache_write_1h.as_deref()).or(base.cache_write_1h),
            audio_prompt: dollars(self.audio.as_deref()).or(base.audio_prompt),
            reasoning: own(&self.internal_reasoning).or(base.reasoning),
            audio_completion: dollars(self.audio_output.as_deref()).or(base.audio_completion),
            image_completion: dollars(self.image_output.as_deref()).or(base.image_completion),
            request: dollars(self.request.as_deref()).or(base.request),
            web_search: own(&self.web_search).or(base.web_search),
            input_image: own(&self.image).or(base.input_image),
        }
    }
}

impl Conditional {
    fn read(&self, base: Rates) -> Option<Override> {
        let utc_minutes = match (&self.utc_start, &self.utc_end) {
            (None, None) => None,
            (from, until) => Some((minutes(from.as_ref(), 0)?, minutes(until.as_ref(), 24 * 60)?)),
        };
        let min_prompt_tokens = match &self.min_prompt_tokens {
            Some(tokens) => Some(whole(tokens)?),
            None => None,
        };
        Some(Override { min_prompt_tokens, utc_minutes, rates: self.units.over(base) })
    }
}

/// A number that has no fraction; it may be written with one.
fn whole(number: &Number) -> Option<i64> {
    let text = number.to_string();
    text.strip_suffix(".0").unwrap_or(&text).parse().ok()
}

/// As minutes of the day.
fn minutes(clock: Option<&Clock>, default: u16) -> Option<u16> {
    let digits = match clock {
        None => return Some(default),
        Some(Clock::Number(number)) => format!("{:04}", whole(number)?),
        Some(Clock::Text(text)) => text.replace(':', ""),
    };
    let (hours, minutes) = digits.split_at_checked(2)?;
    let minutes = minutes.parse::<u16>().ok()?;
    let total = hours.parse::<u16>().ok()?.checked_mul(60)?.checked_add(minutes)?;
    (digits.len() == 4 && total <= 24 * 60).then_some(total)
}

fn dollars(text: Option<&str>) -> Option<PicoUsd> {
    text.and_then(PicoUsd::parse_usd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(pricing: &str) -> Offer {
        let body = format!(r#"{{"data":[{{"id":"a/b","pricing":{pricing}}}]}}"#);
        listed(body.as_bytes()).unwrap().remove(0)
    }

    #[test]
    fn conditional_prices_stand_on_the_plain_ones() {
        let offer = offer(
            r#"{"prompt":"0.000003","completion":"0.000015","input_cache_read":"0.0000003",
                "overrides":[{"min_prompt_tokens":200000,"prompt":"0.000006"},
                             {"utc_start":"1630","utc_end":"0030","completion":"0.00001"},
                             {"utc_start":30,"utc_end":400.0,"completion":"0.00001"}]}"#,
        );
        let base = offer.rates.unwrap();
        let [long, night, early] = offer.overrides[..] else { panic!("three overrides") };
        assert_eq!(long.min_prompt_tokens, Some(200_000));
        assert_eq!(long.rates, Rates { prompt: PicoUsd(6_000_000), ..base });
        assert_eq!(night.utc_minutes, Some((16 * 60 + 30, 30)));
        assert_eq!(early.utc_minutes, Some((30, 4 * 60)));
        assert_eq!(night.rates, Rates { completion: PicoUsd(10_000_000), ..base });
    }

    #[test]
    fn a_fee_is_there_where_it_is_not_zero() {
        for (name, fee) in [
            ("image", (|rates| rates.input_image) as fn(Rates) -> Option<PicoUsd>),
            ("web_search", |rates| rates.web_search),
        ] {
            let fee = |dollars: &str| {
                let units = format!(r#"{{"prompt":"0","completion":"0","{name}":"{dollars}"}}"#);
                fee(offer(&units).rates.unwrap())
            };
            assert_eq!(fee("0.001445"), Some(PicoUsd(1_445_000_000)));
            assert_eq!((fee("0"), fee("-1"), fee("x")), (None, None, None));
        }
    }

    #[test]
    fn an_unknown_price_is_none() {
        for pricing in [
            "null",
            "{}",
            r#"{"prompt":"0.1"}"#,
            r#"{"prompt":"-1","completion":"-1"}"#,
            r#"{"prompt":"x","completion":"0"}"#,
            r#"{"prompt":"0","completion":"0","overrides":[{"utc_start":"9999"}]}"#,
            r#"{"prompt":"0","completion":"0","overrides":[{"utc_start":12.5}]}"#,
            r#"{"prompt":"0","completion":"0","overrides":[{"utc_start":-30}]}"#,
        ] {
            assert!(offer(pricing).rates.is_none(), "{pricing}");
        }
        assert!(offer(r#"{"prompt":"0","completion":"0"}"#).rates.is_some(), "zero is free");
    }
}
