//! What an upstream says afterwards of whole days: OpenRouter's sums, LiteLLM's list of calls.
//!
//! Invariant: every question has a deadline and its answer a limit; amounts are read from their
//! decimal text. OpenRouter has no list of single calls: its sums are by day, model and endpoint.

use super::{Upstream, bearer};
use crate::error::Error;
use crate::models::money::parse_cost_pico;
use crate::models::reconcile::Day;
use crate::models::report::Span;
use crate::models::timestamp::Timestamp;
use axum::http::header::AUTHORIZATION;
use axum::http::{Method, StatusCode};
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Rows of LiteLLM's list in one answer: its own maximum.
pub const LOG_ROWS: usize = 100;
/// The demo's and a proxy's own path: the list is not below `/v1`.
const VERSION_PATH: &str = "/v1";

/// What OpenRouter counted of one model at one endpoint on one day.
/// <https://openrouter.ai/docs/api-reference/analytics/get-user-activity>
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    pub day: Day,
    pub model: String,
    /// The same model's name with its version.
    pub permaslug: String,
    pub requests: i64,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    /// What the operator pays: OpenRouter's charge, and the provider's with a key of one's own.
    pub cost_pico: i128,
}

#[derive(Deserialize)]
struct Rows<T> {
    data: Vec<T>,
}

#[derive(Deserialize)]
struct ActivityRow<'a> {
    date: String,
    model: String,
    model_permaslug: String,
    requests: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
    #[serde(borrow)]
    usage: &'a RawValue,
    #[serde(borrow)]
    byok_usage_inference: Option<&'a RawValue>,
}

/// One call in LiteLLM's list.
/// <https://docs.litellm.ai/docs/proxy/cost_tracking>
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The id that the client was given in the answer.
    pub id: String,
    pub at: Timestamp,
    pub model: String,
    /// The model as the proxy's clients call it.
    pub group: String,
    /// What the request's `user` said: an account of ours.
    pub end_user: String,
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    pub cost_pico: Option<i128>,
}

#[derive(Deserialize)]
struct LogRow<'a> {
    request_id: String,
    #[serde(rename = "startTime")]
    start_time: String,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    model_group: Option<String>,
    #[serde(default)]
    end_user: Option<String>,
    #[serde(default)]
    prompt_tokens: Option<i64>,
    #[serde(default)]
    completion_tokens: Option<i64>,
    #[serde(borrow, default)]
    spend: Option<&'a RawValue>,
}

impl Upstream {
    /// What OpenRouter counted of the days that are over: of one, or of the last thirty. The key
    /// must be a management key, which cannot run completions.
    ///
    /// # Errors
    /// One of the upstream's.
    pub async fn activity(
        &self,
        key: &SecretString,
        day: Option<Day>,
    ) -> Result<Vec<Activity>, Error> {
        let query = day.map(|day| format!("?date={day}")).unwrap_or_default();
        let mut request = self.request(Method::GET, &format!("/activity{query}"), Bytes::new())?;
        request.headers_mut().insert(AUTHORIZATION, bearer(key.expose_secret())?);
        let body = self.list_for(request).await?;
        let rows = serde_json::from_slice::<Rows<ActivityRow<'_>>>(&body).ok();
        let rows = rows.and_then(|rows| rows.data.into_iter().map(ActivityRow::read).collect());
        rows.ok_or_else(|| unreadable("its activity cannot be read"))
    }

    /// A page of LiteLLM's calls of a span, newest or oldest first as it likes; pages count from 1.
    /// A page with fewer than [`LOG_ROWS`] is the last.
    ///
    /// # Errors
    /// One of the upstream's.
    pub async fn spend_logs(&self, span: Span, page: u32) -> Result<Vec<Logged>, Error> {
        let root = self.base.strip_suffix(VERSION_PATH).unwrap_or(&self.base);
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("start_date", &second(span.from))
            .append_pair("end_date", &second(span.until))
            .append_pair("page", &page.to_string())
            .append_pair("page_size", &LOG_ROWS.to_string())
            .finish();
        let uri = format!("{root}/spend/logs/v2?{query}");
        let body = self.list_for(self.request_to(Method::GET, &uri, Bytes::new())?).await?;
        let rows = serde_json::from_slice::<Rows<LogRow<'_>>>(&body).ok();
        let rows = rows.and_then(|rows| rows.data.into_iter().map(LogRow::read).collect());
        rows.ok_or_else(|| unreadable("its list of calls cannot be read"))
    }
}

fn unreadable(reason: &'static str) -> Error {
    Error::UpstreamFailed { status: StatusCode::OK, reason, retry_after: None }
}

/// As the list wants it: in UTC, to the second.
fn second(at: Timestamp) -> String {
    let text = at.to_string().replace('T', " ");
    text.get(..SECOND_CHARS).unwrap_or_default().to_owned()
}

/// Of `2026-11-24 12:00:00`.
const SECOND_CHARS: usize = 19;

impl ActivityRow<'_> {
    fn read(self) -> Option<Activity> {
        let own_key =
            self.byok_usage_inference.map_or(Some(0), |raw| parse_cost_pico(raw.get()))?;
        Some(Activity {
            // With a time of day behind it in older answers.
            day: self.date.get(..10)?.parse().ok()?,
            model: self.model,
            permaslug: self.model_permaslug,
            requests: self.requests,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            cost_pico: parse_cost_pico(self.usage.get())?.checked_add(own_key)?,
        })
    }
}

impl LogRow<'_> {
    fn read(self) -> Option<Logged> {
        let text = self.start_time.replacen(' ', "T", 1);
        let at = Timestamp::parse(&text).or_else(|| Timestamp::parse(&format!("{text}Z")))?;
        Some(Logged {
            id: self.request_id,
            at,
            model: self.model.unwrap_or_default(),
            group: self.model_group.unwrap_or_default(),
            end_user: self.end_user.unwrap_or_default(),
            prompt_tokens: self.prompt_tokens.unwrap_or_default(),
            completion_tokens: self.completion_tokens.unwrap_or_default(),
            cost_pico: self.spend.and_then(|raw| parse_cost_pico(raw.get())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_activity_is_read_to_the_pico() {
        // The example of OpenRouter's description.
        let text = r#"{"data":[{"byok_usage_inference":0.012,"completion_tokens":125,
            "date":"2025-08-24","endpoint_id":"550e8400-e29b-41d4-a716-446655440000",
            "model":"openai/gpt-4.1","model_permaslug":"openai/gpt-4.1-2025-04-14",
            "prompt_tokens":50,"provider_name":"OpenAI","reasoning_tokens":25,"requests":5,
            "usage":0.015}]}"#;
        let rows: Rows<ActivityRow<'_>> = serde_json::from_str(text).unwrap();
        let rows: Vec<Activity> = rows.data.into_iter().filter_map(ActivityRow::read).collect();
        assert_eq!(rows[0].cost_pico, 27_000_000_000);
        assert_eq!((rows[0].day.to_string().as_str(), rows[0].requests), ("2025-08-24", 5));
    }

    #[test]
    fn a_time_of_litellm_is_utc_with_or_without_saying_so() {
        for time in
            ["2026-11-23T10:00:00.250000Z", "2026-11-23T10:00:00.25", "2026-11-23 10:00:00.250"]
        {
            let text = format!(r#"{{"request_id":"a","startTime":"{time}","spend":1e-7}}"#);
            let logged = serde_json::from_str::<LogRow<'_>>(&text).unwrap().read().unwrap();
            assert_eq!(logged.at.to_string(), "2026-11-23T10:00:00.250000Z");
            assert_eq!(logged.cost_pico, Some(100_000));
            assert_eq!(second(logged.at), "2026-11-23 10:00:00");
        }
    }
}
