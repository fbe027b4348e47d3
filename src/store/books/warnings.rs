//! Warnings follow from the entries: each crossing is told once, whatever is repeated.

use super::properties::{World, now, request_id};
use super::*;
use crate::models::account::AccountKind;
use crate::models::alert::AlertTerms;
use crate::models::billing::EventKind;

pub const LOW: i64 = 200;
pub const PERCENTS: [i64; 3] = [50, 80, 100];

/// All that can be told, to the webhook; usage to Stripe besides.
pub fn terms() -> EventTerms {
    let budget_percents = PERCENTS.into();
    let alerts = AlertTerms { low_balance_nusd: Some(NanoUsd(LOW)), budget_percents };
    EventTerms {
        sinks: ["stripe", "webhook"].map(str::to_owned).into(),
        alerts: Some(("webhook".to_owned(), alerts)),
    }
}

/// The names of the warnings that were written.
pub fn written(events: &[BillingEvent]) -> Vec<String> {
    let is_warning = |event: &&BillingEvent| {
        matches!(event.kind, EventKind::BalanceLow | EventKind::BudgetThreshold)
    };
    events.iter().filter(is_warning).map(|event| event.id.clone()).collect()
}

/// The names of those that the entries of an account call for, all by one key.
pub fn due(entries: &[LedgerEntry], kind: AccountKind, month: i64, day: i64) -> Vec<String> {
    let mut due = Vec::new();
    let (mut month_spent, mut day_spent) = (0, 0);
    for entry in entries {
        let Some(request) = entry.request_id else { continue };
        let of = if entry.kind == EntryKind::Correction { ":correction" } else { "" };
        let mut name = |what: &str| due.push(format!("{request}:webhook{of}:{what}"));
        let (after, spent) = (entry.balance_nusd.0, -entry.amount_nusd.0);
        let is_prepaid = kind == AccountKind::Prepaid;
        if is_prepaid && after + spent >= LOW && after < LOW {
            name("balance_low");
        }
        let months = (month_spent, month_spent + spent);
        let days = (day_spent, (day_spent + spent).max(0));
        (month_spent, day_spent) = (months.1, days.1);
        let of_account = (!is_prepaid).then_some(("account:month", month, months));
        for (budget, limit, (before, after)) in
            of_account.into_iter().chain([("key:day", day, days)])
        {
            for percent in PERCENTS {
                if before * 100 < limit * percent && after * 100 >= limit * percent {
                    name(&format!("budget_threshold:{budget}:{percent}"));
                }
            }
        }
    }
    due
}

fn spend(world: &mut World, request: u128, charge: i64) -> Vec<String> {
    let before = world.events.len();
    world.use_up(request, charge);
    let names = written(&world.events[before..]);
    let prefix = format!("{}:webhook:", request_id(request));
    names.iter().filter_map(|name| name.strip_prefix(&prefix).map(str::to_owned)).collect()
}

/// Of the newest warning.
fn detail(world: &World) -> String {
    world.events.iter().rev().find_map(|event| event.detail.clone()).unwrap()
}

#[test]
fn a_balance_that_recovers_can_run_low_again() {
    let mut world = World::new(AccountKind::Prepaid, 1_000_000);
    world.credit(500);
    assert!(spend(&mut world, 0, 300).is_empty(), "what is at the threshold is not below it");
    assert_eq!(spend(&mut world, 1, 1), ["balance_low"]);
    assert!(spend(&mut world, 2, 100).is_empty(), "it is told once");
    world.credit(101);
    assert_eq!(spend(&mut world, 3, 1), ["balance_low"]);
    assert_eq!(detail(&world), r#"{"balance_nusd":199,"threshold_nusd":200}"#);
}

#[test]
fn a_budget_is_told_of_at_each_threshold() {
    let mut world = World::new(AccountKind::Postpaid, 500);
    let (account, key) = ("budget_threshold:account:month:50", "budget_threshold:key:day:");
    assert!(spend(&mut world, 0, 249).is_empty());
    assert_eq!(spend(&mut world, 1, 1), [format!("{key}50")]);
    let both = [account.to_owned(), format!("{key}80"), format!("{key}100")];
    assert_eq!(spend(&mut world, 2, 250), both, "several at once");
    let expected = r#"{"of":"key","window":"day","percent":100,"limit_nusd":500,"spent_nusd":500}"#;
    assert_eq!(detail(&world), expected);
    // Another day: the key's count begins anew, the month's does not.
    world.books.budgets.get_mut(&world.key).unwrap().day_start = now().minus(DAY).day_start();
    assert_eq!(spend(&mut world, 3, 250), [format!("{key}50")]);
}

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn who_has_no_webhook_is_not_warned() {
    let mut world = World::new(AccountKind::Prepaid, 100);
    world.books.events = Arc::new(EventTerms { alerts: None, ..terms() });
    world.credit(500);
    assert!(spend(&mut world, 0, 450).is_empty());
    assert_eq!(world.events.len(), 2, "its usage, to both sinks");
}
