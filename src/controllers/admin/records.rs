//! `/admin/v1/accounts/{id}/usage`, anyone's usage records, and `/admin/v1/audit`.

use super::accounts::find;
use super::{Page, unfolded};
use crate::controllers::extract::Operator;
use crate::error::Error;
use crate::models::audit::AuditEntry;
use crate::models::usage::UsageRecord;
use crate::services::directory::shown;
use crate::state::App;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::Value;
use std::sync::Arc;

/// An account's usage records, oldest first, with what they cost the operator.
pub async fn usage(
    State(app): State<Arc<App>>,
    _: Operator,
    path: Result<Path<String>, PathRejection>,
    page: Page,
) -> Result<Response, Error> {
    let account = find(&app, path).await?;
    let rows = app.store.usage_of(account.id, page.after()?).await?;
    Ok(page.told(&rows, told_of_usage, |record| record.id.to_string()))
}

/// Who changed what, oldest first.
pub async fn audit(
    State(app): State<Arc<App>>,
    _: Operator,
    page: Page,
) -> Result<Response, Error> {
    let entries = app.store.audit_after(page.after()?).await?;
    Ok(page.told(&entries, told, |entry| entry.id.to_string()))
}

/// The states before and after are JSON in the row, and objects here.
fn told(entry: &AuditEntry) -> Value {
    unfolded(shown(entry), &["before", "after"])
}

/// With the calls of upstreams as a list.
fn told_of_usage(record: &UsageRecord) -> Value {
    unfolded(shown(record), &["tried"])
}
