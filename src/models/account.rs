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
        let funds = match (self.kind, self.limit_nusd) {
            (AccountKind::Prepaid, _) => self.balance_nusd,
            (AccountKind::Postpaid, None) => NanoUsd(i64::MAX),
            (AccountKind::Postpaid, Some(limit)) => limit.minus(self.charged_this_month(now))?,
        };
        funds.minus(self.held_nusd)
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
