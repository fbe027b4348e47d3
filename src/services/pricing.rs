//! What a request costs its account. Pure.
//!
//! Invariant: token classes are disjoint, a part is never charged on top of its whole, and there is
//! one rounding per charge (`NanoUsd::from_pico_ceil`).

use crate::models::money::{NanoUsd, OutOfRange, PicoUsd, Tokens};
use crate::models::price::{Price, Rates, Rule};
use crate::models::usage::TokenUsage;

/// Disjoint classes of tokens.
struct Classes {
    prompt: i64,
    cache_read: i64,
    cache_write: i64,
    completion: i64,
    reasoning: i64,
}

impl Classes {
    fn of(usage: TokenUsage) -> Self {
        let Tokens(cache_read) = usage.cached;
        let Tokens(cache_write) = usage.cache_write;
        let Tokens(reasoning) = usage.reasoning;
        Self {
            prompt: usage.prompt.0.saturating_sub(cache_read).saturating_sub(cache_write).max(0),
            cache_read,
            cache_write,
            completion: usage.completion.0.saturating_sub(reasoning).max(0),
            reasoning,
        }
    }
}

/// The charge for what was used.
///
/// `upstream_cost_pico` is what the operator pays, when known; it decides under cost-plus.
///
/// # Errors
/// [`OutOfRange`] when the charge does not fit.
pub fn charge(
    price: &Price,
    usage: TokenUsage,
    upstream_cost_pico: Option<i128>,
) -> Result<NanoUsd, OutOfRange> {
    let terms = &price.terms;
    let pico = match (terms.rule, upstream_cost_pico) {
        (Rule::CostPlus, Some(cost)) => cost,
        (Rule::CostPlus, None) | (Rule::List, _) => listed(&terms.rates, usage),
    };
    terms.markup_ppm.apply(pico)
}

/// The most that a request can cost: every prompt token at its dearest class, every choice at
/// its cap.
///
/// # Errors
/// [`OutOfRange`] when the amount does not fit.
pub fn worst_case(
    price: &Price,
    prompt: Tokens,
    completion_max: Tokens,
    choices: i64,
) -> Result<NanoUsd, OutOfRange> {
    let rates = &price.terms.rates;
    let prompt_rate = dearest([Some(rates.prompt), rates.cache_read, rates.cache_write]);
    let completion_rate = dearest([Some(rates.completion), rates.reasoning, None]);
    let completion = completion_max.0.saturating_mul(choices);
    let pico = prompt_rate
        .times(prompt.0)
        .checked_add(completion_rate.times(completion))
        .and_then(|pico| pico.checked_add(rates.request.unwrap_or_default().times(1)))
        .ok_or(OutOfRange)?;
    price.terms.markup_ppm.apply(pico)
}

fn dearest(rates: [Option<PicoUsd>; 3]) -> PicoUsd {
    rates.into_iter().flatten().max().unwrap_or_default()
}

fn listed(rates: &Rates, usage: TokenUsage) -> i128 {
    let classes = Classes::of(usage);
    rates.prompt.times(classes.prompt)
        + rates.cache_read.unwrap_or(rates.prompt).times(classes.cache_read)
        + rates.cache_write.unwrap_or(rates.prompt).times(classes.cache_write)
        + rates.completion.times(classes.completion)
        + rates.reasoning.unwrap_or(rates.completion).times(classes.reasoning)
        + rates.request.unwrap_or_default().times(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::money::Markup;
    use crate::models::price::Terms;
    use proptest::prelude::*;

    fn price(rule: Rule, rates: Rates) -> Price {
        let model = "m".to_owned();
        Price::new(Terms { model, rule, markup_ppm: Markup(1_200_000), rates })
    }

    fn rates() -> Rates {
        Rates {
            prompt: PicoUsd(3_000_000),
            completion: PicoUsd(15_000_000),
            cache_read: Some(PicoUsd(300_000)),
            cache_write: Some(PicoUsd(3_750_000)),
            reasoning: None,
            request: None,
        }
    }

    fn usage(prompt: i64, cached: i64, completion: i64, reasoning: i64) -> TokenUsage {
        TokenUsage {
            prompt: Tokens(prompt),
            cached: Tokens(cached),
            cache_write: Tokens(0),
            completion: Tokens(completion),
            reasoning: Tokens(reasoning),
        }
    }

    #[test]
    fn cached_tokens_are_not_charged_as_prompt_too() {
        let charge = charge(&price(Rule::List, rates()), usage(1_000, 900, 0, 0), None).unwrap();
        assert_eq!(charge, NanoUsd((100 * 3_000 + 900 * 300) * 12 / 10));
    }

    #[test]
    fn reasoning_is_not_charged_on_top_of_the_completion() {
        let charge = |reasoning| {
            charge(&price(Rule::List, rates()), usage(0, 0, 100, reasoning), None).unwrap()
        };
        assert_eq!(charge(80), charge(0));
    }

    #[test]
    fn cost_plus_charges_the_cost_and_falls_back_to_the_rates_only_when_it_is_unknown() {
        let price = price(Rule::CostPlus, rates());
        let used = usage(1_000, 0, 0, 0);
        assert_eq!(charge(&price, used, Some(0)), Ok(NanoUsd(0)), "zero is zero");
        assert_eq!(charge(&price, used, Some(1_000_000)), Ok(NanoUsd(1_200)));
        assert_eq!(charge(&price, used, None), Ok(NanoUsd(3_600_000)));
    }

    proptest! {
        #[test]
        fn the_worst_case_covers_every_charge_within_it(
            prompt in 0..1_000_000_i64, cached in 0..1_000_000_i64, written in 0..1_000_000_i64,
            completion in 0..100_000_i64, reasoning in 0..100_000_i64, spare in 0..1_000_i64,
        ) {
            let used = TokenUsage {
                prompt: Tokens(prompt),
                cached: Tokens(cached.min(prompt)),
                cache_write: Tokens(written.min(prompt - cached.min(prompt))),
                completion: Tokens(completion),
                reasoning: Tokens(reasoning.min(completion)),
            };
            let price = price(Rule::List, rates());
            let worst =
                worst_case(&price, Tokens(prompt + spare), Tokens(completion + spare), 1).unwrap();
            prop_assert!(charge(&price, used, None).unwrap() <= worst);
        }
    }
}
