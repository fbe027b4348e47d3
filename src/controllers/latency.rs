//! `GET /v1/latency`: how long the answers to the account's requests took, in days or hours.
//!
//! Invariant: a time is one that was really taken, in whole milliseconds; what used nothing is not
//! in it.

use super::usage::Window;
use crate::controllers::parameters::{Parameters, not_among};
use crate::error::Error;
use crate::models::openai::usage::Page;
use crate::models::overview::{LatencySum, Timing};
use crate::models::report::Width;
use crate::services::auth::Principal;
use crate::state::App;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;

#[derive(Debug, Serialize)]
pub struct Latency {
    object: &'static str,
    /// What was timed.
    timing: &'static str,
    num_model_requests: i64,
    p50_ms: i64,
    p95_ms: i64,
}

/// # Errors
/// [`Error::Invalid`], and those of the reports.
pub async fn latency(
    State(app): State<Arc<App>>,
    principal: Principal,
    parameters: Parameters,
) -> Result<Json<Page<Latency>>, Error> {
    parameters.only(&["start_time", "end_time", "bucket_width", "limit", "page"])?;
    let (width, usual, most) = match parameters.one("bucket_width")? {
        None | Some("1d") => (Width::Day, 7, 31),
        Some("1h") => (Width::Hour, 24, 168),
        Some(_) => return Err(not_among("bucket_width", &["1h", "1d"])),
    };
    let limit = parameters.number("limit", usual, most)?;
    let window = Window::read(&parameters, width, limit)?;
    let sums = app.reports.latencies(principal.account_id, window.buckets.clone()).await?;
    Ok(Json(window.page(sums.iter().map(|sum| (sum.bucket, told(sum))))))
}

fn told(sum: &LatencySum) -> Latency {
    let timing = match sum.kind {
        Timing::Whole => "whole",
        Timing::FirstByte => "first_byte",
    };
    Latency {
        object: "latency.result",
        timing,
        num_model_requests: sum.requests,
        // A clock that was set back between the two.
        p50_ms: sum.p50_ms.max(0),
        p95_ms: sum.p95_ms.max(0),
    }
}
