//! What Stripe may tell us, and where it sends people back to.
//!
//! Invariants: without a secret no event is believed; nobody is sent back to an address whose
//! origin was not named here.

use super::reader::{Reader, listed};
use super::{ConfigError, is_safe};
use crate::models::money::NanoUsd;
use crate::models::payment::NANO_PER_CENT;
use hyper::Uri;
use secrecy::SecretString;
use std::ops::RangeInclusive;

#[derive(Clone, Debug)]
pub struct PaymentsConfig {
    /// Any of them signs: two while one is replaced by the other. Empty: no events are taken.
    pub webhook_secrets: Vec<SecretString>,
    /// Where people come back to. Empty: nobody is sent to Stripe. The first is the usual one.
    pub return_urls: Vec<Uri>,
    /// What can be paid at once, in cents.
    pub topup_cents: RangeInclusive<i64>,
    /// Whether accounts become customers by themselves.
    pub creates_customers: bool,
}

/// Of a secret of a webhook endpoint. <https://docs.stripe.com/webhooks#verify-events>
const SECRET_PREFIX: &str = "whsec_";
/// Each is tried on each event; while one is rolled there are two.
const SECRETS_MAX: usize = 8;
/// What Stripe charges at least and at most, in cents.
/// <https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts>
const CHARGEABLE_CENTS: RangeInclusive<i64> = 50..=99_999_999;

impl PaymentsConfig {
    pub(super) fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let secrets = env.secrets("STRIPE_WEBHOOK_SECRET");
        let return_urls = env.text("TOLLGATE_BILLING_RETURN_URL", "");
        let least = cents("TOLLGATE_TOPUP_MIN_USD", &env.text("TOLLGATE_TOPUP_MIN_USD", "5"))?;
        let most = cents("TOLLGATE_TOPUP_MAX_USD", &env.text("TOLLGATE_TOPUP_MAX_USD", "1000"))?;
        let creates_customers = env.switch("STRIPE_CREATE_CUSTOMERS", "on")?;
        if most < least {
            let message = "TOLLGATE_TOPUP_MAX_USD is less than TOLLGATE_TOPUP_MIN_USD";
            return Err(ConfigError(message.into()));
        }
        if secrets.len() > SECRETS_MAX || !secrets.iter().all(|it| it.starts_with(SECRET_PREFIX)) {
            let message = format!(
                "STRIPE_WEBHOOK_SECRET must be one or more (at most {SECRETS_MAX}), separated by \
                 commas, each beginning with {SECRET_PREFIX}"
            );
            return Err(ConfigError(message));
        }
        Ok(Self {
            webhook_secrets: secrets.into_iter().map(SecretString::from).collect(),
            return_urls: listed(&return_urls).map(return_url).collect::<Result<_, _>>()?,
            topup_cents: least..=most,
            creates_customers,
        })
    }
}

fn return_url(text: &str) -> Result<Uri, ConfigError> {
    text.parse().ok().filter(is_safe).ok_or_else(|| {
        let message = "TOLLGATE_BILLING_RETURN_URL must be https:// addresses, or on this machine";
        ConfigError(message.into())
    })
}

fn cents(name: &str, text: &str) -> Result<i64, ConfigError> {
    let amount = NanoUsd::parse_typed(text).filter(|amount| amount.0 % NANO_PER_CENT == 0);
    let cents = amount.map(|amount| amount.0 / NANO_PER_CENT);
    cents.filter(|cents| CHARGEABLE_CENTS.contains(cents)).ok_or_else(|| {
        ConfigError(format!("{name} must be dollars and whole cents, from 0.50 to 999999.99"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_whole_cents_that_stripe_takes() {
        assert_eq!(cents("X", "5").unwrap(), 500);
        assert_eq!(cents("X", "0.50").unwrap(), 50);
        for bad in ["0.49", "0.505", "-5", "1000000", "five", ""] {
            assert!(cents("X", bad).is_err(), "{bad}");
        }
    }
}
