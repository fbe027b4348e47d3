//! An HTTP server on loopback with faults: it may refuse, cut the connection or fall silent, before
//! or after it has taken what it was sent; and for a while it may not be there at all.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::app::eventually;
use crate::random::Random;
use crate::upstream::http::{Request, read_request, write_all};
use crate::upstream::script::Gate;

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
    /// It is answered when the gate of the faults opens.
    GatedAfter,
    /// Nothing goes wrong, but the answer takes so long.
    Paced(Duration),
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

/// What goes wrong at random: who is busy, and who is away, may say for how many seconds.
pub fn faults(busy: u32, away: u32) -> Vec<Fault> {
    vec![
        Fault::Status(429, Some(busy)),
        Fault::Status(429, None),
        Fault::Status(500, None),
        Fault::Status(503, Some(away)),
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::CutAfter,
        Fault::FailAfter(500),
        Fault::FailAfter(502),
        Fault::HangAfter,
    ]
}

/// What a sink makes of a request that reaches it.
pub trait Handler: Send + Sync + 'static {
    fn handle(&self, request: &Request, fault: Fault) -> impl Future<Output = Reply> + Send;

    /// How it words that it cannot, now.
    fn trouble(&self, _status: u16) -> Value {
        json!({})
    }

    /// Whether nothing goes wrong with this request, whatever fault is due.
    fn is_spared(&self, _request: &Request) -> bool {
        false
    }
}

/// Which fault comes next.
#[derive(Default)]
pub struct Faults {
    queued: Mutex<VecDeque<Fault>>,
    random: Mutex<Option<(Random, usize, Vec<Fault>)>>,
    /// Of every call, until it is taken back.
    always: Mutex<Option<Fault>>,
    pub gate: Gate,
}

impl Faults {
    pub fn queue(&self, faults: impl IntoIterator<Item = Fault>) {
        self.queued.lock().expect("no panic").extend(faults);
    }

    pub fn always(&self, fault: Option<Fault>) {
        *self.always.lock().expect("no panic") = fault;
    }

    /// One call in `one_in` goes wrong, in one of these ways.
    pub fn random(&self, random: Random, one_in: usize, faults: Vec<Fault>) {
        *self.random.lock().expect("no panic") = Some((random, one_in, faults));
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
        let Some((random, one_in, faults)) = &*random else { return Fault::None };
        if random.below(*one_in) > 0 { Fault::None } else { *random.pick(faults) }
    }
}

pub struct Server {
    pub address: SocketAddr,
    /// Keeps the port while nobody listens at it.
    _port: TcpSocket,
    listen: Box<dyn Fn(TcpListener) -> JoinHandle<()> + Send + Sync>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    pub async fn start<H: Handler>(handler: Arc<H>, faults: Arc<Faults>) -> Self {
        let port = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a loopback port");
        let address = port.local_addr().expect("a bound socket");
        let listen =
            move |listener| tokio::spawn(accept(listener, handler.clone(), faults.clone()));
        let server =
            Self { address, _port: port, listen: Box::new(listen), accepting: Mutex::new(None) };
        server.come().await;
        server
    }

    /// Connections are cut, and refused from now on.
    pub async fn go(&self) {
        let accepting = self.accepting.lock().expect("no panic").take();
        if let Some(accepting) = accepting {
            accepting.abort();
            // It is over, or it was already.
            let _ = accepting.await;
        }
    }

    /// It is there, again.
    pub async fn come(&self) {
        self.go().await;
        // A process that is just being started holds the old listener until it is another program.
        let is_free = async || bind(self.address).ok();
        let socket = eventually("our own port is free", is_free).await;
        let listener = socket.listen(BACKLOG).expect("our own port");
        *self.accepting.lock().expect("no panic") = Some((self.listen)(listener));
    }
}

const BACKLOG: u32 = 1_024;

/// A port may be bound twice where both allow it and only one listens.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.lock().expect("no panic").take() {
            accepting.abort();
        }
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
        let fault = if handler.is_spared(&request) { Fault::None } else { faults.next() };
        let reply = match fault {
            Fault::Status(status, after) => {
                let reply = Reply::json(status, &handler.trouble(status));
                match after {
                    Some(after) => reply.header("retry-after", &after.to_string()),
                    None => reply,
                }
            }
            Fault::CutBefore => return,
            _ => handler.handle(&request, fault).await,
        };
        let reply = match fault {
            // What it had to say otherwise is not heard either.
            Fault::FailAfter(status) if reply.status < 500 => {
                Reply::json(status, &handler.trouble(status))
            }
            _ => reply,
        };
        match fault {
            Fault::CutAfter => return,
            // Longer than any deadline of a test.
            Fault::HangAfter => tokio::time::sleep(Duration::from_secs(60)).await,
            Fault::GatedAfter => faults.gate.passed().await,
            Fault::Paced(pause) => tokio::time::sleep(pause).await,
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
