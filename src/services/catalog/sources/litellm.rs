//! Prices of a LiteLLM proxy: `GET /model/info`.
//!
//! Invariant: a price that is missing or unreadable is unknown, and so is one of zero for prompt
//! and completion both; a price for long prompts that cannot be read makes the model's unknown. Of
//! several deployments with one name, any of which may answer, the dearest counts.

use super::{MODELS_MAX, OVERRIDES_MAX};
use crate::error::Error;
use crate::models::money::{PicoUsd, Tokens};
use crate::models::price::{Override, Rates};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeSet, HashMap};

#[derive(Deserialize)]
struct ModelInfos<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct NamedInfo<'a> {
    model_name: String,
    #[serde(borrow)]
    model_info: ModelInfo<'a>,
}

/// The members of one model's info, as they came: the long-prompt prices have the length in their
/// names (`input_cost_per_token_above_200k_tokens`).
#[derive(Deserialize)]
#[serde(transparent)]
pub struct ModelInfo<'a>(#[serde(borrow)] HashMap<String, &'a RawValue>);

#[derive(Deserialize)]
struct Searches<'a> {
    #[serde(borrow, rename = "search_context_size_medium")]
    medium: Option<&'a RawValue>,
}

pub fn model_infos(body: &[u8]) -> Result<HashMap<String, ModelInfo<'_>>, Error> {
    let unreadable = |error| Error::UpstreamUnavailable(format!("the model info: {error}"));
    let infos: ModelInfos<'_> = serde_json::from_slice(body).map_err(unreadable)?;
    let entries = infos.data.into_iter().take(MODELS_MAX);
    let readable = entries.filter_map(|raw| serde_json::from_str::<NamedInfo<'_>>(raw.get()).ok());
    let mut infos: HashMap<String, ModelInfo<'_>> = HashMap::new();
    for NamedInfo { model_name, model_info } in readable {
        if infos.get(&model_name).is_none_or(|other| model_info.dearness() > other.dearness()) {
            infos.insert(model_name, model_info);
        }
    }
    Ok(infos)
}

impl ModelInfo<'_> {
    /// LiteLLM writes 0 for models that its cost map does not know: zero for both is unknown, and
    /// an operator whose models are free says so in the table.
    pub fn rates(&self) -> Option<Rates> {
        let prompt = self.rate("input_cost_per_token", "")?;
        let completion = self.rate("output_cost_per_token", "")?;
        let is_known = prompt.0 > 0 || completion.0 > 0;
        is_known.then(|| self.over(Rates { prompt, completion, ..Rates::default() }, ""))
    }

    fn dearness(&self) -> Option<i64> {
        self.rates().map(|rates| rates.prompt.0.saturating_add(rates.completion.0))
    }

    /// Rates for prompts longer than a bound, from the lowest bound up.
    pub fn overrides(&self, base: Rates) -> Vec<Override> {
        let bounds: BTreeSet<i64> = self.0.keys().filter_map(|name| bound(name)).collect();
        let rows = bounds.into_iter().take(OVERRIDES_MAX).scan(base, |below, bound| {
            // What a bound does not name stays as it is below it.
            let suffix = format!("_above_{}k_tokens", bound / 1_000);
            *below = self.over(*below, &suffix);
            let min_prompt_tokens = Some(bound);
            Some(Override { min_prompt_tokens, utc_minutes: None, rates: *below })
        });
        rows.collect()
    }

    pub fn completion_tokens_max(&self) -> Option<Tokens> {
        let tokens: i64 = self.0.get("max_output_tokens")?.get().parse().ok()?;
        (tokens > 0).then_some(Tokens(tokens))
    }

    fn over(&self, base: Rates, suffix: &str) -> Rates {
        let own = |name| self.rate(name, suffix).filter(|rate| rate.0 > 0);
        let an_hour = "cache_creation_input_token_cost_above_1hr";
        Rates {
            prompt: own("input_cost_per_token").unwrap_or(base.prompt),
            completion: own("output_cost_per_token").unwrap_or(base.completion),
            cache_read: own("cache_read_input_token_cost").or(base.cache_read),
            cache_write: own("cache_creation_input_token_cost").or(base.cache_write),
            cache_write_1h: own(an_hour).or(base.cache_write_1h),
            audio_prompt: own("input_cost_per_audio_token").or(base.audio_prompt),
            audio_completion: own("output_cost_per_audio_token").or(base.audio_completion),
            reasoning: own("output_cost_per_reasoning_token").or(base.reasoning),
            image_completion: own("output_cost_per_image_token").or(base.image_completion),
            web_search: self.search().or(base.web_search),
            ..base
        }
    }

    /// Of searches with the context that they have where a request does not say.
    fn search(&self) -> Option<PicoUsd> {
        let costs = self.0.get("search_context_cost_per_query")?;
        let Searches { medium } = serde_json::from_str(costs.get()).ok()?;
        medium.and_then(|cost| PicoUsd::parse_usd(cost.get())).filter(|cost| cost.0 > 0)
    }

    fn rate(&self, name: &str, suffix: &str) -> Option<PicoUsd> {
        let raw = self.0.get(format!("{name}{suffix}").as_str())?;
        PicoUsd::parse_usd(raw.get())
    }
}

/// The prompt tokens of `…_above_200k_tokens`.
fn bound(name: &str) -> Option<i64> {
    let (_, length) = name.strip_suffix("k_tokens")?.rsplit_once("_above_")?;
    length.parse::<i64>().ok()?.checked_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_prompts_have_their_own_rates() {
        let body = br#"{"data":[{"model_name":"long","model_info":{
            "input_cost_per_token":3e-06,"output_cost_per_token":1.5e-05,
            "cache_read_input_token_cost":3e-07,"output_cost_per_image_token":3e-05,
            "search_context_cost_per_query":{"search_context_size_low":0.01,
                "search_context_size_medium":0.02},
            "input_cost_per_token_above_200k_tokens":6e-06,
            "output_cost_per_token_above_200k_tokens":2.25e-05,
            "input_cost_per_token_above_1000k_tokens":1.2e-05,
            "input_cost_per_token_batches":1e-06,
            "max_output_tokens":64000,"supports_vision":true,"key":"x"}}]}"#;
        let infos = model_infos(body).unwrap();
        let info = &infos["long"];
        let base = info.rates().unwrap();
        let [long, longer] = info.overrides(base)[..] else { panic!("two bounds") };
        assert_eq!((base.prompt, base.cache_read), (PicoUsd(3_000_000), Some(PicoUsd(300_000))));
        let fees = (Some(PicoUsd(30_000_000)), Some(PicoUsd(20_000_000_000)));
        assert_eq!((base.image_completion, base.web_search), fees);
        assert_eq!(long.min_prompt_tokens, Some(200_000));
        let (prompt, completion) = (PicoUsd(6_000_000), PicoUsd(22_500_000));
        assert_eq!(long.rates, Rates { prompt, completion, ..base });
        assert_eq!(longer.min_prompt_tokens, Some(1_000_000));
        assert_eq!(longer.rates, Rates { prompt: PicoUsd(12_000_000), ..long.rates });
        assert_eq!(info.completion_tokens_max(), Some(Tokens(64_000)));
    }

    #[test]
    fn zero_for_both_is_unknown() {
        let body = br#"{"data":[{"model_name":"m","model_info":
            {"input_cost_per_token":0,"output_cost_per_token":0,"max_output_tokens":null}}]}"#;
        let infos = model_infos(body).unwrap();
        assert!(infos["m"].rates().is_none());
        assert!(infos["m"].completion_tokens_max().is_none());
    }

    #[test]
    fn of_several_deployments_the_dearest_counts() {
        let row = |prompt: &str, completion: &str| {
            format!(
                r#"{{"model_name":"m","model_info":{{"input_cost_per_token":{prompt},
                    "output_cost_per_token":{completion}}}}}"#
            )
        };
        let rows = [row("1e-06", "2e-06"), row("3e-06", "9e-06"), row("0", "0")];
        for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let body = format!("{{\"data\":[{}]}}", order.map(|at| rows[at].as_str()).join(","));
            let rates = model_infos(body.as_bytes()).unwrap()["m"].rates().unwrap();
            assert_eq!(rates.completion, PicoUsd(9_000_000), "{order:?}");
        }
    }
}
