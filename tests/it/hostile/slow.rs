//! Clients that never finish hold their places for a bounded time only.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::app::{Store, TestApp, question};
use crate::upstream::catalog::MODEL;

/// Longer than the longest wait of the server, 75 seconds for a head.
const BOUND: Duration = Duration::from_secs(110);
/// A client that sends a byte so often is never idle.
const DRIP: Duration = Duration::from_secs(2);

#[tokio::test]
async fn clients_that_never_finish_are_let_go() {
    let app = TestApp::start(Store::Sqlite).await;
    let chat = app.chat_ask(&question(MODEL)).bytes();
    let long = String::from_utf8(chat.clone()).expect("ASCII");
    let long = long.replace("Content-Length: ", "Content-Length: 9");
    let served = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let address = app.address();
    let start = |bytes: Vec<u8>| async move {
        let mut socket = TcpStream::connect(address).await.expect("it accepts");
        socket.write_all(&bytes).await.expect("it reads");
        socket
    };
    let (silent, half_head, half_preface, idle, half_body, drips_head, drips_body) = tokio::join!(
        gone(start(Vec::new()), false),
        gone(start(chat[..40].to_vec()), false),
        gone(start(b"PRI * HTTP/2.0\r\n".to_vec()), false),
        gone(start(served.to_vec()), false),
        gone(start(chat[..chat.len() - 10].to_vec()), false),
        gone(start(b"GET /healthz HTTP/1.1\r\nX: ".to_vec()), true),
        gone(start(long.into_bytes()), true),
    );
    for (what, got) in [
        ("silence", silent),
        ("half a head", half_head),
        ("half a preface", half_preface),
        ("a dripping head", drips_head),
    ] {
        assert!(got.is_empty() || got.starts_with("HTTP/1.1 408"), "{what}: {got}");
    }
    assert_eq!(idle.matches("HTTP/1.1 200").count(), 1, "an idle connection: {idle}");
    for got in [half_body, drips_body] {
        assert!(got.starts_with("HTTP/1.1 400") && got.contains("incomplete_body"), "{got}");
    }
    app.assert_untouched().await;
    app.finish().await;
}

/// What came until the server closed.
async fn gone(start: impl Future<Output = TcpStream>, drips: bool) -> String {
    let mut socket = start.await;
    let mut got = Vec::new();
    let deadline = Instant::now() + BOUND;
    loop {
        assert!(Instant::now() < deadline, "it is still there: {}", String::from_utf8_lossy(&got));
        let mut space = [0; 4096];
        match timeout(DRIP, socket.read(&mut space)).await {
            Ok(Ok(0) | Err(_)) => return String::from_utf8_lossy(&got).into_owned(),
            Ok(Ok(read)) => got.extend_from_slice(&space[..read]),
            Err(_) if drips => drop(socket.write_all(b" ").await),
            Err(_) => {}
        }
    }
}
