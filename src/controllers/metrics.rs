//! `GET /metrics`, for Prometheus.
//!
//! Invariant: on the port of the clients only operators read them. A reverse proxy on the same
//! machine makes every client a loopback one, so that an address would prove nothing there.

use crate::controllers::extract::Operator;
use crate::error::Error;
use crate::services::metrics::TEXT_TYPE;
use crate::state::App;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// For operators.
///
/// # Errors
/// Why the caller is none.
pub async fn show(State(app): State<Arc<App>>, _: Operator) -> Result<Response, Error> {
    open(State(app)).await
}

/// For whoever reaches it: on a listener of its own.
///
/// # Errors
/// [`Error::Internal`] when they cannot be written.
pub async fn open(State(app): State<Arc<App>>) -> Result<Response, Error> {
    Ok(([(CONTENT_TYPE, TEXT_TYPE)], app.measured()?).into_response())
}
