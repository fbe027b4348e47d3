//! `/admin/v1/accounts/{id}/credits` and its ledger.

use super::Page;
use super::accounts::find;
use crate::controllers::extract::{Form, Operator};
use crate::error::Error;
use crate::models::ledger::EntryKind;
use crate::models::money::NanoUsd;
use crate::services::directory;
use crate::state::App;
use crate::store::Entry;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct New {
    /// A credit is more than zero; a correction may also take.
    amount_nusd: NanoUsd,
    #[serde(default)]
    is_correction: bool,
    reason: String,
    /// What it is for: another entry of the same reference is refused.
    #[serde(default)]
    reference: Option<String>,
}

/// Enters a credit or a correction; with a reference, once.
pub async fn create(
    State(app): State<Arc<App>>,
    Operator(principal): Operator,
    path: Result<Path<String>, PathRejection>,
    Form(new): Form<New>,
) -> Result<Response, Error> {
    if let Some(reference) = &new.reference {
        directory::check_reference(reference)?;
    }
    let account = find(&app, path).await?;
    let entry = Entry {
        account_id: account.id,
        kind: if new.is_correction { EntryKind::Correction } else { EntryKind::Credit },
        amount_nusd: new.amount_nusd,
        reason: new.reason,
        // Apart from the references of payments and sign-ups.
        reference: new.reference.map(|reference| format!("admin:{reference}")),
        audit: None,
    };
    let balance = directory::enter(app.store.as_ref(), &principal.actor(), entry).await?;
    let balance = balance.ok_or(Error::Exists("an entry of this reference"))?;
    app.changed().await;
    let answer = json!({ "account_id": account.id, "balance_nusd": balance });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// The account's ledger, oldest entry first; `after` is a `seq`.
pub async fn ledger(
    State(app): State<Arc<App>>,
    _: Operator,
    path: Result<Path<String>, PathRejection>,
    page: Page,
) -> Result<Response, Error> {
    let account = find(&app, path).await?;
    let rows = app.store.ledger_after(account.id, page.after()?.unwrap_or_default()).await?;
    Ok(page.of(&rows, |entry| entry.seq.to_string()))
}
