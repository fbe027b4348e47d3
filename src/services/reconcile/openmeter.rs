//! The ledger against OpenMeter's meter of the charge, by account, model and day.
//!
//! Invariant: both sides go by the time of the event, so that a day here is the same day there.

use super::{Expected, FAILURES_MAX, Figure, Finding, Kind, Report, Terms};
use crate::error::Error;
use crate::models::billing::DeliveryState;
use crate::models::reconcile::{Day, SinkSum};
use crate::services::billing::openmeter::query::{ChargeMeter, Metered};
use crate::store::Store;
use std::collections::BTreeMap;

const AGAINST: &str = crate::config::OPENMETER;

/// Subject and model.
type Group = (String, String);

pub async fn check(
    store: &dyn Store,
    meter: &ChargeMeter,
    terms: &Terms,
    report: &mut Report,
) -> Result<(), Error> {
    let mut sums = store.sink_sums(AGAINST, terms.span()).await?;
    let mut failures = 0;
    for day in &terms.days {
        let (here, rest) = sums.into_iter().partition(|sum| sum.day == *day);
        sums = rest;
        match meter.of_day(*day).await {
            Ok(there) => {
                failures = 0;
                compare(*day, here, there, report);
            }
            Err(because) => {
                failures += 1;
                report.unread(AGAINST, Some(*day), because);
            }
        }
        if failures == FAILURES_MAX {
            report.unread(AGAINST, None, "the other days were not asked about".to_owned());
            break;
        }
    }
    Ok(())
}

fn compare(day: Day, here: Vec<SinkSum>, there: Vec<Metered>, report: &mut Report) {
    let mut groups: BTreeMap<Group, (Expected, i128)> = BTreeMap::new();
    for sum in here {
        let group = groups.entry((sum.account_id.to_string(), sum.model)).or_default();
        let is_exported = sum.state == DeliveryState::Exported;
        group.0.add(is_exported, sum.is_tried, sum.charge_nusd.0);
    }
    for Metered { subject, model, value } in there {
        groups.entry((subject, model)).or_default().1 += i128::from(value);
    }
    report.compared(AGAINST, groups.len());
    for ((account, model), (here, there)) in groups {
        let (kind, because) = if !here.explains(there) {
            (Kind::Difference, "what was exported is not what the meter has summed".to_owned())
        } else if here.is_on_its_way() {
            (Kind::Waiting, format!("{} nano-USD wait or are parked", here.on_its_way()))
        } else {
            continue;
        };
        report.add(Finding {
            day: Some(day),
            model: Some(model),
            account: Some(account),
            figures: Figure::differing(&[("charge_nusd", here.exported, there)]),
            ..Finding::new(kind, AGAINST, because)
        });
    }
}
