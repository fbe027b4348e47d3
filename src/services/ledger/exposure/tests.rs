//! What is let in, whatever comes in whatever order.

use super::*;
use crate::models::attempt::Attempts;
use crate::models::ids::InstanceId;
use crate::models::limits::Counted;
use crate::models::money::Tokens;
use crate::models::openai::answer::Reported;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{Ending, TokenUsage, UsageSource};
use proptest::prelude::*;
use uuid::Uuid;

fn hold(number: u128, account: u128, amount: i64) -> Hold {
    let now = Timestamp::from_unix_seconds(1_700_000_000);
    Hold {
        request_id: RequestId(Uuid::from_u128(number)),
        account_id: AccountId(Uuid::from_u128(account)),
        api_key_id: Some(ApiKeyId(Uuid::from_u128(account + 100))),
        user_id: None,
        amount_nusd: NanoUsd(amount),
        owner: InstanceId(Uuid::nil()),
        lease_expires_at: now,
        upstream: "u".to_owned(),
        model: "m".to_owned(),
        price_id: "p".to_owned(),
        prompt_tokens_estimate: Tokens(1),
        input_images: None,
        completion_tokens_seen: Tokens(0),
        generation_id: None,
        idempotency_key: None,
        streamed: true,
        placed_at: now,
        counted: Counted::default(),
        tried: Attempts::default(),
    }
}

fn record(hold: &Hold, charge: i64) -> UsageRecord {
    let reported = Reported { tokens: TokenUsage::default(), cost_pico: None };
    let now = hold.placed_at;
    let mut record = hold.closed(Ending::Completed, UsageSource::Upstream, reported, now);
    record.charge_nusd = NanoUsd(charge);
    record
}

fn extension(hold: &Hold, add: i64) -> Extension {
    Extension {
        request_id: hold.request_id,
        account_id: hold.account_id,
        api_key_id: hold.api_key_id,
        held_nusd: hold.amount_nusd,
        add_nusd: NanoUsd(add),
        floor_nusd: NanoUsd(1),
    }
}

const RICH: Left = Left { account: NanoUsd(i64::MAX), key: NanoUsd(i64::MAX) };

fn left(account: i64, key: i64) -> Left {
    Left { account: NanoUsd(account), key: NanoUsd(key) }
}

#[test]
fn whoever_has_least_decides() {
    let mut exposure = Exposure::new(NanoUsd(100));
    let floor = NanoUsd(10);
    assert_eq!(exposure.place(&hold(1, 1, 60), floor, left(50, 70)), Ok(NanoUsd(50)));
    let none = |by| Err(Denied::NoMoney(by));
    assert_eq!(exposure.place(&hold(2, 1, 60), floor, left(50, 70)), none(Limit::Account));
    assert_eq!(exposure.place(&hold(3, 2, 60), floor, left(50, 5)), none(Limit::Key));
    // Others have what is left of the exposure, down to their floor.
    assert_eq!(exposure.place(&hold(4, 2, 45), floor, RICH), Ok(NanoUsd(45)));
    assert_eq!(exposure.place(&hold(5, 3, 60), floor, RICH), Err(Denied::Exposed));
    // A request gives back what it did not use, and all of it once the books know it.
    exposure.settled(&record(&hold(4, 2, 45), 5));
    assert_eq!(exposure.left(), NanoUsd(45));
    exposure.forget(hold(4, 2, 45).request_id);
    assert_eq!(exposure.left(), NanoUsd(50));
    // What costs nothing is nobody's exposure, but nothing is let in when there is none.
    assert_eq!(exposure.place(&hold(6, 3, 50), floor, RICH), Ok(NanoUsd(50)));
    assert_eq!(exposure.place(&hold(7, 3, 0), NanoUsd(0), RICH), Err(Denied::Exposed));
}

#[test]
fn what_the_books_hold_is_exposed_by_its_extension_only() {
    let mut exposure = Exposure::new(NanoUsd(100));
    let known = hold(1, 1, 1_000);
    assert_eq!(exposure.extend(&extension(&known, 30), RICH), Ok(NanoUsd(30)));
    exposure.settled(&record(&known, 900));
    assert_eq!(exposure.left(), NanoUsd(70), "its charge is held for, but for the extension");
    exposure.forget(known.request_id);
    assert_eq!(exposure.left(), NanoUsd(100));
}

proptest! {
    #[test]
    fn no_more_than_the_exposure_is_let_in(
        steps in prop::collection::vec((0..4_u8, 0..8_u128, 0..60_i64), 1..80)
    ) {
        let mut exposure = Exposure::new(NanoUsd(100));
        for (what, number, amount) in steps {
            // A request belongs to one account.
            let hold = hold(number, number % 3, amount);
            let before = exposure.total;
            match what {
                0 if !exposure.taken.contains_key(&hold.request_id) => {
                    let got = exposure.place(&hold, NanoUsd(1), left(70, 50));
                    prop_assert!(exposure.total <= NanoUsd(100).max(before), "{got:?}");
                }
                1 => {
                    let got = exposure.extend(&extension(&hold, amount), RICH);
                    prop_assert!(exposure.total <= NanoUsd(100).max(before), "{got:?}");
                }
                2 => exposure.settled(&record(&hold, amount)),
                _ => exposure.forget(hold.request_id),
            }
            let sum: i64 = exposure.taken.values().map(|taken| taken.amount.0).sum();
            let accounts: i64 = exposure.accounts.values().map(|amount| amount.0).sum();
            let keys: i64 = exposure.keys.values().map(|amount| amount.0).sum();
            prop_assert_eq!((sum, sum, sum), (exposure.total.0, accounts, keys));
        }
    }
}
