//! `/admin/v1/prices`, what models cost now, and `/admin/v1/price-table`, the operator's table.

use super::Page;
use crate::controllers::extract::{Form, Operator, Question};
use crate::error::Error;
use crate::models::audit::AuditEntry;
use crate::models::ids::PriceTableId;
use crate::models::price::PriceTable;
use crate::models::timestamp::Timestamp;
use crate::services::catalog::OperatorTable;
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
pub async fn list(
    State(app): State<Arc<App>>,
    _: Operator,
    Question(page): Question<Page>,
) -> Result<Response, Error> {
    let after: String = page.after()?.unwrap_or_default();
    let rows = app.catalog.prices_after(&after)?;
    page.of(&rows, |price| price.key.clone())
}

/// The table that was set while running; null when there is none.
pub async fn table(State(app): State<Arc<App>>, _: Operator) -> Result<Response, Error> {
    let is_file = app.config.money.prices.is_some();
    let table = app.store.price_table().await?.filter(|_| !is_file);
    Ok(Json(json!({ "object": "price_table", "is_file": is_file, "table": table })).into_response())
}

/// Sets the table, for every replica.
pub async fn set_table(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    Form(new): Form<New>,
) -> Result<Response, Error> {
    if app.config.money.prices.is_some() {
        return Err(Error::Exists("a file of prices (TOLLGATE_PRICES), and it counts"));
    }
    OperatorTable::parse(&new.text).map_err(|fault| Error::invalid("text", &fault))?;
    let (actor, now) = (principal.actor(), Timestamp::now());
    let before = app.store.price_table().await?;
    let table = PriceTable {
        id: PriceTableId::generate(),
        text: new.text,
        actor: actor.clone(),
        created_at: now,
    };
    let audit = AuditEntry::new(&actor, "price_table.set", &table.id, now);
    let audit = match before {
        Some(before) => audit.from(&json!({ "id": before.id, "text": before.text })),
        None => audit,
    };
    let audit = audit.to(&json!({ "id": table.id, "text": table.text }));
    app.store.put_price_table(&table, &audit).await?;
    app.changed().await?;
    Ok(Json(json!({ "object": "price_table", "is_file": false, "table": table })).into_response())
}
