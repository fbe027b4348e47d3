//! Whatever the order of usage, corrections and refusals: what was sent is the ledger's, in whole
//! units, and the rest is carried.

use super::groups::Groups;
use super::*;
use crate::models::attempt::Attempts;
use crate::models::hold::Hold;
use crate::models::ids::{AccountId, InstanceId, RequestId};
use crate::models::limits::Counted;
use crate::models::money::{NanoUsd, Tokens};
use crate::models::openai::answer::Reported;
use crate::models::usage::{Ending, TokenUsage, UsageCorrection, UsageRecord, UsageSource};
use proptest::prelude::*;
use uuid::Uuid;

const CUSTOMER: &str = "cus_1";

fn now() -> Timestamp {
    Timestamp::parse("2026-11-24T12:00:30Z").unwrap()
}

fn export() -> Export {
    Export { id: "e".to_owned(), amount: 1_500, unit: 1_000, value: 1, ..Export::sample(now()) }
}

fn meters() -> Vec<Meter> {
    [("charge", Measure::ChargeMicroUsd), ("prompts", Measure::UncachedPromptTokens)]
        .map(|(name, measure)| Meter { event_name: name.to_owned(), measure })
        .into()
}

fn record(number: u128, charge: i64, at: Timestamp) -> UsageRecord {
    let hold = Hold {
        request_id: RequestId(Uuid::from_u128(number)),
        account_id: AccountId(Uuid::from_u128(1)),
        api_key_id: None,
        amount_nusd: NanoUsd::ZERO,
        owner: InstanceId::generate(),
        lease_expires_at: at,
        upstream: "openai".to_owned(),
        model: "m".to_owned(),
        price_id: "p".to_owned(),
        prompt_tokens_estimate: Tokens(1),
        input_images: None,
        completion_tokens_seen: Tokens(0),
        generation_id: None,
        idempotency_key: None,
        streamed: true,
        placed_at: at,
        user_id: None,
        counted: Counted::default(),
        tried: Attempts::default(),
    };
    let tokens = TokenUsage { prompt: Tokens(7), cached: Tokens(3), ..TokenUsage::default() };
    let reported = Reported { tokens, cost_pico: None };
    UsageRecord {
        charge_nusd: NanoUsd(charge),
        ..hold.closed(Ending::Completed, UsageSource::Upstream, reported, at)
    }
}

fn used(number: u128, charge: i64, at: Timestamp) -> (Outgoing, Option<String>) {
    let record = record(number, charge, at);
    let event = BillingEvent::usage(&record.outline(), "stripe");
    let outgoing = Outgoing { event, record, correction: None, about: None };
    (outgoing, Some(CUSTOMER.to_owned()))
}

fn given_back(number: u128, difference: i64, at: Timestamp) -> (Outgoing, Option<String>) {
    let record = record(number, 0, at);
    let correction = UsageCorrection {
        request_id: record.id,
        account_id: record.account_id,
        generation_id: "g".to_owned(),
        prompt_tokens: Tokens(5),
        completion_tokens: Tokens(0),
        upstream_cost_pusd: None,
        charge_nusd: NanoUsd::ZERO,
        difference_nusd: NanoUsd(difference),
        created_at: at,
    };
    let event = BillingEvent::correction(&correction, "stripe");
    let outgoing = Outgoing { event, record, correction: Some(correction), about: None };
    (outgoing, Some(CUSTOMER.to_owned()))
}

fn lanes() -> BTreeMap<String, Lane> {
    [(CUSTOMER.to_owned(), Lane::new("stripe", CUSTOMER))].into()
}

fn values(plan: &Plan, meter: &str) -> Vec<i64> {
    plan.exports.iter().filter(|export| export.meter == meter).map(|export| export.value).collect()
}

#[test]
fn a_minute_is_one_export_and_the_rest_is_carried() {
    let next = now().plus(Duration::from_secs(60));
    let events = vec![used(1, 1_400, now()), used(2, 1_500, now()), used(3, 200, next)];
    let plan = plan(events, lanes(), &meters(), next);
    assert_eq!(values(&plan, "charge"), [2, 1], "2,900 and what it leaves with 200");
    assert_eq!(values(&plan, "prompts"), [8, 4], "without the cached ones");
    assert_eq!(plan.lanes[CUSTOMER].carried_nusd, 100);
    assert_eq!(plan.lanes[CUSTOMER].seq, 4);
    assert_eq!(plan.exports[0].used_at, now());
    let groups: Vec<_> = plan.events.iter().map(|event| event.export_group.clone()).collect();
    assert!(groups[0] == groups[1] && groups[1] != groups[2], "{groups:?}");
}

#[test]
fn what_gives_back_is_netted_or_negative() {
    let plan =
        plan(vec![used(1, 5_000, now()), given_back(2, 7_500, now())], lanes(), &meters(), now());
    assert_eq!(values(&plan, "charge"), [-3], "rounded down: never more sent than charged");
    assert_eq!(values(&plan, "prompts"), [4 - 2]);
    assert_eq!(plan.lanes[CUSTOMER].carried_nusd, 500);
}

#[test]
fn nothing_is_sent_for_less_than_a_unit() {
    let charge = [meters().remove(0)];
    let plan = plan(vec![used(1, 999, now())], lanes(), &charge, now());
    assert_eq!(plan.exports[0].state, DeliveryState::Exported);
    assert_eq!(plan.events[0].state, DeliveryState::Exported);
    assert_eq!(plan.lanes[CUSTOMER].next_attempt_at, None);
    assert_eq!(plan.lanes[CUSTOMER].carried_nusd, 999);
}

#[test]
fn nobody_and_long_ago_are_parked() {
    let old = now().minus(OLDEST + Duration::from_secs(1));
    let (stranger, _) = used(1, 5_000, now());
    let plan = plan(vec![(stranger, None), used(2, 5_000, old)], lanes(), &meters(), now());
    let parked: Vec<_> = plan.events.iter().map(|event| event.reason.as_deref()).collect();
    assert_eq!(parked, [Some(reasons::NO_CUSTOMER), Some(reasons::TOO_OLD)]);
    assert!(plan.exports.is_empty());
}

#[test]
fn a_leased_lane_is_not_woken() {
    let mut lane = Lane::new("stripe", CUSTOMER);
    let until = now().plus(Duration::from_secs(60));
    lane.leased_until = Some(until);
    lane.next_attempt_at = Some(until);
    let lanes = [(CUSTOMER.to_owned(), lane)].into();
    let plan = plan(vec![used(1, 5_000, now())], lanes, &meters(), now());
    assert_eq!(plan.lanes[CUSTOMER].next_attempt_at, Some(until));
}

#[test]
fn what_may_have_arrived_keeps_its_identifier() {
    let mut lane = Lane::new("stripe", CUSTOMER);
    let parked = |reason: &str| Export {
        state: DeliveryState::Parked,
        reason: Some(reason.to_owned()),
        ..export()
    };
    lane.carried_nusd = 500;
    let mut group = [Export { first_sent_at: Some(now()), ..parked("resource_missing") }];
    assert_eq!(renew(&mut lane, &mut group, now()), Ok(Renewed::Resent(vec![])));
    assert_eq!((group[0].state, lane.carried_nusd), (DeliveryState::Waiting, 500));

    let sent = Export { state: DeliveryState::Exported, ..export() };
    let mut group = [parked("resource_missing"), sent];
    assert_eq!(renew(&mut lane, &mut group, now()), Ok(Renewed::Resent(vec![])));

    // Stripe took it and dropped it: of that identifier it may still think that it has it.
    let sent = Export { state: DeliveryState::Exported, ..export() };
    let dropped = parked("stripe meter_event_customer_not_found: gone");
    let mut group = [dropped, sent];
    let Ok(Renewed::Resent(again)) = renew(&mut lane, &mut group, now()) else { panic!("resent") };
    assert_eq!((group[0].state, group[1].state), (DeliveryState::Void, DeliveryState::Exported));
    let [again] = again.try_into().unwrap();
    assert_eq!((again.state, again.value, again.seq), (DeliveryState::Waiting, 1, lane.seq));
    assert_ne!(again.id, group[0].id);
    assert_eq!(again.event_group, group[0].event_group);
    assert_eq!(lane.carried_nusd, 500, "one for the other");

    // A member is in an archive: planned anew, its share would be left out.
    let dropped = parked("stripe meter_event_customer_not_found: gone");
    let mut groups =
        Groups::new(vec![lane.clone()], vec![dropped.clone()], vec![dropped.event_group]);
    let changed = groups.renew(now());
    assert_eq!((changed.replanned.len(), changed.kept.len()), (0, 1));
    assert_eq!((changed.made[0].value, changed.made[0].state), (1, DeliveryState::Waiting));

    let mut group = [parked("resource_missing")];
    assert_eq!(renew(&mut lane, &mut group, now()), Ok(Renewed::Replanned));
    assert_eq!((group[0].state, lane.carried_nusd), (DeliveryState::Void, 0));
}

#[test]
fn what_is_dismissed_is_not_sent_by_a_later_retry() {
    let mut lane = Lane::new("stripe", CUSTOMER);
    let of = |state, first_sent_at| Export { state, first_sent_at, ..export() };
    let sent = Some(now());
    let (parked, waiting) = (of(DeliveryState::Parked, None), of(DeliveryState::Waiting, None));
    for open in [of(DeliveryState::Waiting, sent), of(DeliveryState::Parked, sent)] {
        let mut group = [parked.clone(), open];
        let before = group.clone();
        assert_eq!(dismiss(&mut lane, &mut group, now()), Ok(false), "it may be there");
        assert_eq!((&group, lane.carried_nusd), (&before, 0));
    }
    // Past its time nobody can say that it is missing.
    let late = now().plus(OLDEST + Duration::from_secs(60));
    let mut old = [of(DeliveryState::Parked, sent)];
    assert_eq!(dismiss(&mut lane.clone(), &mut old, late), Ok(true));

    let mut group = [parked, waiting, of(DeliveryState::Exported, sent)];
    assert_eq!(dismiss(&mut lane, &mut group, now()), Ok(true));
    let states = group.clone().map(|export| export.state);
    assert_eq!(states, [DeliveryState::Void, DeliveryState::Void, DeliveryState::Exported]);
    assert_eq!(lane.carried_nusd, -1_000, "two of 1,500, of which a unit each was to be sent");
    // Stripe drops what it had taken: that alone is sent again.
    group[2].state = DeliveryState::Parked;
    group[2].reason = Some("stripe meter_event_invalid_value: x".to_owned());
    let Ok(Renewed::Resent(again)) = renew(&mut lane, &mut group, now()) else { panic!("anew") };
    assert_eq!((again.len(), lane.carried_nusd), (1, -1_000));
}

proptest! {
    #[test]
    fn over_any_period_less_than_a_unit_differs(
        amounts in proptest::collection::vec((-20_000..20_000_i64, 0..5_u64), 1..60),
        batch in 1..10_usize,
        fates in proptest::collection::vec(0..3_u8, 60),
    ) {
        let mut lanes = lanes();
        let (mut sent, mut charged) = (0, 0);
        let mut fates = fates.into_iter();
        for (number, amounts) in amounts.chunks(batch).enumerate() {
            let events: Vec<_> = (0..).zip(amounts).map(|(index, (amount, minute))| {
                let at = now().plus(Duration::from_secs(60 * minute));
                let number = u128::try_from(number * 100 + index + 1).unwrap();
                match *amount {
                    amount if amount < 0 => given_back(number, -amount, at),
                    amount => used(number, amount, at),
                }
            }).collect();
            let mut again = events.clone();
            let mut made = plan(events, lanes, &meters(), now());
            let fate = fates.next().unwrap_or_default();
            if fate > 0 {
                let exports = std::mem::take(&mut made.exports).into_iter();
                let parked = |export| Export { state: DeliveryState::Parked, ..export };
                let lanes = made.lanes.values().cloned().collect();
                let mut groups = Groups::new(lanes, exports.map(parked).collect(), vec![]);
                let changed = if fate == 1 { groups.dismiss(now()) } else { groups.renew(now()) };
                let is_void = |export: &Export| export.state == DeliveryState::Void;
                prop_assert!(changed.written.iter().all(is_void) && changed.made.is_empty());
                prop_assert_eq!(changed.kept.is_empty(), fate == 2);
                let lane = groups.lanes().next().unwrap().clone();
                made.lanes.insert(CUSTOMER.to_owned(), lane);
            }
            if fate == 1 {
                // It is not sent, and as if it had not been charged.
                prop_assert_eq!(made.lanes[CUSTOMER].carried_nusd, charged - sent * 1_000);
                lanes = made.lanes;
                continue;
            }
            if fate == 2 {
                for (outgoing, _) in &mut again {
                    outgoing.event.attempts += 1;
                }
                made = plan(again, made.lanes, &meters(), now());
            }
            charged += amounts.iter().map(|(amount, _)| amount).sum::<i64>();
            sent += values(&made, "charge").iter().sum::<i64>();
            lanes = made.lanes;
            let rest = charged - sent * 1_000;
            prop_assert_eq!(lanes[CUSTOMER].carried_nusd, rest);
            prop_assert!((0..1_000).contains(&rest), "{rest}");
        }
    }
}
