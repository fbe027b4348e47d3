//! OpenMeter: batches of CloudEvents.
//!
//! Invariants: an event's id and source are the same over all tries, which is how OpenMeter knows a
//! duplicate; numbers are integers, money in nano-USD; a batch is taken or refused as a whole.
//! <https://openmeter.io/docs/metering/events/usage-events>

pub mod query;

use super::CONNECT_WAIT;
use super::exporter::{Exporter, Trouble, Verdict, shortened};
use crate::config::OpenMeterConfig;
use crate::error::Error;
use crate::models::billing::{Billed, EventKind, Outgoing};
use crate::models::timestamp::Timestamp;
use crate::services::http::{self, AGENT, Answer, HttpClient, Silence, retry_after};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use axum::http::{HeaderValue, Request, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use secrecy::ExposeSecret;
use serde::Serialize;
use std::time::{Duration, SystemTime};

/// No maximum is documented; a hundred events are some 60 kB.
pub const EVENTS_PER_CALL: usize = 100;
/// The same for usage and corrections, so that one meter sums both.
const EVENT_TYPE: &str = "tollgate.usage";
const BATCH: HeaderValue = HeaderValue::from_static("application/cloudevents-batch+json");

pub struct OpenMeter {
    client: HttpClient,
    url: String,
    authorization: Option<HeaderValue>,
    source: String,
    wait: Duration,
}

/// <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md>
#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    subject: String,
    time: Timestamp,
    datacontenttype: &'static str,
    data: Data<'a>,
}

/// The classes of tokens are disjoint, so that each can have a meter.
#[derive(Serialize)]
struct Data<'a> {
    request_id: String,
    kind: EventKind,
    model: &'a str,
    upstream: &'a str,
    api_key_id: Option<String>,
    requests: i64,
    charge_nusd: i64,
    uncached_prompt_tokens: i64,
    cached_tokens: i64,
    cache_write_tokens: i64,
    audio_prompt_tokens: i64,
    text_completion_tokens: i64,
    reasoning_tokens: i64,
    audio_completion_tokens: i64,
    image_completion_tokens: i64,
}

impl OpenMeter {
    /// # Errors
    /// [`Error::Internal`] when the token cannot be used in a request.
    pub fn new(config: &OpenMeterConfig, wait: Duration) -> Result<Self, Error> {
        Ok(Self {
            client: http::client(CONNECT_WAIT),
            url: config.url.clone(),
            authorization: authorization(config)?,
            source: config.source.clone(),
            wait,
        })
    }

    fn event<'a>(&'a self, outgoing: &'a Outgoing) -> CloudEvent<'a> {
        let Outgoing { event, record, .. } = outgoing;
        let billed: Billed = outgoing.billed();
        CloudEvent {
            specversion: "1.0",
            id: &event.id,
            source: &self.source,
            kind: EVENT_TYPE,
            subject: event.account_id.to_string(),
            time: event.created_at,
            datacontenttype: "application/json",
            data: Data {
                request_id: event.request_id.to_string(),
                kind: event.kind,
                model: &record.model,
                upstream: &record.upstream,
                api_key_id: record.api_key_id.map(|id| id.to_string()),
                requests: billed.requests,
                charge_nusd: billed.charge_nusd.0,
                uncached_prompt_tokens: billed.uncached_prompt_tokens,
                cached_tokens: billed.cached_tokens,
                cache_write_tokens: billed.cache_write_tokens,
                audio_prompt_tokens: billed.audio_prompt_tokens,
                text_completion_tokens: billed.text_completion_tokens,
                reasoning_tokens: billed.reasoning_tokens,
                audio_completion_tokens: billed.audio_completion_tokens,
                image_completion_tokens: billed.image_completion_tokens,
            },
        }
    }

    async fn post(&self, batch: &[Outgoing]) -> Result<Answer, Silence> {
        let events: Vec<_> = batch.iter().map(|outgoing| self.event(outgoing)).collect();
        let body = serde_json::to_vec(&events).map_err(|error| Silence::unsent(&error))?;
        let request = Request::post(&self.url).body(Full::new(Bytes::from(body)));
        let mut request = request.map_err(|error| Silence::unsent(&error))?;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, AGENT);
        headers.insert(CONTENT_TYPE, BATCH);
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        http::ask(&self.client, request, self.wait).await
    }
}

fn authorization(config: &OpenMeterConfig) -> Result<Option<HeaderValue>, Error> {
    let Some(token) = &config.token else { return Ok(None) };
    let unusable = || Error::Internal("OPENMETER_TOKEN is not printable".to_owned());
    http::bearer(token.expose_secret()).ok_or_else(unusable).map(Some)
}

impl Exporter for OpenMeter {
    type Parcel = Outgoing;

    const SINK: &'static str = crate::config::OPENMETER;
    const CALLS_MAX: usize = 4;

    async fn send(&self, parcels: &[Outgoing]) -> Vec<Verdict> {
        vec![verdict(self.post(parcels).await, SystemTime::now()); parcels.len()]
    }
}

/// What an answer to a batch means: 204 by the older API, 202 by the newer.
fn verdict(answer: Result<Answer, Silence>, now: SystemTime) -> Verdict {
    let answer = match answer {
        Ok(answer) => answer,
        Err(silence) => return Verdict::Later(Trouble::silence(silence)),
    };
    let status = answer.status;
    if status.is_success() {
        return Verdict::Delivered;
    }
    let problem = String::from_utf8_lossy(&answer.body);
    let reason = shortened(&format!("{} {problem}", status.as_u16()));
    match status {
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => Verdict::Together(reason),
        // The token, the address or OpenMeter itself: nothing is wrong with the events.
        _ => Verdict::Later(Trouble::of_sink(reason, retry_after(&answer.headers, now))),
    }
}
