//! Clients that never finish hold their places for a bounded time only.

use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::app::{Store, TestApp, eventually, question};
use crate::upstream::answer::Answer;
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

/// Large bodies that never end take the share of their account, and no other's requests with them.
#[tokio::test]
async fn bodies_without_end_are_bounded_together() {
    const BODY: usize = 8 << 20;
    let app = TestApp::start(Store::Sqlite).await;
    app.create_account("other", &["--credit", "1"]).await;
    let other = app.create_key("other", &[]).await;
    let whole = app.chat_ask(&question(MODEL)).bytes();
    let head = whole.len() - String::from_utf8_lossy(&whole).rfind("\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&whole[..whole.len() - head + 4]).into_owned();
    let length = head.lines().find(|line| line.starts_with("Content-Length: ")).expect("one");
    let head = head.replace(length, &format!("Content-Length: {BODY}"));
    let address = app.address();
    let large = async || {
        let mut socket = TcpStream::connect(address).await.expect("it accepts");
        socket.write_all(head.as_bytes()).await.expect("it reads");
        socket.write_all(&vec![b' '; BODY - 1]).await.expect("it reads, or throws away");
        socket
    };
    let mut waiting = join_all((0..12).map(|_| large())).await;
    let mut refused = Vec::new();
    let mut look = async || {
        waiting.retain(|socket| {
            let mut space = [0; 4096];
            let Ok(read) = socket.try_read(&mut space) else { return true };
            refused.push(String::from_utf8_lossy(&space[..read]).into_owned());
            false
        });
        (refused.len() >= 4).then_some(())
    };
    eventually("some are refused", &mut look).await;
    // No more of them are, in as long as that.
    tokio::time::sleep(DRIP).await;
    look().await;
    assert_eq!((waiting.len(), refused.len()), (8, 4), "64 MiB are an account's share");
    for got in &refused {
        assert!(got.starts_with("HTTP/1.1 503") && got.contains("overloaded"), "{got}");
    }
    // Whoever has none of that is served, a small request of the same account too.
    let long = "word ".repeat(20_000);
    let mut body = question(MODEL);
    body["messages"][0]["content"] = long.into();
    for ask in [app.chat_ask(&body).bearer(&other), app.chat_ask(&question(MODEL))] {
        app.upstream.script(Answer::openrouter().plain());
        app.ask(&ask).await.ok();
    }
    drop(waiting);
    app.upstream.script(Answer::openrouter().plain());
    eventually("the room is given back", async || {
        let got = app.ask(&app.chat_ask(&body)).await;
        (got.status == 200).then_some(())
    })
    .await;
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
