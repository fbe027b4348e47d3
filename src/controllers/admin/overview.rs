//! `/admin/v1/margins`, `/drift`, `/sinks` and `/health`: how the service does, for whoever runs
//! it.
//!
//! Invariant: reads only. Amounts are exact decimals of USD; what is unknown is said to be, and is
//! in no sum.

use crate::controllers::extract::Operator;
use crate::controllers::health::readiness;
use crate::controllers::parameters::{Parameters, invalid, not_among};
use crate::error::Error;
use crate::models::money::{Usd, UsdOfPico};
use crate::models::overview::{Dimension, MarginQuestion, MarginSum};
use crate::models::report::{Span, Width};
use crate::models::timestamp::Timestamp;
use crate::services::breaker::Leave;
use crate::services::upstream::Upstream;
use crate::state::App;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest time that is asked for at once, in days: a quarter, and some days to compare.
const DAYS_MAX: usize = 100;
/// Models in trouble that are named for one upstream.
const TROUBLES_MAX: usize = 20;

#[derive(Debug, Serialize)]
struct Row {
    start_time: i64,
    end_time: i64,
    name: Option<String>,
    account_name: Option<String>,
    num_model_requests: i64,
    charge_usd: Usd,
    cost_usd: UsdOfPico,
    failed_cost_usd: UsdOfPico,
    margin_usd: UsdOfPico,
    shortfall_usd: Usd,
    requests_without_cost: i64,
    charge_without_cost_usd: Usd,
}

/// What was charged and what it costs, in one bucket or in days.
pub async fn margins(
    State(app): State<Arc<App>>,
    _: Operator,
    parameters: Parameters,
) -> Result<Response, Error> {
    parameters.only(&["start_time", "end_time", "bucket_width", "group_by"])?;
    let span = span(&parameters)?;
    let buckets = match parameters.one("bucket_width")? {
        None => vec![span],
        Some("1d") => span.buckets(Width::Day, DAYS_MAX + 1),
        Some(_) => return Err(not_among("bucket_width", &["1d"])),
    };
    let by = match parameters.one("group_by")? {
        None => Dimension::Whole,
        Some("model") => Dimension::Model,
        Some("account") => Dimension::Account,
        Some("upstream") => Dimension::Upstream,
        Some(_) => return Err(not_among("group_by", &["model", "account", "upstream"])),
    };
    let question = MarginQuestion { buckets: buckets.clone(), by };
    let sums = app.reports.margins(question).await?;
    let rows = sums.into_iter().filter_map(|sum| Some(margin(*buckets.get(sum.bucket)?, sum)));
    Ok(listed(rows))
}

fn margin(bucket: Span, sum: MarginSum) -> Row {
    Row {
        start_time: bucket.from.unix_seconds(),
        end_time: bucket.until.unix_seconds(),
        num_model_requests: sum.requests,
        charge_usd: Usd(sum.charge_nusd),
        cost_usd: UsdOfPico(sum.cost_pico()),
        failed_cost_usd: UsdOfPico(sum.failed_pico()),
        margin_usd: UsdOfPico(sum.margin_pico()),
        shortfall_usd: Usd(sum.shortfall_nusd),
        requests_without_cost: sum.without_cost,
        charge_without_cost_usd: Usd(sum.charge_without_cost_nusd),
        name: sum.name,
        account_name: sum.account_name,
    }
}

/// The upstream's tokens and ours.
pub async fn drift(
    State(app): State<Arc<App>>,
    _: Operator,
    parameters: Parameters,
) -> Result<Response, Error> {
    parameters.only(&["start_time", "end_time"])?;
    let sums = app.reports.drift(span(&parameters)?).await?;
    Ok(listed(sums.into_iter()))
}

/// What has not reached the sinks yet.
pub async fn sinks(
    State(app): State<Arc<App>>,
    _: Operator,
    parameters: Parameters,
) -> Result<Response, Error> {
    parameters.only(&[])?;
    let rows = app.reports.sinks().await?.into_iter().map(|(sink, backlog)| {
        json!({
            "name": sink.name,
            "since": sink.since,
            "until": sink.until,
            "waiting": backlog.waiting.saturating_add(backlog.merged),
            "oldest_waiting_at": backlog.oldest(),
            "parked": backlog.parked.saturating_add(backlog.without_customer),
            "without_customer": backlog.without_customer,
            "oldest_parked_at": backlog.oldest_parked,
        })
    });
    Ok(listed(rows))
}

/// This process: whether it is ready, and how upstreams have been of late.
pub async fn health(
    State(app): State<Arc<App>>,
    _: Operator,
    parameters: Parameters,
) -> Result<Response, Error> {
    parameters.only(&[])?;
    let now = Instant::now();
    let upstreams = app.admission.settler.upstreams.all();
    let upstreams: Vec<Value> = upstreams.iter().map(|one| upstream(one, now)).collect();
    Ok(Json(json!({
        "object": "health",
        "status": readiness(&app).await.err().unwrap_or("ready"),
        "version": env!("CARGO_PKG_VERSION"),
        "instance": app.admission.instance,
        "upstreams": upstreams,
    }))
    .into_response())
}

fn upstream(upstream: &Upstream, now: Instant) -> Value {
    let mut seen = upstream.health.seen(now);
    seen.models.sort_by(|(one, _), (other, _)| one.cmp(other));
    let models = seen.models.iter().take(TROUBLES_MAX).map(|(model, leave)| {
        let (state, seconds) = manner(*leave);
        json!({ "model": model, "state": state, "seconds": seconds })
    });
    let (state, seconds) = manner(seen.whole);
    json!({
        "name": upstream.name,
        "kind": upstream.kind.name(),
        "order": upstream.offer.order,
        "weight": upstream.offer.weight,
        "state": state,
        "seconds": seconds,
        "models": models.collect::<Vec<_>>(),
        "models_in_trouble": seen.models.len(),
    })
}

/// How it is treated, and for how long.
fn manner(leave: Leave) -> (&'static str, Option<u64>) {
    match leave {
        Leave::All => ("well", None),
        Leave::One => ("on_trial", None),
        Leave::Nothing(wait) => {
            let whole = wait.saturating_add(Duration::from_millis(999)).as_secs();
            ("left_alone", Some(whole))
        }
    }
}

fn span(parameters: &Parameters) -> Result<Span, Error> {
    let from = parameters
        .seconds("start_time")?
        .ok_or_else(|| invalid("start_time", "Missing required parameter: 'start_time'."))?;
    let until = parameters.seconds("end_time")?.unwrap_or_else(Timestamp::now);
    if from >= until {
        return Err(invalid("end_time", "'end_time' must be after 'start_time'."));
    }
    let span = Span { from, until };
    if span.buckets(Width::Day, DAYS_MAX + 2).len() > DAYS_MAX + 1 {
        let message = format!("'end_time' must be within {DAYS_MAX} days of 'start_time'.");
        return Err(invalid("end_time", &message));
    }
    Ok(span)
}

fn listed<T: Serialize>(rows: impl Iterator<Item = T>) -> Response {
    let data: Vec<T> = rows.collect();
    Json(Listed { object: "list", data }).into_response()
}

/// All of it: these answers have no pages.
#[derive(Serialize)]
struct Listed<T> {
    object: &'static str,
    data: Vec<T>,
}
