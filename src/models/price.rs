//! A version of a model's price, named by the hash of its terms.
//!
//! Invariant: equal terms have the same id on every replica, and a price that changed has another
//! id; rows are never updated, so a past record's price can always be found again.

use super::ledger::sha256_hex;
use super::money::{Markup, PicoUsd};
use super::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// First characters of the hash of the terms.
    pub id: String,
    pub terms: Terms,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    pub model: String,
    /// Whose accounts it is for; empty: all that have no price of their plan's own.
    pub plan: String,
    /// Whose costs it is made from, where there are several; empty: it is for whoever answers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub upstream: String,
    pub rule: Rule,
    pub markup_ppm: Markup,
    pub rates: Rates,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

/// The operator's table of prices, markups and plans, as it was set while running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceTable {
    /// 1, 2, 3 …: the highest counts.
    pub version: i64,
    /// TOML.
    pub text: String,
    /// Who set it, as the audit log names it.
    pub actor: String,
    pub created_at: Timestamp,
}

/// How a charge is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// What the upstream charged, times the markup; where that is unknown, the rates times it.
    CostPlus,
    /// The rates, times the markup, whatever the upstream charged.
    List,
}

/// Prices per unit. A class without its own rate is charged as the class it is part of; a fee
/// without a rate is not charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    pub prompt: PicoUsd,
    pub completion: PicoUsd,
    pub cache_read: Option<PicoUsd>,
    pub cache_write: Option<PicoUsd>,
    pub cache_write_1h: Option<PicoUsd>,
    pub audio_prompt: Option<PicoUsd>,
    pub reasoning: Option<PicoUsd>,
    pub audio_completion: Option<PicoUsd>,
    pub image_completion: Option<PicoUsd>,
    pub request: Option<PicoUsd>,
    pub web_search: Option<PicoUsd>,
    /// For each picture in the prompt, on top of its tokens. Left out where there is none, so that
    /// older versions keep their ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_image: Option<PicoUsd>,
}

/// Other rates under a condition; of those that apply, the last counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// Applies to prompts of more tokens than this.
    pub min_prompt_tokens: Option<i64>,
    /// Minutes of the UTC day, from and until; may pass midnight.
    pub utc_minutes: Option<(u16, u16)>,
    pub rates: Rates,
}

impl Override {
    #[must_use]
    pub fn applies(&self, prompt_tokens: i64, minute_of_day: u16) -> bool {
        let is_long = self.min_prompt_tokens.is_none_or(|min| prompt_tokens > min);
        let is_time = self.utc_minutes.is_none_or(|(from, until)| {
            if from <= until {
                (from..until).contains(&minute_of_day)
            } else {
                minute_of_day >= from || minute_of_day < until
            }
        });
        is_long && is_time
    }
}

const ID_CHARACTERS: usize = 16;

impl Price {
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        let mut id = sha256_hex(terms.canonical().as_bytes());
        id.truncate(ID_CHARACTERS);
        Self { id, terms }
    }
}

impl Terms {
    /// All that may apply to a request.
    pub fn every_rates(&self) -> impl Iterator<Item = &Rates> {
        std::iter::once(&self.rates).chain(self.overrides.iter().map(|other| &other.rates))
    }

    /// Pictures have to be counted only where they cost something.
    #[must_use]
    pub fn has_image_fee(&self) -> bool {
        self.every_rates().any(|rates| rates.input_image.is_some_and(|fee| fee.0 > 0))
    }

    /// The text that the id is the hash of: members in the order of declaration.
    #[must_use]
    pub fn canonical(&self) -> String {
        // Plain members have no way to fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}
