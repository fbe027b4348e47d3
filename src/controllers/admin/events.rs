//! `/admin/v1/events`: billing events on their way to the sinks, as `tollgate events` has them.

use super::{Page, unfolded, unreadable};
use crate::config::{OPENMETER, STRIPE, WEBHOOK};
use crate::controllers::extract::{Form, Operator, Question};
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

/// A page, and what is wanted on it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    #[serde(default)]
    after: Option<String>,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    sink: Option<String>,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    account: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Park {
    reason: String,
}

impl Wanted {
    fn filter(&self) -> Result<EventFilter, Error> {
        let is_sink = |name: &str| [STRIPE, OPENMETER, WEBHOOK].contains(&name);
        if self.sink.as_deref().is_some_and(|name| !is_sink(name)) {
            return Err(Error::invalid("sink", "must be stripe, openmeter or webhook"));
        }
        let state = self.state.as_deref().map(|name| match name {
            "waiting" => Ok(DeliveryState::Waiting),
            "exported" => Ok(DeliveryState::Exported),
            "parked" => Ok(DeliveryState::Parked),
            _ => Err(Error::invalid("state", "must be waiting, exported or parked")),
        });
        let account = self.account.as_deref();
        let account = account.map(|id| id.parse().map_err(|_| unreadable("account")));
        Ok(EventFilter {
            sink: self.sink.clone(),
            state: state.transpose()?,
            account: account.transpose()?,
        })
    }
}

/// Oldest request first.
pub async fn list(
    State(app): State<Arc<App>>,
    _: Operator,
    Question(wanted): Question<Wanted>,
) -> Result<Response, Error> {
    let filter = wanted.filter()?;
    let page = Page { after: wanted.after, limit: wanted.limit };
    let after = page.after::<EventId>()?.map(|id| id.0).unwrap_or_default();
    let rows = app.store.billing_events_after(&filter, &after).await?;
    page.told(&rows, told, |event| event.id.clone())
}

/// A parked event waits again.
pub async fn retry(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let event = find(&app, path).await?;
    let ids = [event.id];
    if directory::retry_events(app.store.as_ref(), &principal.actor(), &ids).await? == 0 {
        return Err(Error::invalid("id", "only a parked event can be tried again"));
    }
    again(&app, &ids).await
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
    if directory::park_events(store, &principal.actor(), &ids, &park.reason).await? == 0 {
        let wanted = "only an event that waits, and not in a merged one, can be parked";
        return Err(Error::invalid("id", wanted));
    }
    again(&app, &ids).await
}

async fn find(app: &App, path: Result<Path<String>, PathRejection>) -> Result<BillingEvent, Error> {
    let id: EventId = super::id(path, "event")?;
    app.store.billing_event(&id.0).await?.ok_or(Error::NotFound("event"))
}

/// The event as it is now.
async fn again(app: &App, [id]: &[String; 1]) -> Result<Response, Error> {
    let event = app.store.billing_event(id).await?.ok_or(Error::NotFound("event"))?;
    Ok(Json(told(&event)).into_response())
}

fn told(event: &BillingEvent) -> Value {
    unfolded(shown(event), &["detail"])
}
