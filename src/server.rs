//! The listener: accepts connections, and lets them go in order when the process leaves.
//!
//! Invariant: a connection that sends nothing, or half a head, is closed; the number of connections
//! is bounded; after `drain` every connection ends with the answer it is giving.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once. Each costs a file descriptor, and most have another one upstream.
const CONNECTIONS_MAX: usize = 16_384;
/// Also the longest idle time between two requests of a connection.
const HEAD_WAIT: Duration = Duration::from_secs(75);
/// A request's head: headers of real clients are a few kilobytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// After an accept that failed (no file descriptors left) others may have ended.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The signals to connections.
#[derive(Clone, Default)]
pub struct Signals {
    /// Accept no more, and end after the current answer.
    pub drain: CancellationToken,
    /// End now.
    pub abort: CancellationToken,
}

/// Serves until `drain`. Connections go on in `connections`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    signals: Signals,
    connections: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = signals.drain.cancelled() => return,
        };
        let Some((stream, place)) = accepted else {
            continue;
        };
        let (router, signals) = (router.clone(), signals.clone());
        connections.spawn(async move {
            serve_connection(stream, router, signals).await;
            drop(place);
        });
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!("accepting a connection: {error}");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn serve_connection(stream: TcpStream, router: Router, signals: Signals) {
    // Small events must leave at once, not with the next ones.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT).max_buf_size(HEAD_BYTES_MAX);
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut is_draining = false;
    loop {
        tokio::select! {
            // Clients go away at any time: that is no failure of ours.
            _ = connection.as_mut() => return,
            () = signals.drain.cancelled(), if !is_draining => {
                is_draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = signals.abort.cancelled() => return,
        }
    }
}
