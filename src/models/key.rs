//! API keys and what they may spend, as rows.
//!
//! Invariant: a key's secret is only here as its SHA-256; only the ledger's batch (`store::books`)
//! changes what a key has spent.

use super::identity::Role;
use super::ids::{AccountId, ApiKeyId};
use super::limits::RateLimits;
use super::money::{NanoUsd, OutOfRange};
use super::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    pub id: ApiKeyId,
    pub account_id: AccountId,
    pub name: String,
    /// SHA-256 of the key, in hex.
    pub secret_hash: String,
    /// The key's first and last characters, to tell keys apart.
    pub hint: String,
    /// Model patterns, comma separated. `None`: every model.
    pub models: Option<String>,
    pub role: Role,
    /// Who made it: an actor of the audit log.
    pub created_by: String,
    #[serde(flatten)]
    pub rates: RateLimits,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    /// To the minute.
    pub last_used_at: Option<Timestamp>,
    /// Of the secret before the last change of it, and until when that one works.
    pub previous_secret_hash: Option<String>,
    pub previous_expires_at: Option<Timestamp>,
}

/// What a key has spent in its windows, and what it may. `None`: no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBudget {
    pub api_key_id: ApiKeyId,
    pub day_limit_nusd: Option<NanoUsd>,
    pub week_limit_nusd: Option<NanoUsd>,
    pub month_limit_nusd: Option<NanoUsd>,
    pub total_limit_nusd: Option<NanoUsd>,
    /// Open holds count against every window.
    pub held_nusd: NanoUsd,
    pub day_start: Timestamp,
    pub day_nusd: NanoUsd,
    pub week_start: Timestamp,
    pub week_nusd: NanoUsd,
    pub month_start: Timestamp,
    pub month_nusd: NanoUsd,
    pub total_nusd: NanoUsd,
}

/// A key's limits; each window has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    pub day: Option<NanoUsd>,
    pub week: Option<NanoUsd>,
    pub month: Option<NanoUsd>,
    pub total: Option<NanoUsd>,
}

/// A window of a key's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    Day,
    Week,
    Month,
    Total,
}

impl Window {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Total => "total",
        }
    }
}

/// The window that decides what a key may still spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TightestWindow {
    pub window: Window,
    pub limit: NanoUsd,
    /// Negative when it is overdrawn.
    pub left: NanoUsd,
}

impl KeyLimits {
    /// Each of these, else the other's.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            day: self.day.or(other.day),
            week: self.week.or(other.week),
            month: self.month.or(other.month),
            total: self.total.or(other.total),
        }
    }
}

impl KeyBudget {
    #[must_use]
    pub fn open(api_key_id: ApiKeyId, limits: KeyLimits, now: Timestamp) -> Self {
        Self {
            api_key_id,
            day_limit_nusd: limits.day,
            week_limit_nusd: limits.week,
            month_limit_nusd: limits.month,
            total_limit_nusd: limits.total,
            held_nusd: NanoUsd::ZERO,
            day_start: now.day_start(),
            day_nusd: NanoUsd::ZERO,
            week_start: now.week_start(),
            week_nusd: NanoUsd::ZERO,
            month_start: now.month_start(),
            month_nusd: NanoUsd::ZERO,
            total_nusd: NanoUsd::ZERO,
        }
    }

    #[must_use]
    pub fn has_limits(&self) -> bool {
        let limits = [
            self.day_limit_nusd,
            self.week_limit_nusd,
            self.month_limit_nusd,
            self.total_limit_nusd,
        ];
        limits.iter().any(Option::is_some)
    }

    /// Starts the counts of windows that have begun.
    pub fn roll(&mut self, now: Timestamp) {
        let windows = [
            (&mut self.day_start, &mut self.day_nusd, now.day_start()),
            (&mut self.week_start, &mut self.week_nusd, now.week_start()),
            (&mut self.month_start, &mut self.month_nusd, now.month_start()),
        ];
        for (start, spent, begun) in windows {
            if begun > *start {
                *start = begun;
                *spent = NanoUsd::ZERO;
            }
        }
    }

    /// What the tightest window leaves; to be asked after [`KeyBudget::roll`].
    pub fn available(&self) -> Result<NanoUsd, OutOfRange> {
        Ok(self.tightest()?.map_or(NanoUsd(i64::MAX), |window| window.left))
    }

    /// The windows that have a limit, with it and what is spent; to be asked after
    /// [`KeyBudget::roll`].
    pub fn limited(&self) -> impl Iterator<Item = (Window, NanoUsd, NanoUsd)> + use<> {
        let windows = [
            (Window::Day, self.day_limit_nusd, self.day_nusd),
            (Window::Week, self.week_limit_nusd, self.week_nusd),
            (Window::Month, self.month_limit_nusd, self.month_nusd),
            (Window::Total, self.total_limit_nusd, self.total_nusd),
        ];
        windows.into_iter().filter_map(|(window, limit, spent)| Some((window, limit?, spent)))
    }

    /// The window that leaves least, where there is a limit; to be asked after
    /// [`KeyBudget::roll`].
    pub fn tightest(&self) -> Result<Option<TightestWindow>, OutOfRange> {
        let mut tightest: Option<TightestWindow> = None;
        for (window, limit, spent) in self.limited() {
            let left = limit.minus(spent)?.minus(self.held_nusd)?;
            if tightest.is_none_or(|known| left < known.left) {
                tightest = Some(TightestWindow { window, limit, left });
            }
        }
        Ok(tightest)
    }

    /// Counts the charge of a request that began then in every window. What is given back of an
    /// older window makes no room in this one.
    pub fn spend(&mut self, charge: NanoUsd, began: Timestamp) -> Result<(), OutOfRange> {
        let windows = [
            (&mut self.day_nusd, Some(self.day_start)),
            (&mut self.week_nusd, Some(self.week_start)),
            (&mut self.month_nusd, Some(self.month_start)),
            (&mut self.total_nusd, None),
        ];
        for (spent, start) in windows {
            if charge >= NanoUsd::ZERO || start.is_none_or(|start| start <= began) {
                *spent = spent.plus(charge)?.max(NanoUsd::ZERO);
            }
        }
        Ok(())
    }
}

impl ApiKey {
    #[must_use]
    pub fn is_usable(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none_or(|at| now < at) && self.expires_at.is_none_or(|at| now < at)
    }

    /// The key as one of its two secrets has it: the older one ends earlier.
    #[must_use]
    pub fn by_secret(mut self, hash: &str) -> Self {
        if self.previous_secret_hash.as_deref() == Some(hash) {
            let ends = [self.expires_at, self.previous_expires_at];
            self.expires_at = ends.into_iter().flatten().min();
        }
        self
    }

    /// Whether the key may ask for this model. A pattern is a name, or a prefix ending in `*`.
    #[must_use]
    pub fn allows(&self, model: &str) -> bool {
        self.models.as_deref().is_none_or(|list| {
            list.split(',').any(|pattern| matches_pattern(pattern.trim(), model))
        })
    }
}

/// A name, or a prefix followed by `*`.
#[must_use]
pub fn matches_pattern(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_given_back_of_yesterday_makes_no_room_today() {
        let now = Timestamp::parse("2026-11-30T00:30:00Z").unwrap();
        let yesterday = now.minus(Duration::from_secs(3_600));
        let mut budget = KeyBudget::open(ApiKeyId::generate(), KeyLimits::default(), now);
        budget.spend(NanoUsd(14), yesterday).unwrap();
        budget.spend(NanoUsd(-4), yesterday).unwrap();
        // A Monday: the week began with the day, and the month earlier.
        let spent = [budget.day_nusd, budget.week_nusd, budget.month_nusd, budget.total_nusd];
        assert_eq!(spent.map(|it| it.0), [14, 14, 10, 10]);
        budget.spend(NanoUsd(-4), now).unwrap();
        assert_eq!((budget.day_nusd, budget.total_nusd), (NanoUsd(10), NanoUsd(6)));
    }
}
