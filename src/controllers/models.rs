//! `GET /v1/models` and `GET /v1/models/{id}`, whose ids contain slashes.

use crate::error::Error;
use crate::services::auth::Principal;
use crate::state::App;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use std::sync::Arc;

/// All models.
///
/// # Errors
/// [`Error::NoModels`] before the upstream's list has been there once.
pub async fn list(State(app): State<Arc<App>>, _: Principal) -> Result<Response, Error> {
    Ok(json(app.catalog.json()?))
}

/// One model.
///
/// # Errors
/// [`Error::UnknownModel`].
pub async fn retrieve(
    State(app): State<Arc<App>>,
    _: Principal,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    // A name that is not even text.
    let Path(id) = id.map_err(|_| Error::UnknownModel { model: "?".to_owned() })?;
    Ok(json(app.catalog.model(&id)?.0.json.clone()))
}

fn json(body: Bytes) -> Response {
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}
