//! The listener that is for metrics alone, where one is configured.
//!
//! Invariant: it ends with the rest of the process, after the last request, and holds nothing up.

use crate::routes;
use crate::server::{self, Bounds, Signals};
use crate::state::App;
use anyhow::Context;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Serves until `stop`; the tracker is empty when nothing of it is left.
pub async fn start(app: &Arc<App>, stop: &CancellationToken) -> anyhow::Result<TaskTracker> {
    let connections = TaskTracker::new();
    if let Some(address) = app.config.server.metrics_listen {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("listening on {address} for metrics"))?;
        tracing::info!("metrics on http://{}/metrics", listener.local_addr()?);
        let signals = Signals { drain: stop.clone(), abort: stop.clone() };
        let router = routes::metrics_router(app.clone());
        let bounds = Bounds::of(&app.config.server);
        connections.spawn(server::serve(listener, router, signals, connections.clone(), bounds));
    }
    connections.close();
    Ok(connections)
}
