//! The listener: accepts connections, and lets them go in order when the process leaves.
//!
//! Invariant: a connection that sends nothing, or half a head, is closed; the number of connections
//! is bounded; after `drain` every connection ends with the answer it is giving; a client that is
//! refused before its body is read is told so.

mod refusal;
mod unread;

use crate::config::ServerConfig;
use crate::controllers::client::Peer;
use crate::services::woken::WhenWoken;
use axum::Router;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use refusal::Spoken;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once. Each costs a file descriptor, and most have another one upstream.
const CONNECTIONS_MAX: usize = 16_384;
/// Also the longest idle time between two requests of a connection.
const HEAD_WAIT: Duration = Duration::from_secs(75);
/// A request's head: headers of real clients are a few kilobytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// As much for HTTP/2, whose type is smaller.
const HEAD_LIST_BYTES_MAX: u32 = 64 << 10;
/// Requests of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 256;
/// For the answer to an HTTP/2 ping.
const PING_WAIT: Duration = Duration::from_secs(20);
/// After an accept that failed (no file descriptors left) others may have ended.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The signals to connections.
#[derive(Clone, Default)]
pub struct Signals {
    /// Accept no more, and end after the current answer.
    pub drain: CancellationToken,
    /// End now. Nobody listens for it before `drain`.
    pub abort: CancellationToken,
}

/// What a client may take its time with, and how much of a body it may leave to be thrown away.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// One that takes nothing for so long has gone.
    write: Duration,
    body_rest: usize,
}

impl Bounds {
    /// A body that is refused for its length is longer than the longest: twice that and a head are
    /// read before its client may lose the refusal.
    pub fn of(config: &ServerConfig) -> Self {
        let two_bodies = config.body_bytes_max.saturating_mul(2);
        Self { write: config.write, body_rest: two_bodies.saturating_add(HEAD_BYTES_MAX) }
    }
}

/// Serves until `drain`. Connections go on in `connections`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    signals: Signals,
    connections: TaskTracker,
    bounds: Bounds,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = signals.drain.cancelled() => return,
        };
        let Some((stream, peer, place)) = accepted else {
            continue;
        };
        let (router, signals) = (router.clone(), signals.clone());
        connections.spawn(async move {
            serve_connection(stream, peer, router, signals, bounds).await;
            drop(place);
        });
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, Peer, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, Peer(peer.ip()), place)),
        Err(error) => {
            tracing::warn!("accepting a connection: {error}");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: Peer,
    router: Router,
    signals: Signals,
    bounds: Bounds,
) {
    // Small events must leave at once, not with the next ones.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let protocol = tokio::select! {
        protocol = tokio::time::timeout(HEAD_WAIT, protocol(&stream)) => protocol,
        () = signals.drain.cancelled() => return,
    };
    let Ok(Ok(protocol)) = protocol else { return };
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(bounds.write));
    let stream = Box::pin(stream);
    let router = TowerToHyperService::new(router);
    match protocol {
        Protocol::Http1 => {
            let is_unread = Arc::new(AtomicBool::new(false));
            let service = of_http1(router, peer, is_unread.clone());
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new());
            builder.header_read_timeout(HEAD_WAIT).max_buf_size(HEAD_BYTES_MAX);
            let stream = TokioIo::new(Spoken::new(stream));
            let mut connection = builder.serve_connection(stream, service);
            let ended = run(&mut connection, &signals, http1::Connection::graceful_shutdown).await;
            if let Some(ended) = ended {
                let is_unreadable = ended.is_err_and(|error| error.is_parse());
                let is_unread = is_unread.load(Ordering::Relaxed);
                let body_rest_max = is_unread.then_some(bounds.body_rest);
                let stream = connection.into_parts().io.into_inner();
                until_abort(stream.finish(is_unreadable, body_rest_max), &signals).await;
            }
        }
        Protocol::Http2 => {
            let service = of_http2(router, peer, bounds);
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
            builder.max_header_list_size(HEAD_LIST_BYTES_MAX);
            builder.keep_alive_interval(HEAD_WAIT).keep_alive_timeout(PING_WAIT);
            let mut connection = builder.serve_connection(TokioIo::new(stream), service);
            run(&mut connection, &signals, http2::Connection::graceful_shutdown).await;
        }
    }
}

type Routes = TowerToHyperService<Router>;

/// Answers; `is_unread` says of the newest request whether something of its body is to come.
fn of_http1(
    router: Routes,
    peer: Peer,
    is_unread: Arc<AtomicBool>,
) -> impl Service<
    Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future = impl Future<Output = Result<Response, Infallible>>,
> {
    service_fn(move |request| {
        let (mut request, rest) = unread::watch(request);
        request.extensions_mut().insert(peer);
        let (answer, is_unread) = (router.call(request), is_unread.clone());
        is_unread.store(true, Ordering::Relaxed);
        async move {
            let mut answer = answer.await?;
            let is_left = rest.remains().await;
            is_unread.store(is_left, Ordering::Relaxed);
            if is_left {
                // The connection ends with this answer, and the client should know.
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer)
        }
    })
}

fn of_http2(
    router: Routes,
    peer: Peer,
    bounds: Bounds,
) -> impl Service<
    Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future = impl Future<Output = Result<Response, Infallible>> + Send,
> {
    service_fn(move |request| {
        let (mut request, rest) = unread::watch(request);
        request.extensions_mut().insert(peer);
        let answer = router.call(request);
        async move {
            let answer = answer.await?;
            rest.discard(bounds.body_rest);
            Ok(answer)
        }
    })
}

enum Protocol {
    Http1,
    /// With prior knowledge: the client begins with its preface.
    Http2,
}

/// <https://www.rfc-editor.org/rfc/rfc9113#section-3.4>
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A preface in pieces is looked at again after this, and each time after twice as long: its first
/// byte alone must not keep us busy.
const PREFACE_PAUSE: Duration = Duration::from_millis(5);
const PREFACE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Looks at the first bytes without taking them.
async fn protocol(stream: &TcpStream) -> io::Result<Protocol> {
    let mut first = [0; PREFACE.len()];
    let mut pause = PREFACE_PAUSE;
    loop {
        let seen = stream.peek(&mut first).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !PREFACE.starts_with(&first[..seen]) {
            return Ok(Protocol::Http1);
        }
        if seen == PREFACE.len() {
            return Ok(Protocol::Http2);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PREFACE_PAUSE_MAX);
    }
}

/// Runs a connection to its end; how that came, unless it was cut off.
async fn run<C: Future + Unpin>(
    mut connection: &mut C,
    signals: &Signals,
    drain: impl Fn(Pin<&mut C>),
) -> Option<C::Output> {
    let drained = pin!(signals.drain.cancelled());
    tokio::select! {
        biased;
        // Clients go away at any time: that is no failure of ours.
        ended = &mut connection => return Some(ended),
        () = WhenWoken::new(drained) => drain(Pin::new(connection)),
    }
    tokio::select! {
        biased;
        ended = connection => Some(ended),
        () = signals.abort.cancelled() => None,
    }
}

async fn until_abort(last: impl Future<Output = ()>, signals: &Signals) {
    tokio::select! {
        () = last => {}
        () = signals.abort.cancelled() => {}
    }
}
