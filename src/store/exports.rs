//! Merged events: planned from what waits, written down, then sent, one customer at a time.
//!
//! Invariants: an event is a member of one group for ever, unless the sink refused the group,
//! nothing of it arrived, and none of its members is in an archive; an identifier that the sink has
//! taken never stands for what it does not count; `carried = sum of amounts - sum of values × unit`
//! of the exports that are not void, and it is less than a unit. What decides is pure: both stores
//! load, let it decide, and write.

pub mod corrected;
pub mod groups;

use crate::models::billing::{
    BillingEvent, DeliveryState, EXPORT_PREFIX, Export, Lane, Measure, Meter, Outgoing, reasons,
};
use crate::models::ledger::sha256_hex;
use crate::models::money::OutOfRange;
use crate::models::timestamp::Timestamp;
use crate::store::StoreError;
use async_trait::async_trait;
use corrected::{TellExport, Word};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Stripe takes events of the last 35 days; a day less leaves time to send them.
/// <https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api>
pub const OLDEST: Duration = Duration::from_secs(34 * 86_400);
/// Its summaries are of what has been processed: what was taken after this may be missing.
/// <https://docs.stripe.com/api/billing/meter-event-summary>
pub const SUMMARY_LAG: Duration = Duration::from_secs(3_600);

/// Taking customers' exports that are due, under a lease of this name.
#[derive(Clone, Debug)]
pub struct LaneClaim<'a> {
    pub sink: &'a str,
    pub by: &'a str,
    pub now: Timestamp,
    pub until: Timestamp,
    pub lanes: i64,
    pub exports_per_lane: i64,
}

/// What became of an export.
#[derive(Clone, Debug, Serialize)]
pub struct ExportDone {
    pub id: String,
    pub state: DeliveryState,
    pub refusals: i64,
    pub next_attempt_at: Timestamp,
    pub reason: Option<String>,
    /// As it was claimed.
    pub attempts: i64,
    /// Changed, unless somebody else has claimed it meanwhile.
    #[serde(rename = "first_sent_at")]
    pub first_sent: Option<FirstSent>,
}

/// Since when an export may have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum FirstSent {
    At(Timestamp),
    Never,
}

/// Which exports are asked for; what is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub struct ExportFilter {
    pub customer: Option<String>,
    pub meter: Option<String>,
    pub state: Option<DeliveryState>,
    /// Used from then on.
    pub from: Option<Timestamp>,
    /// And before this.
    pub until: Option<Timestamp>,
}

#[async_trait]
pub trait ExportStore: Send + Sync {
    /// Merges what waits for a sink, at most `limit` events.
    async fn plan_exports(
        &self,
        sink: &str,
        meters: &[Meter],
        now: Timestamp,
        limit: i64,
    ) -> Result<Planned, StoreError>;

    /// Takes exports that are due, in order within each customer.
    async fn claim_exports(&self, claim: &LaneClaim<'_>) -> Result<Vec<Export>, StoreError>;

    /// Writes down what became of claimed exports, and gives the lanes back.
    async fn finish_exports(
        &self,
        claim: &LaneClaim<'_>,
        customers: &[String],
        done: &[ExportDone],
    ) -> Result<(), StoreError>;

    /// A meter's exports of a customer, used from `from` until before `to`; of so many that they
    /// are more than a page, some.
    async fn exports_used(
        &self,
        of: (&str, &str),
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Export>, StoreError>;

    async fn export(&self, id: &str) -> Result<Option<Export>, StoreError>;

    /// In the order of their ids, from the first where `after` is empty.
    async fn exports_after(
        &self,
        wanted: &ExportFilter,
        after: &str,
    ) -> Result<Vec<Export>, StoreError>;

    /// Takes a person's word for what became of exports; gives the number of those that it fits.
    async fn correct_exports(
        &self,
        ids: &[String],
        word: Word,
        audit: TellExport<'_>,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    async fn lanes(&self) -> Result<Vec<Lane>, StoreError>;
}

/// What became of events that waited to be merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    pub taken: usize,
    /// Parked because their account has no customer.
    pub without_customer: usize,
    /// Parked for another reason: money that does not arrive.
    pub refused: usize,
}

/// What a plan writes.
#[derive(Debug, Default)]
pub struct Plan {
    pub exports: Vec<Export>,
    pub events: Vec<BillingEvent>,
    pub lanes: BTreeMap<String, Lane>,
}

/// Merges events by customer and minute. `lanes` has those of every customer named.
#[must_use]
pub fn plan(
    outgoing: Vec<(Outgoing, Option<String>)>,
    lanes: BTreeMap<String, Lane>,
    meters: &[Meter],
    now: Timestamp,
) -> Plan {
    let mut plan = Plan { lanes, ..Plan::default() };
    let mut groups: BTreeMap<(String, i64), Vec<Outgoing>> = BTreeMap::new();
    for (outgoing, customer) in outgoing {
        match customer {
            _ if outgoing.event.created_at < now.minus(OLDEST) => {
                plan.park(outgoing.event, reasons::TOO_OLD);
            }
            None => plan.park(outgoing.event, reasons::NO_CUSTOMER),
            Some(customer) => {
                let minute = outgoing.event.created_at.minute_start().unix_seconds();
                groups.entry((customer, minute)).or_default().push(outgoing);
            }
        }
    }
    for ((customer, _), mut members) in groups {
        members.sort_by(|a, b| a.event.id.cmp(&b.event.id));
        let Some(mut lane) = plan.lanes.get(&customer).cloned() else { continue };
        match merge(&mut lane, &members, meters, now) {
            Ok(exports) => plan.add(lane, members, exports, now),
            // Nothing real is that large: for a person.
            Err(OutOfRange) => {
                for Outgoing { event, .. } in members {
                    plan.park(event, reasons::OUT_OF_RANGE);
                }
            }
        }
    }
    plan
}

impl Plan {
    /// For who asked for it.
    #[must_use]
    pub fn planned(&self) -> Planned {
        let parked = self.events.iter().filter(|event| event.state == DeliveryState::Parked);
        let (strangers, refused): (Vec<_>, Vec<_>) =
            parked.partition(|event| event.reason.as_deref() == Some(reasons::NO_CUSTOMER));
        let (without_customer, refused) = (strangers.len(), refused.len());
        Planned { taken: self.events.len(), without_customer, refused }
    }

    fn park(&mut self, event: BillingEvent, reason: &str) {
        let reason = Some(reason.to_owned());
        let state = DeliveryState::Parked;
        self.events.push(BillingEvent { state, reason, leased_until: None, ..event });
    }

    fn add(
        &mut self,
        mut lane: Lane,
        members: Vec<Outgoing>,
        exports: Vec<Export>,
        now: Timestamp,
    ) {
        let waits = exports.iter().any(|export| export.state == DeliveryState::Waiting);
        if waits {
            lane.wake(now);
        }
        let state = if waits { DeliveryState::Waiting } else { DeliveryState::Exported };
        let group = exports.first().map(|export| export.event_group.clone());
        for Outgoing { event, .. } in members {
            let export_group = group.clone();
            self.events.push(BillingEvent { state, reason: None, export_group, ..event });
        }
        self.exports.extend(exports);
        self.lanes.insert(lane.customer.clone(), lane);
    }
}

/// One export for each meter. A value of zero is not sent.
fn merge(
    lane: &mut Lane,
    members: &[Outgoing],
    meters: &[Meter],
    now: Timestamp,
) -> Result<Vec<Export>, OutOfRange> {
    let ids: Vec<&str> = members.iter().map(|member| member.event.id.as_str()).collect();
    let attempt = members.iter().map(|member| member.event.attempts).max().unwrap_or(0);
    // Of the same members after a refusal another group is made, with other identifiers.
    let event_group = sha256_hex(format!("{attempt}\n{}", ids.join("\n")).as_bytes());
    let used_at = members.iter().map(|member| member.event.created_at).max().unwrap_or(now);
    let mut exports = Vec::with_capacity(meters.len());
    for meter in meters {
        let mut amount = 0_i64;
        for member in members {
            let added = meter.measure.of(&member.billed());
            amount = amount.checked_add(added).ok_or(OutOfRange)?;
        }
        let value = whole_units(lane, meter.measure, amount)?;
        lane.seq = lane.seq.checked_add(1).ok_or(OutOfRange)?;
        exports.push(Export {
            id: identifier(&event_group, &meter.event_name),
            sink: lane.sink.clone(),
            event_group: event_group.clone(),
            customer: lane.customer.clone(),
            meter: meter.event_name.clone(),
            seq: lane.seq,
            used_at,
            members: i64::try_from(members.len()).map_err(|_| OutOfRange)?,
            amount,
            unit: meter.measure.unit(),
            value,
            state: if value == 0 { DeliveryState::Exported } else { DeliveryState::Waiting },
            attempts: 0,
            refusals: 0,
            first_sent_at: None,
            next_attempt_at: now,
            reason: None,
            created_at: now,
        });
    }
    Ok(exports)
}

/// How many whole units an amount makes with what is carried; the rest is carried on. Down, also
/// below zero, so that what was sent is never more than what was charged.
fn whole_units(lane: &mut Lane, measure: Measure, amount: i64) -> Result<i64, OutOfRange> {
    if measure.unit() == 1 {
        return Ok(amount);
    }
    let due = lane.carried_nusd.checked_add(amount).ok_or(OutOfRange)?;
    lane.carried_nusd = due.rem_euclid(measure.unit());
    Ok(due.div_euclid(measure.unit()))
}

/// What becomes of a parked group when it is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// Refused as a whole: its members are planned anew, perhaps for another customer.
    Replanned,
    /// Some of it has arrived, or may have: the same exports are sent again. What the sink took and
    /// does not count is void; these are in its place.
    Resent(Vec<Export>),
}

/// Renews a group's exports, and takes what is void out of what its lane has carried.
///
/// # Errors
/// [`OutOfRange`] on overflow; nothing must be written then.
pub fn renew(lane: &mut Lane, group: &mut [Export], now: Timestamp) -> Result<Renewed, OutOfRange> {
    let has_arrived = |export: &Export| {
        let is_sent = export.state == DeliveryState::Exported && export.value != 0;
        is_sent || is_unsure(export)
    };
    let is_waiting = |export: &Export| export.state == DeliveryState::Waiting;
    // Planned anew, what was dismissed would be sent with the rest.
    let stays = |export: &Export| has_arrived(export) || is_waiting(export) || is_dismissed(export);
    if group.iter().any(stays) {
        return resend(lane, group, now);
    }
    for export in group.iter_mut() {
        make_void(lane, export)?;
    }
    Ok(Renewed::Replanned)
}

/// What has not arrived of a group is dealt with by other means: it is void. `false` when that
/// cannot be said, because something of it is on its way, or may have arrived.
///
/// # Errors
/// As [`renew`].
pub fn dismiss(lane: &mut Lane, group: &mut [Export], now: Timestamp) -> Result<bool, OutOfRange> {
    let is_open = |export: &Export| match export.state {
        DeliveryState::Exported | DeliveryState::Void => false,
        DeliveryState::Waiting => export.first_sent_at.is_some(),
        // Of what is too old to be said to be missing there is no other word.
        DeliveryState::Parked => is_unsure(export) && export.used_at >= now.minus(OLDEST),
    };
    if group.iter().any(is_open) {
        return Ok(false);
    }
    let unsent = [DeliveryState::Waiting, DeliveryState::Parked];
    for export in group.iter_mut().filter(|export| unsent.contains(&export.state)) {
        make_void(lane, export)?;
        export.reason = Some(reasons::DISMISSED.to_owned());
    }
    Ok(true)
}

fn is_dismissed(export: &Export) -> bool {
    export.state == DeliveryState::Void && export.reason.as_deref() == Some(reasons::DISMISSED)
}

/// Of which exports of a group something may be decided still: in either dialect.
#[must_use]
pub fn undecided() -> String {
    let dismissed = reasons::DISMISSED;
    format!("(state <> 'void' OR COALESCE(reason, '') = '{dismissed}')")
}

/// Takes an export out of what its lane has carried.
fn make_void(lane: &mut Lane, export: &mut Export) -> Result<(), OutOfRange> {
    if export.unit != 1 {
        let sent = export.value.checked_mul(export.unit).ok_or(OutOfRange)?;
        let carried = lane.carried_nusd.checked_add(sent).ok_or(OutOfRange)?;
        lane.carried_nusd = carried.checked_sub(export.amount).ok_or(OutOfRange)?;
    }
    export.state = DeliveryState::Void;
    Ok(())
}

/// It is parked, and whether the sink has it is not known: an attempt had no answer that told.
fn is_unsure(export: &Export) -> bool {
    export.state == DeliveryState::Parked && export.first_sent_at.is_some() && !is_dropped(export)
}

/// The sink has told that it does not count what it took.
fn is_dropped(export: &Export) -> bool {
    export.reason.as_ref().is_some_and(|reason| reason.starts_with(reasons::DROPPED))
}

/// What is parked of a group waits again. The sink may still know the identifier of what it dropped
/// after it had taken it, and would take another try for done: that has another one.
///
/// # Errors
/// As [`renew`].
pub fn resend(
    lane: &mut Lane,
    group: &mut [Export],
    now: Timestamp,
) -> Result<Renewed, OutOfRange> {
    let mut again = Vec::new();
    for export in group.iter_mut().filter(|export| export.state == DeliveryState::Parked) {
        if !is_dropped(export) {
            export.state = DeliveryState::Waiting;
            export.next_attempt_at = now;
            continue;
        }
        again.push(replaced(lane, export, now)?);
    }
    lane.wake(now);
    Ok(Renewed::Resent(again))
}

/// Makes an export void; what is sent in its place.
fn replaced(lane: &mut Lane, export: &mut Export, now: Timestamp) -> Result<Export, OutOfRange> {
    lane.seq = lane.seq.checked_add(1).ok_or(OutOfRange)?;
    export.state = DeliveryState::Void;
    Ok(Export {
        id: identifier(&export.id, &export.meter),
        seq: lane.seq,
        state: DeliveryState::Waiting,
        attempts: 0,
        refusals: 0,
        first_sent_at: None,
        next_attempt_at: now,
        reason: None,
        created_at: now,
        ..export.clone()
    })
}

/// Which exports of this table's name the end of an attempt is written to: `r` has what became of
/// it. Somebody else may have had the export parked meanwhile, and then it has arrived after all;
/// but not where the sink has told that it does not count what it took: that is known later than
/// any answer to the call.
#[must_use]
pub fn of_an_attempt(table: &str) -> String {
    let dropped = reasons::DROPPED;
    format!(
        "({table}.state = 'waiting' OR ({table}.state = 'parked' AND r.state = 'exported' \
         AND {table}.reason NOT LIKE '{dropped}%'))"
    )
}

/// It follows from what it is of.
fn identifier(of: &str, meter: &str) -> String {
    format!("{EXPORT_PREFIX}{}", sha256_hex(format!("{of}{meter}").as_bytes()))
}

#[cfg(test)]
mod tests;
