//! `/admin/v1/accounts/{id}/keys` and `/admin/v1/keys/{id}`.

use super::accounts::find;
use super::{Page, id};
use crate::controllers::extract::{Form, Operator};
use crate::error::Error;
use crate::models::identity::Role;
use crate::models::ids::ApiKeyId;
use crate::models::key::KeyLimits;
use crate::models::limits::RateLimits;
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::services::directory::{self, KeyPatch, NewKey, present, shown_key};
use crate::state::App;
use crate::store::directory::OwnKey;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct New {
    name: String,
    #[serde(default)]
    models: Option<String>,
    #[serde(default, deserialize_with = "present")]
    role: Option<Role>,
    #[serde(default)]
    expires_at: Option<Timestamp>,
    #[serde(default)]
    requests_per_minute: Option<i64>,
    #[serde(default)]
    tokens_per_minute: Option<i64>,
    #[serde(default)]
    concurrent_requests: Option<i64>,
    #[serde(default)]
    day_limit_nusd: Option<NanoUsd>,
    #[serde(default)]
    week_limit_nusd: Option<NanoUsd>,
    #[serde(default)]
    month_limit_nusd: Option<NanoUsd>,
    #[serde(default)]
    total_limit_nusd: Option<NanoUsd>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// How long the old secret works on.
    #[serde(default)]
    overlap_seconds: u64,
}

pub async fn list(
    State(app): State<Arc<App>>,
    _: Operator,
    path: Result<Path<String>, PathRejection>,
    page: Page,
) -> Result<Response, Error> {
    let account = find(&app, path).await?;
    let rows = app.store.keys_of(account.id, page.after()?).await?;
    Ok(page.of(&rows, |key| key.id.to_string()))
}

/// Makes a key; the answer has its secret, once. The account's plan gives the budgets that the
/// request does not name.
pub async fn create(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
    Form(new): Form<New>,
) -> Result<Response, Error> {
    let account = find(&app, path).await?;
    let plan = account.plan.as_deref().and_then(|plan| app.catalog.plan(plan));
    let plan = plan.map(|plan| plan.key_limits).unwrap_or_default();
    let own = KeyLimits {
        day: new.day_limit_nusd,
        week: new.week_limit_nusd,
        month: new.month_limit_nusd,
        total: new.total_limit_nusd,
    };
    let new = NewKey {
        account_id: account.id,
        name: new.name,
        models: new.models,
        role: new.role.unwrap_or(Role::User),
        rates: RateLimits {
            requests_per_minute: new.requests_per_minute,
            tokens_per_minute: new.tokens_per_minute,
            concurrent_requests: new.concurrent_requests,
        },
        limits: own.or(plan),
        expires_at: new.expires_at,
    };
    let store = app.store.as_ref();
    let (key, secret) = directory::create_key(store, &principal.actor(), new).await?;
    app.changed().await;
    Ok((StatusCode::CREATED, Json(with_secret(&key, &secret.text))).into_response())
}

pub async fn retrieve(
    State(app): State<Arc<App>>,
    _: Operator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let id = id(path, "API key")?;
    let key = app.store.key(id).await?.ok_or(Error::NotFound("API key"))?;
    Ok(Json(shown_key(&key)).into_response())
}

pub async fn update(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
    Form(patch): Form<KeyPatch>,
) -> Result<Response, Error> {
    let id: ApiKeyId = id(path, "API key")?;
    let store = app.store.as_ref();
    let key = directory::update_key(store, &principal.actor(), id, &patch).await?;
    app.key_changed(id).await;
    Ok(Json(shown_key(&key)).into_response())
}

/// Gives the key another secret, which the answer has, once.
pub async fn rotate(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
    Form(rotation): Form<Rotation>,
) -> Result<Response, Error> {
    let id: ApiKeyId = id(path, "API key")?;
    let overlap = Duration::from_secs(rotation.overlap_seconds);
    let store = app.store.as_ref();
    let (key, secret) = directory::rotate_key(store, &principal.actor(), id, overlap).await?;
    app.key_changed(id).await;
    Ok(Json(with_secret(&key, &secret.text)).into_response())
}

pub async fn revoke(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let id: ApiKeyId = id(path, "API key")?;
    let key = directory::revoke_key(app.store.as_ref(), &principal.actor(), id).await?;
    app.key_changed(id).await;
    Ok(Json(shown_key(&key)).into_response())
}

pub fn with_secret(key: &OwnKey, secret: &str) -> Value {
    let mut row = shown_key(key);
    row["secret"] = json!(secret);
    row
}
