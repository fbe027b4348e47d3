//! A request whose head cannot be read: hyper refuses it by itself, with a status and nothing else.
//! Here that refusal gets the envelope that every other one has.
//!
//! Invariant: no byte of another answer is changed. A write that looks like hyper's refusal is held
//! back; only when hyper says that the connection has ended over a head does the envelope leave in
//! its place, and whatever else happens the write leaves as it was.

use crate::error::Error;
use crate::models::ids::RequestId;
use crate::server::unread::discard;
use axum::http::StatusCode;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// A status line, `connection`, `content-length` and `date` are shorter.
const REFUSAL_BYTES_MAX: usize = 192;
const START: &[u8] = b"HTTP/1.1 4";
const NO_BODY: &str = "content-length: 0\r\n";
/// Of the rest of a head, which is read so that its client does not lose what it was told.
const REST_BYTES_MAX: usize = 1 << 20;

/// A connection's stream, which holds back what may be a refusal.
pub struct Spoken<S> {
    stream: S,
    /// What has not left yet of a write that was taken.
    held: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Spoken<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, held: Vec::new() }
    }

    /// Lets go what is held, once hyper is done with the connection, and reads what is left: up to
    /// `body_rest_max` bytes where some of a body is.
    pub async fn finish(mut self, is_unreadable: bool, body_rest_max: Option<usize>) {
        let held = std::mem::take(&mut self.held);
        let rest_max = if held.is_empty() { body_rest_max } else { Some(REST_BYTES_MAX) };
        let Some(rest_max) = rest_max else { return };
        let told = if is_unreadable { enveloped(&held) } else { None };
        // A client that has gone is no failure of ours.
        if self.stream.write_all(&told.unwrap_or(held)).await.is_ok()
            && self.stream.shutdown().await.is_ok()
        {
            discard(&mut self.stream, rest_max).await;
        }
    }

    /// Something goes on: it was no refusal.
    fn release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes a write that may be hyper's refusal.
    fn hold(&mut self, bytes: &[u8]) -> Option<usize> {
        if !bytes.starts_with(START) || !is_bare(bytes) {
            return None;
        }
        self.held.extend_from_slice(bytes);
        Some(bytes.len())
    }
}

fn is_bare(bytes: &[u8]) -> bool {
    bytes.len() <= REFUSAL_BYTES_MAX
        && bytes.ends_with(b"\r\n\r\n")
        && memchr::memmem::find(bytes, NO_BODY.as_bytes()).is_some()
}

/// hyper's refusal with the envelope behind it; none, when it is not what it looked like.
fn enveloped(bare: &[u8]) -> Option<Vec<u8>> {
    let head = std::str::from_utf8(bare).ok()?;
    let status = StatusCode::from_bytes(head.as_bytes().get(9..12)?).ok()?;
    let head = head.replace(NO_BODY, "");
    let head = head.strip_suffix("\r\n")?;
    let error = Error::UnreadableHead { status };
    error.log("request refused");
    let (id, body) = (RequestId::generate(), error.envelope());
    let length = body.len();
    let text = format!(
        "{head}x-request-id: {id}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    Some(text.into_bytes())
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Spoken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper reads no more once it has refused.
        ready!(self.release(cx))?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Spoken<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.release(cx))?;
        if let Some(taken) = self.hold(bytes) {
            return Poll::Ready(Ok(taken));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.release(cx))?;
        if let [only] = slices
            && let Some(taken) = self.hold(only)
        {
            return Poll::Ready(Ok(taken));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return Pin::new(&mut self.stream).poll_shutdown(cx);
        }
        // `finish` does.
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    const BARE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
        content-length: 0\r\ndate: Sat, 28 Nov 2026 12:00:00 GMT\r\n\r\n";

    /// What the other end reads after these writes, and this end.
    async fn told(writes: &[&[u8]], is_unreadable: bool) -> String {
        let (here, mut there) = tokio::io::duplex(4096);
        let mut stream = Spoken::new(here);
        for bytes in writes {
            stream.write_all(bytes).await.unwrap();
        }
        stream.shutdown().await.unwrap();
        let last = stream.finish(is_unreadable, None);
        let mut text = String::new();
        let read = async {
            there.read_to_string(&mut text).await.unwrap();
            drop(there);
        };
        tokio::join!(last, read);
        text
    }

    #[tokio::test]
    async fn a_refusal_gets_its_envelope() {
        let text = told(&[BARE], true).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let lines: Vec<&str> = head.split("\r\n").collect();
        assert_eq!(lines[0], "HTTP/1.1 431 Request Header Fields Too Large");
        assert!(lines.contains(&format!("content-length: {}", body.len()).as_str()), "{head}");
        assert!(lines.contains(&"connection: close") && head.contains("\r\ndate: "), "{head}");
        assert_eq!(head.matches("content-length").count(), 1);
        assert!(body.contains("unreadable_head"), "{body}");
    }

    #[tokio::test]
    async fn what_only_looks_like_one_leaves_as_it_was() {
        let bare = String::from_utf8(BARE.to_vec()).unwrap();
        assert_eq!(told(&[BARE], false).await, bare, "the end was another");
        assert_eq!(told(&[BARE, b"more"], true).await, bare.clone() + "more", "it went on");
        let other = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(told(&[other], true).await.as_bytes(), other);
    }

    #[tokio::test]
    async fn whoever_reads_on_has_not_refused() {
        let (here, mut there) = tokio::io::duplex(4096);
        let mut stream = Spoken::new(here);
        stream.write_all(BARE).await.unwrap();
        there.write_all(b"x").await.unwrap();
        stream.read_u8().await.unwrap();
        let mut got = vec![0; BARE.len()];
        there.read_exact(&mut got).await.unwrap();
        assert_eq!(got, BARE);
    }
}
