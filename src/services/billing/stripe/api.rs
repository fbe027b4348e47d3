//! Stripe's API: form-encoded requests (JSON in its newer part), JSON answers, one pinned version.
//!
//! Invariants: every call carries the version, waits for its turn and has a deadline; the key never
//! shows in an error. What a call is for is not decided here.
//! <https://docs.stripe.com/api/versioning>

use crate::config::StripeConfig;
use crate::error::Error;
use crate::models::money::parse_whole;
use crate::models::reconcile::Day;
use crate::models::timestamp::Timestamp;
use crate::services::billing::CONNECT_WAIT;
use crate::services::http::{self, AGENT, Answer, HttpClient, JSON, Silence};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use axum::http::{HeaderValue, Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// The version whose shapes are read here.
pub const VERSION: HeaderValue = HeaderValue::from_static("2026-10-28.endive");

pub struct StripeApi {
    client: HttpClient,
    base: String,
    authorization: HeaderValue,
    wait: Duration,
    /// Between two calls, and when the next may begin.
    interval: Duration,
    next: Mutex<Instant>,
}

/// The envelope of Stripe's errors. <https://docs.stripe.com/api/errors>
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct StripeError {
    #[serde(rename = "type")]
    pub kind: String,
    pub code: String,
    pub message: String,
}

impl StripeError {
    /// Empty where the body is something else.
    #[must_use]
    pub fn read(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Envelope {
            error: StripeError,
        }
        serde_json::from_slice::<Envelope>(body).map(|envelope| envelope.error).unwrap_or_default()
    }

    /// The key is another request's, and not that of one that is under way.
    fn is_key_reused(&self) -> bool {
        self.kind == "idempotency_error" && self.code != "idempotency_key_in_use"
    }
}

/// A page of a list. <https://docs.stripe.com/api/pagination>
#[derive(Deserialize)]
struct Page<T> {
    data: Vec<T>,
    #[serde(default)]
    has_more: bool,
}

#[derive(Deserialize)]
struct Meter {
    id: String,
    event_name: String,
}

#[derive(Deserialize)]
struct Summary {
    aggregated_value: Box<RawValue>,
    start_time: i64,
}

/// Pages of a list that are read: two thousand meters.
const PAGES_MAX: usize = 20;

impl StripeApi {
    /// # Errors
    /// [`Error::Internal`] when the key cannot be used in a request.
    pub fn new(config: &StripeConfig, wait: Duration) -> Result<Self, Error> {
        let authorization = http::bearer(config.key.expose_secret())
            .ok_or_else(|| Error::Internal("STRIPE_SECRET_KEY is not printable".to_owned()))?;
        Ok(Self {
            client: http::client(CONNECT_WAIT),
            base: config.base.clone(),
            authorization,
            wait,
            interval: Duration::from_secs(1) / config.calls_per_second,
            next: Mutex::new(Instant::now()),
        })
    }

    /// # Errors
    /// Why there was no answer.
    pub async fn post(
        &self,
        path: &str,
        form: &[(&str, String)],
        idempotency_key: &str,
    ) -> Result<Answer, Silence> {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let mut request = self.request(Method::POST, path, Bytes::from(body))?;
        let key =
            HeaderValue::from_str(idempotency_key).map_err(|error| Silence::unsent(&error))?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, FORM);
        headers.insert("idempotency-key", key);
        self.call(request).await
    }

    /// For the newer API, whose requests are JSON: at a whole address, with the key or with a
    /// session's token.
    ///
    /// # Errors
    /// Those of [`StripeApi::post`].
    pub async fn post_json(
        &self,
        url: &str,
        body: &str,
        token: Option<&HeaderValue>,
    ) -> Result<Answer, Silence> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let mut request = self.request_to(Method::POST, url, body)?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, token.clone());
        }
        self.call(request).await
    }

    /// Without a slash at its end.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// # Errors
    /// Why there was no answer.
    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Answer, String> {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let request = self.request(Method::GET, &format!("{path}?{query}"), Bytes::new())?;
        Ok(self.call(request).await?)
    }

    /// Asks for an object.
    ///
    /// # Errors
    /// [`Error::PaymentProvider`] when another try may succeed, else [`Error::PaymentRefused`].
    pub async fn fetch<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, Error> {
        object(self.get(path, query).await)
    }

    /// Makes an object, once for each key.
    ///
    /// # Errors
    /// As [`StripeApi::fetch`].
    pub async fn create<T: DeserializeOwned>(
        &self,
        path: &str,
        form: &[(&str, String)],
        idempotency_key: &str,
    ) -> Result<T, Error> {
        object(self.post(path, form, idempotency_key).await.map_err(String::from))
    }

    /// As [`StripeApi::create`], with a key that a client has chosen.
    ///
    /// # Errors
    /// Those, and [`Error::Repeated`] when the key was given with something else before: no other
    /// try can succeed.
    pub async fn create_by_client<T: DeserializeOwned>(
        &self,
        path: &str,
        form: &[(&str, String)],
        idempotency_key: &str,
    ) -> Result<T, Error> {
        let answer = self.post(path, form, idempotency_key).await;
        let is_reused = |answer: &Answer| StripeError::read(&answer.body).is_key_reused();
        if answer.as_ref().is_ok_and(is_reused) {
            return Err(Error::Repeated);
        }
        object(answer.map_err(String::from))
    }

    /// The ids of active meters by their event names.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn meters(&self) -> Result<HashMap<String, String>, String> {
        let mut found = HashMap::new();
        let mut after: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut query = vec![("status", "active".to_owned()), ("limit", "100".to_owned())];
            query.extend(after.take().map(|id| ("starting_after", id)));
            let answer = self.get("/v1/billing/meters", &query).await?;
            let page: Page<Meter> = read(&answer)?;
            after = page.data.last().map(|meter| meter.id.clone());
            found.extend(page.data.into_iter().map(|meter| (meter.event_name, meter.id)));
            if !page.has_more || after.is_none() {
                break;
            }
        }
        Ok(found)
    }

    /// What a meter has summed for a customer; the times are whole minutes.
    /// <https://docs.stripe.com/api/billing/meter-event-summary/list>
    ///
    /// # Errors
    /// As [`StripeApi::fetch`].
    pub async fn summed(
        &self,
        meter: &str,
        customer: &str,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<i64, Error> {
        let path = format!("/v1/billing/meters/{meter}/event_summaries");
        let query = [
            ("customer", customer.to_owned()),
            ("start_time", from.unix_seconds().to_string()),
            ("end_time", to.unix_seconds().to_string()),
        ];
        let page: Page<Summary> = self.fetch(&path, &query).await?;
        let mut sum = 0_i64;
        for summary in page.data {
            // Whoever wrote to the meter: it will be no better the next time.
            let value = summary.value().map_err(Error::PaymentRefused)?;
            let out_of_range = || Error::PaymentRefused("a summary is out of range".to_owned());
            sum = sum.checked_add(value).ok_or_else(out_of_range)?;
        }
        Ok(sum)
    }

    /// The same by days of UTC; days without usage may be missing.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn summed_by_day(
        &self,
        meter: &str,
        customer: &str,
        (first, last): (Day, Day),
    ) -> Result<Vec<(Day, i64)>, String> {
        let path = format!("/v1/billing/meters/{meter}/event_summaries");
        let query = [
            ("customer", customer.to_owned()),
            ("start_time", first.start().unix_seconds().to_string()),
            ("end_time", last.end().unix_seconds().to_string()),
            ("value_grouping_window", "day".to_owned()),
            // More than the days that can be asked for.
            ("limit", "100".to_owned()),
        ];
        let answer = self.get(&path, &query).await?;
        let page: Page<Summary> = read(&answer)?;
        if page.has_more {
            return Err("more days than were asked for".to_owned());
        }
        let of_day = |summary: Summary| {
            let day = Day::of(Timestamp::from_unix_seconds(summary.start_time));
            Ok((day, summary.value()?))
        };
        page.data.into_iter().map(of_day).collect()
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Silence> {
        self.request_to(method, &format!("{}{path}", self.base), body)
    }

    fn request_to(
        &self,
        method: Method,
        url: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Silence> {
        let request = Request::builder().method(method).uri(url);
        let mut request = request.body(Full::new(body)).map_err(|error| Silence::unsent(&error))?;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, AGENT);
        headers.insert("stripe-version", VERSION);
        headers.insert(AUTHORIZATION, self.authorization.clone());
        Ok(request)
    }

    async fn call(&self, request: Request<Full<Bytes>>) -> Result<Answer, Silence> {
        self.turn().await;
        http::ask(&self.client, request, self.wait).await
    }

    /// Waits until the rate allows another call. Who gives up waiting leaves no gap behind.
    async fn turn(&self) {
        let mut next = self.next.lock().await;
        tokio::time::sleep_until((*next).into()).await;
        *next = Instant::now() + self.interval;
    }
}

const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

fn object<T: DeserializeOwned>(answer: Result<Answer, String>) -> Result<T, Error> {
    let answer = answer.map_err(Error::PaymentProvider)?;
    let error = StripeError::read(&answer.body);
    // The operator's key, the rate, Stripe itself or who stands before it, or a call of ours that
    // is under way.
    let may_change = !answer.status.is_client_error()
        || error.kind.is_empty()
        || matches!(answer.status.as_u16(), 401 | 403 | 409 | 429)
        || error.kind == "idempotency_error";
    read(&answer).map_err(|why| {
        if may_change { Error::PaymentProvider(why) } else { Error::PaymentRefused(why) }
    })
}

fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, String> {
    if answer.status != StatusCode::OK {
        let StripeError { code, message, .. } = StripeError::read(&answer.body);
        return Err(format!("{} {code} {message}", answer.status.as_u16()));
    }
    serde_json::from_slice(&answer.body).map_err(|error| error.to_string())
}

impl Summary {
    /// A number that Stripe's types call a float, when it is a whole one.
    fn value(&self) -> Result<i64, String> {
        let value = parse_whole(self.aggregated_value.get());
        value.ok_or_else(|| "a summary is not a whole number".to_owned())
    }
}
