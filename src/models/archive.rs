//! Months whose usage records are kept in files and not in the database any more.

use super::ids::{ApiKeyId, RequestId};
use super::money::NanoUsd;
use super::timestamp::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A calendar month, UTC: `2026-08`. A request is of the month in which it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month {
    year: u16,
    /// 1 to 12.
    month: u8,
}

/// One row of `archives`; the members are the columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    pub month: Month,
    pub records: i64,
    pub charge_nusd: NanoUsd,
    pub corrections: i64,
    pub difference_nusd: NanoUsd,
    pub manifest_hash: String,
    pub state: ArchiveState,
    pub archived_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveState {
    /// The files are complete; rows are still there.
    Removing,
    Removed,
}

/// One row of `archived_spending`; the members are the columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedSpending {
    pub month: Month,
    pub api_key_id: ApiKeyId,
    pub spent_nusd: NanoUsd,
    pub corrections: i64,
}

/// What of a month is not over yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Unfinished {
    pub holds: i64,
    pub lookups: i64,
    /// Billing events that are waiting or parked.
    pub events: i64,
}

/// All archives, by month.
#[derive(Clone, Debug, Default)]
pub struct Archives(BTreeMap<Month, Archive>);

/// A request that began in a month is settled, and corrected, so long after its end at most.
const TAIL: Duration = Duration::from_secs(2 * 86_400);

impl Month {
    /// The one that this time is in.
    #[must_use]
    pub fn of(at: Timestamp) -> Self {
        // The text of a time begins with its month.
        at.to_string().get(..7).and_then(|text| text.parse().ok()).unwrap_or(Self::FIRST)
    }

    const FIRST: Self = Self { year: 1970, month: 1 };

    /// The one in which a request began.
    #[must_use]
    pub fn of_request(id: RequestId) -> Self {
        Self::of(id.began_at())
    }

    #[must_use]
    pub fn start(self) -> Timestamp {
        Timestamp::parse(&format!("{self}-01T00:00:00Z")).unwrap_or(Timestamp::from_unix_seconds(0))
    }

    #[must_use]
    pub fn next(self) -> Self {
        let Self { year, month } = self;
        if month == 12 {
            Self { year: year.saturating_add(1), month: 1 }
        } else {
            Self { year, month: month + 1 }
        }
    }

    /// The one that many months before.
    #[must_use]
    pub fn minus(self, months: u16) -> Self {
        let whole = u32::from(self.year) * 12 + u32::from(self.month) - 1;
        let whole = whole.saturating_sub(u32::from(months)).max(1970 * 12);
        let year = u16::try_from(whole / 12).unwrap_or(Self::FIRST.year);
        Self { year, month: u8::try_from(whole % 12 + 1).unwrap_or(1) }
    }

    /// The ids of its requests: from the first, and before the second.
    #[must_use]
    pub fn ids(self) -> (RequestId, RequestId) {
        (RequestId::floor(self.start()), RequestId::floor(self.next().start()))
    }

    /// Whether all that began in it has had its time to end and to be corrected.
    #[must_use]
    pub fn is_over(self, now: Timestamp) -> bool {
        now >= self.next().start().plus(TAIL)
    }
}

impl FromStr for Month {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a month is written like 2026-08";
        let (year, month) = text.split_once('-').ok_or(FORM)?;
        let is_plain = year.len() == 4 && month.len() == 2;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        let year = year.parse().map_err(|_| FORM)?;
        let month = month.parse().map_err(|_| FORM)?;
        let is_known = is_plain && digits && year >= 1970 && (1..=12).contains(&month);
        is_known.then_some(Self { year, month }).ok_or(FORM)
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl Serialize for Month {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Month {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Unfinished {
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

impl Archives {
    #[must_use]
    pub fn new(rows: Vec<Archive>) -> Self {
        Self(rows.into_iter().map(|row| (row.month, row)).collect())
    }

    #[must_use]
    pub fn get(&self, month: Month) -> Option<&Archive> {
        self.0.get(&month)
    }

    pub fn all(&self) -> impl Iterator<Item = &Archive> {
        self.0.values()
    }

    /// Whether the request's record may be gone.
    #[must_use]
    pub fn has(&self, request: RequestId) -> bool {
        !self.0.is_empty() && self.0.contains_key(&Month::of_request(request))
    }

    /// Whether what is of this time may be about requests whose records are gone; what nobody was
    /// there to end in time is not thought of.
    #[must_use]
    pub fn reach(&self, at: Timestamp) -> bool {
        self.0.last_key_value().is_some_and(|(last, _)| at < last.next().start().plus(TAIL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn month(text: &str) -> Month {
        text.parse().unwrap()
    }

    #[test]
    fn months_are_counted() {
        assert_eq!(month("2026-12").next(), month("2027-01"));
        assert_eq!(month("2027-02").minus(14), month("2025-12"));
        assert_eq!(month("1970-03").minus(900), month("1970-01"));
        assert_eq!(month("2026-08").start().to_string(), "2026-08-01T00:00:00.000000Z");
        for odd in ["2026-13", "2026-00", "2026-8", "+026-08", "2026", "1969-12", "2026-08-01"] {
            assert!(odd.parse::<Month>().is_err(), "{odd}");
        }
    }

    #[test]
    fn a_request_is_of_the_month_in_which_it_began() {
        let (from, until) = month("2026-08").ids();
        assert_eq!(Month::of_request(from), month("2026-08"));
        assert_eq!(Month::of_request(until), month("2026-09"));
        let last = Timestamp::parse("2026-08-31T23:59:59.999Z").unwrap();
        assert!(RequestId::floor(last) >= from && RequestId::floor(last) < until);
        assert!(!month("2026-08").is_over(last) && !month("2026-08").is_over(last.plus(TAIL)));
        assert!(month("2026-08").is_over(month("2026-09").start().plus(TAIL)));
    }
}
