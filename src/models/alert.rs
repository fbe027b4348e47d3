//! What an operator is warned of: a balance that runs out, a budget that is used up.
//!
//! Invariant: a warning is of a crossing, from one side of a threshold to the other, so that what
//! stays beyond it is told once. Pure; when it is asked and who is told is decided elsewhere.

use super::account::{Account, AccountKind};
use super::key::{KeyBudget, Window};
use super::money::NanoUsd;
use serde::Serialize;

/// Which thresholds there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlertTerms {
    /// Of prepaid accounts. `None`: no warning.
    pub low_balance_nusd: Option<NanoUsd>,
    /// Parts of a budget, in percent, that are told of when they are spent.
    pub budget_percents: Vec<i64>,
}

/// One crossing, with the figures just after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Alert {
    BalanceLow { balance_nusd: NanoUsd, threshold_nusd: NanoUsd },
    BudgetThreshold(BudgetThreshold),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BudgetThreshold {
    pub of: BudgetOf,
    pub window: Window,
    pub percent: i64,
    pub limit_nusd: NanoUsd,
    pub spent_nusd: NanoUsd,
}

/// Whose budget it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetOf {
    /// The month's limit of a postpaid account.
    Account,
    /// A limit of the key.
    Key,
}

/// What has been spent and what is left at one time, of an account and its key.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Of a prepaid account.
    balance: Option<NanoUsd>,
    budgets: Vec<Budget>,
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    of: BudgetOf,
    window: Window,
    limit: NanoUsd,
    spent: NanoUsd,
}

impl Standing {
    /// To be asked after windows have been rolled.
    #[must_use]
    pub fn of(account: &Account, key: Option<&KeyBudget>) -> Self {
        let limit = account.limit_nusd.filter(|_| account.kind == AccountKind::Postpaid);
        let month = limit.map(|limit| Budget {
            of: BudgetOf::Account,
            window: Window::Month,
            limit,
            spent: account.period_charged_nusd,
        });
        let windows = key.into_iter().flat_map(KeyBudget::limited);
        let of_key = windows.map(|(window, limit, spent)| Budget {
            of: BudgetOf::Key,
            window,
            limit,
            spent,
        });
        Self {
            balance: (account.kind == AccountKind::Prepaid).then_some(account.balance_nusd),
            budgets: month.into_iter().chain(of_key).collect(),
        }
    }
}

impl AlertTerms {
    /// What was crossed from `before` to `after`, which have the same limits.
    #[must_use]
    pub fn crossed(&self, before: &Standing, after: &Standing) -> Vec<Alert> {
        let balance = self.low_balance_nusd.and_then(|threshold_nusd| {
            let (before, after) = (before.balance?, after.balance?);
            let is_crossed = before >= threshold_nusd && after < threshold_nusd;
            is_crossed.then_some(Alert::BalanceLow { balance_nusd: after, threshold_nusd })
        });
        let budgets = before.budgets.iter().zip(&after.budgets);
        let thresholds = budgets.flat_map(|(before, after)| {
            let crossed = self
                .budget_percents
                .iter()
                .filter(|percent| !before.has_reached(**percent) && after.has_reached(**percent));
            crossed.map(|percent| Alert::BudgetThreshold(after.at(*percent)))
        });
        balance.into_iter().chain(thresholds).collect()
    }
}

impl Budget {
    fn has_reached(&self, percent: i64) -> bool {
        i128::from(self.spent.0) * 100 >= i128::from(self.limit.0) * i128::from(percent)
    }

    fn at(&self, percent: i64) -> BudgetThreshold {
        let Self { of, window, limit, spent } = *self;
        BudgetThreshold { of, window, percent, limit_nusd: limit, spent_nusd: spent }
    }
}

impl Alert {
    /// Tells it from the others of the same request.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::BalanceLow { .. } => "balance_low".to_owned(),
            Self::BudgetThreshold(BudgetThreshold { of, window, percent, .. }) => {
                let of = match of {
                    BudgetOf::Account => "account",
                    BudgetOf::Key => "key",
                };
                format!("budget_threshold:{of}:{}:{percent}", window.name())
            }
        }
    }
}
