//! A request that was answered before its body was read: what is left of the body is read and
//! thrown away.
//!
//! A socket that is closed over unread bytes is reset, and a reset takes from the client the answer
//! that it has not read yet: one that sends some megabytes with a wrong key would see a broken
//! connection, and try again, instead of the refusal. In HTTP/1.1 the answer to a long body ends
//! its connection, of which the rest is read (`discard`); the rest of a short one is waited for a
//! moment, and the connection goes on. In HTTP/2 the rest of a stream is read beside the answer.
//!
//! Invariants: what is read is not kept, and is bounded in bytes and in time; a client that waits
//! for leave to send (`Expect: 100-continue`) is not given it; nothing of the rest is taken for
//! another request.

use axum::http::Request;
use axum::http::header::EXPECT;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

/// In all: most clients on most lines have sent the rest by then, and one that drips it costs no
/// more than one that is silent before its head.
const REST_WAIT: Duration = Duration::from_secs(10);
/// For the next bytes: whoever sends nothing for so long has read what it was told, or never will.
const REST_IDLE: Duration = Duration::from_secs(2);
/// So much is read at once, and nothing is kept of it.
const REST_READ_BYTES: usize = 16 << 10;
/// A body of this length is on its way with its head: cheaper than another connection.
const SHORT_BYTES_MAX: u64 = 64 << 10;

/// A request's body, which is handed back when nobody has read it to its end.
pub struct Watched {
    /// Gone when it broke off.
    body: Option<Incoming>,
    /// Gone when it was read to its end.
    back: Option<oneshot::Sender<Option<Incoming>>>,
}

/// What is left of a request's body.
pub struct Rest {
    back: Option<oneshot::Receiver<Option<Incoming>>>,
    is_short: bool,
}

/// The request, and what will be left of it.
pub fn watch(request: Request<Incoming>) -> (Request<Watched>, Rest) {
    let length = request.body().size_hint().exact();
    let is_short = length.is_some_and(|length| length <= SHORT_BYTES_MAX);
    let is_short = is_short && !request.headers().contains_key(EXPECT);
    let (back, rest) = if request.body().is_end_stream() {
        (None, None)
    } else {
        let (back, rest) = oneshot::channel();
        (Some(back), Some(rest))
    };
    let request = request.map(|body| Watched { body: Some(body), back });
    (request, Rest { back: rest, is_short })
}

impl Rest {
    /// Once the answer is there: whether something is still to come. A short one gets a moment.
    pub async fn remains(mut self) -> bool {
        match self.handed_back() {
            Ok(Some(body)) if self.is_short => {
                tokio::time::timeout(REST_IDLE, read_through(body, usize::MAX)).await != Ok(true)
            }
            Ok(_) | Err(TryRecvError::Empty) => true,
            Err(TryRecvError::Closed) => false,
        }
    }

    /// Reads on beside the answer, up to so many bytes.
    pub fn discard(mut self, bytes_max: usize) {
        if let Ok(Some(body)) = self.handed_back() {
            // It ends with its time, and before it with its connection.
            tokio::spawn(tokio::time::timeout(REST_WAIT, read_through(body, bytes_max)));
        }
    }

    fn handed_back(&mut self) -> Result<Option<Incoming>, TryRecvError> {
        self.back.as_mut().map_or(Err(TryRecvError::Closed), oneshot::Receiver::try_recv)
    }
}

/// Whether it came to its end.
async fn read_through(mut body: Incoming, bytes_max: usize) -> bool {
    let mut left = bytes_max;
    loop {
        match body.frame().await {
            None => return true,
            Some(Ok(frame)) => left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(_)) => return false,
        }
        if left == 0 {
            return false;
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Err(_))) => self.body = None,
            Poll::Ready(None) => self.back = None,
            Poll::Ready(Some(Ok(_))) if body.is_end_stream() => self.back = None,
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            // Nobody waits for it when the connection has gone.
            let _ = back.send(self.body.take());
        }
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
