//! The order in which Stripe's events come changes nothing in the end.

use super::*;
use crate::models::account::NewAccount;
use crate::models::limits::RateLimits;
use proptest::prelude::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(1_790_000_000 + seconds)
}

fn reversal(id: &str, kind: ReversalKind, cents: i64, taken: bool, seconds: i64) -> Reversal {
    Reversal {
        id: id.to_owned(),
        payment_intent: "pi_1".to_owned(),
        kind,
        amount_cents: cents,
        state: if taken { ReversalState::Taken } else { ReversalState::Returned },
        as_of: at(seconds),
    }
}

/// What is kept of states that come in this order.
fn merged(states: &[Reversal]) -> Vec<Reversal> {
    let mut kept: Vec<Reversal> = vec![];
    for state in states {
        match kept.iter_mut().find(|known| known.id == state.id) {
            Some(known) if state.supersedes(known) => *known = state.clone(),
            Some(_) => {}
            None => kept.push(state.clone()),
        }
    }
    kept
}

#[test]
fn refunds_count_once_as_objects_and_as_a_sum() {
    use ReversalKind::{Charge, Dispute, Refund};
    let taken = |states: &[Reversal]| taken_cents(1_000, &merged(states));
    let one = reversal("re_1", Refund, 300, true, 1);
    let sum = |cents, seconds| reversal("ch_1", Charge, cents, true, seconds);
    assert_eq!(taken(std::slice::from_ref(&one)), 300, "its object alone");
    assert_eq!(taken(&[sum(300, 1)]), 300, "the sum alone");
    assert_eq!(taken(&[one.clone(), sum(300, 1)]), 300, "both");
    let two = reversal("re_2", Refund, 200, true, 2);
    assert_eq!(taken(&[two.clone(), one.clone(), sum(500, 2), sum(300, 1)]), 500);
    let failed = reversal("re_1", Refund, 300, false, 5);
    assert_eq!(taken(&[one.clone(), two.clone(), sum(500, 2), failed.clone()]), 200);
    assert_eq!(taken(&[sum(300, 1), failed.clone()]), 0, "the sum is older than the failure");
    assert_eq!(taken(&[sum(300, 1), failed.clone(), sum(300, 9)]), 300, "a new refund");
    let lost = reversal("dp_1", Dispute, 1_000, true, 3);
    assert_eq!(taken(&[one, lost.clone()]), 1_000, "never more than was paid");
    let won = reversal("dp_1", Dispute, 1_000, false, 8);
    assert_eq!(taken(&[won, lost]), 0, "in either order");
}

#[test]
fn a_credit_is_taken_back_in_proportion() {
    let payment = Payment {
        id: "cs_1".to_owned(),
        account_id: AccountId::generate(),
        payment_intent: "pi_1".to_owned(),
        // 10 USD of credit, and 1.90 of taxes.
        paid_cents: 1_190,
        credited_nusd: NanoUsd(1_000 * NANO_PER_CENT),
        kept_nusd: NanoUsd(1_000 * NANO_PER_CENT),
        created_at: at(0),
    };
    assert_eq!(payment.kept_after(0), Ok(payment.credited_nusd));
    assert_eq!(payment.kept_after(595), Ok(NanoUsd(500 * NANO_PER_CENT)));
    assert_eq!(payment.kept_after(1), Ok(NanoUsd(9_991_596_638)), "down to the nano-USD");
    assert_eq!(payment.kept_after(1_190), Ok(NanoUsd::ZERO));
    assert_eq!(payment.kept_after(5_000), Ok(NanoUsd::ZERO));
    assert_eq!(Payment { paid_cents: 0, ..payment }.kept_after(0), Err(OutOfRange));
}

fn states() -> impl Strategy<Value = Vec<Reversal>> {
    use ReversalKind::{Charge, Dispute, Refund};
    let one =
        (0..5_usize, 0..400_i64, any::<bool>(), 0..4_i64).prop_map(|(which, cents, taken, s)| {
            let (id, kind) = [
                ("re_1", Refund),
                ("re_2", Refund),
                ("ch_1", Charge),
                ("dp_1", Dispute),
                ("dp_2", Dispute),
            ][which];
            // A charge names a sum, which is always taken.
            reversal(id, kind, cents, taken || kind == Charge, s)
        });
    proptest::collection::vec(one, 0..12)
}

proptest! {
    #[test]
    fn any_order_and_repetition_of_events_ends_the_same(
        (states, shuffled) in states().prop_flat_map(|all| {
            (Just(all.clone()), Just(all).prop_shuffle())
        })
    ) {
        let twice = [shuffled.clone(), shuffled].concat();
        let (one, other) = (merged(&states), merged(&twice));
        prop_assert_eq!(taken_cents(1_000, &one), taken_cents(1_000, &other));
        prop_assert!((0..=1_000).contains(&taken_cents(1_000, &one)));
    }
}

fn account(kind: AccountKind, status: AccountStatus, plan: Option<&str>) -> Account {
    let new = NewAccount {
        name: "a".to_owned(),
        kind,
        plan: plan.map(str::to_owned),
        limit_nusd: None,
        stripe_customer_id: None,
        rates: RateLimits::default(),
    };
    Account { status, ..Account::open(new, at(0)) }
}

fn subscription(id: &str, status: SubscriptionStatus, plan: &str, seconds: i64) -> Subscription {
    Subscription {
        id: id.to_owned(),
        account_id: AccountId::generate(),
        status,
        plan: Some(plan.to_owned()),
        as_of: at(seconds),
    }
}

#[test]
fn a_subscription_gives_its_plan_and_takes_it_back() {
    use AccountKind::{Postpaid, Prepaid};
    use AccountStatus::{Active, Suspended};
    use SubscriptionStatus as Is;
    let after = |before: &Account, states: &[Subscription], ours| {
        let after = subscribed(before, states, None, ours, Some("basic"));
        (after.status, after.plan)
    };
    let plan = |name: &str| Some(name.to_owned());
    let prepaid = account(Prepaid, Active, None);
    let postpaid = account(Postpaid, Active, Some("team"));
    for status in [Is::Active, Is::Trialing, Is::PastDue] {
        let good = [subscription("s", status, "team", 1)];
        assert_eq!(after(&prepaid, &good, false), (Active, plan("team")), "{status:?}");
    }
    for status in [Is::Unpaid, Is::Canceled, Is::Paused] {
        let over = [subscription("s", status, "team", 1)];
        let team = account(Prepaid, Active, Some("team"));
        assert_eq!(after(&team, &over, false), (Active, plan("basic")), "{status:?}");
        assert_eq!(after(&postpaid, &over, false), (Suspended, plan("team")), "{status:?}");
    }
    for status in [Is::Incomplete, Is::IncompleteExpired] {
        let unpaid = [subscription("s", status, "team", 1)];
        let team = account(Prepaid, Active, Some("team"));
        assert_eq!(after(&prepaid, &unpaid, false), (Active, None), "{status:?}");
        assert_eq!(after(&team, &unpaid, false), (Active, plan("team")), "{status:?}");
        assert_eq!(after(&postpaid, &unpaid, false), (Active, plan("team")), "{status:?}");
    }

    let vip = account(Prepaid, Active, Some("vip"));
    let over = [subscription("s", Is::Canceled, "team", 1)];
    assert_eq!(after(&vip, &over, false), (Active, plan("vip")), "somebody else's plan stays");
    let changed =
        [subscription("new", Is::Active, "pro", 1), subscription("old", Is::Canceled, "team", 2)];
    assert_eq!(after(&prepaid, &changed, false), (Active, plan("pro")), "another one is good");

    let suspended = account(Postpaid, Suspended, Some("team"));
    let good = [subscription("s", Is::Active, "team", 3)];
    assert_eq!(after(&suspended, &good, true), (Active, plan("team")));
    assert_eq!(after(&suspended, &good, false), (Suspended, plan("team")), "the operator's own");
    assert_eq!(after(&suspended, &[], true), (Suspended, plan("team")));
}

#[test]
fn what_a_subscription_was_before_counts_for_its_account_of_then() {
    use AccountKind::{Postpaid, Prepaid};
    use AccountStatus::{Active, Suspended};
    let of = |id: &str, status, plan: &str, account: &Account| Subscription {
        account_id: account.id,
        ..subscription(id, status, plan, 1)
    };
    let after = |account: &Account, states: &[Subscription], before: &Subscription, ours| {
        let after = subscribed(account, states, Some(before), ours, Some("basic"));
        (after.status, after.plan)
    };
    let plan = |name: &str| Some(name.to_owned());
    let prepaid = account(Prepaid, Active, Some("team"));
    let before = of("s", SubscriptionStatus::Active, "team", &prepaid);
    let ended = [of("s", SubscriptionStatus::Canceled, "pro", &prepaid)];
    assert_eq!(after(&prepaid, &ended, &before, false), (Active, plan("basic")), "overtaken");
    assert_eq!(after(&prepaid, &[], &before, false), (Active, plan("basic")), "it has left");
    let stranger = subscription("s", SubscriptionStatus::Active, "team", 1);
    assert_eq!(after(&prepaid, &[], &stranger, false), (Active, plan("team")), "not its own");
    let other = [of("other", SubscriptionStatus::Active, "team", &prepaid)];
    assert_eq!(after(&prepaid, &other, &before, false), (Active, plan("team")), "it has another");

    let postpaid = account(Postpaid, Suspended, Some("vip"));
    let before = of("s", SubscriptionStatus::Unpaid, "team", &postpaid);
    assert_eq!(after(&postpaid, &[], &before, true), (Active, plan("vip")), "it has left");
    assert_eq!(after(&postpaid, &[], &before, false), (Suspended, plan("vip")), "an operator's");
    let over = [of("other", SubscriptionStatus::Canceled, "team", &postpaid)];
    assert_eq!(after(&postpaid, &over, &before, true), (Suspended, plan("vip")), "and another's");
}

#[test]
fn an_older_state_of_a_subscription_does_not_come_back() {
    use SubscriptionStatus as Is;
    let newer = subscription("s", Is::PastDue, "team", 5);
    let older = subscription("s", Is::Active, "team", 4);
    assert!(newer.supersedes(&older) && !older.supersedes(&newer));
    let ended = subscription("s", Is::Canceled, "team", 3);
    assert!(ended.supersedes(&newer) && !newer.supersedes(&ended), "an end is final");
}
