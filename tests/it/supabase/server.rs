//! A stand-in for Supabase's auth server: publishes a set of keys, which can change, fail, stall.

use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::sign::Key;
use crate::upstream::http::{Request, read_request};

pub struct AuthServer {
    shared: Arc<Shared>,
    url: String,
    accepting: AbortHandle,
}

#[derive(Clone)]
pub enum Manner {
    /// Status and body.
    Answers(u16, String),
    /// Takes the request and says nothing.
    Stalls,
    /// Closes the connection.
    HangsUp,
}

struct Shared {
    manner: Mutex<Manner>,
    requests: Mutex<Vec<Request>>,
}

const KEYS_PATH: &str = "/auth/v1/.well-known/jwks.json";

impl AuthServer {
    pub async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket"));
        let shared = Arc::new(Shared { manner: Mutex::new(manner), requests: Mutex::default() });
        let accepting = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Self { shared, url, accepting }
    }

    pub async fn with(keys: &[&Key]) -> Self {
        Self::start(published(keys)).await
    }

    /// The project's: `SUPABASE_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn issuer(&self) -> String {
        format!("{}/auth/v1", self.url)
    }

    pub fn now(&self, manner: Manner) {
        *locked(&self.shared.manner) = manner;
    }

    pub fn publish(&self, keys: &[&Key]) {
        self.now(published(keys));
    }

    /// How often the keys were asked for.
    pub fn fetches(&self) -> usize {
        let requests = locked(&self.shared.requests);
        assert!(requests.iter().all(|request| request.target == KEYS_PATH), "{requests:?}");
        requests.len()
    }
}

impl Drop for AuthServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

pub fn published(keys: &[&Key]) -> Manner {
    let keys: Vec<&Value> = keys.iter().map(|key| &key.jwk).collect();
    Manner::Answers(200, json!({ "keys": keys }).to_string())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics while it holds this")
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        connections.spawn(async move { answer(stream, &shared).await });
    }
}

async fn answer(mut stream: TcpStream, shared: &Shared) {
    let Some(request) = read_request(&stream, &mut Vec::new()).await else { return };
    locked(&shared.requests).push(request);
    let manner = locked(&shared.manner).clone();
    match manner {
        Manner::Answers(status, body) => {
            let head = format!(
                "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            // The gateway may have had enough.
            let _ = stream.write_all((head + &body).as_bytes()).await;
        }
        Manner::Stalls => std::future::pending().await,
        Manner::HangsUp => {}
    }
}
