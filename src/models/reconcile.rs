//! What the books sum to by day, so that it can be held against what others say.
//!
//! Invariants: a day is one of UTC; a call belongs to the day in which it began, what was told to a
//! sink to the day that it was told for; corrections are taken in.

use super::billing::DeliveryState;
use super::ids::{AccountId, RequestId};
use super::money::{NanoUsd, Tokens};
use super::report::Span;
use super::timestamp::Timestamp;
use super::usage::{UsageSource, flag};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A day of UTC, written `2026-11-24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(Timestamp);

const DAY: Duration = Duration::from_secs(86_400);
/// Of `2026-11-24`.
const DAY_CHARS: usize = 10;

impl Day {
    #[must_use]
    pub fn of(at: Timestamp) -> Self {
        Self(at.day_start())
    }

    #[must_use]
    pub fn start(self) -> Timestamp {
        self.0
    }

    #[must_use]
    pub fn end(self) -> Timestamp {
        self.0.plus(DAY)
    }

    /// The day that is so many days before.
    #[must_use]
    pub fn back(self, days: u32) -> Self {
        Self(self.0.minus(DAY.saturating_mul(days)))
    }

    #[must_use]
    pub fn span(self) -> Span {
        Span { from: self.start(), until: self.end() }
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_string().get(..DAY_CHARS).unwrap_or_default())
    }
}

impl FromStr for Day {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let at = Timestamp::parse(&format!("{text}T00:00:00Z"));
        at.filter(|_| text.len() == DAY_CHARS).map(Self).ok_or("not a day like 2026-11-24")
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The calls of one model to one upstream, those that used something.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CallSum {
    pub model: String,
    /// As the upstream called it.
    pub model_served: Option<String>,
    pub calls: i64,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    /// What the operator pays, where that is known.
    pub cost_pusd: i64,
    /// Calls of which it is not.
    pub without_cost: i64,
    /// Calls whose numbers the upstream did not tell: counted or estimated.
    pub untold: i64,
}

/// Calls of one day that failed at one upstream before another try answered, or none did, and that
/// may have cost something there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FailedSum {
    pub day: Day,
    pub calls: i64,
    /// Calls of which the cost was not said.
    pub without_cost: i64,
    /// Of the others.
    pub cost_pusd: i64,
}

/// One call as the books have it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Call {
    pub id: RequestId,
    pub account_id: AccountId,
    pub generation_id: Option<String>,
    pub model: String,
    pub model_served: Option<String>,
    pub source: UsageSource,
    pub prompt_tokens: Tokens,
    pub completion_tokens: Tokens,
    pub cost_pusd: Option<i64>,
    pub started_at: Timestamp,
    pub ended_at: Timestamp,
}

/// What the ledger took for the events of one sink: of one account and model, on one day.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SinkSum {
    pub day: Day,
    pub account_id: AccountId,
    pub model: String,
    /// Whose merged events they are members of.
    pub customer: Option<String>,
    pub state: DeliveryState,
    /// An attempt was made: the sink may have what is not known to be delivered.
    #[serde(with = "flag")]
    pub is_tried: bool,
    pub events: i64,
    pub charge_nusd: NanoUsd,
}

/// Merged events for one meter and customer, on one day.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ExportSum {
    pub day: Day,
    pub customer: String,
    pub meter: String,
    pub unit: i64,
    pub state: DeliveryState,
    /// As in [`SinkSum`].
    #[serde(with = "flag")]
    pub is_tried: bool,
    pub exports: i64,
    /// Of their members, in parts of a unit.
    pub amount: i64,
    pub value: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_read_and_written() {
        let day: Day = "2026-11-24".parse().unwrap();
        assert_eq!(day.to_string(), "2026-11-24");
        assert_eq!(day.start().to_string(), "2026-11-24T00:00:00.000000Z");
        assert_eq!(day.end(), "2026-11-25".parse::<Day>().unwrap().start());
        assert_eq!(day.back(24).to_string(), "2026-10-31");
        assert_eq!(serde_json::from_str::<Day>("\"2026-11-24\"").unwrap(), day);
        for odd in ["2026-11-31", "2026-1-1", "24.11.2026", "", "2026-11-24T01:00:00Z"] {
            assert!(odd.parse::<Day>().is_err(), "{odd}");
        }
    }
}
