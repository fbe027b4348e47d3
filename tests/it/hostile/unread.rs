//! A request that is refused before its body is read: its client is told so, also one that sends
//! all of its body before it looks at the answer, as most programs do.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Request;
use hyper::body::{Body, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::app::{PATIENCE, Setup, Store, TestApp, eventually};
use crate::client::Exchange;

/// More than the buffers between two sockets of one machine hold.
const LONG: usize = 16 << 20;
/// The longest body that is taken here.
const BODY_MAX: &str = "10000000";
/// What a body is made of: none of it may be answered.
const HIDDEN: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
/// Of a body that is waited for.
const SHORT: usize = 60_000;
/// Longer than a body that nobody reads may take.
const BOUND: Duration = Duration::from_secs(30);

async fn start() -> TestApp {
    Setup::new(Store::Sqlite).env("TOLLGATE_BODY_BYTES_MAX", BODY_MAX).start().await
}

fn long_body() -> Vec<u8> {
    let mut body = HIDDEN.repeat(LONG / HIDDEN.len() + 1).into_bytes();
    body.truncate(LONG);
    body
}

/// A request's first line, and what else its head says but for the length.
fn head(line: &str, key: &str, more: &str) -> String {
    format!(
        "{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\n{more}\r\n"
    )
}

/// Sends all of it, then reads to the end of the connection.
async fn told(app: &TestApp, what: &str, head: &str, body: &[u8]) -> String {
    let mut socket = TcpStream::connect(app.address()).await.expect("it accepts");
    let sent = async {
        socket.write_all(head.as_bytes()).await?;
        socket.write_all(body).await
    };
    let sent = timeout(PATIENCE, sent).await.expect("in time");
    sent.unwrap_or_else(|error| panic!("{what}: the body was not taken: {error}"));
    let mut got = String::new();
    let read = timeout(PATIENCE, socket.read_to_string(&mut got)).await.expect("in time");
    read.unwrap_or_else(|error| panic!("{what}: reset after {got:?}: {error}"));
    got
}

#[track_caller]
fn assert_told(what: &str, got: &str, status: u16, code: &str) {
    assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {got}");
    assert!(got.contains(&format!(r#""code":"{code}""#)), "{what}: {got}");
    assert_eq!(got.matches("HTTP/1.1").count(), 1, "{what}: {got}");
    assert!(got.contains("\r\nconnection: close\r\n"), "{what}: {got}");
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_sends_its_body_first() {
    let app = start().await;
    let (body, key) = (long_body(), app.key.as_str());
    let length = format!("Content-Length: {LONG}\r\n");
    let chat = "POST /v1/chat/completions";
    let plain = head(chat, key, &length).replace("application/json", "text/plain");
    let cases = [
        ("a wrong key", head(chat, "sk-tg-wrong", &length), 401, "invalid_api_key"),
        ("a long body", head(chat, key, &length), 413, "request_too_large"),
        ("another type", plain, 415, "unsupported_media_type"),
        ("no such path", head("POST /v1/nothing", key, &length), 404, "unknown_url"),
        ("another method", head("PUT /v1/models", key, &length), 405, "method_not_allowed"),
        (
            "no operator",
            head("POST /admin/v1/accounts", key, &length),
            403,
            "insufficient_permissions",
        ),
        ("a long event", head("POST /webhooks/stripe", key, &length), 404, "not_configured"),
    ];
    for (what, head, status, code) in cases {
        assert_told(what, &told(&app, what, &head, &body).await, status, code);
    }
    let chunked = [format!("{LONG:x}\r\n").as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    let coding = "Transfer-Encoding: chunked\r\n";
    for (what, key, status, code) in [
        ("a wrong key before chunks", "sk-tg-wrong", 401, "invalid_api_key"),
        ("long chunks", key, 413, "request_too_large"),
    ] {
        let got = told(&app, what, &head(chat, key, coding), &chunked).await;
        assert_told(what, &got, status, code);
    }
    app.assert_untouched().await;
    app.finish().await;
}

#[tokio::test]
async fn a_client_that_waits_for_leave_to_send_is_refused_at_once() {
    let app = start().await;
    let more = format!("Content-Length: {LONG}\r\nExpect: 100-continue\r\n");
    let chat = "POST /v1/chat/completions";
    for (what, key, status, code) in [
        ("a wrong key", "sk-tg-wrong", 401, "invalid_api_key"),
        ("a long body", app.key.as_str(), 413, "request_too_large"),
    ] {
        let got = told(&app, what, &head(chat, key, &more), b"").await;
        assert_told(what, &got, status, code);
    }
    app.finish().await;
}

/// It has been told, and goes on as if it had not.
#[tokio::test]
async fn a_client_that_drips_what_nobody_reads_is_let_go() {
    let app = start().await;
    let more = format!("Content-Length: {LONG}\r\n");
    let head = head("POST /v1/chat/completions", "sk-tg-wrong", &more);
    let mut socket = TcpStream::connect(app.address()).await.expect("it accepts");
    socket.write_all(head.as_bytes()).await.expect("it reads");
    let began = Instant::now();
    while socket.write_all(b"x").await.is_ok() {
        assert!(began.elapsed() < BOUND, "it is still read");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    app.finish().await;
}

/// A short one is waited for, and what follows it is another request.
#[tokio::test]
async fn a_short_body_that_nobody_reads_does_not_end_its_connection() {
    let app = start().await;
    // Many programs send the body in a packet of its own.
    let late = format!("Content-Length: {SHORT}\r\n");
    let late = head("POST /v1/chat/completions", "sk-tg-wrong", &late);
    let health = HIDDEN.as_bytes();
    let mut exchange = Exchange::open(app.address(), late.as_bytes()).await;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        exchange.write(&long_body()[..SHORT]).await;
        let got = exchange.next().await;
        assert_eq!((got.status, got.header("connection")), (401, None), "{}", got.text());
        exchange.write(health).await;
        assert_eq!(exchange.next().await.status, 200);
        exchange.write(late.as_bytes()).await;
    }
    // It does not come: the answer does, and the end.
    let got = exchange.next().await;
    assert_eq!((got.status, got.header("connection")), (401, Some("close")), "{}", got.text());
    assert_eq!(exchange.next().await.status, 0, "the connection has ended");

    let length = format!("Content-Length: {}\r\n", HIDDEN.len());
    let refused = head("POST /v1/nothing", &app.key, &length) + HIDDEN;
    let last = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let got = told(&app, "three requests", &refused.repeat(2), last.as_bytes()).await;
    assert_eq!(got.matches("HTTP/1.1 404").count(), 2, "{got}");
    assert_eq!(got.matches("HTTP/1.1 200").count(), 1, "{got}");
    assert_eq!(got.matches("HTTP/1.1").count(), 3, "{got}");
    assert_eq!(got.matches("connection: close").count(), 1, "the last: {got}");
    app.finish().await;
}

/// A body that counts what is taken of it.
fn counted(
    body: &Bytes,
    sent: &Arc<AtomicUsize>,
) -> impl Body<Data = Bytes, Error = Infallible> + Unpin + use<> {
    let sent = sent.clone();
    let pieces: Vec<Bytes> = body.chunks(1 << 20).map(Bytes::copy_from_slice).collect();
    StreamBody::new(stream::iter(pieces.into_iter().map(move |piece| {
        sent.fetch_add(piece.len(), Ordering::Relaxed);
        Ok(Frame::data(piece))
    })))
}

#[tokio::test]
async fn a_refusal_reaches_a_client_of_http_2_and_its_connection_goes_on() {
    let app = start().await;
    let socket = TcpStream::connect(app.address()).await.expect("it accepts");
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
    let (mut client, connection) = handshake.await.expect("a preface is answered");
    let connection = tokio::spawn(connection);
    let body = Bytes::from(long_body());
    let sent = Arc::new(AtomicUsize::new(0));
    for (key, status) in [("sk-tg-wrong", 401), (app.key.as_str(), 413), ("sk-tg-wrong", 401)] {
        sent.store(0, Ordering::Relaxed);
        let request = Request::post(format!("http://{}/v1/chat/completions", app.address()))
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", "application/json")
            .body(counted(&body, &sent))
            .expect("a request");
        let got = timeout(PATIENCE, client.send_request(request)).await.expect("in time");
        let got = got.expect("an answer");
        assert_eq!(got.status(), status);
        assert!(!got.headers().contains_key("connection"), "it is none of HTTP/2");
        let text = got.into_body().collect().await.expect("a whole body").to_bytes();
        assert!(text.starts_with(br#"{"error":"#), "{text:?}");
        // Some clients take a stream that is reset, even without an error, for one that failed.
        eventually("the body is taken to its end", async || {
            (sent.load(Ordering::Relaxed) == LONG).then_some(())
        })
        .await;
    }
    connection.abort();
    app.finish().await;
}
