//! Plans as they are shown to whoever runs this: what each gives, with the markups that its
//! accounts pay.
//!
//! Invariant: what is shown is what the table in force says; nothing is decided here.

use super::table::{OperatorTable, Plan};
use crate::models::account::AccountKind;
use crate::models::key::KeyLimits;
use crate::models::limits::{LimitsInForce, RateLimits};
use crate::models::money::{Markup, NanoUsd};
use serde::Serialize;

/// A plan of the table in force.
#[derive(Debug, Serialize)]
pub struct PlanInForce {
    pub name: String,
    kind: AccountKind,
    /// Postpaid: most to spend in a calendar month.
    limit_nusd: Option<NanoUsd>,
    #[serde(flatten)]
    rates: RateLimits,
    /// What its keys get.
    key: KeyTerms,
    /// Of those that fit a model, the first counts. They are not for models with a price of the
    /// table's own.
    markups: Vec<MarkupRule>,
}

#[derive(Debug, Serialize)]
struct KeyTerms {
    day_limit_nusd: Option<NanoUsd>,
    week_limit_nusd: Option<NanoUsd>,
    month_limit_nusd: Option<NanoUsd>,
    total_limit_nusd: Option<NanoUsd>,
    #[serde(flatten)]
    rates: RateLimits,
}

#[derive(Debug, Serialize)]
struct MarkupRule {
    /// A name, or a prefix and `*`.
    model: String,
    markup_ppm: Markup,
}

impl PlanInForce {
    /// Every plan of the table whose name comes after `after`, in the order of names.
    pub(super) fn after(table: &OperatorTable, usual: Markup, after: &str) -> Vec<Self> {
        let plans = table.plans().filter(|name| *name > after).filter_map(|name| table.plan(name));
        let mut rows: Vec<_> = plans.map(|plan| Self::of(table, plan, usual)).collect();
        rows.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    fn of(table: &OperatorTable, plan: &Plan, usual: Markup) -> Self {
        let rule = |(model, markup_ppm): (&str, Markup)| MarkupRule {
            model: model.to_owned(),
            markup_ppm,
        };
        let last = ("*", plan.markup.unwrap_or(usual));
        let KeyLimits { day, week, month, total } = plan.key_limits;
        let LimitsInForce { account, key } = plan.rates;
        Self {
            name: plan.name.clone(),
            kind: plan.kind,
            limit_nusd: plan.limit_nusd,
            rates: account,
            key: KeyTerms {
                day_limit_nusd: day,
                week_limit_nusd: week,
                month_limit_nusd: month,
                total_limit_nusd: total,
                rates: key,
            },
            markups: table.markups_of(&plan.name).chain([last]).map(rule).collect(),
        }
    }
}
