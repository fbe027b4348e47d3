//! The pages at Stripe where people top up and manage how they pay.
//!
//! Invariants: what is bought, and for which account, is written at Stripe by us; people come back
//! to an origin that the operator has named, and to no other.
//! <https://docs.stripe.com/api/checkout/sessions/create>
//! <https://docs.stripe.com/api/customer_portal/sessions/create>

use super::event::{ACCOUNT_KEY, CREDIT_KEY};
use super::{Payments, within};
use crate::error::Error;
use crate::models::account::AccountKind;
use crate::models::ids::AccountId;
use crate::models::ledger::sha256_hex;
use crate::models::openai::request::Invalid;
use crate::models::payment::NANO_PER_CENT;
use crate::services::billing::stripe::api::StripeApi;
use hyper::Uri;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// What somebody wants to pay.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopUp {
    pub amount_cents: i64,
    #[serde(default)]
    pub success_url: Option<String>,
    #[serde(default)]
    pub cancel_url: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortalRequest {
    #[serde(default)]
    pub return_url: Option<String>,
}

/// Where to go.
#[derive(Debug, Serialize, Deserialize)]
pub struct Page {
    pub id: String,
    pub url: String,
}

/// Longer addresses do not pass through every browser.
const URL_BYTES_MAX: usize = 2_048;
/// Stripe puts the session's id in its place.
const SESSION_PLACE: &str = "{CHECKOUT_SESSION_ID}";

impl Payments {
    /// A page where the account's owner pays for credit. A key makes a repetition the same page.
    ///
    /// # Errors
    /// [`Error::NotConfigured`], [`Error::Invalid`], [`Error::PaymentProvider`], the store's,
    /// [`Error::Repeated`] when the key was given with another amount or address before, or
    /// [`Error::Overloaded`] when the account is being sent there too often at once.
    pub async fn checkout(
        &self,
        account: AccountId,
        top_up: &TopUp,
        key: Option<&str>,
    ) -> Result<Page, Error> {
        let api = self.api_for_people()?;
        let cents = top_up.amount_cents;
        if !self.config.topup_cents.contains(&cents) {
            let (least, most) = (self.config.topup_cents.start(), self.config.topup_cents.end());
            let what = format!("must be from {least} to {most}");
            return Err(Error::invalid("amount_cents", &what));
        }
        let success = self.return_url("success_url", top_up.success_url.as_deref())?;
        let cancel = self.return_url("cancel_url", top_up.cancel_url.as_deref())?;
        let known = self.store.account(account).await?.ok_or(Error::NotFound("account"))?;
        if known.kind == AccountKind::Postpaid {
            let message = "This account pays for what it has used, and not in advance.".to_owned();
            return Err(Error::Invalid(Invalid { message, param: None }));
        }
        let _place = self.payers.begin(account)?;
        within(self.session(api, account, cents, (success, cancel), key)).await
    }

    /// The customer and then the session, which sells so much credit.
    async fn session(
        &self,
        api: &StripeApi,
        account: AccountId,
        cents: i64,
        (success, cancel): (String, String),
        key: Option<&str>,
    ) -> Result<Page, Error> {
        let customer = self.customer(api, account).await?;
        let credit = cents.saturating_mul(NANO_PER_CENT).to_string();
        let account = account.to_string();
        let form = [
            ("mode", "payment".to_owned()),
            ("customer", customer),
            ("client_reference_id", account.clone()),
            ("line_items[0][quantity]", "1".to_owned()),
            ("line_items[0][price_data][currency]", "usd".to_owned()),
            ("line_items[0][price_data][unit_amount]", cents.to_string()),
            ("line_items[0][price_data][product_data][name]", "Credit".to_owned()),
            // The books are in USD: what is paid, refunded or disputed is too.
            ("adaptive_pricing[enabled]", "false".to_owned()),
            ("success_url", success),
            ("cancel_url", cancel),
            (&format!("metadata[{ACCOUNT_KEY}]"), account.clone()),
            (&format!("metadata[{CREDIT_KEY}]"), credit.clone()),
            // For whoever looks at a payment at Stripe: refunds are found by its id.
            (&format!("payment_intent_data[metadata][{ACCOUNT_KEY}]"), account.clone()),
            (&format!("payment_intent_data[metadata][{CREDIT_KEY}]"), credit),
        ];
        let key = idempotency_key("checkout", &account, key);
        api.create_by_client("/v1/checkout/sessions", &form, &key).await
    }

    /// A page where the account's owner sees invoices and changes cards.
    ///
    /// # Errors
    /// As [`Payments::checkout`].
    pub async fn portal(&self, account: AccountId, ask: &PortalRequest) -> Result<Page, Error> {
        let api = self.api_for_people()?;
        let back = self.return_url("return_url", ask.return_url.as_deref())?;
        let _place = self.payers.begin(account)?;
        within(async {
            let customer = self.customer(api, account).await?;
            let form = [("customer", customer), ("return_url", back)];
            // Its page lives for minutes: each call has one of its own.
            let key = idempotency_key("portal", &account.to_string(), None);
            api.create("/v1/billing_portal/sessions", &form, &key).await
        })
        .await
    }

    /// How many cents can be paid at once, where people can be sent to Stripe.
    #[must_use]
    pub fn topup_cents(&self) -> Option<&RangeInclusive<i64>> {
        self.api_for_people().is_ok().then_some(&self.config.topup_cents)
    }

    fn api_for_people(&self) -> Result<&StripeApi, Error> {
        let api = self.api.as_deref().filter(|_| !self.config.return_urls.is_empty());
        api.ok_or(Error::NotConfigured("payment page"))
    }

    /// The address to come back to: the usual one, or one of a named origin.
    fn return_url(&self, param: &'static str, wanted: Option<&str>) -> Result<String, Error> {
        let allowed = &self.config.return_urls;
        match wanted {
            None => {
                let usual = allowed.first().ok_or(Error::NotConfigured("payment page"))?;
                Ok(usual.to_string())
            }
            Some(url) if is_allowed(url, allowed) => Ok(url.to_owned()),
            Some(_) => Err(Error::invalid(param, "it is at no address that is named for this")),
        }
    }
}

/// Scheme, host and port are those of a named address. What does not read as an address the same
/// way everywhere is none.
fn is_allowed(url: &str, allowed: &[Uri]) -> bool {
    let plain = url.replace(SESSION_PLACE, "cs");
    let is_plain = plain.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let Some(uri) = plain.parse::<Uri>().ok().filter(|_| is_plain && url.len() <= URL_BYTES_MAX)
    else {
        return false;
    };
    let origin = |uri: &Uri| {
        let host = uri.host().map(str::to_ascii_lowercase);
        let is_tls = uri.scheme_str() == Some("https");
        (
            uri.scheme_str().map(str::to_owned),
            host,
            uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
        )
    };
    let is_bare = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    is_bare && allowed.iter().any(|named| origin(named) == origin(&uri))
}

/// What a client calls its request, apart for each account; else the call is one of its own.
fn idempotency_key(what: &str, account: &str, key: Option<&str>) -> String {
    match key {
        Some(key) => {
            format!("tollgate-{what}-{}", sha256_hex(format!("{account}\n{key}").as_bytes()))
        }
        None => format!("tollgate-{what}-{}", uuid::Uuid::now_v7()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_come_back_to_a_named_origin_only() {
        let allowed = ["https://app.example/billing", "http://localhost:3000"]
            .map(|url| url.parse::<Uri>().unwrap());
        for good in [
            "https://app.example/",
            "https://app.example",
            "https://APP.example:443/x?session={CHECKOUT_SESSION_ID}",
            "http://localhost:3000/done",
        ] {
            assert!(is_allowed(good, &allowed), "{good}");
        }
        for bad in [
            "http://app.example/",
            "https://app.example:8443/",
            "https://app.example.evil.example/",
            "https://evil.example/https://app.example",
            "https://app.example@evil.example/",
            "https://user@app.example/",
            "https://app.example\\@evil.example/",
            "https://evil.example\\app.example/",
            "https://app.example\t.evil.example/",
            "https:app.example",
            "https:///app.example",
            "//app.example/",
            "/billing",
            "javascript:alert(1)",
            "",
        ] {
            assert!(!is_allowed(bad, &allowed), "{bad}");
        }
        assert!(!is_allowed(&format!("https://app.example/{}", "x".repeat(2_048)), &allowed));
    }
}
