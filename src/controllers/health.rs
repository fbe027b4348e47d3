//! `GET /healthz` (the process lives) and `GET /readyz` (it wants work).
//!
//! Invariants: liveness asks nothing of the database or an upstream: restarting would not mend
//! them. Readiness does not look at how upstreams are either: every process would leave at once,
//! and a client would hear less from a load balancer than from us. A database that is away does not
//! matter as long as the journal takes its place.

use crate::state::App;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::sync::Arc;

pub async fn live() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

pub async fn ready(State(app): State<Arc<App>>) -> Response {
    let (status, says) = match readiness(&app).await {
        Ok(()) => (StatusCode::OK, "ready"),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    };
    (status, Json(json!({"status": says}))).into_response()
}

/// Why there is no readiness, if so.
pub async fn readiness(app: &App) -> Result<(), &'static str> {
    if app.leaving.is_cancelled() {
        return Err("shutting down");
    }
    if !app.catalog.is_filled() {
        return Err("no model list yet");
    }
    let away = app.admission.ledger.away();
    if away.is_away() && away.can_serve() {
        return Ok(());
    }
    // Nobody may have asked the ledger yet: it would go on without.
    if app.pulse.beats(app.store.as_ref()).await || away.can_serve() {
        Ok(())
    } else {
        Err("the database does not answer")
    }
}
