//! Asks OpenMeter what its meter of the charge has summed on a day, by subject and model.
//!
//! Invariants: one question a day, with a deadline and a limit on its answer; values are whole
//! numbers, read from their text. Both of OpenMeter's APIs are spoken: which one, the ingest
//! address says. <https://openmeter.io/docs/metering/querying>

use crate::config::OpenMeterConfig;
use crate::error::Error;
use crate::models::money::parse_whole;
use crate::models::reconcile::Day;
use crate::models::timestamp::Timestamp;
use crate::services::billing::CONNECT_WAIT;
use crate::services::billing::exporter::shortened;
use crate::services::http::{self, AGENT, HttpClient, JSON};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use axum::http::{HeaderValue, Request, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::time::Duration;

/// Some two hundred thousand rows.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// A sum over a day of a large table takes longer than taking an event.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// Which API an address belongs to, and where its meters are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Api {
    /// `GET …/api/v1/meters/{slug}/query`.
    One(String),
    /// `POST …/openmeter/meters/{id}/query`.
    Three(String),
}

pub struct ChargeMeter {
    client: HttpClient,
    api: Api,
    authorization: Option<HeaderValue>,
}

/// One sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metered {
    /// An account's id, where it is ours.
    pub subject: String,
    pub model: String,
    pub value: i64,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: Vec<Row<'a>>,
}

/// A row of either API.
#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(alias = "windowStart")]
    from: String,
    #[serde(default)]
    subject: Option<String>,
    #[serde(alias = "groupBy", default)]
    dimensions: HashMap<String, Option<String>>,
}

impl Api {
    fn of(url: &str, meter: &str) -> Option<Self> {
        let base = url.trim_end_matches('/').strip_suffix("/events")?;
        let meters = format!("{base}/meters/{meter}/query");
        let is_new = base.ends_with("/openmeter");
        Some(if is_new { Self::Three(meters) } else { Self::One(meters) })
    }
}

impl ChargeMeter {
    /// # Errors
    /// [`Error::Internal`] when the address is none of an ingest, or the token cannot be sent.
    pub fn new(config: &OpenMeterConfig) -> Result<Self, Error> {
        let api = Api::of(&config.url, &config.charge_meter).ok_or_else(|| {
            Error::Internal("OPENMETER_URL does not end with /events: no query follows".to_owned())
        })?;
        let authorization = super::authorization(config)?;
        Ok(Self { client: http::client(CONNECT_WAIT), api, authorization })
    }

    /// What was summed on a day.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn of_day(&self, day: Day) -> Result<Vec<Metered>, String> {
        let mut request = self.request(day)?;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, AGENT);
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let answer = http::ask_up_to(&self.client, request, ANSWER_WAIT, ANSWER_BYTES_MAX).await?;
        if answer.status != StatusCode::OK {
            let problem = String::from_utf8_lossy(&answer.body);
            return Err(shortened(&format!("{} {problem}", answer.status.as_u16())));
        }
        read(&answer.body, day)
    }

    fn request(&self, day: Day) -> Result<Request<Full<Bytes>>, String> {
        let (from, to) = (day.start().to_string(), day.end().to_string());
        let request = match &self.api {
            Api::One(uri) => {
                let query = form_urlencoded::Serializer::new(String::new())
                    .append_pair("from", &from)
                    .append_pair("to", &to)
                    .append_pair("windowSize", "DAY")
                    .append_pair("groupBy", "subject")
                    .append_pair("groupBy", "model")
                    .finish();
                Request::get(format!("{uri}?{query}")).body(Full::default())
            }
            Api::Three(uri) => {
                let question = json!({"from": from, "to": to, "granularity": "P1D",
                    "group_by_dimensions": ["subject", "model"]});
                let body = Full::new(Bytes::from(question.to_string()));
                Request::post(uri).header(CONTENT_TYPE, JSON).body(body)
            }
        };
        request.map_err(|error| error.to_string())
    }
}

fn read(body: &[u8], day: Day) -> Result<Vec<Metered>, String> {
    let answer: Answer<'_> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    // The end of the time that is asked for may belong to it.
    let of_day = |row: &Row<'_>| Timestamp::parse(&row.from) == Some(day.start());
    let rows = answer.data.into_iter().filter(of_day);
    rows.map(|mut row| {
        let value = parse_whole(row.value.get().trim_matches('"'));
        let mut named = |name| row.dimensions.remove(name).flatten();
        let (subject, model) = (named("subject"), named("model"));
        Ok(Metered {
            subject: row.subject.or(subject).unwrap_or_default(),
            model: model.unwrap_or_default(),
            value: value.ok_or("a sum is not a whole number")?,
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ingest_address_says_which_api_it_is() {
        let old = Api::of("http://127.0.0.1:8888/api/v1/events", "m");
        assert_eq!(old, Some(Api::One("http://127.0.0.1:8888/api/v1/meters/m/query".into())));
        let new = Api::of("https://eu.api.konghq.com/v3/openmeter/events", "m");
        let uri = "https://eu.api.konghq.com/v3/openmeter/meters/m/query";
        assert_eq!(new, Some(Api::Three(uri.into())));
        assert_eq!(Api::of("https://example.com/ingest", "m"), None);
    }

    #[test]
    fn sums_of_either_api_are_whole_numbers_of_the_day() {
        let day: Day = "2023-01-01".parse().unwrap();
        let old = r#"{"from":"x","data":[
            {"value":12,"windowStart":"2023-01-01T00:00:00Z","windowEnd":"2023-01-02T00:00:00Z",
             "subject":"a","groupBy":{"model":"gpt-4-turbo","type":null}},
            {"value":1.5e3,"windowStart":"2023-01-01T00:00:00Z","windowEnd":"2023-01-02T00:00:00Z",
             "subject":null,"groupBy":{}},
            {"value":7,"windowStart":"2023-01-02T00:00:00Z","windowEnd":"2023-01-03T00:00:00Z",
             "subject":"a","groupBy":{"model":"gpt-4-turbo"}}]}"#;
        let metered = |subject: &str, model: &str, value| Metered {
            subject: subject.into(),
            model: model.into(),
            value,
        };
        let expected = [metered("a", "gpt-4-turbo", 12), metered("", "", 1_500)];
        assert_eq!(read(old.as_bytes(), day).unwrap(), expected);
        let new = r#"{"data":[{"value":"9007199254740993","from":"2023-01-01T00:00:00Z",
            "to":"2023-01-02T00:00:00Z","dimensions":{"subject":"a","model":"m"}}]}"#;
        let expected = [metered("a", "m", 9_007_199_254_740_993)];
        assert_eq!(read(new.as_bytes(), day).unwrap(), expected, "no float in between");
        let half = new.replace("9007199254740993", "0.5");
        assert!(read(half.as_bytes(), day).is_err());
    }
}
