//! What is done to accounts, members, keys, the price table and billing events, by commands, by the
//! admin API and by first logins.
//!
//! Invariant: every change is written with its entry in the audit log, which never holds a secret
//! or its hash. Callers tell other processes (`Store::announce_change`).

mod accounts;
mod events;
mod keys;
mod members;
mod prices;
mod signup;

pub use accounts::{AccountPatch, check_reference, create_account, enter, update_account};
pub use events::{correct_exports, dismiss_events, park_events, retry_events};
pub use keys::{KeyPatch, NewKey, create_key, revoke_key, rotate_key, shown_key, update_key};
pub use members::{add_member, remove_member};
pub use prices::set_price_table;
pub use signup::{SignupTerms, sign_up};

use crate::error::Error;
pub use crate::models::audit::shown;
use crate::models::limits::RateLimits;
use crate::models::money::NanoUsd;
use serde::{Deserialize, Deserializer};

/// A command on the server's own machine, as the audit log names it.
pub const OPERATOR: &str = "operator";

/// Texts longer than these are refused: each is in a row, and twice in the audit log.
const NAME_CHARACTERS_MAX: usize = 200;
const REASON_CHARACTERS_MAX: usize = 500;
/// As long as Stripe's ids get. <https://docs.stripe.com/upgrades>
const REFERENCE_CHARACTERS_MAX: usize = 255;
/// A billion dollars: a few such amounts still add up to what a balance can hold.
const AMOUNT_MAX: NanoUsd = NanoUsd(1_000_000_000 * 1_000_000_000);

/// A member of a patch: not there, null, or a value.
type Change<T> = Option<Option<T>>;

/// For members whose null means something: with `#[serde(default)]`.
fn change<'de, T: Deserialize<'de>, D: Deserializer<'de>>(de: D) -> Result<Change<T>, D::Error> {
    Option::deserialize(de).map(Some)
}

/// For members that have no null: with `#[serde(default)]`.
pub fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    de: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(de).map(Some)
}

/// Rate limits with these changes.
fn rates(
    to: RateLimits,
    requests: Change<i64>,
    tokens: Change<i64>,
    concurrent: Change<i64>,
) -> Result<RateLimits, Error> {
    let limits = RateLimits {
        requests_per_minute: requests.unwrap_or(to.requests_per_minute),
        tokens_per_minute: tokens.unwrap_or(to.tokens_per_minute),
        concurrent_requests: concurrent.unwrap_or(to.concurrent_requests),
    };
    check_rates(&limits)?;
    Ok(limits)
}

fn check_rates(limits: &RateLimits) -> Result<(), Error> {
    for (param, limit) in [
        ("requests_per_minute", limits.requests_per_minute),
        ("tokens_per_minute", limits.tokens_per_minute),
        ("concurrent_requests", limits.concurrent_requests),
    ] {
        if limit.is_some_and(|limit| limit < 1) {
            return Err(Error::invalid(param, "must be at least 1, or null for no limit"));
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), Error> {
    check_text("name", name, NAME_CHARACTERS_MAX)
}

/// Control characters have no place in a list, and PostgreSQL takes no NUL.
fn check_text(param: &'static str, text: &str, characters_max: usize) -> Result<(), Error> {
    let is_printable = text.chars().all(|character| !character.is_control());
    let characters = text.chars().count();
    if is_printable && (1..=characters_max).contains(&characters) && text.trim() == text {
        return Ok(());
    }
    let wanted =
        format!("must be 1 to {characters_max} printable characters, without blanks at its ends");
    Err(Error::invalid(param, &wanted))
}

/// A limit or an opening credit, where there is one.
fn check_amount(param: &'static str, amount: Option<NanoUsd>) -> Result<(), Error> {
    if amount.is_none_or(|amount| (NanoUsd::ZERO..=AMOUNT_MAX).contains(&amount)) {
        return Ok(());
    }
    Err(Error::invalid(param, "must be from zero to a billion dollars"))
}
