//! Accounts, as rows.
//!
//! Invariant: `balance_nusd` is the sum of the account's ledger entries and `held_nusd` the sum of
//! its open holds; only the ledger's batch (`store::books`) changes them.

use super::ids::AccountId;
use super::limits::RateLimits;
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
    /// Instead of the plan's.
    #[serde(flatten)]
    pub rates: RateLimits,
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

/// What a new account starts with.
#[derive(Clone, Debug)]
pub struct NewAccount {
    pub name: String,
    pub kind: AccountKind,
    pub plan: Option<String>,
    pub limit_nusd: Option<NanoUsd>,
    pub stripe_customer_id: Option<String>,
    /// Instead of the plan's.
    pub rates: RateLimits,
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
            rates: new.rates,
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
