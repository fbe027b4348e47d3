//! A request that was answered before its body was read: what is left of the body is read and
//! thrown away.
//!
//! A socket that is closed over unread bytes is reset, and a reset takes from the client the answer
//! that it has not read yet: one that sends some megabytes with a wrong key would see a broken
//! connection, and try again, instead of the refusal.
//!
//! Invariants: the answer waits for nothing; what is read is not kept, and is bounded in bytes and
//! in time; a client that waits for leave to send (`Expect: 100-continue`) is not given it, because
//! hyper no longer reads; nothing of the rest is taken for another request.

use axum::http::Request;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// In all: most clients on most lines have sent the rest by then, and one that drips it costs no
/// more than one that is silent before its head.
const REST_WAIT: Duration = Duration::from_secs(10);
/// For the next bytes: whoever sends nothing for so long has read what it was told, or never will.
const REST_IDLE: Duration = Duration::from_secs(2);
/// So much is read at once, and nothing is kept of it.
const REST_READ_BYTES: usize = 16 << 10;

/// Whether the newest request of a connection has left some of its body unread.
#[derive(Clone, Default)]
pub struct Unread(Arc<AtomicBool>);

impl Unread {
    /// The request, with a body that tells when it has been read.
    pub fn watch(&self, request: Request<Incoming>) -> Request<Watched> {
        request.map(|body| {
            self.set(!body.is_end_stream());
            Watched { body, unread: self.clone() }
        })
    }

    pub fn is_left(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, is_left: bool) {
        self.0.store(is_left, Ordering::Relaxed);
    }
}

/// A request's body, which says when it has been read to its end.
pub struct Watched {
    body: Incoming,
    unread: Unread,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.unread.set(false);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Reads on until the client closes or falls silent, its time is over or so many bytes have come.
pub async fn discard(stream: &mut (impl AsyncRead + Unpin), bytes_max: usize) {
    let rest = read_on(stream, bytes_max, REST_IDLE);
    // A client that is slower than that may lose its answer.
    let _ = tokio::time::timeout(REST_WAIT, rest).await;
}

async fn read_on(stream: &mut (impl AsyncRead + Unpin), bytes_max: usize, idle: Duration) {
    let mut space = vec![0; REST_READ_BYTES];
    let mut left = bytes_max;
    while left > 0 {
        match tokio::time::timeout(idle, stream.read(&mut space)).await {
            Ok(Ok(read @ 1..)) => left = left.saturating_sub(read),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn no_more_is_read_than_may_be() {
        let (mut here, mut there) = tokio::io::duplex(REST_READ_BYTES);
        let sent = async {
            let mut sent = 0;
            while there.write_all(&[b'x'; 1_000]).await.is_ok() {
                sent += 1_000;
            }
            sent
        };
        let read = async {
            discard(&mut here, 1 << 20).await;
            drop(here);
        };
        let (sent, ()) = tokio::join!(sent, read);
        let (least, most) = ((1 << 20) - 1_000, (1 << 20) + 2 * REST_READ_BYTES);
        assert!((least..most).contains(&sent), "{sent}");
    }

    #[tokio::test]
    async fn a_client_that_closes_or_falls_silent_is_let_go() {
        let (mut here, there) = tokio::io::duplex(REST_READ_BYTES);
        read_on(&mut here, 1, Duration::from_millis(10)).await;
        drop(there);
        read_on(&mut here, 1, Duration::MAX).await;
    }
}
