//! `/admin/v1/accounts/{id}/members`.

use super::accounts::find;
use super::{all, unreadable};
use crate::controllers::extract::{Form, Operator};
use crate::error::Error;
use crate::models::ids::UserId;
use crate::services::directory::{self, shown};
use crate::state::App;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct New {
    user_id: UserId,
}

pub async fn list(
    State(app): State<Arc<App>>,
    _: Operator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let account = find(&app, path).await?;
    Ok(all(&app.store.members_of(account.id).await?))
}

/// Lets a user act for the account, and for no other from now on.
pub async fn add(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
    Form(new): Form<New>,
) -> Result<Response, Error> {
    let account = find(&app, path).await?;
    let store = app.store.as_ref();
    let actor = principal.actor();
    let member = directory::add_member(store, &actor, account.id, new.user_id).await?;
    app.changed().await?;
    Ok((StatusCode::CREATED, Json(shown(&member))).into_response())
}

pub async fn remove(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, Error> {
    let Path((account, user)) = path.map_err(|_| Error::NotFound("member"))?;
    let account = account.parse().map_err(|_| Error::NotFound("account"))?;
    let user = user.parse().map_err(|_| unreadable("user_id"))?;
    directory::remove_member(app.store.as_ref(), &principal.actor(), account, user).await?;
    app.changed().await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
