//! Stripe's meter event stream: up to a hundred merged events in one call, of any customers.
//!
//! Invariants: an export keeps its identifier over all tries, by which Stripe knows a duplicate;
//! it is exported when a call with it was answered with a 2xx, and past Stripe's window for
//! duplicates its meter's summary is read first, as without the stream. A session's token is kept
//! in memory only, and renewed before it ends. Stripe checks the events after it has answered: what
//! it then drops shows in `reconcile`. <https://docs.stripe.com/api/v2/billing/meter-event-stream>

use super::api::{StripeApi, StripeError};
use super::{Doubts, Exporter, Trouble, Verdict, is_doubtful, retry_after, shortened};
use crate::config::{StreamConfig, StripeConfig};
use crate::models::billing::Export;
use crate::models::timestamp::Timestamp;
use crate::services::http::{self, Answer, Silence};
use crate::store::Store;
use axum::http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Stripe's most in one call.
pub const EVENTS_PER_CALL: usize = 100;
/// A session is renewed so long before its end (15 minutes after its beginning).
const RENEW_BEFORE: Duration = Duration::from_secs(60);
const SESSION_PATH: &str = "/v2/billing/meter_event_session";
const STREAM_PATH: &str = "/v2/billing/meter_event_stream";
/// How Stripe says that a session has ended.
const SESSION_EXPIRED: &str = "temporary_session_expired";

pub struct StripeStream {
    api: Arc<StripeApi>,
    doubts: Doubts,
    /// How long one call may ask about doubts.
    asking: Duration,
    url: String,
    customer_key: String,
    value_key: String,
    session: Mutex<Option<Session>>,
}

#[derive(Clone)]
struct Session {
    authorization: HeaderValue,
    until: Timestamp,
}

#[derive(Deserialize)]
struct Opened {
    authentication_token: String,
    expires_at: Timestamp,
}

impl StripeStream {
    #[must_use]
    pub fn new(
        config: &StripeConfig,
        stream: &StreamConfig,
        store: Arc<dyn Store>,
        api: Arc<StripeApi>,
        wait: Duration,
    ) -> Self {
        Self {
            doubts: Doubts::new(api.clone(), store),
            asking: wait / 2,
            api,
            url: format!("{}{STREAM_PATH}", stream.base),
            customer_key: config.customer_key.clone(),
            value_key: config.value_key.clone(),
            session: Mutex::new(None),
        }
    }

    /// One call for all of these, and a second one when the session had ended.
    async fn post(&self, exports: &[&Export]) -> Result<Answer, Trouble> {
        let events: Vec<_> = exports.iter().map(|export| self.event(export)).collect();
        let body = json!({ "events": events }).to_string();
        let session = self.session(None).await?;
        let answer = self.send(&body, &session).await?;
        if !is_session_over(&answer) {
            return Ok(answer);
        }
        let session = self.session(Some(&session)).await?;
        self.send(&body, &session).await
    }

    async fn send(&self, body: &str, session: &Session) -> Result<Answer, Trouble> {
        let answer = self.api.post_json(&self.url, body, Some(&session.authorization)).await;
        answer.map_err(Trouble::silence)
    }

    fn event(&self, export: &Export) -> serde_json::Value {
        json!({
            "event_name": export.meter,
            "identifier": export.id,
            "timestamp": export.used_at,
            "payload": {
                &self.customer_key: export.customer,
                &self.value_key: export.value.to_string(),
            },
        })
    }

    /// A session that is not `refused` and lives for a while yet. Calls that find none wait for the
    /// one that opens it.
    async fn session(&self, refused: Option<&Session>) -> Result<Session, Trouble> {
        let mut kept = self.session.lock().await;
        let now = Timestamp::now();
        let is_good = |session: &&Session| {
            let is_refused =
                refused.is_some_and(|refused| refused.authorization == session.authorization);
            !is_refused && session.until > now.plus(RENEW_BEFORE)
        };
        if let Some(session) = kept.as_ref().filter(is_good) {
            return Ok(session.clone());
        }
        *kept = None;
        let session = self.open().await?;
        Ok(kept.insert(session).clone())
    }

    async fn open(&self) -> Result<Session, Trouble> {
        let url = format!("{}{SESSION_PATH}", self.api.base());
        let answer = self.api.post_json(&url, "{}", None).await.map_err(Trouble::silence)?;
        if !answer.status.is_success() {
            let after = retry_after(&answer.headers, SystemTime::now());
            return Err(Trouble::of_sink(format!("no session: {}", reason(&answer)), after));
        }
        let unread = |_| Trouble::of_sink("a session that cannot be read".to_owned(), None);
        let opened: Opened = serde_json::from_slice(&answer.body).map_err(unread)?;
        let authorization = http::bearer(&opened.authentication_token).ok_or_else(|| {
            Trouble::of_sink("a session's token is not printable".to_owned(), None)
        })?;
        Ok(Session { authorization, until: opened.expires_at })
    }

    /// Questions alone, and as many as time allows: what they told is written down before anything
    /// is sent. Together with a call they might never be done in time, and be asked again for ever.
    async fn ask(&self, exports: &[Export]) -> Vec<Verdict> {
        let until = Instant::now() + self.asking;
        let mut verdicts = Vec::with_capacity(exports.len());
        for export in exports {
            let told = tokio::time::timeout_at(until, self.doubts.settle(export)).await;
            let verdict = match told {
                Ok(Ok(())) => Verdict::Untouched,
                Ok(Err(verdict)) => verdict,
                Err(_) if !verdicts.is_empty() => break,
                Err(_) => Verdict::Later(Trouble::silence(Silence::unknown("no answer in time"))),
            };
            verdicts.push(verdict);
            if let Some(Verdict::Later(_)) = verdicts.last() {
                break;
            }
        }
        verdicts.resize(exports.len(), Verdict::Untouched);
        verdicts
    }

    async fn deliver(&self, exports: &[&Export]) -> Verdict {
        match self.post(exports).await {
            Ok(answer) => verdict(&answer, SystemTime::now()),
            Err(trouble) => Verdict::Later(trouble),
        }
    }
}

impl Exporter for StripeStream {
    type Parcel = Export;

    const SINK: &'static str = crate::config::STRIPE;
    const CALLS_MAX: usize = 4;

    async fn send(&self, parcels: &[Export]) -> Vec<Verdict> {
        let now = Timestamp::now();
        if parcels.iter().any(|export| is_doubtful(export, now)) {
            return self.ask(parcels).await;
        }
        let mut checked = Vec::with_capacity(parcels.len());
        for export in parcels {
            checked.push(self.doubts.settle(export).await.err());
        }
        let open = parcels.iter().zip(&checked).filter(|(_, verdict)| verdict.is_none());
        let open: Vec<&Export> = open.map(|(export, _)| export).collect();
        let sent = if open.is_empty() { Verdict::Untouched } else { self.deliver(&open).await };
        checked.into_iter().map(|checked| checked.unwrap_or_else(|| sent.clone())).collect()
    }
}

fn reason(answer: &Answer) -> String {
    let StripeError { kind, code, message } = StripeError::read(&answer.body);
    shortened(&format!("{} {kind} {code} {message}", answer.status.as_u16()))
}

fn is_session_over(answer: &Answer) -> bool {
    let StripeError { kind, code, .. } = StripeError::read(&answer.body);
    answer.status.is_client_error()
        && (answer.status == StatusCode::UNAUTHORIZED
            || kind == SESSION_EXPIRED
            || code == SESSION_EXPIRED)
}

/// What an answer means for every event of its call.
fn verdict(answer: &Answer, now: SystemTime) -> Verdict {
    let status = answer.status;
    if status.is_success() {
        return Verdict::Delivered;
    }
    let later = || Trouble::of_sink(reason(answer), retry_after(&answer.headers, now));
    match status {
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY
            if !is_session_over(answer) =>
        {
            Verdict::Together(reason(answer))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
            Verdict::Later(later().not_taken())
        }
        // Stripe itself, or who stands before it: nothing is wrong with the events.
        _ => Verdict::Later(later()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderMap;
    use bytes::Bytes;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    #[test]
    fn only_what_is_wrong_with_an_event_parks_it() {
        let of = |status, body: &str| verdict(&answer(status, body), SystemTime::UNIX_EPOCH);
        assert_eq!(of(200, "{}"), Verdict::Delivered);
        let invalid = r#"{"error":{"code":"invalid_fields","message":"no event_name"}}"#;
        assert!(matches!(of(400, invalid), Verdict::Together(_)));
        let over = r#"{"error":{"type":"temporary_session_expired","message":"over"}}"#;
        for (status, body) in [(400, over), (401, ""), (403, ""), (404, ""), (429, ""), (500, "")] {
            let trouble = of(status, body);
            assert!(matches!(&trouble, Verdict::Later(t) if t.is_sinks), "{status}: {trouble:?}");
        }
        assert!(is_session_over(&answer(400, over)) && !is_session_over(&answer(400, invalid)));
    }
}
