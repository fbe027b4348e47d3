//! The wire below the answers: silence, clients that take nothing, HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::app::{Setup, Store, TestApp, both_stores, eventually, streamed};
use crate::client::Exchange;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use crate::upstream::script::{Gate, Script};

both_stores!(a_silent_upstream_is_covered_by_comments, a_client_that_takes_nothing_is_let_go);

async fn a_silent_upstream_is_covered_by_comments(store: Store) {
    let app = TestApp::start(store).await;
    let (answer, gate) = (Answer::openrouter().model(MODEL), Gate::new());
    let script = answer.head().wait(&gate);
    app.upstream.script(script.chunks(answer.events()).end());
    let mut exchange = app.begin_chat(&streamed(MODEL)).await;
    exchange.until(": keep-alive\n\n").await;
    gate.open();
    let got = exchange.finish().await;
    assert_eq!(got.content(), answer.text());
    assert!(got.text().starts_with(": keep-alive\n\ndata: "), "before the first event only");
    app.finish().await;
}

/// The upstream has far more than all buffers between it and the client can hold.
async fn a_client_that_takes_nothing_is_let_go(store: Store) {
    let setup = Setup::new(store).policy("count").env("TOLLGATE_WRITE_SECONDS", "1");
    let app = setup.start().await;
    let answer = Answer::openrouter().model(MODEL);
    let piece = answer.content_event(&"toll ".repeat(4_000));
    let chunks = std::iter::repeat_n(piece, 2_000);
    app.upstream.script(Script::stream().chunks(chunks).end());
    let ask = app.chat_ask(&streamed(MODEL)).bytes();
    let exchange = Exchange::open_narrow(app.address(), &ask).await;
    let record =
        eventually("the stalled stream is settled", async || app.books.records().await.pop()).await;
    assert_eq!(record.ending, "client_gone", "{record:?}");
    assert!(record.completion_tokens > 0, "what was made for it is charged: {record:?}");
    exchange.close();
    app.finish().await;
}

#[tokio::test]
async fn http_2_with_prior_knowledge_carries_many_streams() {
    let app = TestApp::start(Store::Sqlite).await;
    let socket = TcpStream::connect(app.address()).await.expect("the gateway accepts");
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
    let (client, connection) = handshake.await.expect("a preface is answered");
    let connection = tokio::spawn(connection);
    let answer = Answer::openrouter().model(MODEL);
    let calls = (0..10).map(|_| {
        app.upstream.script(answer.stream());
        let mut client = client.clone();
        let request = Request::post(format!("http://{}/v1/chat/completions", app.address()))
            .header("authorization", format!("Bearer {}", app.key))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(streamed(MODEL).to_string())))
            .expect("a request");
        async move {
            let got = client.send_request(request).await.expect("an answer");
            assert_eq!(got.status(), 200);
            assert!(got.headers().contains_key("x-request-id"));
            got.into_body().collect().await.expect("a whole body").to_bytes()
        }
    });
    for body in futures::future::join_all(calls).await {
        assert!(body.ends_with(b"data: [DONE]\n\n"), "{body:?}");
    }
    assert_eq!(app.records(10).await.len(), 10);
    connection.abort();
    app.finish().await;
}

/// Half a preface, and half a head, hold their places for a bounded time only; a whole request in
/// one-byte pieces is served.
#[tokio::test]
async fn a_request_in_single_bytes_is_served() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let app = TestApp::start(Store::Sqlite).await;
    let mut socket = TcpStream::connect(app.address()).await.expect("the gateway accepts");
    socket.set_nodelay(true).expect("a TCP socket");
    for byte in b"POST /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" {
        socket.write_all(&[*byte]).await.expect("it reads");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut got = String::new();
    socket.read_to_string(&mut got).await.expect("an answer");
    assert!(got.starts_with("HTTP/1.1 405"), "{got}");
    app.finish().await;
}
