//! Billing events: every billable row has one for each sink since that was configured, and what was
//! merged for a sink is what its members sum to.

use super::Report;
use super::records::{CHARGE, CORRECTION, Rows};
use crate::models::billing::{
    BillingEvent, DeliveryState, EventKind, Export, Measure, Outgoing, SinkWindow,
};
use crate::models::ids::RequestId;
use crate::store::outbox::EventFilter;
use crate::store::{Store, StoreError};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Events of one sink: together they are its usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    pub exported: u64,
    pub waiting: u64,
    pub parked: u64,
}

/// What was found by following the events.
#[derive(Default)]
struct Seen {
    /// Of which row, for which sink.
    events: HashSet<(RequestId, &'static str, String)>,
    /// Sum of what the members of a group charge.
    groups: HashMap<String, i64>,
}

/// Checks events against `rows`, which still has every row, and exports against events.
pub async fn check(store: &dyn Store, rows: &Rows, report: &mut Report) -> Result<(), StoreError> {
    let sinks = store.sinks().await?;
    let mut seen = Seen::default();
    let mut after = String::new();
    loop {
        let events = store.billing_events_after(&EventFilter::default(), &after).await?;
        let Some(last) = events.last() else { break };
        after.clone_from(&last.id);
        for event in &events {
            check_event(event, rows, &mut seen, report);
        }
        let merged = events.into_iter().filter(|event| event.export_group.is_some()).collect();
        seen.add_members(&store.outgoing(merged).await?);
    }
    check_rows(rows, &sinks, &seen, report);
    check_exports(store, &seen, report).await
}

fn row_kind(kind: EventKind) -> &'static str {
    if kind == EventKind::Correction { CORRECTION } else { CHARGE }
}

fn check_event(event: &BillingEvent, rows: &Rows, seen: &mut Seen, report: &mut Report) {
    let counts: &mut BTreeMap<String, EventCounts> = &mut report.sinks;
    let counts = counts.entry(event.sink.clone()).or_default();
    match event.state {
        DeliveryState::Exported => counts.exported += 1,
        DeliveryState::Waiting => counts.waiting += 1,
        DeliveryState::Parked | DeliveryState::Void => counts.parked += 1,
    }
    let kind = row_kind(event.kind);
    let row = rows.get(&(event.request_id, kind));
    report.check(row.is_some_and(|row| row.account == event.account_id), || {
        format!("billing event {}: there is no such {kind} of its account", event.id)
    });
    if matches!(event.kind, EventKind::Usage | EventKind::Correction) {
        let is_new = seen.events.insert((event.request_id, kind, event.sink.clone()));
        report.check(is_new, || format!("billing event {}: there is another one", event.id));
    }
}

fn check_rows(rows: &Rows, sinks: &[SinkWindow], seen: &Seen, report: &mut Report) {
    for ((request, kind), row) in rows.iter().filter(|(_, row)| row.is_billable) {
        for SinkWindow { name, since, until } in sinks {
            let is_within = row.at >= *since && until.is_none_or(|until| row.at < until);
            let is_there = || seen.events.contains(&(*request, *kind, name.clone()));
            report.check(!is_within || is_there(), || {
                format!("{kind} of {request}: no billing event for {name}")
            });
        }
    }
}

impl Seen {
    fn add_members(&mut self, members: &[Outgoing]) {
        for member in members {
            let Some(group) = &member.event.export_group else { continue };
            let sum = self.groups.entry(group.clone()).or_default();
            *sum = sum.saturating_add(Measure::ChargeMicroUsd.of(&member.billed()));
        }
    }
}

/// Per customer: `amounts = values × unit + carried`; and each amount is that of its members.
async fn check_exports(
    store: &dyn Store,
    seen: &Seen,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut rest: HashMap<(String, String), i64> = HashMap::new();
    let mut after = String::new();
    loop {
        let exports = store.exports_after(&after).await?;
        let Some(last) = exports.last() else { break };
        after.clone_from(&last.id);
        let counts = |export: &&Export| export.unit != 1 && export.state != DeliveryState::Void;
        for export in exports.iter().filter(counts) {
            let members = seen.groups.get(&export.event_group).copied().unwrap_or_default();
            report.check(members == export.amount, || {
                format!("export {}: {} but its members sum to {members}", export.id, export.amount)
            });
            let rest = rest.entry((export.sink.clone(), export.customer.clone())).or_default();
            let sent = export.value.saturating_mul(export.unit);
            *rest = rest.saturating_add(export.amount).saturating_sub(sent);
        }
    }
    for lane in store.lanes().await? {
        let rest = rest.remove(&(lane.sink.clone(), lane.customer.clone())).unwrap_or_default();
        report.check(rest == lane.carried_nusd, || {
            let carried = lane.carried_nusd;
            format!("customer {}: carries {carried} but its exports leave {rest}", lane.customer)
        });
    }
    for ((_, customer), rest) in rest {
        report.check(false, || format!("customer {customer}: {rest} is carried nowhere"));
    }
    Ok(())
}
