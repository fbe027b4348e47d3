//! The sinks that billing events are written for and sent to.

use super::ConfigError;
use super::is_safe;
use super::reader::{Reader, listed};
use crate::models::alert::AlertTerms;
use crate::models::billing::{EventTerms, Measure, Meter};
use crate::models::money::NanoUsd;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use secrecy::{ExposeSecret, SecretString};
use std::collections::BTreeSet;
use std::time::Duration;

/// The names of the sinks, as in the tables.
pub const STRIPE: &str = "stripe";
pub const OPENMETER: &str = "openmeter";
pub const WEBHOOK: &str = "webhook";
/// All that there may be.
pub const SINKS: [&str; 3] = [STRIPE, OPENMETER, WEBHOOK];

#[derive(Clone, Debug)]
pub struct BillingConfig {
    pub stripe: Option<StripeConfig>,
    pub openmeter: Option<OpenMeterConfig>,
    pub webhook: Option<WebhookConfig>,
    /// What the webhook is told of besides.
    pub alerts: AlertTerms,
    /// How long a sink may take to answer one call.
    pub wait: Duration,
    /// What a process took and did not finish in this time is taken by another.
    pub lease: Duration,
}

#[derive(Clone, Debug)]
pub struct StripeConfig {
    pub key: SecretString,
    /// Without a slash at its end.
    pub base: String,
    pub meters: Vec<Meter>,
    /// The payload's members, as the meters name them.
    pub customer_key: String,
    pub value_key: String,
    pub calls_per_second: u32,
    /// Whether usage is sent there too.
    pub is_sink: bool,
    /// Events leave in batches by way of the meter event stream.
    pub stream: Option<StreamConfig>,
}

#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// Without a slash at its end.
    pub base: String,
}

#[derive(Clone, Debug)]
pub struct OpenMeterConfig {
    /// The full ingest address.
    pub url: String,
    pub token: Option<SecretString>,
    /// CloudEvents' source: half of the key by which events are deduplicated.
    pub source: String,
    /// The meter that sums the charge, as its queries name it.
    pub charge_meter: String,
}

#[derive(Clone, Debug)]
pub struct WebhookConfig {
    pub url: String,
    /// As it was given: `whsec_` and base64.
    pub secret: SecretString,
}

/// Of a secret for signatures. <https://www.standardwebhooks.com>
pub const SECRET_PREFIX: &str = "whsec_";
/// The standard wants 24 to 64 bytes.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Stripe's limit on names of events. <https://docs.stripe.com/api/billing/meter/create>
const EVENT_NAME_CHARS_MAX: usize = 100;

impl BillingConfig {
    pub(super) fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let config = Self {
            stripe: StripeConfig::read(env)?,
            openmeter: OpenMeterConfig::read(env)?,
            webhook: WebhookConfig::read(env)?,
            alerts: alerts(env)?,
            wait: env.positive_seconds("TOLLGATE_EXPORT_SECONDS", "20")?,
            lease: env.positive_seconds("TOLLGATE_EXPORT_LEASE_SECONDS", "120")?,
        };
        if config.lease <= config.wait {
            let message = "TOLLGATE_EXPORT_LEASE_SECONDS must be more than TOLLGATE_EXPORT_SECONDS";
            return Err(ConfigError(message.into()));
        }
        Ok(config)
    }

    /// What is written with each charge.
    #[must_use]
    pub fn event_terms(&self) -> EventTerms {
        let is_told = self.webhook.is_some() && self.alerts != AlertTerms::default();
        let alerts = is_told.then(|| (WEBHOOK.to_owned(), self.alerts.clone()));
        let sinks = self.sinks().into_iter().map(str::to_owned).collect();
        EventTerms { sinks, alerts }
    }

    /// The sinks that are set.
    #[must_use]
    pub fn sinks(&self) -> Vec<&'static str> {
        let named = [
            (STRIPE, self.stripe.as_ref().is_some_and(|stripe| stripe.is_sink)),
            (OPENMETER, self.openmeter.is_some()),
            (WEBHOOK, self.webhook.is_some()),
        ];
        named.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
    }
}

impl StripeConfig {
    fn read(env: &mut Reader) -> Result<Option<Self>, ConfigError> {
        let key = env.secret("STRIPE_SECRET_KEY");
        let base = env.address_or("STRIPE_API_BASE", "https://api.stripe.com");
        let charge = env.text("STRIPE_CHARGE_METER", "tollgate_charge_microusd");
        let others = env.optional("STRIPE_METERS").unwrap_or_default();
        let customer_key = env.text("STRIPE_CUSTOMER_KEY", "stripe_customer_id");
        let value_key = env.text("STRIPE_VALUE_KEY", "value");
        let calls_per_second: u32 = env.parsed("STRIPE_CALLS_PER_SECOND", "20")?;
        if calls_per_second == 0 {
            return Err(ConfigError("STRIPE_CALLS_PER_SECOND must be more than zero".into()));
        }
        let is_sink = env.switch("STRIPE_METERING", "on")?;
        let streams = env.switch("STRIPE_METER_STREAM", "off")?;
        let stream_base = env.address_or("STRIPE_STREAM_BASE", "https://meter-events.stripe.com");
        let Some(key) = key else { return Ok(None) };
        // The key would be readable on the way.
        secure("STRIPE_API_BASE", &base)?;
        secure("STRIPE_STREAM_BASE", &stream_base)?;
        let without_slash = |url: &str| url.trim_end_matches('/').to_owned();
        Ok(Some(Self {
            key,
            base: without_slash(&base),
            meters: meters(&charge, &others)?,
            customer_key,
            value_key,
            calls_per_second,
            is_sink,
            stream: streams.then(|| StreamConfig { base: without_slash(&stream_base) }),
        }))
    }
}

impl OpenMeterConfig {
    fn read(env: &mut Reader) -> Result<Option<Self>, ConfigError> {
        let url = env.address("OPENMETER_URL");
        let token = env.secret("OPENMETER_TOKEN");
        let source = env.text("OPENMETER_SOURCE", "tollgate");
        let charge_meter = env.text("OPENMETER_CHARGE_METER", "tollgate_charge_nusd");
        let Some(url) = url else { return Ok(None) };
        // Its own server is without TLS and authentication, within the operator's network.
        address("OPENMETER_URL", &url)?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if charge_meter.is_empty() || !charge_meter.bytes().all(is_plain) {
            return Err(ConfigError("OPENMETER_CHARGE_METER is not a slug or an id".into()));
        }
        Ok(Some(Self { url, token, source, charge_meter }))
    }
}

impl WebhookConfig {
    fn read(env: &mut Reader) -> Result<Option<Self>, ConfigError> {
        let url = env.address("TOLLGATE_WEBHOOK_URL");
        let secret = env.secret("TOLLGATE_WEBHOOK_SECRET");
        let Some(url) = url else { return Ok(None) };
        secure("TOLLGATE_WEBHOOK_URL", &url)?;
        let wanted = "TOLLGATE_WEBHOOK_SECRET must be whsec_ and 24 to 64 bytes in base64";
        let secret = secret.ok_or_else(|| ConfigError(wanted.into()))?;
        let config = Self { url, secret };
        match config.signing_key() {
            Some(key) if SECRET_BYTES.contains(&key.len()) => Ok(Some(config)),
            _ => Err(ConfigError(wanted.into())),
        }
    }

    /// The bytes that sign.
    #[must_use]
    pub fn signing_key(&self) -> Option<Vec<u8>> {
        let text = self.secret.expose_secret().strip_prefix(SECRET_PREFIX)?;
        STANDARD.decode(text).ok()
    }
}

/// Thresholds of one budget at most: each may be an event of its own.
const BUDGET_ALERTS_MAX: usize = 10;

fn alerts(env: &mut Reader) -> Result<AlertTerms, ConfigError> {
    let low = env.optional("TOLLGATE_LOW_BALANCE_USD");
    let percents = env.text("TOLLGATE_BUDGET_ALERTS", "80,100");
    let low = low.map(|text| {
        let amount = NanoUsd::parse_typed(&text).filter(|amount| *amount > NanoUsd::ZERO);
        let wanted = "TOLLGATE_LOW_BALANCE_USD is not an amount of dollars like 5.00";
        amount.ok_or_else(|| ConfigError(wanted.into()))
    });
    let budget_percents = self::percents(&percents).ok_or_else(|| {
        let wanted = "TOLLGATE_BUDGET_ALERTS is neither 'off' nor up to ten whole percentages \
                      from 1 to 100, separated by commas";
        ConfigError(wanted.into())
    })?;
    Ok(AlertTerms { low_balance_nusd: low.transpose()?, budget_percents })
}

/// In order, each once.
fn percents(text: &str) -> Option<Vec<i64>> {
    if text == "off" {
        return Some(vec![]);
    }
    let percent = |text: &str| {
        let number = text.trim().parse().ok();
        number.filter(|percent| (1..=100).contains(percent))
    };
    let percents: BTreeSet<i64> = text.split(',').map(percent).collect::<Option<_>>()?;
    (percents.len() <= BUDGET_ALERTS_MAX).then(|| percents.into_iter().collect())
}

/// `class=event_name`, separated by commas; the charge's own comes first.
fn meters(charge: &str, others: &str) -> Result<Vec<Meter>, ConfigError> {
    let mut meters =
        vec![Meter { event_name: charge.to_owned(), measure: Measure::ChargeMicroUsd }];
    for pair in listed(others) {
        let (class, name) = pair.split_once('=').unwrap_or((pair, ""));
        let measure = Measure::OPTIONAL.iter().find(|(known, _)| *known == class);
        let Some((_, measure)) = measure else {
            let known: Vec<&str> = Measure::OPTIONAL.iter().map(|(known, _)| *known).collect();
            let known = known.join(", ");
            return Err(ConfigError(format!("STRIPE_METERS: '{class}' is not one of {known}")));
        };
        meters.push(Meter { event_name: name.to_owned(), measure: *measure });
    }
    for (index, meter) in meters.iter().enumerate() {
        let name = &meter.event_name;
        let is_name = !name.is_empty() && name.chars().count() <= EVENT_NAME_CHARS_MAX;
        if !is_name || meters[..index].iter().any(|other| other.event_name == *name) {
            let message = "STRIPE_METERS: each meter needs an event name of its own";
            return Err(ConfigError(message.into()));
        }
    }
    Ok(meters)
}

fn address(name: &str, url: &str) -> Result<Uri, ConfigError> {
    let uri = url.parse::<Uri>().ok();
    let is_http = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    uri.filter(|uri| is_http(uri) && uri.host().is_some())
        .ok_or_else(|| ConfigError(format!("{name} is not an http(s) URL")))
}

/// HTTPS, or this machine.
fn secure(name: &str, url: &str) -> Result<(), ConfigError> {
    if is_safe(&address(name, url)?) {
        return Ok(());
    }
    Err(ConfigError(format!("{name} must begin with https://, unless it is on this machine")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for good in
            ["https://example.com/x", "http://127.0.0.1:1", "http://[::1]:1/", "http://localhost"]
        {
            assert!(secure("X", good).is_ok(), "{good}");
        }
        for bad in
            ["http://example.com", "http://localhost.example.com", "ftp://127.0.0.1", "x", ""]
        {
            assert!(secure("X", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn percentages_are_whole_and_sorted() {
        assert_eq!(percents("100, 80,80"), Some(vec![80, 100]));
        assert_eq!(percents("off"), Some(vec![]));
        for bad in ["", "0", "101", "80%", "8.5", "80,", "1,2,3,4,5,6,7,8,9,10,11"] {
            assert_eq!(percents(bad), None, "{bad}");
        }
    }

    #[test]
    fn meters_are_named_by_what_they_count() {
        let named = meters("c", " reasoning_tokens=r, requests=n").unwrap();
        let measures: Vec<_> = named.iter().map(|meter| meter.measure).collect();
        assert_eq!(
            measures,
            [Measure::ChargeMicroUsd, Measure::ReasoningTokens, Measure::Requests]
        );
        for bad in ["tokens=t", "requests", "requests=c", "requests="] {
            assert!(meters("c", bad).is_err(), "{bad}");
        }
    }
}
