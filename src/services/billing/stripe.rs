//! Stripe: one merged meter event a call, one call at a time for a customer.
//!
//! Invariants: an export keeps its identifier over all tries, so that Stripe takes it once within
//! its window; past that window nothing is sent before the meter's summary has been read. An answer
//! of 5xx is what Stripe repeats for an idempotency key: the next try has another one, and the
//! identifier still holds. <https://docs.stripe.com/api/billing/meter-event/create>

pub mod api;
mod doubt;
pub mod stream;

use super::exporter::{Exporter, Trouble, Verdict, shortened};
use crate::config::StripeConfig;
use crate::error::Error;
use crate::models::billing::{DeliveryState, Export, reasons};
use crate::models::timestamp::Timestamp;
use crate::services::http::{Answer, retry_after};
use crate::store::exports::{OLDEST, SUMMARY_LAG};
use crate::store::{PAGE_ROWS_MAX, Store};
use api::{StripeApi, StripeError};
use axum::http::StatusCode;
use doubt::Found;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

pub struct Stripe {
    api: Arc<StripeApi>,
    doubts: Doubts,
    customer_key: String,
    value_key: String,
}

/// What has to be known of an export before it is sent, however that is.
struct Doubts {
    api: Arc<StripeApi>,
    store: Arc<dyn Store>,
    /// Ids of meters by their event names, as they are needed.
    meters: Mutex<HashMap<String, String>>,
}

/// Identifiers are unique within at least 24 hours; an hour less for clocks.
/// <https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api>
const IDENTIFIER_KEPT: Duration = Duration::from_secs(23 * 3_600);
const MINUTE: Duration = Duration::from_secs(60);

impl Stripe {
    #[must_use]
    pub fn new(config: &StripeConfig, store: Arc<dyn Store>, api: Arc<StripeApi>) -> Self {
        Self {
            doubts: Doubts::new(api.clone(), store),
            api,
            customer_key: config.customer_key.clone(),
            value_key: config.value_key.clone(),
        }
    }

    async fn deliver(&self, export: &Export) -> Verdict {
        match self.doubts.settle(export).await {
            Ok(()) => self.post(export).await,
            Err(verdict) => verdict,
        }
    }

    async fn post(&self, export: &Export) -> Verdict {
        let customer = format!("payload[{}]", self.customer_key);
        let value = format!("payload[{}]", self.value_key);
        let form = [
            ("event_name", export.meter.clone()),
            ("identifier", export.id.clone()),
            ("timestamp", export.used_at.unix_seconds().to_string()),
            (&customer, export.customer.clone()),
            (&value, export.value.to_string()),
        ];
        let key = format!("{}-{}", export.id, export.refusals);
        match self.api.post("/v1/billing/meter_events", &form, &key).await {
            Ok(answer) => verdict(&answer, &export.id, SystemTime::now()),
            Err(silence) => Verdict::Later(Trouble::silence(silence)),
        }
    }
}

impl Doubts {
    fn new(api: Arc<StripeApi>, store: Arc<dyn Store>) -> Self {
        Self { api, store, meters: Mutex::default() }
    }

    /// Nothing, when it may be sent; else what is known of it without sending.
    async fn settle(&self, export: &Export) -> Result<(), Verdict> {
        let now = Timestamp::now();
        if is_doubtful(export, now) {
            match self.was_counted(export).await? {
                Found::Counted => return Err(Verdict::Delivered),
                // What else of its minute is in doubt is asked after before this is sent anew.
                Found::Missing => return Err(Verdict::Missing),
                Found::Unclear => return Err(Verdict::Rejected(reasons::IN_DOUBT.to_owned())),
            }
        }
        if is_too_old(export, now) {
            return Err(Verdict::Rejected(reasons::TOO_OLD.to_owned()));
        }
        Ok(())
    }

    /// Whether the meter has counted this export, told by what its minute sums to.
    async fn was_counted(&self, export: &Export) -> Result<Found, Verdict> {
        let from = export.used_at.minute_start();
        let to = from.plus(MINUTE);
        let of = (export.customer.as_str(), export.meter.as_str());
        let exports = self.store.exports_used(of, from, to).await;
        let exports =
            exports.map_err(|error| Verdict::Later(Trouble::of_parcel(error.to_string(), None)))?;
        // There may be more of them than a page has.
        if i64::try_from(exports.len()).is_ok_and(|count| count >= PAGE_ROWS_MAX) {
            return Ok(Found::Unclear);
        }
        let meter = self.meter_id(export).await?;
        let summed = self.api.summed(&meter, &export.customer, from, to).await;
        let summed = summed.map_err(|error| self.unread(export, &error))?;
        let others = exports.iter().filter(|other| other.id != export.id);
        let mut known = 0_i64;
        let mut doubtful = Vec::new();
        let counted_before = Timestamp::now().minus(SUMMARY_LAG);
        let mut is_early = false;
        for other in others {
            match other.state {
                DeliveryState::Exported if other.next_attempt_at > counted_before => {
                    is_early = true;
                    doubtful.push(other.value);
                }
                DeliveryState::Exported => known = known.saturating_add(other.value),
                DeliveryState::Waiting | DeliveryState::Parked if other.first_sent_at.is_some() => {
                    doubtful.push(other.value);
                }
                // Never sent, or refused for good.
                DeliveryState::Waiting | DeliveryState::Parked | DeliveryState::Void => {}
            }
        }
        let found = doubt::judge(summed.saturating_sub(known), export.value, &doubtful);
        if found == Found::Unclear && is_early {
            let why = format!("{}: the summary may not have it all yet", reasons::IN_DOUBT);
            return Err(Verdict::Later(Trouble::of_parcel(why, None)));
        }
        tracing::warn!(export.id = export.id, "an answer from Stripe is a day late: {found:?}");
        Ok(found)
    }

    /// A summary that could not be read decides nothing. One that Stripe refuses, as that of a
    /// customer who is gone, it will refuse again: for a person, and nothing is the matter with the
    /// others. Should the meter be another one by then, its id is asked for anew.
    fn unread(&self, export: &Export, error: &Error) -> Verdict {
        if let Error::PaymentRefused(reason) = error {
            tracing::warn!(export.id = export.id, "Stripe tells no summary: {reason}");
            self.meters.lock().unwrap_or_else(PoisonError::into_inner).remove(&export.meter);
            return Verdict::Rejected(reasons::IN_DOUBT.to_owned());
        }
        untold(export, format!("{}: {error}", reasons::IN_DOUBT))
    }

    async fn meter_id(&self, export: &Export) -> Result<String, Verdict> {
        let event_name = &export.meter;
        let known = |meters: &Mutex<HashMap<String, String>>| {
            meters.lock().unwrap_or_else(PoisonError::into_inner).get(event_name).cloned()
        };
        if let Some(id) = known(&self.meters) {
            return Ok(id);
        }
        let found = self.api.meters().await;
        let found = found.map_err(|error| untold(export, error))?;
        *self.meters.lock().unwrap_or_else(PoisonError::into_inner) = found;
        known(&self.meters).ok_or_else(|| Verdict::Rejected(reasons::IN_DOUBT.to_owned()))
    }
}

impl Exporter for Stripe {
    type Parcel = Export;

    const SINK: &'static str = crate::config::STRIPE;
    /// Of different customers.
    const CALLS_MAX: usize = 16;

    async fn send(&self, parcels: &[Export]) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(parcels.len());
        for export in parcels {
            verdicts.push(self.deliver(export).await);
        }
        verdicts
    }
}

/// Stripe was asked and did not tell. Of what it would not take any more it need not be asked for
/// ever: a person may know, or have it asked once more.
fn untold(export: &Export, why: String) -> Verdict {
    if is_too_old(export, Timestamp::now()) {
        tracing::warn!(export.id = export.id, "Stripe tells nothing, and takes it no more: {why}");
        return Verdict::Rejected(reasons::IN_DOUBT.to_owned());
    }
    Verdict::Later(Trouble::of_sink(why, None))
}

/// Not younger than planned: a day of the 35 is left.
fn is_too_old(export: &Export, now: Timestamp) -> bool {
    export.used_at < now.minus(OLDEST)
}

/// It may have arrived so long ago that its identifier is forgotten.
fn is_doubtful(export: &Export, now: Timestamp) -> bool {
    now.since(export.first_sent_at.unwrap_or(now)) > IDENTIFIER_KEPT
}

/// What an answer to a meter event means.
fn verdict(answer: &Answer, identifier: &str, now: SystemTime) -> Verdict {
    let status = answer.status;
    if status.is_success() {
        return Verdict::Delivered;
    }
    let StripeError { kind, code, message } = StripeError::read(&answer.body);
    // Stripe has no code for this: <https://github.com/langfuse/langfuse/pull/16292>
    let names_it = message.contains("already exists")
        && (message.contains(identifier) || message.contains("identifier"));
    if status == StatusCode::BAD_REQUEST && names_it {
        return Verdict::Delivered;
    }
    let reason = shortened(&format!("{} {code} {message}", status.as_u16()));
    let after = retry_after(&answer.headers, now);
    let asks_again = answer.headers.get("stripe-should-retry").is_some_and(|v| v == "true");
    match status {
        // The operator's key, or Stripe itself.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Verdict::Later(Trouble::of_sink(reason, after).not_taken())
        }
        // Not stored under the idempotency key.
        StatusCode::TOO_MANY_REQUESTS => {
            let of = if code == "lock_timeout" { Trouble::of_parcel } else { Trouble::of_sink };
            Verdict::Later(Trouble { is_answer: false, ..of(reason, after).not_taken() })
        }
        // The same key is in use, by a call of ours whose answer was lost.
        StatusCode::CONFLICT => {
            Verdict::Later(Trouble { is_answer: false, ..Trouble::of_parcel(reason, after) })
        }
        _ if status.is_server_error() => Verdict::Later(Trouble::of_sink(reason, after)),
        // Another key, the same identifier.
        _ if kind == "idempotency_error" => Verdict::Later(Trouble::of_parcel(reason, after)),
        _ if asks_again => Verdict::Later(Trouble::of_parcel(reason, after)),
        StatusCode::BAD_REQUEST
        | StatusCode::PAYMENT_REQUIRED
        | StatusCode::NOT_FOUND
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY
            if !kind.is_empty() =>
        {
            Verdict::Rejected(reason)
        }
        // Nor by whoever stands before it.
        _ => Verdict::Later(Trouble::of_sink(reason, after)),
    }
}

#[cfg(test)]
mod tests;
