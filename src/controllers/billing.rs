//! `POST /v1/billing/checkout` and `/v1/billing/portal`: where an account's owner pays.
//!
//! Invariant: the account is the caller's own, whatever the body says.

use crate::controllers::extract::{Form, IdempotencyKey, Owner};
use crate::error::Error;
use crate::services::billing::payments::{Page, PortalRequest, TopUp};
use crate::state::App;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;

/// A page for topping up.
pub async fn checkout(
    State(app): State<Arc<App>>,
    Owner(principal): Owner,
    IdempotencyKey(key): IdempotencyKey,
    Form(top_up): Form<TopUp>,
) -> Result<Json<Page>, Error> {
    app.payments.checkout(principal.account_id, &top_up, key.as_deref()).await.map(Json)
}

/// A page for invoices and cards.
pub async fn portal(
    State(app): State<Arc<App>>,
    Owner(principal): Owner,
    Form(ask): Form<PortalRequest>,
) -> Result<Json<Page>, Error> {
    app.payments.portal(principal.account_id, &ask).await.map(Json)
}
