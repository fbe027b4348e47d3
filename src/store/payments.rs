//! What Stripe says, handled once: the event and what follows from it are one transaction.
//!
//! Invariants: an event that was handled changes nothing when it comes again; the ledger entries of
//! a payment sum to what its row says is kept, whatever came first, the payment or its refund.
//! Which entries those are is decided here, purely; balances are changed by `books`.

use crate::models::account::Account;
use crate::models::billing::DeliveryState;
use crate::models::ids::AccountId;
use crate::models::ledger::EntryKind;
use crate::models::money::{NanoUsd, OutOfRange};
use crate::models::payment::{Payment, PaymentEvent, Reversal, Subscription, taken_cents};
use crate::store::table::Table;
use crate::store::{Entry, LedgerOp, StoreError};
use async_trait::async_trait;
use serde::Serialize;
use std::time::Duration;

/// What an event says, as far as it concerns us.
#[derive(Clone, Debug)]
pub enum News {
    /// A top-up was paid.
    Paid(Payment),
    /// A refund or a dispute has come, or has changed.
    Reversed(Reversal),
    /// A subscription has begun, changed or ended.
    Subscribed(Subscribed),
    /// Usage that the sink had accepted was found to be at fault.
    Rejected(Vec<Rejected>),
    /// Nothing is changed; the event says why.
    Refused,
}

#[derive(Clone, Debug)]
pub struct Subscribed {
    pub subscription: Subscription,
    /// What a prepaid account falls back to.
    pub default_plan: Option<String>,
}

/// An export that does not count after all.
#[derive(Clone, Debug, Serialize)]
pub struct Rejected {
    pub id: String,
    pub state: DeliveryState,
    pub reason: String,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    Now,
    /// It was handled before: nothing was changed.
    Before,
    /// A sum would leave its range: nothing was changed.
    OutOfRange,
}

/// How the audit log and the ledger name who says it.
pub const ACTOR: &str = "stripe";

/// Stripe sends an event for three days, and again by hand for thirty. A credit stays single by its
/// reference beyond that. <https://docs.stripe.com/webhooks#retries>
pub const EVENTS_KEPT: Duration = Duration::from_secs(90 * 86_400);

#[async_trait]
pub trait PaymentStore: Send + Sync {
    /// Handles an event, once.
    async fn take_event(&self, event: &PaymentEvent, news: &News) -> Result<Handled, StoreError>;

    /// Whether this is the payment of a top-up.
    async fn payment_of(&self, intent: &str) -> Result<Option<Payment>, StoreError>;

    async fn subscription(&self, id: &str) -> Result<Option<Subscription>, StoreError>;

    /// The accounts of a customer; at most two, which is one too many.
    async fn accounts_of_customer(&self, customer: &str) -> Result<Vec<Account>, StoreError>;

    /// Accounts without a customer, a page of them.
    async fn accounts_without_customer(
        &self,
        after: Option<AccountId>,
    ) -> Result<Vec<Account>, StoreError>;

    async fn payments_after(&self, after: &str) -> Result<Vec<Payment>, StoreError>;

    async fn payment_events_after(&self, after: &str) -> Result<Vec<PaymentEvent>, StoreError>;
}

pub const PAYMENT_EVENTS: Table = Table {
    name: "payment_events",
    columns: &["id", "kind", "object", "state", "reason", "account_id", "created_at", "handled_at"],
};

/// What another try changes of an event that was refused.
pub const EVENT_OUTCOME: &[&str] = &["state", "reason", "account_id", "handled_at"];

pub const PAYMENTS: Table = Table {
    name: "payments",
    columns: &[
        "id",
        "account_id",
        "payment_intent",
        "paid_cents",
        "credited_nusd",
        "kept_nusd",
        "created_at",
    ],
};

pub const REVERSALS: Table = Table {
    name: "payment_reversals",
    columns: &["id", "payment_intent", "kind", "amount_cents", "state", "as_of"],
};

/// What a newer state changes of a reversal.
pub const REVERSAL_STATE: &[&str] = &["amount_cents", "state", "as_of"];

pub const SUBSCRIPTIONS: Table =
    Table { name: "subscriptions", columns: &["id", "account_id", "status", "plan", "as_of"] };

/// What a newer state changes of a subscription.
pub const SUBSCRIPTION_STATE: &[&str] = &["account_id", "status", "plan", "as_of"];

/// The reference of a payment's credit: there is one for each session, whichever event comes.
#[must_use]
pub fn credit_reference(session: &str) -> String {
    format!("stripe:{session}")
}

/// The session that a reference is of, where it is one of these.
#[must_use]
pub fn session_of(reference: &str) -> Option<&str> {
    reference.strip_prefix("stripe:")?.split(':').next()
}

/// The reference of each correction of a payment begins with that of its credit.
fn correction_reference(payment: &Payment, event: &PaymentEvent) -> String {
    format!("{}:{}:{}", credit_reference(&payment.id), event.object, event.id)
}

/// The entries that bring a payment to what is kept of it, and the payment as it is then. A new one
/// is credited whole first, so that the ledger shows what was paid and what was taken back.
///
/// # Errors
/// [`OutOfRange`] when an amount does not fit.
pub fn enter(
    payment: &Payment,
    is_new: bool,
    reversals: &[Reversal],
    event: &PaymentEvent,
) -> Result<(Payment, Vec<LedgerOp>), OutOfRange> {
    let mut ops = Vec::new();
    let account_id = payment.account_id;
    let entry = |kind, amount_nusd, reason, reference| {
        let entry = Entry {
            account_id,
            kind,
            amount_nusd,
            reason,
            reference: Some(reference),
            audit: None,
        };
        LedgerOp::Enter(entry.audited(ACTOR, event.handled_at))
    };
    if is_new {
        let reason = "paid through Stripe".to_owned();
        let reference = credit_reference(&payment.id);
        ops.push(entry(EntryKind::Credit, payment.credited_nusd, reason, reference));
    }
    let kept = payment.kept_after(taken_cents(payment.paid_cents, reversals))?;
    let before = if is_new { payment.credited_nusd } else { payment.kept_nusd };
    let difference = kept.minus(before)?;
    if difference != NanoUsd::ZERO {
        let reason = if difference < NanoUsd::ZERO { "taken back" } else { "given back" };
        let reason = format!("{reason} through Stripe");
        let reference = correction_reference(payment, event);
        ops.push(entry(EntryKind::Correction, difference, reason, reference));
    }
    Ok((Payment { kept_nusd: kept, ..payment.clone() }, ops))
}
