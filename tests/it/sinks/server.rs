//! An HTTP server on loopback with faults: it may refuse, cut the connection or fall silent, before
//! or after it has taken what it was sent.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::random::Random;
use crate::upstream::http::{Request, read_request, write_all};

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    /// Nothing was taken.
    Status(u16, Option<u32>),
    CutBefore,
    /// It was taken, and the caller is not told.
    CutAfter,
    FailAfter(u16),
    HangAfter,
    /// The answer takes a second.
    SlowAfter,
}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Self {
        let headers = vec![("content-type", "application/json".to_string())];
        Self { status, headers, body: body.to_string() }
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub fn empty(status: u16) -> Self {
        Self { status, headers: vec![], body: String::new() }
    }
}

/// What a sink makes of a request that reaches it.
pub trait Handler: Send + Sync + 'static {
    fn handle(&self, request: &Request, fault: Fault) -> impl Future<Output = Reply> + Send;
}

/// Which fault comes next.
#[derive(Default)]
pub struct Faults {
    queued: Mutex<VecDeque<Fault>>,
    random: Mutex<Option<(Random, usize)>>,
    /// Of every call, until it is taken back.
    always: Mutex<Option<Fault>>,
}

impl Faults {
    pub fn queue(&self, faults: impl IntoIterator<Item = Fault>) {
        self.queued.lock().expect("no panic").extend(faults);
    }

    pub fn always(&self, fault: Option<Fault>) {
        *self.always.lock().expect("no panic") = fault;
    }

    /// One call in `one_in` goes wrong.
    pub fn random(&self, random: Random, one_in: usize) {
        *self.random.lock().expect("no panic") = Some((random, one_in));
    }

    pub fn calm(&self) {
        *self.random.lock().expect("no panic") = None;
        *self.always.lock().expect("no panic") = None;
    }

    fn next(&self) -> Fault {
        if let Some(fault) = self.queued.lock().expect("no panic").pop_front() {
            return fault;
        }
        if let Some(fault) = *self.always.lock().expect("no panic") {
            return fault;
        }
        let random = self.random.lock().expect("no panic");
        let Some((random, one_in)) = &*random else { return Fault::None };
        if random.below(*one_in) > 0 {
            return Fault::None;
        }
        *random.pick(&[
            Fault::Status(429, Some(1)),
            Fault::Status(429, None),
            Fault::Status(500, None),
            Fault::Status(503, Some(0)),
            Fault::CutBefore,
            Fault::CutAfter,
            Fault::CutAfter,
            Fault::FailAfter(500),
            Fault::FailAfter(502),
            Fault::HangAfter,
        ])
    }
}

pub struct Server {
    pub address: SocketAddr,
    accepting: AbortHandle,
}

impl Server {
    pub async fn start<H: Handler>(handler: Arc<H>, faults: Arc<Faults>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket");
        let accepting = tokio::spawn(accept(listener, handler, faults)).abort_handle();
        Self { address, accepting }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept<H: Handler>(listener: TcpListener, handler: Arc<H>, faults: Arc<Faults>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (handler, faults) = (handler.clone(), faults.clone());
        connections.spawn(async move { serve(stream, &*handler, &faults).await });
    }
}

async fn serve<H: Handler>(stream: TcpStream, handler: &H, faults: &Faults) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&stream, &mut buffer).await {
        let fault = faults.next();
        let reply = match fault {
            Fault::Status(status, after) => {
                let reply = Reply::json(status, &serde_json::json!({}));
                match after {
                    Some(after) => reply.header("retry-after", &after.to_string()),
                    None => reply,
                }
            }
            Fault::CutBefore => return,
            _ => handler.handle(&request, fault).await,
        };
        match fault {
            Fault::CutAfter => return,
            // Longer than any deadline of a test.
            Fault::HangAfter => tokio::time::sleep(Duration::from_secs(60)).await,
            Fault::SlowAfter => tokio::time::sleep(Duration::from_secs(1)).await,
            _ => {}
        }
        let mut head =
            format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", reply.status, reply.body.len());
        for (name, value) in &reply.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        let bytes = format!("{head}\r\n{}", reply.body);
        if write_all(&stream, bytes.as_bytes(), |_| {}).await.is_err() {
            return;
        }
    }
}
