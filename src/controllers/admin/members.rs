//! `/admin/v1/accounts/{id}/members`.

use super::Page;
use super::accounts::find;
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
    page: Page,
) -> Result<Response, Error> {
    let account = find(&app, path).await?;
    let rows = app.store.members_of(account.id, page.after()?).await?;
    Ok(page.of(&rows, |member| member.user_id.to_string()))
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
    app.member_changed(new.user_id).await;
    Ok((StatusCode::CREATED, Json(shown(&member))).into_response())
}

pub async fn remove(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, Error> {
    // What is no id is nobody's.
    let nobody = Error::NotFound("member");
    let Ok(Path((account, user))) = path else { return Err(nobody) };
    let (Ok(account), Ok(user)) = (account.parse(), user.parse()) else { return Err(nobody) };
    directory::remove_member(app.store.as_ref(), &principal.actor(), account, user).await?;
    app.member_changed(user).await;
    Ok(StatusCode::NO_CONTENT.into_response())
}
