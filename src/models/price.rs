//! A version of a model's price, named by the hash of its terms.
//!
//! Invariant: equal terms have the same id on every replica, and a price that changed has another
//! id; rows are never updated, so a past record's price can always be found again.

use super::ledger::sha256_hex;
use super::money::{Markup, PicoUsd};
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
    pub rule: Rule,
    pub markup_ppm: Markup,
    pub rates: Rates,
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

/// Prices per unit. A class without its own rate is charged as the class it is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    pub prompt: PicoUsd,
    pub completion: PicoUsd,
    pub cache_read: Option<PicoUsd>,
    pub cache_write: Option<PicoUsd>,
    pub reasoning: Option<PicoUsd>,
    pub request: Option<PicoUsd>,
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
    /// The text that the id is the hash of: members in the order of declaration.
    #[must_use]
    pub fn canonical(&self) -> String {
        // Plain members have no way to fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}
