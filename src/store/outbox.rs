//! Billing events on their way to sinks.
//!
//! Invariants: an event is written with its usage record or correction, in one transaction; it is
//! claimed for a time by one process, and what was exported is never sent again.

use crate::models::audit::AuditEntry;
use crate::models::billing::{
    BillingEvent, DeliveryState, EventKind, Outgoing, SinkWindow, reasons,
};
use crate::models::ids::{AccountId, RequestId};
use crate::models::timestamp::Timestamp;
use crate::models::usage::{UsageCorrection, UsageRecord};
use crate::store::StoreError;
use async_trait::async_trait;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};

/// The sink that is told of what was parked.
pub use crate::config::WEBHOOK;

/// Taking what is due.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub sink: &'a str,
    pub now: Timestamp,
    /// Nobody else takes it before.
    pub until: Timestamp,
    pub limit: i64,
}

/// What became of an event.
#[derive(Clone, Debug, Serialize)]
pub struct EventDone {
    pub id: String,
    pub state: DeliveryState,
    pub next_attempt_at: Timestamp,
    pub reason: Option<String>,
}

/// Which events are asked for; what is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    pub sink: Option<String>,
    pub state: Option<DeliveryState>,
    pub account: Option<AccountId>,
}

/// In both dialects. A literal, so that the index of what is parked is used.
pub(super) fn of_state(state: Option<DeliveryState>) -> String {
    state.map(|state| format!("AND t.state = '{state}'")).unwrap_or_default()
}

/// How the audit log tells what an operator has done to an event: as it was, and as it is.
pub type TellEvent<'a> = &'a (dyn Fn(&BillingEvent, &BillingEvent) -> AuditEntry + Sync);

/// Events that one call of [`OutboxStore::wake_customers`] wakes at most.
pub const CHANGED_EVENTS_MAX: i64 = 1_000;

#[async_trait]
pub trait OutboxStore: Send + Sync {
    /// In the order of their ids, from the first where `after` is empty.
    async fn billing_events_after(
        &self,
        wanted: &EventFilter,
        after: &str,
    ) -> Result<Vec<BillingEvent>, StoreError>;

    async fn billing_event(&self, id: &str) -> Result<Option<BillingEvent>, StoreError>;

    /// Writes down since when the configured sinks are, and which are no longer.
    async fn register_sinks(&self, now: Timestamp) -> Result<(), StoreError>;

    async fn sinks(&self) -> Result<Vec<SinkWindow>, StoreError>;

    /// Writes events, of those that are not there yet; gives their number.
    async fn add_events(&self, events: &[BillingEvent]) -> Result<u64, StoreError>;

    /// Takes events that are due.
    async fn claim_events(&self, claim: Claim<'_>) -> Result<Vec<BillingEvent>, StoreError>;

    /// The rows that events are copies of.
    async fn outgoing(&self, events: Vec<BillingEvent>) -> Result<Vec<Outgoing>, StoreError>;

    /// Writes down what became of claimed events.
    async fn finish_events(&self, done: &[EventDone], now: Timestamp) -> Result<(), StoreError>;

    /// Parked events whose account has a customer by now wait again; gives their number.
    async fn wake_customers(&self, sink: &str, now: Timestamp) -> Result<u64, StoreError>;

    /// Those of the events that are parked wait again, and what they were merged with; gives their
    /// number. The audit log tells of those that were named.
    async fn retry_events(
        &self,
        ids: &[String],
        audit: TellEvent<'_>,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    /// Those of the events that are parked, and what they were merged with, are not sent any more,
    /// unless something of that is on its way or may have arrived; gives their number. The audit
    /// log tells of those that were named.
    async fn dismiss_events(
        &self,
        ids: &[String],
        audit: TellEvent<'_>,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    /// Parks events that wait and are not merged; gives their number.
    async fn park_events(
        &self,
        ids: &[String],
        reason: &str,
        audit: TellEvent<'_>,
        now: Timestamp,
    ) -> Result<u64, StoreError>;
}

/// Which events of this table's name the end of a call is written to: `r` has what became of it.
/// What was parked or dismissed meanwhile stays so, unless it has arrived.
pub(super) fn of_a_call(table: &str) -> String {
    let dismissed = reasons::DISMISSED;
    format!(
        "({table}.state = 'waiting' OR (r.state = 'exported' \
         AND ({table}.state = 'parked' OR {table}.reason = '{dismissed}')))"
    )
}

/// Parked events: those that stand for themselves, and the groups of the others.
pub(super) fn apart(parked: &[BillingEvent]) -> (Vec<String>, BTreeSet<String>) {
    let single = parked.iter().filter(|event| event.export_group.is_none());
    let groups = parked.iter().filter_map(|event| event.export_group.clone());
    (single.map(|event| event.id.clone()).collect(), groups.collect())
}

/// What the audit log is told of events, from what they were and what they are.
pub(super) fn told(
    before: &[BillingEvent],
    after: Vec<BillingEvent>,
    tell: TellEvent<'_>,
) -> Vec<AuditEntry> {
    let after: HashMap<_, _> = after.into_iter().map(|row| (row.id.clone(), row)).collect();
    let now = |was: &BillingEvent| after.get(&was.id).filter(|is| is.state != was.state);
    before.iter().filter_map(|was| Some(tell(was, now(was)?))).collect()
}

/// Which rows events are copies of.
pub struct Wanted {
    pub records: Vec<RequestId>,
    pub corrections: Vec<RequestId>,
    /// Events that notices are about.
    pub events: Vec<String>,
}

impl Wanted {
    #[must_use]
    pub fn of(events: &[BillingEvent]) -> Self {
        let corrected = events.iter().filter(|event| event.kind == EventKind::Correction);
        Self {
            records: events.iter().map(|event| event.request_id).collect(),
            corrections: corrected.map(|event| event.request_id).collect(),
            events: events.iter().filter_map(|event| Some(event.subject()?.to_owned())).collect(),
        }
    }
}

/// The rows of [`Wanted`], put beside their events. One without its record is left out; `verify`
/// names it.
#[must_use]
pub fn join(
    events: Vec<BillingEvent>,
    records: Vec<UsageRecord>,
    corrections: Vec<UsageCorrection>,
    subjects: Vec<BillingEvent>,
) -> Vec<Outgoing> {
    let records: HashMap<_, _> = records.into_iter().map(|row| (row.id, row)).collect();
    let corrections: HashMap<_, _> =
        corrections.into_iter().map(|row| (row.request_id, row)).collect();
    let subjects: HashMap<_, _> = subjects.into_iter().map(|row| (row.id.clone(), row)).collect();
    let with_rows = |event: BillingEvent| {
        let record = records.get(&event.request_id)?.clone();
        let correction = (event.kind == EventKind::Correction)
            .then(|| corrections.get(&event.request_id).cloned())
            .flatten();
        let about = event.subject().and_then(|id| subjects.get(id)).cloned();
        Some(Outgoing { event, record, correction, about })
    };
    events.into_iter().filter_map(with_rows).collect()
}
