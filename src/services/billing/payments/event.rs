//! Stripe's events, read as far as they concern us.
//!
//! Invariants: only events whose signature is good come here; of an object only members that are
//! the same in every version of the API are read; a member that is needed and missing is an error,
//! never a zero. Whose account it is in our books is not asked here.
//! <https://docs.stripe.com/api/events/types>

use crate::error::Error;
use crate::models::ids::AccountId;
use crate::models::money::NanoUsd;
use crate::models::openai::request::Invalid;
use crate::models::payment::{NANO_PER_CENT, Reversal, ReversalKind, ReversalState};
use crate::models::timestamp::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::collections::HashMap;

/// In the metadata of what we make at Stripe, and of what an operator wants us to know.
pub const ACCOUNT_KEY: &str = "tollgate_account_id";
pub const CREDIT_KEY: &str = "tollgate_credit_nusd";
/// On an operator's payment link, whose sessions have it too: `yes`, it buys credit. What a session
/// refers to is written by whoever opens the link, which may be that of a shirt.
const TOPUP_KEY: &str = "tollgate_topup";
pub const PLAN_KEY: &str = "tollgate_plan";

/// The one currency of the books.
const CURRENCY: &str = "usd";
/// As long as Stripe's ids get. <https://docs.stripe.com/upgrades>
const ID_CHARACTERS_MAX: usize = 255;

/// What every event has. The thin events of Stripe's second API have no `data`, and their time is
/// a text.
#[derive(Debug, Deserialize)]
pub struct Event<'a> {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(deserialize_with = "time")]
    pub created: Timestamp,
    #[serde(default)]
    pub livemode: Option<bool>,
    #[serde(borrow, default)]
    pub data: Option<&'a RawValue>,
}

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing that concerns us.
    Nothing,
    Paid(Paid),
    Reversed {
        reversal: Reversal,
        currency: String,
    },
    Subscribed(SubscriptionTold),
    /// Usage was found to be at fault.
    Rejected(Option<ErrorReport>),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Paid {
    pub session: String,
    /// `None`: it names an account in a way that cannot be read.
    pub account_id: Option<AccountId>,
    /// Somebody with the operator's key says that it buys credit; else it may be of another trade.
    pub is_marked: bool,
    pub payment_intent: String,
    pub currency: String,
    pub cents: i64,
    /// `None`: less was paid than is to be credited.
    pub credit: Option<NanoUsd>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct SubscriptionTold {
    pub id: String,
    pub customer: String,
    pub account: Option<String>,
    pub status: String,
    /// Named as plans of ours.
    pub named_plans: Vec<String>,
    /// Names that may be plans of ours.
    pub lookup_keys: Vec<String>,
}

/// <https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api#handle-errors>
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ErrorReport {
    pub developer_message_summary: String,
    pub reason: Reason,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Reason {
    pub error_count: i64,
    pub error_types: Vec<ErrorType>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ErrorType {
    pub code: String,
    pub sample_errors: Vec<SampleError>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SampleError {
    pub error_message: String,
    pub request: SampleRequest,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SampleRequest {
    pub identifier: String,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    object: &'a RawValue,
}

impl<'a> Event<'a> {
    /// # Errors
    /// [`Error::Invalid`] when it is no event.
    pub fn read(body: &'a [u8]) -> Result<Self, Error> {
        let event: Self = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
        is_id(&event.id)?;
        is_id(&event.kind)?;
        Ok(event)
    }

    /// # Errors
    /// [`Error::Invalid`] when what it is about does not read as it should.
    pub fn told(&self) -> Result<Told, Error> {
        match self.kind.as_str() {
            "checkout.session.completed" | "checkout.session.async_payment_succeeded" => {
                self.object::<Session>()?.told()
            }
            "charge.refunded" => self.object::<Charge>()?.told(self.created),
            "refund.created" | "refund.updated" | "refund.failed" | "charge.refund.updated" => {
                self.object::<Refund>()?.told(self.created)
            }
            "charge.dispute.created"
            | "charge.dispute.updated"
            | "charge.dispute.closed"
            | "charge.dispute.funds_withdrawn"
            | "charge.dispute.funds_reinstated" => {
                self.object::<Dispute>()?.told(&self.kind, self.created)
            }
            "customer.subscription.created"
            | "customer.subscription.updated"
            | "customer.subscription.deleted"
            | "customer.subscription.paused"
            | "customer.subscription.resumed" => self.object::<Subscription>()?.told(),
            "v1.billing.meter.error_report_triggered" | "v1.billing.meter.no_meter_found" => {
                let report = self.data.map(|data| serde_json::from_str(data.get()));
                Ok(Told::Rejected(report.transpose().map_err(|error| unreadable(&error))?))
            }
            _ => Ok(Told::Nothing),
        }
    }

    fn object<T: Deserialize<'a>>(&self) -> Result<T, Error> {
        let data = self.data.map_or("null", RawValue::get);
        let data: Data<'a> = serde_json::from_str(data).map_err(|error| unreadable(&error))?;
        serde_json::from_str(data.object.get()).map_err(|error| unreadable(&error))
    }
}

/// Stripe shows this to whoever looks after its webhooks.
fn unreadable(error: &serde_json::Error) -> Error {
    let message = format!("The event does not read as one of Stripe: {error}.");
    Error::Invalid(Invalid { message, param: None })
}

/// An id as the tables take it.
pub fn is_id(text: &str) -> Result<(), Error> {
    let fits = (1..=ID_CHARACTERS_MAX).contains(&text.len());
    if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(Error::invalid("id", "it is no id of Stripe"))
}

/// Seconds since 1970, or RFC 3339.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Time {
        Seconds(u32),
        Text(String),
    }
    match Time::deserialize(deserializer)? {
        Time::Seconds(seconds) => Ok(Timestamp::from_unix_seconds(seconds.into())),
        Time::Text(text) => {
            Timestamp::parse(&text).ok_or_else(|| serde::de::Error::custom("no time"))
        }
    }
}

/// Another object, by its id or, where it is expanded, whole.
/// <https://docs.stripe.com/api/expanding_objects>
#[derive(Deserialize)]
#[serde(untagged)]
enum Link {
    Id(String),
    Object { id: String },
}

impl Link {
    fn id(self) -> Result<String, Error> {
        let (Self::Id(id) | Self::Object { id }) = self;
        is_id(&id).map(|()| id)
    }
}

type Metadata = Option<HashMap<String, String>>;

fn named(metadata: &Metadata, key: &str) -> Option<String> {
    metadata.as_ref()?.get(key).cloned()
}

fn positive(param: &'static str, cents: i64) -> Result<i64, Error> {
    if cents >= 0 { Ok(cents) } else { Err(Error::invalid(param, "it is negative")) }
}

// === top-ups ===

#[derive(Deserialize)]
struct Session {
    id: String,
    mode: String,
    payment_status: String,
    currency: Option<String>,
    amount_total: Option<i64>,
    #[serde(default)]
    total_details: Option<TotalDetails>,
    #[serde(default)]
    client_reference_id: Option<String>,
    #[serde(default)]
    payment_intent: Option<Link>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TotalDetails {
    amount_tax: i64,
    amount_shipping: Option<i64>,
}

impl Session {
    /// A session that we made says what was bought; one by an operator's payment link that is
    /// marked, and has the account as its reference, buys for what was paid without taxes.
    fn told(self) -> Result<Told, Error> {
        is_id(&self.id)?;
        let paid_cents = positive("amount_total", self.amount_total.unwrap_or_default())?;
        // Money that is on its way is told of by another event.
        if self.mode != "payment" || self.payment_status != "paid" || paid_cents == 0 {
            return Ok(Told::Nothing);
        }
        let named_account = named(&self.metadata, ACCOUNT_KEY);
        let is_marked =
            named_account.is_some() || named(&self.metadata, TOPUP_KEY).as_deref() == Some("yes");
        let account = named_account.or_else(|| self.client_reference_id.clone());
        if account.is_none() && !is_marked {
            return Ok(Told::Nothing);
        }
        let credit = self.credit(paid_cents);
        let payment_intent = self.payment_intent.map(Link::id).transpose()?;
        Ok(Told::Paid(Paid {
            account_id: account.and_then(|account| account.parse().ok()),
            is_marked,
            payment_intent: payment_intent.unwrap_or_else(|| self.id.clone()),
            session: self.id,
            currency: self.currency.unwrap_or_default(),
            cents: paid_cents,
            credit,
        }))
    }

    fn credit(&self, paid_cents: i64) -> Option<NanoUsd> {
        let paid = paid_cents.checked_mul(NANO_PER_CENT)?;
        let credit = if let Some(bought) = named(&self.metadata, CREDIT_KEY) {
            bought.parse().ok()?
        } else {
            let details = self.total_details.as_ref();
            let tax = details.map_or(0, |it| it.amount_tax);
            let shipping = details.and_then(|it| it.amount_shipping).unwrap_or_default();
            let net = paid_cents.checked_sub(tax)?.checked_sub(shipping)?;
            net.checked_mul(NANO_PER_CENT)?
        };
        (1..=paid).contains(&credit).then_some(NanoUsd(credit))
    }
}

// === what is taken back ===

#[derive(Deserialize)]
struct Charge {
    id: String,
    amount_refunded: i64,
    currency: String,
    #[serde(default)]
    payment_intent: Option<Link>,
}

#[derive(Deserialize)]
struct Refund {
    id: String,
    amount: i64,
    currency: String,
    #[serde(default)]
    payment_intent: Option<Link>,
    #[serde(default)]
    status: Option<String>,
}

#[derive(Deserialize)]
struct Dispute {
    id: String,
    amount: i64,
    currency: String,
    #[serde(default)]
    payment_intent: Option<Link>,
    status: String,
}

impl Charge {
    fn told(self, as_of: Timestamp) -> Result<Told, Error> {
        let of = (ReversalKind::Charge, ReversalState::Taken);
        reversed(self.id, of, (self.amount_refunded, self.currency), self.payment_intent, as_of)
    }
}

impl Refund {
    fn told(self, as_of: Timestamp) -> Result<Told, Error> {
        let state = match self.status.as_deref() {
            Some("failed" | "canceled") => ReversalState::Returned,
            _ => ReversalState::Taken,
        };
        let of = (ReversalKind::Refund, state);
        reversed(self.id, of, (self.amount, self.currency), self.payment_intent, as_of)
    }
}

impl Dispute {
    /// An inquiry (`warning_…`) takes no money yet.
    fn told(self, kind: &str, as_of: Timestamp) -> Result<Told, Error> {
        let is_taken = match kind {
            "charge.dispute.funds_withdrawn" => true,
            "charge.dispute.funds_reinstated" => false,
            _ => {
                let is_free = matches!(self.status.as_str(), "won" | "prevented");
                !is_free && !self.status.starts_with("warning_")
            }
        };
        let state = if is_taken { ReversalState::Taken } else { ReversalState::Returned };
        let of = (ReversalKind::Dispute, state);
        reversed(self.id, of, (self.amount, self.currency), self.payment_intent, as_of)
    }
}

fn reversed(
    id: String,
    (kind, state): (ReversalKind, ReversalState),
    (amount, currency): (i64, String),
    payment_intent: Option<Link>,
    as_of: Timestamp,
) -> Result<Told, Error> {
    is_id(&id)?;
    let amount_cents = positive("amount", amount)?;
    // Our payments have one.
    let Some(payment_intent) = payment_intent else { return Ok(Told::Nothing) };
    let payment_intent = payment_intent.id()?;
    let reversal = Reversal { id, payment_intent, kind, amount_cents, state, as_of };
    Ok(Told::Reversed { reversal, currency })
}

#[must_use]
pub fn is_ours(currency: &str) -> bool {
    currency.eq_ignore_ascii_case(CURRENCY)
}

// === subscriptions ===

#[derive(Deserialize)]
struct Subscription {
    id: String,
    customer: Link,
    status: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    items: Items,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Items {
    data: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    price: Option<Price>,
}

#[derive(Deserialize)]
struct Price {
    #[serde(default)]
    lookup_key: Option<String>,
    #[serde(default)]
    metadata: Metadata,
}

impl Subscription {
    fn told(self) -> Result<Told, Error> {
        is_id(&self.id)?;
        let prices = || self.items.data.iter().filter_map(|item| item.price.as_ref());
        let by_prices = prices().filter_map(|price| named(&price.metadata, PLAN_KEY));
        Ok(Told::Subscribed(SubscriptionTold {
            account: named(&self.metadata, ACCOUNT_KEY),
            named_plans: named(&self.metadata, PLAN_KEY).into_iter().chain(by_prices).collect(),
            lookup_keys: prices().filter_map(|price| price.lookup_key.clone()).collect(),
            id: self.id,
            customer: self.customer.id()?,
            status: self.status,
        }))
    }
}

#[cfg(test)]
mod tests;
