//! `/admin/v1/exports`: merged events, as they go to Stripe, as `tollgate exports` has them.

use super::{PARAMETERS, Page, state, unreadable};
use crate::controllers::extract::Operator;
use crate::controllers::parameters::Parameters;
use crate::error::Error;
use crate::models::billing::{DeliveryState, Export, ExportId};
use crate::services::directory::{self, shown};
use crate::state::App;
use crate::store::exports::ExportFilter;
use crate::store::exports::corrected::Word;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

const FILTERS: [&str; 5] = ["customer", "meter", "state", "start_time", "end_time"];

/// What is wanted on a page.
fn filter(parameters: &Parameters) -> Result<ExportFilter, Error> {
    use DeliveryState::{Exported, Parked, Void, Waiting};
    Ok(ExportFilter {
        customer: word(parameters, "customer")?,
        meter: word(parameters, "meter")?,
        state: state(parameters, &[Waiting, Exported, Parked, Void])?,
        from: parameters.seconds("start_time")?,
        until: parameters.seconds("end_time")?,
    })
}

/// A name at the sink, which a database takes.
fn word(parameters: &Parameters, name: &'static str) -> Result<Option<String>, Error> {
    match parameters.one(name)? {
        Some(text) if text.contains(char::is_control) => Err(unreadable(name)),
        text => Ok(text.map(str::to_owned)),
    }
}

/// In the order of their ids, which is none of time.
pub async fn list(
    State(app): State<Arc<App>>,
    _: Operator,
    parameters: Parameters,
) -> Result<Response, Error> {
    parameters.only(&[&PARAMETERS[..], &FILTERS].concat())?;
    let (filter, page) = (filter(&parameters)?, Page::read(&parameters)?);
    let after = page.after::<ExportId>()?.map(|id| id.0).unwrap_or_default();
    let rows = app.store.exports_after(&filter, &after).await?;
    Ok(page.of(&rows, |export| export.id.clone()))
}

/// The sink does not count it: it is sent again.
pub async fn missing(
    State(app): State<Arc<App>>,
    operator: Operator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let wanted =
        "only what may be at the sink, for an hour and not more than 34 days, can be missing";
    correct(&app, operator, path, Word::Missing, wanted).await
}

/// The sink counts it.
pub async fn counted(
    State(app): State<Arc<App>>,
    operator: Operator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let wanted = "only what is parked, and may be at the sink, can be said to be counted";
    correct(&app, operator, path, Word::Counted, wanted).await
}

/// Gives the export as it is then.
async fn correct(
    app: &App,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
    said: Word,
    wanted: &'static str,
) -> Result<Response, Error> {
    let id: ExportId = super::id(path, "export")?;
    find(app, &id).await?;
    let (store, ids) = (app.store.as_ref(), [id.0.clone()]);
    if directory::correct_exports(store, &principal.actor(), &ids, said).await? == 0 {
        return Err(Error::invalid("id", wanted));
    }
    Ok(Json(shown(&find(app, &id).await?)).into_response())
}

async fn find(app: &App, id: &ExportId) -> Result<Export, Error> {
    app.store.export(&id.0).await?.ok_or(Error::NotFound("export"))
}
