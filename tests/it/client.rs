//! A client on a bare socket: it sends exactly the bytes it is given, and keeps every byte of the
//! answer with the time it came. It can read piece by piece, stop reading, and hang up anywhere.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::app::PATIENCE;
use crate::upstream::http::{Dechunker, find};

/// A request in the making.
#[derive(Clone)]
pub struct Ask {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Ask {
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.to_string(),
            path: path.to_string(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post_json(path: &str, body: impl AsRef<[u8]>) -> Self {
        Self::new("POST", path).header("Content-Type", "application/json").body(body)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self
    }

    pub fn bearer(self, key: &str) -> Self {
        self.without("authorization").header("Authorization", &format!("Bearer {key}"))
    }

    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    /// The bytes on the wire. A body gets its length, unless the test gave a framing of its own.
    pub fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: tollgate\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        let framed = self.headers.iter().any(|(name, _)| {
            ["content-length", "transfer-encoding"].contains(&name.to_lowercase().as_str())
        });
        if !framed && (self.method != "GET" || !self.body.is_empty()) {
            text.extend(["Content-Length: ", &self.body.len().to_string(), "\r\n"]);
        }
        text += "\r\n";
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A whole answer; status 0 when none came.
#[derive(Debug, Default)]
pub struct Answered {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body ended as its framing says; false when the connection broke off before.
    pub complete: bool,
    /// Body length after each read, and when that was.
    pub arrivals: Vec<(usize, Instant)>,
}

impl Answered {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    pub fn request_id(&self) -> String {
        self.header("x-request-id").expect("every answer has x-request-id").to_string()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// The JSON of each `data:` event, `[DONE]` left out.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap_or_else(|_| panic!("not JSON: {data}")))
            .collect()
    }

    /// The content of all deltas, joined.
    pub fn content(&self) -> String {
        let contents = self.events();
        contents
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
            .collect()
    }

    /// Asserts the status and gives the body back as text.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text());
        assert!(self.complete, "the answer broke off: {}", self.text());
        self.text()
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// How the end of the body is known.
enum Framing {
    Chunked(Dechunker),
    Length(usize),
    UntilClose,
}

/// A request that was sent, and its answer as far as it was read.
pub struct Exchange {
    stream: TcpStream,
    /// Bytes that came and are not decoded yet.
    received: Vec<u8>,
    framing: Option<Framing>,
    answer: Answered,
    /// Where `until` goes on searching.
    searched: usize,
}

impl Exchange {
    pub async fn open(address: SocketAddr, bytes: &[u8]) -> Self {
        Self::try_open(address, bytes).await.expect("the gateway accepts connections")
    }

    /// For tests that kill the gateway: nobody may be there.
    pub async fn try_open(address: SocketAddr, bytes: &[u8]) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        Ok(Self::send(stream, bytes).await)
    }

    /// With a receive buffer so small that a client which does not read is felt soon.
    pub async fn open_narrow(address: SocketAddr, bytes: &[u8]) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let stream = socket.connect(address).await.expect("the gateway accepts connections");
        Self::send(stream, bytes).await
    }

    async fn send(mut stream: TcpStream, bytes: &[u8]) -> Self {
        stream.set_nodelay(true).expect("a TCP socket");
        // A server may refuse a request and close before it has read all: the answer still counts.
        let _ = stream.write_all(bytes).await;
        Self {
            stream,
            received: Vec::new(),
            framing: None,
            answer: Answered::default(),
            searched: 0,
        }
    }

    /// Sends more on the same connection.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the gateway reads");
    }

    /// Waits for the head of the answer; false when the connection ended without one.
    pub async fn head(&mut self) -> bool {
        while self.framing.is_none() {
            if let Some(at) = find(&self.received, b"\r\n\r\n") {
                let head: Vec<u8> = self.received.drain(..at + 4).collect();
                self.parse_head(&String::from_utf8_lossy(&head));
                self.decode();
                continue;
            }
            if !self.read().await {
                return false;
            }
        }
        true
    }

    /// Of the head that came.
    pub fn status(&self) -> u16 {
        self.answer.status
    }

    /// Waits until the body holds `needle`, searching only what came since the last call.
    pub async fn until(&mut self, needle: &str) -> &mut Self {
        assert!(self.head().await, "no answer while waiting for {needle:?}");
        loop {
            if let Some(at) = find(&self.answer.body[self.searched..], needle.as_bytes()) {
                self.searched += at + needle.len();
                return self;
            }
            self.searched = self.answer.body.len().saturating_sub(needle.len()).max(self.searched);
            let more = !self.answer.complete && self.more().await;
            assert!(more, "the body ended without {needle:?}: {}", self.answer.text());
        }
    }

    /// Reads on until the answer ends, in whatever way.
    pub async fn finish(mut self) -> Answered {
        self.next().await
    }

    /// The next whole answer of a connection that carries several.
    pub async fn next(&mut self) -> Answered {
        if self.head().await {
            while !self.answer.complete && self.more().await {}
        }
        self.framing = None;
        self.searched = 0;
        std::mem::take(&mut self.answer)
    }

    /// Reads what comes within `milliseconds`, and gives the body so far.
    pub async fn linger(&mut self, milliseconds: u64) -> &[u8] {
        let time = std::time::Duration::from_millis(milliseconds);
        let _ = tokio::time::timeout(time, async {
            if self.head().await {
                while !self.answer.complete && self.more().await {}
            }
        })
        .await;
        &self.answer.body
    }

    /// Closes at once and with a reset, so that the gateway's next write to this client fails.
    pub fn hang_up(self) {
        self.stream.set_zero_linger().expect("a TCP socket");
    }

    /// Closes as a program does that ends normally.
    pub fn close(self) {
        drop(self);
    }

    async fn more(&mut self) -> bool {
        let more = self.read().await;
        self.decode();
        if !more && matches!(self.framing, Some(Framing::UntilClose)) {
            self.answer.complete = true;
        }
        more
    }

    async fn read(&mut self) -> bool {
        let mut space = vec![0_u8; 64 * 1024];
        let reading = tokio::time::timeout(PATIENCE, self.stream.read(&mut space)).await;
        let Ok(read) = reading else {
            panic!("no bytes within {PATIENCE:?}, after: {:?}", self.answer);
        };
        // A reset ends the bytes like a close; `complete` tells them apart.
        let read = read.unwrap_or(0);
        self.received.extend_from_slice(&space[..read]);
        read > 0
    }

    fn parse_head(&mut self, head: &str) {
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        self.answer.status = status.and_then(|code| code.parse().ok()).expect("a status line");
        self.answer.headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_string(), value.trim().to_string()))
            .collect();
        let length = self.answer.header("content-length").and_then(|text| text.parse().ok());
        self.framing = Some(match length {
            Some(length) => Framing::Length(length),
            // "No content" has no body, and says nothing of one.
            None if [204, 304].contains(&self.answer.status) => Framing::Length(0),
            None if self.answer.header("transfer-encoding").is_some() => {
                Framing::Chunked(Dechunker::default())
            }
            None => Framing::UntilClose,
        });
    }

    fn decode(&mut self) {
        let before = self.answer.body.len();
        match self.framing.as_mut().expect("the head came first") {
            Framing::Chunked(decoder) => {
                let used = decoder.feed(&self.received, &mut self.answer.body);
                self.received.drain(..used);
                self.answer.complete = decoder.done();
            }
            Framing::Length(length) => {
                let missing = *length - self.answer.body.len();
                self.answer.body.extend(self.received.drain(..missing.min(self.received.len())));
                self.answer.complete = self.answer.body.len() == *length;
            }
            Framing::UntilClose => self.answer.body.append(&mut self.received),
        }
        if self.answer.body.len() > before {
            self.answer.arrivals.push((self.answer.body.len(), Instant::now()));
        }
    }
}
