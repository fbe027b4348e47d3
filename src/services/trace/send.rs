//! Sends spans by the HTTP client that we have.
//!
//! Invariant: it runs on the program's runtime, because the library asks from a thread of its own;
//! each call has a deadline; a failure is said once, not for every batch.

use crate::services::http::{self, AGENT, HttpClient};
use axum::http::header::USER_AGENT;
use axum::http::{Request, Response};
use bytes::Bytes;
use http_body_util::Full;
use opentelemetry_http::HttpError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;

#[derive(Debug)]
pub struct Sender {
    client: HttpClient,
    runtime: Handle,
    is_failing: AtomicBool,
}

const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// A collector is near, and nobody waits for it.
const SEND_WAIT: Duration = Duration::from_secs(5);

impl Sender {
    /// Within the runtime that is to send.
    pub fn new() -> Self {
        let (client, is_failing) = (http::client(CONNECT_WAIT), AtomicBool::new(false));
        Self { client, runtime: Handle::current(), is_failing }
    }

    fn note(&self, failure: Option<&str>) {
        let was_failing = self.is_failing.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(failure) if !was_failing => {
                tracing::warn!("spans are lost, the collector does not take them: {failure}");
            }
            None if was_failing => tracing::info!("the collector takes spans again"),
            _ => {}
        }
    }
}

#[async_trait::async_trait]
impl opentelemetry_http::HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request = request.map(Full::new);
        request.headers_mut().insert(USER_AGENT, AGENT);
        let client = self.client.clone();
        let asking = async move { http::ask(&client, request, SEND_WAIT).await };
        let answer = self.runtime.spawn(asking).await?;
        let answer = answer.map_err(String::from);
        let answer = answer.inspect_err(|failure| self.note(Some(failure)))?;
        let refusal = (!answer.status.is_success()).then(|| answer.status.to_string());
        self.note(refusal.as_deref());
        let mut response = Response::new(answer.body);
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        Ok(response)
    }
}
