//! `/admin/v1/events`: billing events on their way to the sinks, as `tollgate events` has them.

use super::{PARAMETERS, Page, state, unfolded, unreadable};
use crate::config::SINKS;
use crate::controllers::extract::{Form, Operator};
use crate::controllers::parameters::{Parameters, not_among};
use crate::error::Error;
use crate::models::billing::{BillingEvent, DeliveryState, EventId};
use crate::services::directory::{self, shown};
use crate::state::App;
use crate::store::outbox::EventFilter;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Park {
    reason: String,
}

/// What is wanted on a page.
fn filter(parameters: &Parameters) -> Result<EventFilter, Error> {
    let sink = parameters.one("sink")?;
    if sink.is_some_and(|name| !SINKS.contains(&name)) {
        return Err(not_among("sink", &SINKS));
    }
    let states = [DeliveryState::Waiting, DeliveryState::Exported, DeliveryState::Parked];
    let account = parameters.one("account")?;
    let account = account.map(|id| id.parse().map_err(|_| unreadable("account")));
    Ok(EventFilter {
        sink: sink.map(str::to_owned),
        state: state(parameters, &states)?,
        account: account.transpose()?,
    })
}

/// Oldest request first.
pub async fn list(
    State(app): State<Arc<App>>,
    _: Operator,
    parameters: Parameters,
) -> Result<Response, Error> {
    parameters.only(&[&PARAMETERS[..], &["sink", "state", "account"]].concat())?;
    let (filter, page) = (filter(&parameters)?, Page::read(&parameters)?);
    let after = page.after::<EventId>()?.map(|id| id.0).unwrap_or_default();
    let rows = app.store.billing_events_after(&filter, &after).await?;
    Ok(page.told(&rows, told, |event| event.id.clone()))
}

/// A parked event waits again.
pub async fn retry(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let event = find(&app, path).await?;
    let ids = [event.id];
    let count = directory::retry_events(app.store.as_ref(), &principal.actor(), &ids).await?;
    changed(&app, &ids, count, "only a parked event can be tried again").await
}

/// A parked event is dealt with by other means.
pub async fn dismiss(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let event = find(&app, path).await?;
    let ids = [event.id];
    let count = directory::dismiss_events(app.store.as_ref(), &principal.actor(), &ids).await?;
    let wanted = "only a parked event that is surely not at the sink can be dismissed";
    changed(&app, &ids, count, wanted).await
}

/// A waiting event is kept back.
pub async fn park(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
    Form(park): Form<Park>,
) -> Result<Response, Error> {
    let event = find(&app, path).await?;
    let (store, ids) = (app.store.as_ref(), [event.id]);
    let count = directory::park_events(store, &principal.actor(), &ids, &park.reason).await?;
    let wanted = "only an event that waits, and not in a merged one, can be parked";
    changed(&app, &ids, count, wanted).await
}

async fn find(app: &App, path: Result<Path<String>, PathRejection>) -> Result<BillingEvent, Error> {
    let id: EventId = super::id(path, "event")?;
    app.store.billing_event(&id.0).await?.ok_or(Error::NotFound("event"))
}

/// The event as it is now, where that is another than it was.
async fn changed(
    app: &App,
    [id]: &[String; 1],
    count: u64,
    wanted: &str,
) -> Result<Response, Error> {
    if count == 0 {
        return Err(Error::invalid("id", wanted));
    }
    let event = app.store.billing_event(id).await?.ok_or(Error::NotFound("event"))?;
    Ok(Json(told(&event)).into_response())
}

fn told(event: &BillingEvent) -> Value {
    unfolded(shown(event), &["detail"])
}
