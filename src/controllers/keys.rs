//! `/v1/keys`: an account's owner makes and ends its keys.
//!
//! Invariants: the keys are those of the caller's own account. A key of an application makes none:
//! whoever got hold of it would have others when it is revoked. What is made here has the role
//! `user`, the plan's limits of rate, and no budget above the plan's: nobody gets past the plan by
//! a key of his own.

use crate::controllers::admin::keys::with_secret;
use crate::controllers::admin::{Page, id};
use crate::controllers::extract::{Form, Owner};
use crate::error::Error;
use crate::models::ids::ApiKeyId;
use crate::models::key::KeyLimits;
use crate::models::money::NanoUsd;
use crate::models::openai::request::Invalid;
use crate::models::timestamp::Timestamp;
use crate::services::auth::Principal;
use crate::services::directory::{self, NewKey, shown, shown_key};
use crate::state::App;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Keys of an account, ended ones too, beyond which its owner makes no more; the operator can.
const KEYS_MAX: usize = 500;
/// Other processes may not have heard of a revocation until then: who asks again tells them again.
const NEWS_FOR: Duration = Duration::from_secs(60);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct New {
    name: String,
    #[serde(default)]
    models: Option<String>,
    #[serde(default)]
    expires_at: Option<Timestamp>,
    #[serde(default)]
    day_limit_nusd: Option<NanoUsd>,
    #[serde(default)]
    week_limit_nusd: Option<NanoUsd>,
    #[serde(default)]
    month_limit_nusd: Option<NanoUsd>,
    #[serde(default)]
    total_limit_nusd: Option<NanoUsd>,
}

pub async fn list(
    State(app): State<Arc<App>>,
    Owner(principal): Owner,
    page: Page,
) -> Result<Response, Error> {
    let rows = app.reports.keys(principal.account_id, page.after()?).await?;
    Ok(page.told(&rows, |key| private(shown(key)), |key| key.id.to_string()))
}

/// Makes a key; the answer has its secret, once.
pub async fn create(
    State(app): State<Arc<App>>,
    Owner(principal): Owner,
    Form(new): Form<New>,
) -> Result<Response, Error> {
    let store = app.store.as_ref();
    if store.keys_of(principal.account_id, None).await?.len() >= KEYS_MAX {
        let message = format!("This account has {KEYS_MAX} keys already, ended ones included.");
        return Err(Invalid { message, param: None }.into());
    }
    let new = NewKey {
        models: new.models.clone(),
        expires_at: new.expires_at,
        ..NewKey::plain(principal.account_id, &new.name, limits(&app, &principal, &new)?)
    };
    let (key, secret) = directory::create_key(store, &principal.actor(), new).await?;
    app.changed().await;
    Ok((StatusCode::CREATED, Json(private(with_secret(&key, &secret.text)))).into_response())
}

/// The plan's where the request names none, and never more than those.
fn limits(app: &App, principal: &Principal, new: &New) -> Result<KeyLimits, Error> {
    let plan = principal.plan.as_deref().and_then(|plan| app.catalog.plan(plan));
    let plan = plan.map(|plan| plan.key_limits).unwrap_or_default();
    let own = KeyLimits {
        day: new.day_limit_nusd,
        week: new.week_limit_nusd,
        month: new.month_limit_nusd,
        total: new.total_limit_nusd,
    };
    for (param, own, plan) in [
        ("day_limit_nusd", own.day, plan.day),
        ("week_limit_nusd", own.week, plan.week),
        ("month_limit_nusd", own.month, plan.month),
        ("total_limit_nusd", own.total, plan.total),
    ] {
        if own.zip(plan).is_some_and(|(own, plan)| own > plan) {
            return Err(Error::invalid(param, "must not be above the plan's"));
        }
    }
    Ok(own.or(plan))
}

/// Ends a key's life now.
pub async fn revoke(
    State(app): State<Arc<App>>,
    Owner(principal): Owner,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let id: ApiKeyId = id(path, "API key")?;
    let store = app.store.as_ref();
    let known = store.key(id).await?;
    let known = known.filter(|(key, _)| key.account_id == principal.account_id);
    let known = known.ok_or(Error::NotFound("API key"))?;
    if let Some(at) = known.0.revoked_at {
        if Timestamp::now() < at.plus(NEWS_FOR) {
            app.key_changed_lately(id).await;
        }
        return Ok(Json(private(shown_key(&known))).into_response());
    }
    let key = directory::revoke_key(store, &principal.actor(), id).await?;
    app.key_changed(id).await;
    Ok(Json(private(shown_key(&key))).into_response())
}

/// Without the operator's own keys and people, who are nobody's concern.
fn private(mut row: Value) -> Value {
    let is_user = row["created_by"].as_str().is_some_and(|actor| actor.starts_with("user:"));
    if let Some(members) = row.as_object_mut().filter(|_| !is_user) {
        members.remove("created_by");
    }
    row
}
