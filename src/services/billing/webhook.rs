//! The operator's webhook, signed as Standard Webhooks want it.
//!
//! Invariants: an event's `webhook-id` is the same over all tries; what is signed is the bytes that
//! are sent; no redirect is followed. Where the address leads is the operator's own choice.
//! <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>

use super::CONNECT_WAIT;
use super::exporter::{Exporter, Trouble, Verdict};
use crate::config::WebhookConfig;
use crate::error::Error;
use crate::models::billing::{BillingEvent, EventKind, Outgoing};
use crate::models::timestamp::Timestamp;
use crate::services::http::{self, AGENT, Answer, HttpClient, JSON, retry_after};
use aws_lc_rs::hmac;
use axum::http::header::{CONTENT_TYPE, USER_AGENT};
use axum::http::{Request, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

pub struct Webhook {
    client: HttpClient,
    url: String,
    key: hmac::Key,
    wait: Duration,
}

/// A receiver that refuses an event at this try, after more than an hour, will not take it.
const REFUSALS_MAX: i64 = 20;

impl Webhook {
    /// # Errors
    /// [`Error::Internal`] when the secret is not base64, which the configuration has checked.
    pub fn new(config: &WebhookConfig, wait: Duration) -> Result<Self, Error> {
        let key = config.signing_key();
        let key = key.ok_or_else(|| Error::Internal("the webhook's secret".to_owned()))?;
        Ok(Self {
            client: http::client(CONNECT_WAIT),
            url: config.url.clone(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            wait,
        })
    }

    async fn deliver(&self, outgoing: &Outgoing) -> Verdict {
        let id = &outgoing.event.id;
        let body = payload(outgoing).to_string();
        let at = Timestamp::now().unix_seconds();
        let signature = sign(&self.key, id, at, &body);
        let request = Request::post(&self.url)
            .header(USER_AGENT, AGENT)
            .header(CONTENT_TYPE, JSON)
            .header("webhook-id", id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", signature)
            .body(Full::new(Bytes::from(body)));
        let request = match request {
            Ok(request) => request,
            Err(error) => return Verdict::Rejected(error.to_string()),
        };
        match http::ask(&self.client, request, self.wait).await {
            Ok(answer) => verdict(&answer, outgoing.event.attempts, SystemTime::now()),
            Err(silence) => Verdict::Later(Trouble::silence(silence)),
        }
    }
}

impl Exporter for Webhook {
    type Parcel = Outgoing;

    const SINK: &'static str = crate::config::WEBHOOK;
    const CALLS_MAX: usize = 8;

    async fn send(&self, parcels: &[Outgoing]) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(parcels.len());
        for outgoing in parcels {
            verdicts.push(self.deliver(outgoing).await);
        }
        verdicts
    }
}

/// `v1,` and the base64 of an HMAC-SHA256 of id, time and body.
fn sign(key: &hmac::Key, id: &str, at: i64, body: &str) -> String {
    let tag = hmac::sign(key, format!("{id}.{at}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(tag.as_ref()))
}

/// `type`, `timestamp` and `data`, as the standard proposes.
fn payload(outgoing: &Outgoing) -> Value {
    let Outgoing { event, record, correction, about } = outgoing;
    let billed = outgoing.billed();
    let usage = json!({
        "request_id": event.request_id,
        "account_id": event.account_id,
        "api_key_id": record.api_key_id,
        "model": record.model,
        "ending": record.ending,
        "source": record.source,
        "charge_nusd": billed.charge_nusd,
        "uncached_prompt_tokens": billed.uncached_prompt_tokens,
        "cached_tokens": billed.cached_tokens,
        "cache_write_tokens": billed.cache_write_tokens,
        "audio_prompt_tokens": billed.audio_prompt_tokens,
        "text_completion_tokens": billed.text_completion_tokens,
        "reasoning_tokens": billed.reasoning_tokens,
        "audio_completion_tokens": billed.audio_completion_tokens,
        "image_completion_tokens": billed.image_completion_tokens,
    });
    let (kind, data) = match event.kind {
        EventKind::Usage => ("usage.recorded", usage),
        EventKind::Correction => {
            let charge = correction.as_ref().map(|correction| correction.charge_nusd);
            let mut data = usage;
            data["corrected_charge_nusd"] = json!(charge);
            ("usage.corrected", data)
        }
        EventKind::Notice => {
            let data = json!({
                "event_id": event.subject(),
                "request_id": event.request_id,
                "account_id": event.account_id,
                "sink": about.as_ref().map(|about| &about.sink),
                "reason": parked_because(outgoing),
            });
            ("event.parked", data)
        }
        EventKind::BalanceLow => ("balance.low", warning(outgoing)),
        EventKind::BudgetThreshold => ("budget.threshold", warning(outgoing)),
    };
    json!({"type": kind, "timestamp": event.created_at, "data": data})
}

/// The reason as it was then: by now the event may be on its way again, and have none. A notice of
/// an earlier version has not kept it.
fn parked_because(Outgoing { event, about, .. }: &Outgoing) -> Value {
    match detail(event) {
        Some(detail) => detail["reason"].clone(),
        None => json!(about.as_ref().and_then(|about| about.reason.as_ref())),
    }
}

/// Whose crossing it is, with its figures.
fn warning(Outgoing { event, record, .. }: &Outgoing) -> Value {
    let mut data = detail(event).unwrap_or_else(|| json!({}));
    data["account_id"] = json!(event.account_id);
    data["api_key_id"] = json!(record.api_key_id);
    data["request_id"] = json!(event.request_id);
    data
}

/// What was kept of an event's own, where it is an object.
fn detail(event: &BillingEvent) -> Option<Value> {
    let kept = serde_json::from_str(event.detail.as_deref()?).ok();
    kept.filter(Value::is_object)
}

/// What an answer means: anything but a success is tried again, and in the end it is parked.
fn verdict(answer: &Answer, attempts: i64, now: SystemTime) -> Verdict {
    let status = answer.status;
    if status.is_success() {
        return Verdict::Delivered;
    }
    let reason = format!("the receiver answered {}", status.as_u16());
    let after = retry_after(&answer.headers, now);
    match status {
        StatusCode::GONE => Verdict::Rejected(reason),
        // No refusal, however many tries of an outage came before it.
        StatusCode::TOO_MANY_REQUESTS => Verdict::Later(Trouble::of_sink(reason, after)),
        _ if status.is_client_error() && attempts >= REFUSALS_MAX => Verdict::Rejected(reason),
        _ if status.is_server_error() => Verdict::Later(Trouble::of_sink(reason, after)),
        _ => Verdict::Later(Trouble::of_parcel(reason, after)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_that_asks_for_patience_refuses_nothing() {
        let of = |status, attempts| {
            let (headers, body) = (axum::http::HeaderMap::new(), Bytes::new());
            let answer = Answer { status, headers, body };
            verdict(&answer, attempts, SystemTime::UNIX_EPOCH)
        };
        let is_sinks = |verdict: &Verdict| matches!(verdict, Verdict::Later(t) if t.is_sinks);
        assert!(is_sinks(&of(StatusCode::TOO_MANY_REQUESTS, 400)), "at the end of an outage");
        assert!(is_sinks(&of(StatusCode::BAD_GATEWAY, 400)));
        assert!(matches!(of(StatusCode::NOT_FOUND, REFUSALS_MAX - 1), Verdict::Later(_)));
        assert!(matches!(of(StatusCode::NOT_FOUND, REFUSALS_MAX), Verdict::Rejected(_)));
        assert!(matches!(of(StatusCode::GONE, 1), Verdict::Rejected(_)));
    }

    #[test]
    fn the_standards_own_example_is_signed_alike() {
        // From the specification's libraries: test vectors of `standardwebhooks`.
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let signed =
            sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }
}
