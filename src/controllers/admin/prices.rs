//! `/admin/v1/prices`, what models cost now, `/admin/v1/plans`, what plans give, and
//! `/admin/v1/price-table`, the operator's table that says both.

use super::Page;
use crate::controllers::extract::{Form, Operator};
use crate::error::Error;
use crate::services::directory;
use crate::state::App;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct New {
    /// TOML, as a file of `TOLLGATE_PRICES`.
    text: String,
}

/// The prices in force, by model and plan.
pub async fn list(State(app): State<Arc<App>>, _: Operator, page: Page) -> Result<Response, Error> {
    let after: String = page.after()?.unwrap_or_default();
    let rows = app.catalog.prices_after(&after)?;
    Ok(page.of(&rows, |price| price.key.clone()))
}

/// The plans in force; `after` is a name.
pub async fn plans(
    State(app): State<Arc<App>>,
    _: Operator,
    page: Page,
) -> Result<Response, Error> {
    let after: String = page.after()?.unwrap_or_default();
    Ok(page.of(&app.catalog.plans_after(&after), |plan| plan.name.clone()))
}

/// The table that was set while running; null when there is none.
pub async fn table(State(app): State<Arc<App>>, _: Operator) -> Result<Response, Error> {
    let is_file = app.config.money.prices.is_some();
    let table = app.store.price_table().await?.filter(|_| !is_file);
    Ok(Json(json!({ "object": "price_table", "is_file": is_file, "table": table })).into_response())
}

/// Sets the table, for every replica. A file goes before it, so with one it would be set in vain.
pub async fn set_table(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    Form(new): Form<New>,
) -> Result<Response, Error> {
    if app.config.money.prices.is_some() {
        return Err(Error::Exists("a file of prices (TOLLGATE_PRICES)"));
    }
    let store = app.store.as_ref();
    let table = directory::set_price_table(store, &principal.actor(), &new.text).await?;
    app.changed().await;
    // In force here when the answer is there, and elsewhere with the news.
    if let Err(error) = app.catalog.take_table().await {
        tracing::warn!("the new table of prices is not in force yet: {error}");
    }
    Ok(Json(json!({ "object": "price_table", "is_file": false, "table": table })).into_response())
}
