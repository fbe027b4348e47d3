//! `/admin/v1/accounts`.

use super::{Page, id};
use crate::controllers::extract::{Form, Operator};
use crate::error::Error;
use crate::models::account::{Account, AccountKind, NewAccount};
use crate::models::ids::AccountId;
use crate::models::limits::RateLimits;
use crate::models::money::NanoUsd;
use crate::services::directory::{self, AccountPatch, present, shown};
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
    name: String,
    #[serde(default, deserialize_with = "present")]
    kind: Option<AccountKind>,
    #[serde(default)]
    plan: Option<String>,
    #[serde(default)]
    limit_nusd: Option<NanoUsd>,
    #[serde(default)]
    credit_nusd: Option<NanoUsd>,
    #[serde(default)]
    stripe_customer_id: Option<String>,
    #[serde(default)]
    requests_per_minute: Option<i64>,
    #[serde(default)]
    tokens_per_minute: Option<i64>,
    #[serde(default)]
    concurrent_requests: Option<i64>,
}

/// Makes an account; a plan gives what the request does not.
pub async fn create(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    Form(new): Form<New>,
) -> Result<Response, Error> {
    let plan = match &new.plan {
        Some(name) => {
            let plan = app.catalog.plan(name);
            Some(plan.ok_or_else(|| Error::invalid("plan", "there is no plan of this name"))?)
        }
        None => None,
    };
    let kind = new.kind.or(plan.as_ref().map(|plan| plan.kind)).unwrap_or(AccountKind::Prepaid);
    let plan_limit = plan.filter(|_| kind == AccountKind::Postpaid).and_then(|it| it.limit_nusd);
    let limit_nusd = new.limit_nusd.or(plan_limit);
    let account = NewAccount {
        name: new.name,
        kind,
        plan: new.plan,
        limit_nusd,
        stripe_customer_id: new.stripe_customer_id,
        rates: RateLimits {
            requests_per_minute: new.requests_per_minute,
            tokens_per_minute: new.tokens_per_minute,
            concurrent_requests: new.concurrent_requests,
        },
    };
    let actor = principal.actor();
    let store = app.store.as_ref();
    let account = directory::create_account(store, &actor, account, new.credit_nusd).await?;
    app.changed().await;
    let account = store.account(account.id).await?.ok_or(Error::NotFound("account"))?;
    Ok((StatusCode::CREATED, Json(shown(&account))).into_response())
}

pub async fn list(State(app): State<Arc<App>>, _: Operator, page: Page) -> Result<Response, Error> {
    let rows = app.store.accounts_after(page.after()?).await?;
    Ok(page.of(&rows, |account| account.id.to_string()))
}

pub async fn retrieve(
    State(app): State<Arc<App>>,
    _: Operator,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    Ok(Json(shown(&find(&app, path).await?)).into_response())
}

pub async fn update(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
    Form(patch): Form<AccountPatch>,
) -> Result<Response, Error> {
    let id: AccountId = id(path, "account")?;
    if patch
        .plan
        .as_ref()
        .is_some_and(|plan| plan.as_deref().is_some_and(|name| app.catalog.plan(name).is_none()))
    {
        return Err(Error::invalid("plan", "there is no plan of this name"));
    }
    let store = app.store.as_ref();
    let account = directory::update_account(store, &principal.actor(), id, &patch).await?;
    app.changed().await;
    Ok(Json(shown(&account)).into_response())
}

/// The account that the path names.
pub async fn find(app: &App, path: Result<Path<String>, PathRejection>) -> Result<Account, Error> {
    let id = id(path, "account")?;
    app.store.account(id).await?.ok_or(Error::NotFound("account"))
}
