//! Where a worker takes its parcels from and puts their verdicts: the events themselves, or the
//! exports they were merged into.
//!
//! Invariant: what is taken is leased, so that no other process has it; what becomes of it is
//! written down in one transaction.

use super::exporter::Verdict;
use super::pace::backoff;
use crate::config::STRIPE;
use crate::models::billing::{DeliveryState, Export, Meter, Outgoing};
use crate::models::timestamp::Timestamp;
use crate::store::exports::{ExportDone, FirstSent, LaneClaim};
use crate::store::outbox::{Claim, EventDone};
use crate::store::{Store, StoreError};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The right to what is taken, for a time.
#[derive(Clone, Debug)]
pub struct Lease {
    pub by: String,
    pub now: Timestamp,
    pub until: Timestamp,
}

/// Calls that go one after the other; each has some parcels.
pub type Lane<P> = Vec<Vec<P>>;

/// Parcels with what became of them.
pub type Done<P> = Vec<(P, Verdict)>;

pub trait Queue: Send + Sync {
    type Parcel: Send + Sync;

    /// Takes what is due, at most so many lanes.
    fn take(
        &self,
        lease: &Lease,
        lanes: usize,
    ) -> impl Future<Output = Result<Vec<Lane<Self::Parcel>>, StoreError>> + Send;

    /// Writes down what became of whole lanes.
    fn finish(
        &self,
        lease: &Lease,
        done: &Done<Self::Parcel>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// How an attempt ended, as it is written down.
struct Ended {
    state: DeliveryState,
    next_attempt_at: Timestamp,
    reason: Option<String>,
    is_answer: bool,
}

impl Ended {
    fn new(verdict: &Verdict, attempts: i64, reason: Option<&String>) -> Self {
        let now = Timestamp::now();
        let waiting = |next_attempt_at, reason, is_answer| Self {
            state: DeliveryState::Waiting,
            next_attempt_at,
            reason,
            is_answer,
        };
        match verdict {
            Verdict::Delivered => Self {
                state: DeliveryState::Exported,
                next_attempt_at: now,
                reason: None,
                is_answer: true,
            },
            Verdict::Later(trouble) => {
                let pause = backoff(attempts, trouble.after, random());
                waiting(now.plus(pause), Some(trouble.reason.clone()), trouble.is_answer)
            }
            Verdict::Rejected(why) => Self {
                state: DeliveryState::Parked,
                next_attempt_at: now,
                reason: Some(why.clone()),
                is_answer: true,
            },
            Verdict::Together(_) | Verdict::Untouched => waiting(now, reason.cloned(), false),
            Verdict::Missing => waiting(now, None, false),
        }
    }
}

/// For spreading retries only: should there be no randomness, they are not spread.
fn random() -> u8 {
    let mut byte = [0];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    byte[0]
}

// === events as they are ===

pub struct EventQueue {
    store: Arc<dyn Store>,
    sink: &'static str,
    per_call: usize,
}

impl EventQueue {
    pub fn new(store: Arc<dyn Store>, sink: &'static str, per_call: usize) -> Self {
        Self { store, sink, per_call }
    }
}

impl Queue for EventQueue {
    type Parcel = Outgoing;

    async fn take(&self, lease: &Lease, lanes: usize) -> Result<Vec<Lane<Outgoing>>, StoreError> {
        let limit = i64::try_from(lanes.saturating_mul(self.per_call)).unwrap_or(i64::MAX);
        let claim = Claim { sink: self.sink, now: lease.now, until: lease.until, limit };
        let events = self.store.claim_events(claim).await?;
        if events.is_empty() {
            return Ok(vec![]);
        }
        let mut outgoing = self.store.outgoing(events).await?;
        outgoing.sort_by(|a, b| a.event.id.cmp(&b.event.id));
        let mut lanes = Vec::new();
        while !outgoing.is_empty() {
            let rest = outgoing.split_off(self.per_call.min(outgoing.len()));
            lanes.push(vec![std::mem::replace(&mut outgoing, rest)]);
        }
        Ok(lanes)
    }

    async fn finish(&self, _: &Lease, done: &Done<Outgoing>) -> Result<(), StoreError> {
        let row = |(Outgoing { event, .. }, verdict): &(Outgoing, Verdict)| {
            let ended = Ended::new(verdict, event.attempts, event.reason.as_ref());
            let Ended { state, next_attempt_at, reason, .. } = ended;
            EventDone { id: event.id.clone(), state, next_attempt_at, reason }
        };
        let rows: Vec<EventDone> = done.iter().map(row).collect();
        self.store.finish_events(&rows, Timestamp::now()).await
    }
}

// === events merged into exports ===

pub struct ExportQueue {
    store: Arc<dyn Store>,
    meters: Vec<Meter>,
    /// Exports in one call; of more than one customer where it is more than one.
    per_call: usize,
    /// When accounts that had no customer were last looked at.
    looked_at: Mutex<Option<Instant>>,
}

/// Events merged in one transaction: more of them merge better, and larger ones would keep
/// settlements waiting on SQLite.
const EVENTS_PER_PLAN: i64 = 2_000;
/// Plans before something is sent.
const PLANS_MAX: usize = 4;
/// A customer's exports that are taken at once.
const EXPORTS_PER_LANE: i64 = 20;
/// Customers taken for each call that has room for many: with a few exports each, it is filled.
const CUSTOMERS_PER_CALL: usize = 20;
/// How soon a customer that was set is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl ExportQueue {
    pub fn new(store: Arc<dyn Store>, meters: Vec<Meter>, per_call: usize) -> Self {
        Self { store, meters, per_call, looked_at: Mutex::new(None) }
    }

    /// Customers that may fill so many lanes.
    fn customers(&self, lanes: usize) -> usize {
        if self.per_call > 1 { lanes.saturating_mul(CUSTOMERS_PER_CALL) } else { lanes }
    }

    fn may_look(&self) -> bool {
        let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY);
        if is_due {
            *looked_at = Some(Instant::now());
        }
        is_due
    }

    async fn plan(&self) -> Result<(), StoreError> {
        let now = Timestamp::now();
        if self.may_look() && self.store.wake_customers(STRIPE, now).await? > 0 {
            tracing::info!("accounts have a Stripe customer now: their events are sent");
        }
        for _ in 0..PLANS_MAX {
            let planned =
                self.store.plan_exports(STRIPE, &self.meters, now, EVENTS_PER_PLAN).await?;
            if planned.without_customer > 0 {
                let events = planned.without_customer;
                tracing::info!(events, "parked: their accounts have no Stripe customer");
            }
            if planned.refused > 0 {
                let events = planned.refused;
                tracing::error!(events, "parked: Stripe would not take them any more");
            }
            if i64::try_from(planned.taken).unwrap_or(i64::MAX) < EVENTS_PER_PLAN {
                break;
            }
        }
        Ok(())
    }
}

/// A call each, of whole customers: a customer's lease ends with its call.
fn packed<'a>(
    by_customer: impl Iterator<Item = &'a [Export]>,
    per_call: usize,
) -> Vec<Lane<Export>> {
    let mut calls: Vec<Vec<Export>> = Vec::new();
    for exports in by_customer {
        match calls.last_mut().filter(|call| call.len() + exports.len() <= per_call) {
            Some(call) => call.extend_from_slice(exports),
            None => calls.push(exports.to_vec()),
        }
    }
    calls.into_iter().map(|call| vec![call]).collect()
}

fn claim(lease: &Lease, lanes: usize) -> LaneClaim<'_> {
    LaneClaim {
        sink: STRIPE,
        by: &lease.by,
        now: lease.now,
        until: lease.until,
        lanes: i64::try_from(lanes).unwrap_or(i64::MAX),
        exports_per_lane: EXPORTS_PER_LANE,
    }
}

/// Since when an export may have arrived, where an attempt has changed what is known of that. One
/// that had never been sent has no time of its first attempt while it is in our hands.
fn first_sent(export: &Export, verdict: &Verdict) -> Option<FirstSent> {
    let is_unsent = match verdict {
        // What was taken just before may not be summed yet: its identifier is known for a day.
        Verdict::Missing => return Some(FirstSent::At(Timestamp::now())),
        Verdict::Untouched | Verdict::Together(_) | Verdict::Rejected(_) => true,
        Verdict::Later(trouble) => !trouble.may_have_arrived,
        Verdict::Delivered => false,
    };
    (is_unsent && export.first_sent_at.is_none()).then_some(FirstSent::Never)
}

impl Queue for ExportQueue {
    type Parcel = Export;

    async fn take(&self, lease: &Lease, lanes: usize) -> Result<Vec<Lane<Export>>, StoreError> {
        self.plan().await?;
        // What was just planned is due.
        let lease = Lease { now: Timestamp::now(), ..lease.clone() };
        let mut exports = self.store.claim_exports(&claim(&lease, self.customers(lanes))).await?;
        for export in &mut exports {
            export.first_sent_at = export.first_sent_at.filter(|at| *at != lease.now);
        }
        let by_customer = exports.chunk_by(|a, b| a.customer == b.customer);
        if self.per_call > 1 {
            return Ok(packed(by_customer, self.per_call));
        }
        let one_each = |exports: &[Export]| exports.iter().map(|e| vec![e.clone()]).collect();
        Ok(by_customer.map(one_each).collect())
    }

    async fn finish(&self, lease: &Lease, done: &Done<Export>) -> Result<(), StoreError> {
        let row = |(export, verdict): &(Export, Verdict)| {
            let ended = Ended::new(verdict, export.attempts, export.reason.as_ref());
            let Ended { state, next_attempt_at, reason, is_answer } = ended;
            let refusals = export.refusals.saturating_add(i64::from(is_answer));
            ExportDone {
                id: export.id.clone(),
                state,
                refusals,
                next_attempt_at,
                reason,
                attempts: export.attempts,
                first_sent: first_sent(export, verdict),
            }
        };
        let rows: Vec<ExportDone> = done.iter().map(row).collect();
        let mut customers: Vec<String> =
            done.iter().map(|(export, _)| export.customer.clone()).collect();
        customers.sort_unstable();
        customers.dedup();
        self.store.finish_exports(&claim(lease, 0), &customers, &rows).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::exporter::Trouble;
    use super::*;
    use crate::services::http::Silence;

    #[test]
    fn what_may_have_arrived_is_told_by_the_answer() {
        let export = Export::sample(Timestamp::from_unix_seconds(0));
        let sent = Export { first_sent_at: Some(export.created_at), ..export.clone() };
        let refused = || Verdict::Rejected("400".to_owned());
        let later = |trouble| Verdict::Later(trouble);
        let busy = || later(Trouble::of_sink("429".to_owned(), None).not_taken());
        let nobody = || later(Trouble::silence(Silence::unsent(&"connect")));
        for told in [Verdict::Untouched, refused(), busy(), nobody()] {
            assert_eq!(first_sent(&export, &told), Some(FirstSent::Never), "{told:?}");
            assert_eq!(first_sent(&sent, &told), None, "an earlier one may have: {told:?}");
        }
        let failed = || later(Trouble::of_sink("500".to_owned(), None));
        let silence = || later(Trouble::silence(Silence::unknown("no answer")));
        for told in [Verdict::Delivered, failed(), silence()] {
            assert_eq!(first_sent(&export, &told), None, "{told:?}");
        }
        // Its identifier holds from now on for a day.
        let asked = first_sent(&sent, &Verdict::Missing);
        assert!(matches!(asked, Some(FirstSent::At(at)) if at > export.created_at), "{asked:?}");
        assert_eq!(serde_json::to_string(&FirstSent::Never).unwrap(), "null");
    }

    #[test]
    fn a_customer_is_never_in_two_calls_at_once() {
        let of = |customer: &str, count: usize| {
            let export = Export::sample(Timestamp::from_unix_seconds(0));
            vec![Export { customer: customer.to_owned(), ..export }; count]
        };
        let exports = [of("a", 20), of("b", 20), of("c", 11), of("d", 50)].concat();
        let lanes = packed(exports.chunk_by(|a, b| a.customer == b.customer), 50);
        let sizes: Vec<Vec<usize>> =
            lanes.iter().map(|lane| lane.iter().map(Vec::len).collect()).collect();
        assert_eq!(sizes, [[40], [11], [50]]);
        assert_eq!(lanes.concat().concat(), exports);
    }
}
