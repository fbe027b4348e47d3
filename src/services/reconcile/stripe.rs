//! The ledger against Stripe's meters, by customer and day, in two steps that must both be exact.
//!
//! Invariants: what the ledger took for the members of merged events is what those sum to, in
//! nano-USD; and what was exported of them is what the meter has summed, in whole units. Between
//! the two lies less than one unit, which is carried: no difference. Stripe is asked once for each
//! customer and meter, at the rate that its exporter keeps.

use super::{Expected, FAILURES_MAX, Figure, Finding, Kind, Report, Terms};
use crate::error::Error;
use crate::models::billing::{DeliveryState, Meter};
use crate::models::reconcile::{Day, ExportSum, SinkSum};
use crate::services::billing::stripe::api::StripeApi;
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const AGAINST: &str = crate::config::STRIPE;

pub async fn check(
    store: &dyn Store,
    api: &StripeApi,
    meters: &[Meter],
    terms: &Terms,
    report: &mut Report,
) -> Result<(), Error> {
    let events = store.sink_sums(AGAINST, terms.span()).await?;
    let exports = store.export_sums(AGAINST, terms.span()).await?;
    for finding in unmerged(&events).into_iter().chain(unlike(&events, &exports)) {
        report.add(finding);
    }
    let ids = match api.meters().await {
        Ok(ids) => ids,
        Err(because) => {
            report.unread(AGAINST, None, because);
            return Ok(());
        }
    };
    let mut groups = by_meter(&exports);
    let accounts = customers(store).await?;
    let customers: BTreeSet<&String> =
        accounts.keys().chain(groups.keys().map(|(customer, _)| customer)).collect();
    let customers: Vec<String> = customers.into_iter().cloned().collect();
    let names: BTreeSet<&str> = meters
        .iter()
        .map(|meter| meter.event_name.as_str())
        .chain(exports.iter().map(|sum| sum.meter.as_str()))
        .collect();
    let mut failures = 0;
    for customer in customers {
        for name in &names {
            let days = groups.remove(&(customer.clone(), (*name).to_owned())).unwrap_or_default();
            let Some(id) = ids.get(*name) else {
                if !days.is_empty() {
                    report.unread(AGAINST, None, format!("there is no active meter of {name}"));
                }
                continue;
            };
            match api.summed_by_day(id, &customer, terms.first_and_last()).await {
                Ok(there) => {
                    failures = 0;
                    let of = Of { customer: &customer, meter: name, accounts: &accounts };
                    compare(&of, &days, &there, terms, report);
                }
                Err(because) => {
                    failures += 1;
                    let finding = Finding::new(Kind::Unread, AGAINST, because);
                    let (customer, meter) = (Some(customer.clone()), Some((*name).to_owned()));
                    report.add(Finding { customer, meter, ..finding });
                }
            }
            if failures == FAILURES_MAX {
                report.unread(AGAINST, None, "the other customers were not asked about".to_owned());
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Customers and the accounts that are theirs, those too that have not used anything.
async fn customers(store: &dyn Store) -> Result<HashMap<String, Vec<String>>, Error> {
    let mut found: HashMap<String, Vec<String>> = HashMap::new();
    for lane in store.lanes().await? {
        found.entry(lane.customer).or_default();
    }
    let mut after = None;
    loop {
        let accounts = store.accounts_after(after).await?;
        let Some(last) = accounts.last() else { return Ok(found) };
        after = Some(last.id);
        for account in accounts {
            if let Some(customer) = account.stripe_customer_id {
                found.entry(customer).or_default().push(account.id.to_string());
            }
        }
    }
}

/// What is not merged yet, or was parked for want of a customer.
fn unmerged(events: &[SinkSum]) -> Vec<Finding> {
    let mut sums: BTreeMap<(Day, String, &str), (i64, i128)> = BTreeMap::new();
    for sum in events.iter().filter(|sum| sum.customer.is_none()) {
        let why = match sum.state {
            DeliveryState::Exported => continue,
            DeliveryState::Waiting => "events wait to be merged",
            DeliveryState::Parked | DeliveryState::Void => "events are parked",
        };
        let group = sums.entry((sum.day, sum.account_id.to_string(), why)).or_default();
        *group = (group.0 + sum.events, group.1 + i128::from(sum.charge_nusd.0));
    }
    let findings = sums.into_iter().map(|((day, account, why), (events, charge))| Finding {
        day: Some(day),
        account: Some(account),
        figures: vec![Figure { name: "charge_nusd", here: charge, there: 0 }],
        ..Finding::new(Kind::Waiting, AGAINST, format!("{events} {why}"))
    });
    findings.collect()
}

/// Days and customers where the ledger and the merged events are not the same.
fn unlike(events: &[SinkSum], exports: &[ExportSum]) -> Vec<Finding> {
    let mut sums: BTreeMap<(Day, &str), (i128, i128)> = BTreeMap::new();
    for sum in events {
        if let Some(customer) = &sum.customer {
            sums.entry((sum.day, customer)).or_default().0 += i128::from(sum.charge_nusd.0);
        }
    }
    // Of a charge: tokens and requests are sent in ones.
    for sum in exports.iter().filter(|sum| sum.unit != 1) {
        sums.entry((sum.day, &sum.customer)).or_default().1 += i128::from(sum.amount);
    }
    let differing = sums.into_iter().filter(|(_, (ledger, merged))| ledger != merged);
    let because = "the ledger and the merged events differ here already";
    let findings = differing.map(|((day, customer), (here, there))| Finding {
        day: Some(day),
        customer: Some(customer.to_owned()),
        figures: vec![Figure { name: "charge_nusd", here, there }],
        ..Finding::new(Kind::Difference, AGAINST, because.to_owned())
    });
    findings.collect()
}

type Days = BTreeMap<Day, Expected>;

/// What each customer's meter should have summed.
fn by_meter(exports: &[ExportSum]) -> HashMap<(String, String), Days> {
    let mut groups: HashMap<(String, String), Days> = HashMap::new();
    for sum in exports {
        let days = groups.entry((sum.customer.clone(), sum.meter.clone())).or_default();
        let is_exported = sum.state == DeliveryState::Exported;
        days.entry(sum.day).or_default().add(is_exported, sum.is_tried, sum.value);
    }
    groups
}

/// Whose sums are compared.
struct Of<'a> {
    customer: &'a str,
    meter: &'a str,
    accounts: &'a HashMap<String, Vec<String>>,
}

impl Of<'_> {
    fn finding(&self, kind: Kind, day: Day, because: String) -> Finding {
        // A customer of several accounts is named by itself.
        let account = match self.accounts.get(self.customer).map(Vec::as_slice) {
            Some([account]) => Some(account.clone()),
            _ => None,
        };
        Finding {
            day: Some(day),
            account,
            customer: Some(self.customer.to_owned()),
            meter: Some(self.meter.to_owned()),
            ..Finding::new(kind, AGAINST, because)
        }
    }
}

fn compare(of: &Of<'_>, here: &Days, there: &[(Day, i64)], terms: &Terms, report: &mut Report) {
    let mut summed: BTreeMap<Day, i128> = BTreeMap::new();
    for (day, value) in there {
        *summed.entry(*day).or_default() += i128::from(*value);
    }
    report.compared(AGAINST, terms.days.len());
    for day in &terms.days {
        let here = here.get(day).copied().unwrap_or_default();
        let there = summed.get(day).copied().unwrap_or_default();
        let figures = Figure::differing(&[("units", here.exported, there)]);
        if !here.explains(there) {
            let because = "what was exported is not what the meter has summed".to_owned();
            report.add(Finding { figures, ..of.finding(Kind::Difference, *day, because) });
        } else if here.is_on_its_way() {
            let because = format!("{} units wait or are parked", here.on_its_way());
            report.add(Finding { figures, ..of.finding(Kind::Waiting, *day, because) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ids::AccountId;
    use crate::models::money::NanoUsd;

    fn day() -> Day {
        "2026-11-23".parse().unwrap()
    }

    fn event(customer: Option<&str>, state: DeliveryState, charge: i64) -> SinkSum {
        SinkSum {
            day: day(),
            account_id: AccountId::generate(),
            model: "m".into(),
            customer: customer.map(str::to_owned),
            state,
            is_tried: true,
            events: 1,
            charge_nusd: NanoUsd(charge),
        }
    }

    fn export(unit: i64, state: DeliveryState, amount: i64, value: i64) -> ExportSum {
        let (customer, meter) = ("cus_1".to_owned(), format!("m{unit}"));
        let is_tried = state != DeliveryState::Waiting;
        ExportSum { day: day(), customer, meter, unit, state, is_tried, exports: 1, amount, value }
    }

    #[test]
    fn the_carried_rest_is_no_difference_and_a_nano_usd_in_the_books_is() {
        let exports = [
            export(1_000, DeliveryState::Exported, 2_999, 2),
            export(1, DeliveryState::Exported, 40, 40),
        ];
        let events = |charge| [event(Some("cus_1"), DeliveryState::Exported, charge)];
        assert_eq!(unlike(&events(2_999), &exports), []);
        assert_eq!(unlike(&events(2_998), &exports).len(), 1);
        let groups = by_meter(&exports);
        let expected = groups[&("cus_1".to_owned(), "m1000".to_owned())][&day()];
        assert!(expected.explains(2) && !expected.explains(3));
    }

    #[test]
    fn what_waits_or_is_parked_is_named_as_that() {
        let events = [
            event(None, DeliveryState::Parked, 5),
            event(None, DeliveryState::Waiting, 7),
            event(Some("cus_1"), DeliveryState::Waiting, 9),
        ];
        let found = unmerged(&events);
        assert!(found.iter().all(|finding| finding.kind == Kind::Waiting));
        assert_eq!(found.len(), 2, "the third is in an export");
    }
}
