//! A wire between the program and its PostgreSQL that can be cut, slowed and led to another server,
//! that can fall silent, and that can lose the answer to a COMMIT: the transaction stands, and the
//! program is not told.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::upstream::script::Gate;

pub struct Proxy {
    address: SocketAddr,
    wire: Arc<Wire>,
    accepting: AbortHandle,
}

struct Wire {
    server: Mutex<String>,
    /// Of each answer, in milliseconds.
    delay: AtomicU64,
    /// Answers to COMMIT that are to be lost.
    to_lose: AtomicUsize,
    lost: AtomicUsize,
    /// The next answer with this text waits until the gate is open.
    kept: Mutex<Option<(String, Gate)>>,
    is_cut: watch::Sender<bool>,
    /// Tells those that are open.
    silenced: watch::Sender<()>,
}

/// PostgreSQL's simple query, as it stands on the wire.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

impl Proxy {
    /// In front of the server at `host:port`.
    pub async fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket");
        let wire = Arc::new(Wire {
            server: Mutex::new(server.to_string()),
            delay: AtomicU64::new(0),
            to_lose: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
            kept: Mutex::default(),
            is_cut: watch::Sender::new(false),
            silenced: watch::Sender::new(()),
        });
        let accepting = tokio::spawn(accept(listener, wire.clone())).abort_handle();
        Self { address, wire, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The answers to the next `count` COMMITs do not arrive; their connections break.
    pub fn lose(&self, count: usize) {
        self.wire.to_lose.fetch_add(count, Ordering::SeqCst);
    }

    /// Every connection breaks, and so does each new one, until `mend`.
    pub fn cut(&self) {
        self.wire.is_cut.send_replace(true);
    }

    /// Nothing comes any more by the connections that are open, which stay so; new ones are heard:
    /// another machine has taken the server's place.
    pub fn silence(&self) {
        self.wire.silenced.send_replace(());
    }

    /// New connections go to the server at `host:port`; those that are open break.
    pub fn lead_to(&self, server: &str) {
        *self.wire.server.lock().expect("no panic") = server.to_string();
        self.cut();
        self.mend();
    }

    /// Every answer takes so much longer.
    pub fn slow(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).expect("short");
        self.wire.delay.store(delay, Ordering::SeqCst);
    }

    /// Keeps back the next answer with this text.
    pub fn keep(&self, text: &str, gate: &Gate) {
        *self.wire.kept.lock().expect("no panic") = Some((text.to_string(), gate.clone()));
    }

    /// Such an answer has come.
    pub fn has_kept(&self) -> bool {
        self.wire.kept.lock().expect("no panic").is_none()
    }

    pub fn mend(&self) {
        self.wire.is_cut.send_replace(false);
    }

    pub fn lost(&self) -> usize {
        self.wire.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, wire: Arc<Wire>) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let wire = wire.clone();
        connections.spawn(async move {
            let (mut is_cut, mut silenced) = (wire.is_cut.subscribe(), wire.silenced.subscribe());
            let is_silent = tokio::select! {
                biased;
                _ = is_cut.wait_for(|is_cut| *is_cut) => false,
                _ = silenced.changed() => true,
                () = relay(&mut client, &wire) => false,
            };
            if is_silent {
                let _ = is_cut.wait_for(|is_cut| *is_cut).await;
            }
        });
    }
}

async fn relay(client: &mut TcpStream, wire: &Wire) {
    let address = wire.server.lock().expect("no panic").clone();
    let Ok(mut server) = TcpStream::connect(address).await else { return };
    let (mut asked, mut told) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let passed = tokio::select! {
            read = client.read(&mut asked) => match read {
                Ok(read @ 1..) => {
                    let bytes = &asked[..read];
                    let is_sent = server.write_all(bytes).await;
                    if bytes.ends_with(COMMIT) && wire.loses() {
                        // It is committed when the server says so.
                        let _ = server.read(&mut told).await;
                        wire.lost.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    is_sent
                }
                _ => return,
            },
            read = server.read(&mut told) => match read {
                Ok(read @ 1..) => {
                    let delay = wire.delay.load(Ordering::SeqCst);
                    if delay > 0 {
                        tokio::time::sleep(Duration::from_millis(delay)).await;
                    }
                    if let Some(gate) = wire.keeps(&told[..read]) {
                        gate.passed().await;
                    }
                    client.write_all(&told[..read]).await
                }
                _ => return,
            },
        };
        if passed.is_err() {
            return;
        }
    }
}

impl Wire {
    fn keeps(&self, answer: &[u8]) -> Option<Gate> {
        let mut kept = self.kept.lock().expect("no panic");
        let (_, gate) =
            kept.take_if(|(text, _)| memchr::memmem::find(answer, text.as_bytes()).is_some())?;
        Some(gate)
    }

    fn loses(&self) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        self.to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok()
    }
}
