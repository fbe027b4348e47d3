//! Clients that ask again and again on one connection each, and check what they get.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::site::Server;

pub struct Scenario {
    pub name: &'static str,
    /// What the upstream plays.
    pub model: &'static str,
    pub clients: usize,
    /// Bytes.
    pub prompt: usize,
}

/// The least of several windows: noise only adds.
#[derive(Default)]
pub struct Measured {
    /// Of processor time, for one request; 0 before the first window.
    pub micros: f64,
    /// Sorted.
    first_bytes: Vec<Duration>,
}

impl Measured {
    pub fn merge(&mut self, other: Self) {
        if self.micros == 0.0 || other.micros < self.micros {
            *self = other;
        }
    }

    pub fn first_byte(&self, share: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index for people"
        )]
        let at = (self.first_bytes.len() as f64 * share) as usize;
        self.first_bytes.get(at).copied().unwrap_or_default()
    }
}

/// Before the window is measured, each client has had an answer; after it, the server's work on
/// the last of them is waited for.
const WARM_UP: Duration = Duration::from_millis(500);
const SETTLING: Duration = Duration::from_millis(250);

pub async fn run(scenario: &Scenario, server: &Server, window: Duration) -> Measured {
    ask_for(scenario, server, WARM_UP).await;
    tokio::time::sleep(SETTLING).await;
    let before = server.processor_time();
    let mut first_bytes = ask_for(scenario, server, window).await;
    tokio::time::sleep(SETTLING).await;
    let spent = server.processor_time().saturating_sub(before);
    first_bytes.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a time for people")]
    let micros = spent.as_secs_f64() * 1e6 / first_bytes.len() as f64;
    Measured { micros, first_bytes }
}

/// The times to the first byte of all answers that began in the window.
async fn ask_for(scenario: &Scenario, server: &Server, window: Duration) -> Vec<Duration> {
    let request = server.request(scenario.model, scenario.prompt);
    let until = Instant::now() + window;
    let clients = (0..scenario.clients).map(async |_| {
        let mut connection = Connection::open(server).await;
        let mut first_bytes = Vec::new();
        while Instant::now() < until {
            first_bytes.push(connection.ask(&request).await);
        }
        first_bytes
    });
    join_all(clients).await.concat()
}

pub struct Connection {
    socket: TcpStream,
    got: Vec<u8>,
}

impl Connection {
    pub async fn open(server: &Server) -> Self {
        let socket = TcpStream::connect(server.address).await.expect("the server listens");
        socket.set_nodelay(true).expect("a socket");
        Self { socket, got: Vec::with_capacity(64 << 10) }
    }

    /// Sends a request and reads its answer to the end; the time to its first byte.
    async fn ask(&mut self, request: &[u8]) -> Duration {
        self.got.clear();
        let began = Instant::now();
        self.socket.write_all(request).await.expect("the server takes it");
        let mut first = None;
        while !is_whole(&self.got) {
            self.more().await;
            first.get_or_insert_with(|| began.elapsed());
        }
        let is_good = self.got.starts_with(b"HTTP/1.1 200")
            && (contains(&self.got, b"data: [DONE]") || contains(&self.got, b"\"usage\""));
        assert!(is_good, "{}", String::from_utf8_lossy(&self.got));
        first.unwrap_or_default()
    }

    /// Sends a request and reads its first event.
    pub async fn begin(&mut self, request: &[u8]) {
        self.socket.write_all(request).await.expect("the server takes it");
        while !contains(&self.got, b"data: {") {
            self.more().await;
        }
    }

    async fn more(&mut self) {
        let read = self.socket.read_buf(&mut self.got).await.expect("an answer");
        assert!(read > 0, "cut off: {}", String::from_utf8_lossy(&self.got));
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    memchr::memmem::find(bytes, what).is_some()
}

/// By its length where it has one, else by its last chunk.
fn is_whole(got: &[u8]) -> bool {
    let Some(head) = memchr::memmem::find(got, b"\r\n\r\n") else { return false };
    let lower = String::from_utf8_lossy(&got[..head]).to_lowercase();
    match lower.split("content-length: ").nth(1) {
        Some(length) => {
            let digits = length.split("\r\n").next().unwrap_or_default();
            got.len() >= head + 4 + digits.parse::<usize>().expect("a length")
        }
        None => got.ends_with(b"\r\n0\r\n\r\n"),
    }
}
