//! Request smuggling and its relatives, on bare sockets.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::app::{PATIENCE, Store, TestApp, both_stores, question};
use crate::client::{Answered, Ask, Exchange};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

both_stores!(what_can_be_read_in_two_ways_is_refused);

/// Hidden in a body: it must never be answered.
const HIDDEN: &str = "GET /v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n";

/// What is wrong, the headers' lines, the body's bytes, and the status; 0: closed without one.
fn cases() -> Vec<(&'static str, String, String, u16)> {
    let json = question(MODEL).to_string();
    let (length, hidden) = (json.len(), format!("{json}{HIDDEN}"));
    let chunked = format!("{length:x}\r\n{json}\r\n0\r\n\r\n{HIDDEN}");
    let te = "Transfer-Encoding: chunked";
    let cl = format!("Content-Length: {length}");
    let longer = format!("Content-Length: {}", chunked.len());
    let mut cases = vec![
        ("a length, then chunks", format!("{longer}\r\n{te}"), chunked.clone(), 200),
        ("chunks, then a length", format!("{te}\r\n{longer}"), chunked.clone(), 200),
        ("two lengths", format!("{cl}\r\nContent-Length: 9"), hidden.clone(), 400),
        ("a list of lengths", format!("{cl}, {length}"), hidden.clone(), 400),
        ("a length with a sign", format!("Content-Length: +{length}"), hidden.clone(), 400),
        ("a negative length", "Content-Length: -1".to_string(), hidden.clone(), 400),
        ("a length beyond 64 bits", format!("Content-Length: {}", "9".repeat(30)), hidden, 400),
        ("a huge length", format!("Content-Length: {}", u64::MAX - 9), String::new(), 413),
        ("a folded header", format!("{te}\r\n X: y"), chunked.clone(), 400),
        ("a header without a name", format!("{te}\r\n: y"), chunked.clone(), 400),
        ("NUL in a header", format!("{te}\r\nX: a\0b"), chunked.clone(), 400),
        ("a bare CR in a header", format!("{te}\r\nX: a\rb"), chunked.clone(), 400),
    ];
    for coding in ["Transfer-Encoding : chunked", "Transfer-Encoding: xchunked"] {
        cases.push(("an odd coding", coding.to_string(), chunked.clone(), 400));
    }
    for coding in
        ["chunked, identity", "identity", "\u{b}chunked", "chunked\r\nTransfer-Encoding: x"]
    {
        cases.push(("an odd coding", format!("Transfer-Encoding: {coding}"), chunked.clone(), 400));
    }
    for size in ["zz", "-1", "+5", "0x5", "ffffffffffffffffff", ""] {
        let body = format!("{size}\r\n{json}\r\n0\r\n\r\n");
        cases.push(("an odd chunk size", te.to_string(), body, 400));
    }
    let endless = format!("{length:x};{}\r\n{json}\r\n0\r\n\r\n", "x".repeat(100_000));
    cases.push(("an endless chunk extension", te.to_string(), endless, 400));
    cases
}

/// Whoever refuses it, the client reads OpenAI's envelope.
fn assert_refused(what: &str, got: &Answered) {
    assert!(got.complete, "{what}");
    assert_eq!(got.header("content-type"), Some("application/json"), "{what}");
    assert_eq!(got.json()["error"]["type"], "invalid_request_error", "{what}");
    assert_eq!(got.request_id().len(), 36, "{what}");
}

async fn what_can_be_read_in_two_ways_is_refused(store: Store) {
    let app = TestApp::start(store).await;
    let mut served = 0;
    for (what, headers, body, status) in cases() {
        if status == 200 {
            app.upstream.script(Answer::openrouter().plain());
            served += 1;
        }
        let key = &app.key;
        let wire = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\n{headers}\r\n\r\n{body}"
        );
        let mut exchange = Exchange::open(app.address(), wire.as_bytes()).await;
        let got = exchange.next().await;
        assert_eq!(got.status, status, "{what} {headers:?}: {}", got.text());
        if status != 200 {
            assert_refused(what, &got);
        }
        let after = exchange.next().await;
        assert_eq!(after.status, 0, "{what} {headers:?}: a hidden request was answered");
        assert_eq!(app.ask(&Ask::get("/healthz")).await.status, 200, "after {what}");
    }
    assert_eq!(app.upstream.chats().len(), served);
    app.records(served).await;
    app.finish().await;
}

#[tokio::test]
async fn heads_are_bounded() {
    let app = TestApp::start(Store::Sqlite).await;
    let get = |rest: &str| format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{rest}\r\n\r\n");
    let path = |length| format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(length));
    let cases = [
        ("one long header", get(&format!("X: {}", "y".repeat(200_000))), 431),
        ("many headers", get(&vec!["X: y"; 1_000].join("\r\n")), 431),
        ("a long name", get(&format!("{}: y", "x".repeat(200_000))), 431),
        ("a long path", path(66_000), 414),
        ("a path without end", path(200_000), 431),
        ("a long method", format!("{} / HTTP/1.1\r\nHost: x\r\n\r\n", "G".repeat(200_000)), 431),
    ];
    for (what, wire, status) in cases {
        let got = app.raw(wire.as_bytes()).await;
        assert_eq!(got.status, status, "{what}");
        assert_refused(what, &got);
        assert_eq!(got.json()["error"]["code"], "unreadable_head", "{what}");
        assert_eq!(app.ask(&Ask::get("/healthz")).await.status, 200, "after {what}");
    }
    app.finish().await;
}

/// Odd, but they mean one thing.
#[tokio::test]
async fn what_is_odd_and_clear_is_answered() {
    let app = TestApp::start(Store::Sqlite).await;
    let cases = [
        (
            "an upgrade to HTTP/2",
            "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            200,
        ),
        (
            "an upgrade to a socket",
            "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            200,
        ),
        ("an absolute path", "GET http://elsewhere/healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("no host", "GET /healthz HTTP/1.1\r\n\r\n", 200),
        ("bare line feeds", "GET /healthz HTTP/1.1\nHost: x\n\n", 200),
        ("blank lines first", "\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("CONNECT", "CONNECT elsewhere:443 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("an asterisk", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("TRACE", "TRACE /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("an unknown method", "BREW /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("HTTP/1.2", "GET /healthz HTTP/1.2\r\nHost: x\r\n\r\n", 400),
        ("HTTP/2 in words", "GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        ("no version", "GET /healthz\r\n\r\n", 400),
    ];
    for (what, wire, status) in cases {
        let got = app.raw(wire.as_bytes()).await;
        assert_eq!(got.status, status, "{what}: {}", got.text());
        if status == 400 {
            assert_refused(what, &got);
        }
    }
    app.assert_untouched().await;
    app.finish().await;
}

/// The connection has carried answers before, one of them a refusal without a body.
#[tokio::test]
async fn a_head_that_cannot_be_read_ends_its_connection_only() {
    let app = TestApp::start(Store::Sqlite).await;
    let health = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = "HEAD /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut socket = tokio::net::TcpStream::connect(app.address()).await.expect("it accepts");
    read_until(&mut socket, health.as_bytes(), "ok").await;
    read_until(&mut socket, head.as_bytes(), "HTTP/1.1 404").await;
    read_until(&mut socket, health.as_bytes(), "ok").await;
    read_until(&mut socket, b"GET /healthz\r\n\r\n", "unreadable_head").await;
    let mut rest = String::new();
    let end = tokio::time::timeout(PATIENCE, socket.read_to_string(&mut rest)).await;
    end.expect("an end in time").expect("it is closed, not reset");
    assert!(!rest.contains("HTTP/1.1"), "{rest}");
    assert_eq!(app.ask(&Ask::get("/healthz")).await.status, 200);
    app.finish().await;
}

#[tokio::test]
async fn a_client_that_waits_for_leave_to_send_gets_it() {
    let app = TestApp::start(Store::Sqlite).await;
    app.upstream.script(Answer::openrouter().plain());
    let ask = app.chat_ask(&question(MODEL)).header("Expect", "100-continue");
    let wire = ask.bytes();
    let head = wire.len() - question(MODEL).to_string().len();
    let mut socket = tokio::net::TcpStream::connect(app.address()).await.expect("it accepts");
    read_until(&mut socket, &wire[..head], "HTTP/1.1 100").await;
    read_until(&mut socket, &wire[head..], "HTTP/1.1 200").await;
    app.record().await;
    app.finish().await;
}

async fn read_until(socket: &mut tokio::net::TcpStream, send: &[u8], wanted: &str) {
    socket.write_all(send).await.expect("it reads");
    let mut got = String::new();
    while !got.contains(wanted) {
        let mut space = [0; 4096];
        let read = tokio::time::timeout(PATIENCE, socket.read(&mut space)).await;
        let read = read.expect("an answer in time").expect("an open connection");
        assert!(read > 0, "closed before {wanted}: {got}");
        got += &String::from_utf8_lossy(&space[..read]);
    }
}
