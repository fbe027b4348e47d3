//! Accounts and API keys, as rows.
//!
//! Invariant: `balance_nusd` is the sum of the account's ledger entries and `held_nusd` the sum of
//! its open holds; only the ledger's batch (`store::books`) changes them.

use super::ids::{AccountId, ApiKeyId};
use super::money::{NanoUsd, OutOfRange};
use super::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub id: AccountId,
    pub name: String,
    pub kind: AccountKind,
    pub status: AccountStatus,
    /// Of the operator's table of plans.
    pub plan: Option<String>,
    /// Postpaid: most to spend in a calendar month. `None`: no limit.
    pub limit_nusd: Option<NanoUsd>,
    pub balance_nusd: NanoUsd,
    pub held_nusd: NanoUsd,
    /// The month that `period_charged_nusd` counts.
    pub period_start: Timestamp,
    pub period_charged_nusd: NanoUsd,
    pub ledger_seq: i64,
    pub ledger_hash: String,
    pub stripe_customer_id: Option<String>,
    pub created_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountKind {
    /// Spends what was credited before.
    Prepaid,
    /// Spends up to a limit a month and pays later.
    Postpaid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountStatus {
    Active,
    Suspended,
}

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
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// What a new account starts with.
#[derive(Clone, Debug)]
pub struct NewAccount {
    pub name: String,
    pub kind: AccountKind,
    pub plan: Option<String>,
    pub limit_nusd: Option<NanoUsd>,
    pub stripe_customer_id: Option<String>,
}

impl Account {
    #[must_use]
    pub fn open(new: NewAccount, now: Timestamp) -> Self {
        Self {
            id: AccountId::generate(),
            name: new.name,
            kind: new.kind,
            status: AccountStatus::Active,
            plan: new.plan,
            limit_nusd: new.limit_nusd,
            balance_nusd: NanoUsd::ZERO,
            held_nusd: NanoUsd::ZERO,
            period_start: now.month_start(),
            period_charged_nusd: NanoUsd::ZERO,
            ledger_seq: 0,
            ledger_hash: String::new(),
            stripe_customer_id: new.stripe_customer_id,
            created_at: now,
        }
    }

    /// What can still be set aside now.
    ///
    /// # Errors
    /// [`OutOfRange`] on overflow.
    pub fn available(&self, now: Timestamp) -> Result<NanoUsd, OutOfRange> {
        self.funds(now)?.minus(self.held_nusd)
    }

    /// What can be charged now. Other requests' holds do not make a charge smaller: they are only
    /// set aside, and a charge that is let off never comes back.
    pub fn funds(&self, now: Timestamp) -> Result<NanoUsd, OutOfRange> {
        match (self.kind, self.limit_nusd) {
            (AccountKind::Prepaid, _) => Ok(self.balance_nusd),
            (AccountKind::Postpaid, None) => Ok(NanoUsd(i64::MAX)),
            (AccountKind::Postpaid, Some(limit)) => limit.minus(self.charged_this_month(now)),
        }
    }

    /// Starts a new month's count when one has begun.
    pub fn roll_period(&mut self, now: Timestamp) {
        self.period_charged_nusd = self.charged_this_month(now);
        self.period_start = self.period_start.max(now.month_start());
    }

    fn charged_this_month(&self, now: Timestamp) -> NanoUsd {
        if now.month_start() > self.period_start { NanoUsd::ZERO } else { self.period_charged_nusd }
    }
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
        let windows = [
            (self.day_limit_nusd, self.day_nusd),
            (self.week_limit_nusd, self.week_nusd),
            (self.month_limit_nusd, self.month_nusd),
            (self.total_limit_nusd, self.total_nusd),
        ];
        let mut least = NanoUsd(i64::MAX);
        for (limit, spent) in windows {
            if let Some(limit) = limit {
                least = least.min(limit.minus(spent)?.minus(self.held_nusd)?);
            }
        }
        Ok(least)
    }

    /// Counts a charge in every window.
    pub fn spend(&mut self, charge: NanoUsd) -> Result<(), OutOfRange> {
        let spent =
            [&mut self.day_nusd, &mut self.week_nusd, &mut self.month_nusd, &mut self.total_nusd];
        for spent in spent {
            // What is given back of an older window must not make room in this one.
            *spent = spent.plus(charge)?.max(NanoUsd::ZERO);
        }
        Ok(())
    }
}

impl ApiKey {
    #[must_use]
    pub fn is_usable(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none_or(|at| now < at) && self.expires_at.is_none_or(|at| now < at)
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
