//! What a request costs its account. Pure.
//!
//! Invariant: token classes are disjoint, a part is never charged on top of its whole, and there is
//! one rounding per charge (`NanoUsd::from_pico_ceil`).

use crate::models::money::{Markup, NanoUsd, OutOfRange, PicoUsd, Tokens};
use crate::models::price::{Price, Rates, Rule, Terms};
use crate::models::timestamp::Timestamp;
use crate::models::usage::Used;

/// The charge for what was used.
///
/// What the operator pays decides under cost-plus where it is known; the rates decide otherwise.
/// An upstream that charged nothing for an answer that failed makes it free under either rule.
pub fn charge(price: &Price, used: &Used) -> Result<NanoUsd, OutOfRange> {
    let terms = &price.terms;
    let pico = match (terms.rule, used.cost_pico) {
        (_, Some(0)) if used.has_failed => 0,
        (Rule::CostPlus, Some(cost)) => cost,
        (Rule::CostPlus, None) | (Rule::List, _) => {
            listed(rates(terms, used.tokens.prompt, used.at), used)
        }
    };
    terms.markup_ppm.apply(pico)
}

/// Searches of one request that are held for.
const SEARCHES_MAX: i64 = 5;
/// $0.02 a search.
const WEB_SEARCH_USUAL: PicoUsd = PicoUsd(20_000_000_000);

/// A file of a thousand pages, the longest that is read, at OpenRouter's price of them.
/// <https://openrouter.ai/docs/guides/overview/multimodal/pdfs>
const FILE_MAX: PicoUsd = PicoUsd(2_000_000_000_000);

/// What a request may cost beside its tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras {
    pub has_searches: bool,
    /// Pictures in the prompt, where each has a fee.
    pub images: i64,
    /// Files in it, where each is read for a fee.
    pub files: i64,
}

/// A request's price at its worst, in two parts, so that what an account has can be turned into
/// completion tokens.
#[derive(Clone, Copy, Debug)]
pub struct WorstCase {
    markup: Markup,
    /// Prompt and fees.
    fixed_pico: i128,
    /// One completion token of every choice.
    token_pico: i128,
    search: PicoUsd,
    /// In the prompt.
    picture: PicoUsd,
}

impl WorstCase {
    /// Every prompt token at its dearest class, under any override that may apply.
    #[must_use]
    pub fn new(price: &Price, prompt: Tokens, choices: i64) -> Self {
        let terms = &price.terms;
        let possible = || terms.every_rates();
        let picture = possible().filter_map(|rates| rates.input_image).max();
        let prompt_rate = possible().map(dearest_prompt).max().unwrap_or_default();
        let completion_rate = possible().map(dearest_completion).max().unwrap_or_default();
        let fee = possible().filter_map(|rates| rates.request).max().unwrap_or_default();
        Self {
            markup: terms.markup_ppm,
            fixed_pico: sum([prompt_rate.times(prompt.0), fee.times(1)]),
            token_pico: completion_rate.times(choices),
            search: terms.rates.web_search.unwrap_or(WEB_SEARCH_USUAL),
            picture: picture.unwrap_or_default(),
        }
    }

    /// What covers both, whichever price counts in the end.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            markup: Markup(self.markup.0.max(other.markup.0)),
            fixed_pico: self.fixed_pico.max(other.fixed_pico),
            token_pico: self.token_pico.max(other.token_pico),
            search: self.search.max(other.search),
            picture: self.picture.max(other.picture),
        }
    }

    /// With the searches that a request may cause, which are counted only at its end; at
    /// OpenRouter's usual price where the model names none. And with what is in its prompt.
    #[must_use]
    pub fn with(mut self, Extras { has_searches, images, files }: Extras) -> Self {
        let searches = if has_searches { SEARCHES_MAX } else { 0 };
        self.fixed_pico = sum([
            self.fixed_pico,
            self.search.times(searches),
            self.picture.times(images),
            FILE_MAX.times(files),
        ]);
        self
    }

    /// The amount that covers so many completion tokens of every choice.
    pub fn amount(&self, completion: Tokens) -> Result<NanoUsd, OutOfRange> {
        let completion = self.token_pico.checked_mul(i128::from(completion.0)).ok_or(OutOfRange)?;
        let pico = completion.checked_add(self.fixed_pico).ok_or(OutOfRange)?;
        self.markup.apply(pico)
    }

    /// The completion tokens of every choice that an amount covers; `None`: any number.
    #[must_use]
    pub fn tokens(&self, amount: NanoUsd) -> Option<Tokens> {
        let markup = i128::from(self.markup.0);
        let token = self.token_pico.checked_mul(markup).filter(|pico| *pico > 0)?;
        // In pico-USD and millionths, as `Markup::apply` multiplies; rounded down.
        let whole = i128::from(amount.0) * 1_000 * 1_000_000;
        let rest = whole.saturating_sub(self.fixed_pico.saturating_mul(markup));
        let tokens = rest.max(0) / token;
        Some(Tokens(i64::try_from(tokens).unwrap_or(i64::MAX)))
    }
}

fn dearest_prompt(rates: &Rates) -> PicoUsd {
    let Rates { prompt, cache_read, cache_write, cache_write_1h, audio_prompt, .. } = rates;
    let parts = [cache_read, cache_write, cache_write_1h, audio_prompt];
    parts.into_iter().flatten().copied().fold(*prompt, PicoUsd::max)
}

fn dearest_completion(rates: &Rates) -> PicoUsd {
    let Rates { completion, reasoning, audio_completion, image_completion, .. } = rates;
    let parts = [reasoning, audio_completion, image_completion];
    parts.into_iter().flatten().copied().fold(*completion, PicoUsd::max)
}

/// The rates in force for a prompt of this length at this time.
fn rates(terms: &Terms, prompt: Tokens, at: Timestamp) -> &Rates {
    let minute = at.minute_of_day();
    let mut applying = terms.overrides.iter().filter(|other| other.applies(prompt.0, minute));
    applying.next_back().map_or(&terms.rates, |other| &other.rates)
}

fn listed(rates: &Rates, used: &Used) -> i128 {
    let usage = &used.tokens;
    let prompt_parts = [
        (rates.cache_read, usage.cached),
        (rates.cache_write, usage.cache_write),
        (rates.cache_write_1h.or(rates.cache_write), usage.cache_write_1h),
        (rates.audio_prompt, usage.audio_prompt),
    ];
    let completion_parts = [
        (rates.reasoning, usage.reasoning),
        (rates.audio_completion, usage.audio_completion),
        (rates.image_completion, usage.image_completion),
    ];
    sum([
        class(rates.prompt, usage.prompt, &prompt_parts),
        class(rates.completion, usage.completion, &completion_parts),
        rates.request.unwrap_or_default().times(1),
        rates.web_search.unwrap_or_default().times(usage.web_searches),
        rates.input_image.unwrap_or_default().times(used.images),
    ])
}

/// Of amounts in pico-USD. What is beyond all bounds stays there, and is refused when it is made
/// nano-USD.
fn sum(amounts: impl IntoIterator<Item = i128>) -> i128 {
    amounts.into_iter().fold(0, i128::saturating_add)
}

/// A whole and its parts: each part at its own rate, what is left at the whole's.
fn class(rate: PicoUsd, whole: Tokens, parts: &[(Option<PicoUsd>, Tokens)]) -> i128 {
    let mut rest = whole.0;
    let mut pico = 0;
    for (own, Tokens(tokens)) in parts {
        // A part is within its whole where it is read; here it cannot make the rest negative.
        let tokens = (*tokens).clamp(0, rest.max(0));
        rest -= tokens;
        pico = sum([pico, own.unwrap_or(rate).times(tokens)]);
    }
    sum([pico, rate.times(rest.max(0))])
}

#[cfg(test)]
mod golden;
