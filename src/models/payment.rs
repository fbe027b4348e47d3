//! What Stripe has said of payments and subscriptions, as rows, and what follows from them.
//!
//! Invariants: which of two states of an object is kept does not depend on the order in which they
//! come; `kept = credited × (paid - taken back) / paid`, from zero to what was credited. Pure.
//! Reading Stripe's events is not done here, nor is anything entered.

use super::account::{Account, AccountKind, AccountStatus};
use super::ids::AccountId;
use super::money::{NanoUsd, OutOfRange};
use super::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

/// Nano-USD in a cent.
pub const NANO_PER_CENT: i64 = 10_000_000;

/// An event of Stripe, as it is remembered so that it is handled once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentEvent {
    /// `evt_…`
    pub id: String,
    /// Its type at Stripe.
    pub kind: String,
    /// The object that it is about.
    pub object: String,
    pub state: EventState,
    pub reason: Option<String>,
    /// Whose books or settings it is about, where that is known.
    pub account_id: Option<AccountId>,
    /// By Stripe's clock, in whole seconds.
    pub created_at: Timestamp,
    pub handled_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventState {
    Handled,
    /// Nothing was changed, and somebody should look. It may come again.
    Refused,
}

/// A top-up that was paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// Its checkout session.
    pub id: String,
    pub account_id: AccountId,
    /// What refunds and disputes name.
    pub payment_intent: String,
    /// With taxes; what refunds are a part of.
    pub paid_cents: i64,
    pub credited_nusd: NanoUsd,
    /// The sum of its ledger entries.
    pub kept_nusd: NanoUsd,
    pub created_at: Timestamp,
}

/// Something that takes a payment back, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reversal {
    pub id: String,
    pub payment_intent: String,
    pub kind: ReversalKind,
    pub amount_cents: i64,
    pub state: ReversalState,
    /// Of the event that says so.
    pub as_of: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReversalKind {
    /// One refund.
    Refund,
    /// One dispute.
    Dispute,
    /// The sum of all refunds, as their charge names it.
    Charge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReversalState {
    Taken,
    /// A refund that failed, a dispute that was won.
    Returned,
}

impl Reversal {
    /// Whether this is a newer state than the other of the same object. Within one second, the most
    /// that Stripe tells, what is final goes first, and then the larger sum.
    #[must_use]
    pub fn supersedes(&self, other: &Self) -> bool {
        let rank = |one: &Self| (one.as_of, one.state == ReversalState::Returned, one.amount_cents);
        rank(self) > rank(other)
    }
}

/// How many cents of a payment are taken back. Refunds come as objects of their own, as a sum in
/// their charge, or as both: the larger counts. A charge's sum does not tell of refunds that failed
/// since.
#[must_use]
pub fn taken_cents(paid_cents: i64, reversals: &[Reversal]) -> i64 {
    let sum = |kind: ReversalKind, state: ReversalState, since: Option<Timestamp>| -> i128 {
        let of = reversals.iter().filter(|it| it.kind == kind && it.state == state);
        let of = of.filter(|it| since.is_none_or(|since| it.as_of >= since));
        of.map(|it| i128::from(it.amount_cents)).sum()
    };
    let charges = reversals.iter().filter(|it| it.kind == ReversalKind::Charge);
    let told_at = charges.map(|it| it.as_of).max();
    let told = sum(ReversalKind::Charge, ReversalState::Taken, None);
    let failed_since = match told_at {
        Some(_) => sum(ReversalKind::Refund, ReversalState::Returned, told_at),
        None => 0,
    };
    let refunds = sum(ReversalKind::Refund, ReversalState::Taken, None).max(told - failed_since);
    let disputes = sum(ReversalKind::Dispute, ReversalState::Taken, None);
    let taken = (refunds + disputes).clamp(0, i128::from(paid_cents.max(0)));
    // It is not above `paid_cents`.
    i64::try_from(taken).unwrap_or(paid_cents)
}

impl Payment {
    /// What the account keeps of the credit when so much of the payment is taken back; what is less
    /// than a nano-USD is taken too.
    ///
    /// # Errors
    /// [`OutOfRange`] where nothing was paid.
    pub fn kept_after(&self, taken_cents: i64) -> Result<NanoUsd, OutOfRange> {
        let paid = i128::from(self.paid_cents);
        let left = i128::from(self.paid_cents.saturating_sub(taken_cents).max(0));
        let kept = i128::from(self.credited_nusd.0)
            .checked_mul(left)
            .and_then(|product| product.checked_div(paid))
            .ok_or(OutOfRange)?;
        i64::try_from(kept).map(NanoUsd).map_err(|_| OutOfRange)
    }
}

/// A subscription that says something of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    pub id: String,
    pub account_id: AccountId,
    pub status: SubscriptionStatus,
    pub plan: Option<String>,
    /// Of the event that says so.
    pub as_of: Timestamp,
}

/// <https://docs.stripe.com/api/subscriptions/object#subscription_object-status>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionStatus {
    Incomplete,
    IncompleteExpired,
    Trialing,
    Active,
    PastDue,
    Canceled,
    Unpaid,
    Paused,
}

impl SubscriptionStatus {
    /// It pays, or Stripe still tries to collect.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Active | Self::Trialing | Self::PastDue)
    }

    /// It pays no more. One that ended before it began gave nothing that could be taken.
    fn is_over(self) -> bool {
        matches!(self, Self::Unpaid | Self::Canceled | Self::Paused)
    }

    /// It is so before it is anything else.
    fn is_first(self) -> bool {
        self == Self::Incomplete
    }

    /// It stays so for ever.
    fn is_final(self) -> bool {
        matches!(self, Self::Canceled | Self::IncompleteExpired)
    }
}

impl Subscription {
    /// Whether it is neither what an account lives by nor what it lived by: it has not begun yet,
    /// or never will. `before`: its state so far.
    #[must_use]
    pub fn is_idle(&self, before: Option<&Self>) -> bool {
        use SubscriptionStatus::{Incomplete, IncompleteExpired};
        matches!(self.status, Incomplete | IncompleteExpired)
            && before.is_none_or(|before| before.status.is_first())
    }

    /// Whether this is a newer state than the other of the same subscription. What has ended never
    /// begins again, and `incomplete` is only ever the first; within one second, what comes later
    /// counts. <https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses>
    #[must_use]
    pub fn supersedes(&self, other: &Self) -> bool {
        match (self.status.is_final(), other.status.is_final()) {
            (true, false) => true,
            (false, true) => false,
            _ => match (self.status.is_first(), other.status.is_first()) {
                (true, false) => false,
                (false, true) => true,
                _ => self.as_of >= other.as_of,
            },
        }
    }
}

/// What an account's subscriptions make of it. One that is good gives its plan and ends a
/// suspension that was theirs; when none is good any more, a postpaid account is suspended, and a
/// prepaid one, which owes nothing, falls back from their plan to the plan of new accounts.
///
/// `before` is what the newest of them was so far. Its plan is theirs too: the state that gave the
/// last one may come too late to be counted. Where it has become another account's, this one loses
/// what it gave, and goes on by itself when it has no other.
#[must_use]
pub fn subscribed(
    account: &Account,
    subscriptions: &[Subscription],
    before: Option<&Subscription>,
    is_suspension_ours: bool,
    default_plan: Option<&str>,
) -> Account {
    let mut after = account.clone();
    let is_resumed = account.status == AccountStatus::Suspended && is_suspension_ours;
    let good = subscriptions.iter().filter(|it| it.status.is_good());
    let newest = good.clone().filter(|it| it.plan.is_some()).max_by_key(|it| (it.as_of, &it.id));
    if good.count() > 0 {
        if let Some(newest) = newest {
            after.plan.clone_from(&newest.plan);
        }
        if is_resumed {
            after.status = AccountStatus::Active;
        }
        return after;
    }
    let before = before.filter(|it| it.account_id == account.id);
    let has_left = before.is_some_and(|it| subscriptions.iter().all(|other| other.id != it.id));
    let over = || subscriptions.iter().filter(|it| it.status.is_over());
    let is_over = over().count() > 0;
    if !is_over && !has_left {
        return after;
    }
    if is_over && account.kind == AccountKind::Postpaid {
        after.status = AccountStatus::Suspended;
        return after;
    }
    if !is_over && is_resumed {
        after.status = AccountStatus::Active;
    }
    // A plan that somebody else gave stays.
    let mut theirs = over().chain(before);
    if account.plan.is_some() && theirs.any(|it| it.plan == account.plan) {
        after.plan = default_plan.map(str::to_owned);
    }
    after
}

#[cfg(test)]
mod tests;
