//! Billing events: every billable row has one for each sink since that was configured, and what was
//! merged for a sink is what its members sum to.

use super::Report;
use super::archived::Archived;
use super::rows::{CHARGE, CORRECTION, Rows};
use crate::models::billing::{BillingEvent, DeliveryState, EventKind, Export, Lane, SinkWindow};
use crate::models::ids::RequestId;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{Outline, UsageCorrection};
use crate::store::exports::ExportFilter;
use crate::store::outbox::EventFilter;
use crate::store::verify::GroupSum;
use crate::store::{Store, StoreError};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Events of one sink: together they are its usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    pub exported: u64,
    pub waiting: u64,
    pub parked: u64,
}

/// Which events a row must have: those of the sinks that were configured then.
pub struct Due(Vec<SinkWindow>);

impl Due {
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        Ok(Self(store.sinks().await?))
    }

    /// Those that somebody sends: of sinks that have ended and did not begin again, nobody does.
    #[must_use]
    pub fn of_open_sinks(mut self) -> Self {
        let open = self.0.iter().filter(|sink| sink.until.is_none());
        let open: HashSet<String> = open.map(|sink| sink.name.clone()).collect();
        self.0.retain(|sink| open.contains(&sink.name));
        self
    }

    fn sinks(&self, at: Timestamp) -> impl Iterator<Item = &str> {
        let is_open =
            move |sink: &&SinkWindow| at >= sink.since && sink.until.is_none_or(|until| at < until);
        self.0.iter().filter(is_open).map(|sink| sink.name.as_str())
    }

    pub async fn check_records(
        &self,
        store: &dyn Store,
        records: &[Outline],
        report: &mut Report,
    ) -> Result<(), StoreError> {
        name(&self.missing_of_records(store, records).await?, report);
        Ok(())
    }

    pub async fn check_corrections(
        &self,
        store: &dyn Store,
        corrections: &[UsageCorrection],
        report: &mut Report,
    ) -> Result<(), StoreError> {
        name(&self.missing_of_corrections(store, corrections).await?, report);
        Ok(())
    }

    /// Events that these records must have and have not.
    ///
    /// # Errors
    /// The store's.
    pub async fn missing_of_records(
        &self,
        store: &dyn Store,
        records: &[Outline],
    ) -> Result<Vec<BillingEvent>, StoreError> {
        let billable = records.iter().filter(|record| record.is_billable());
        let of = |record: &Outline| -> Vec<BillingEvent> {
            self.sinks(record.ended_at).map(|sink| BillingEvent::usage(record, sink)).collect()
        };
        missing(store, billable.flat_map(of).collect()).await
    }

    /// Events that these corrections must have and have not.
    ///
    /// # Errors
    /// The store's.
    pub async fn missing_of_corrections(
        &self,
        store: &dyn Store,
        corrections: &[UsageCorrection],
    ) -> Result<Vec<BillingEvent>, StoreError> {
        let of = |row: &UsageCorrection| -> Vec<BillingEvent> {
            self.sinks(row.created_at).map(|sink| BillingEvent::correction(row, sink)).collect()
        };
        missing(store, corrections.iter().flat_map(of).collect()).await
    }
}

/// Those that are not there. An event's id follows from its row, so that the right one is found.
async fn missing(
    store: &dyn Store,
    mut wanted: Vec<BillingEvent>,
) -> Result<Vec<BillingEvent>, StoreError> {
    if wanted.is_empty() {
        return Ok(wanted);
    }
    let ids: Vec<String> = wanted.iter().map(|event| event.id.clone()).collect();
    let found = store.events_of(&ids).await?;
    let found: HashSet<(RequestId, &str)> =
        found.iter().map(|event| (event.request_id, event.sink.as_str())).collect();
    wanted.retain(|event| !found.contains(&(event.request_id, event.sink.as_str())));
    Ok(wanted)
}

fn name(missing: &[BillingEvent], report: &mut Report) {
    for event in missing {
        let (kind, sink) = (row_kind(event.kind), &event.sink);
        report.check(false, || {
            format!("{kind} of {}: no billing event for {sink}", event.request_id)
        });
    }
}

/// Checks events against the rows that they are copies of.
pub async fn check(store: &dyn Store, report: &mut Report) -> Result<(), StoreError> {
    let mut after = String::new();
    loop {
        let events = store.billing_events_after(&EventFilter::default(), &after).await?;
        let Some(last) = events.last() else { return Ok(()) };
        after.clone_from(&last.id);
        let records: Vec<RequestId> = events.iter().map(|event| event.request_id).collect();
        let corrections = events.iter().filter(|event| event.kind == EventKind::Correction);
        let corrections: Vec<RequestId> = corrections.map(|event| event.request_id).collect();
        let rows = Rows::of(store, &records, &corrections).await?;
        for event in &events {
            check_event(event, &rows, report);
        }
    }
}

fn row_kind(kind: EventKind) -> &'static str {
    if kind == EventKind::Correction { CORRECTION } else { CHARGE }
}

fn check_event(event: &BillingEvent, rows: &Rows, report: &mut Report) {
    let counts: &mut BTreeMap<String, EventCounts> = &mut report.sinks;
    let counts = counts.entry(event.sink.clone()).or_default();
    match event.state {
        DeliveryState::Exported => counts.exported += 1,
        DeliveryState::Waiting => counts.waiting += 1,
        DeliveryState::Parked | DeliveryState::Void => counts.parked += 1,
    }
    let kind = row_kind(event.kind);
    let account = rows.account(event.request_id, kind);
    report.check(account == Some(event.account_id), || {
        format!("billing event {}: there is no such {kind} of its account", event.id)
    });
    // Another event of the same row would have another id.
    let suffix = match event.kind {
        EventKind::Usage => "",
        EventKind::Correction => ":correction",
        // Told besides, about an event or a charge.
        EventKind::Notice | EventKind::BalanceLow | EventKind::BudgetThreshold => return,
    };
    let id = format!("{}:{}{suffix}", event.request_id, event.sink);
    report.check(event.id == id, || {
        format!("billing event {}: it is not that of its {kind}", event.id)
    });
}

/// Per customer: `amounts = values × unit + carried`; and each amount is that of its members, where
/// none of them can be in an archive. What is not a charge is one of their sums.
pub async fn check_exports(
    store: &dyn Store,
    archived: &Archived,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut carried = Carried::load(store).await?;
    let mut after = String::new();
    loop {
        let exports = store.exports_after(&ExportFilter::default(), &after).await?;
        let Some(last) = exports.last() else { break };
        after.clone_from(&last.id);
        let groups: HashSet<String> = exports.iter().map(|e| e.event_group.clone()).collect();
        let sums = store.group_sums(&groups.into_iter().collect::<Vec<_>>()).await?;
        let sums: HashMap<&str, &GroupSum> =
            sums.iter().map(|sum| (sum.event_group.as_str(), sum)).collect();
        for export in exports.iter().filter(|export| export.state != DeliveryState::Void) {
            // Its members are of one minute; it has the time of the newest.
            let is_told = !archived.reach(export.used_at.minute_start());
            let members = sums.get(export.event_group.as_str()).copied();
            if export.unit == 1 {
                check_counted(export, members.filter(|_| is_told), report);
                continue;
            }
            let members = members.map_or(0, |sum| sum.charge_nusd.0);
            report.check(!is_told || members == export.amount, || {
                format!("export {}: {} but its members sum to {members}", export.id, export.amount)
            });
            carried.count(export);
        }
    }
    carried.check(store, report).await
}

/// What is counted in ones is sent as it is. Which measure its meter had then, no row says: the
/// configuration may be another one today.
fn check_counted(export: &Export, members: Option<&GroupSum>, report: &mut Report) {
    let Export { id, amount, value, .. } = export;
    report.check(amount == value, || format!("export {id}: {value} is sent of {amount}"));
    let is_sum = members.is_none_or(|sum| sum.counted.values().any(|counted| counted == amount));
    report.check(is_sum, || format!("export {id}: {amount} is no sum of its members"));
}

/// What each customer's lane says that it carries, and what its exports leave. The lanes are read
/// first, and of the exports those count that were planned by then: a busy server plans others.
struct Carried {
    lanes: HashMap<(String, String), (Lane, i64)>,
    strangers: BTreeSet<(String, String)>,
}

impl Carried {
    async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let lanes = store.lanes().await?.into_iter();
        let lanes = lanes.map(|lane| ((lane.sink.clone(), lane.customer.clone()), (lane, 0)));
        Ok(Self { lanes: lanes.collect(), strangers: BTreeSet::new() })
    }

    fn count(&mut self, export: &Export) {
        let of = (export.sink.clone(), export.customer.clone());
        match self.lanes.get_mut(&of) {
            Some((lane, rest)) if export.seq <= lane.seq => {
                let sent = export.value.saturating_mul(export.unit);
                *rest = rest.saturating_add(export.amount).saturating_sub(sent);
            }
            Some(_) => {}
            None => {
                self.strangers.insert(of);
            }
        }
    }

    async fn check(mut self, store: &dyn Store, report: &mut Report) -> Result<(), StoreError> {
        for (Lane { customer, carried_nusd, .. }, rest) in self.lanes.values() {
            report.check(rest == carried_nusd, || {
                format!("customer {customer}: carries {carried_nusd} but its exports leave {rest}")
            });
        }
        if self.strangers.is_empty() {
            return Ok(());
        }
        // A lane is made with its first export, perhaps just now.
        for lane in store.lanes().await? {
            self.strangers.remove(&(lane.sink, lane.customer));
        }
        for (_, customer) in self.strangers {
            report.check(false, || format!("customer {customer}: its exports are of no lane"));
        }
        Ok(())
    }
}
