//! The scripted upstream: an HTTP/1.1 server on loopback that answers each chat completion with the
//! next script in its queue, keeps every request it got, and knows what each call really used.
//!
//! A request for which no script is queued gets status 599, so that a test which forgets one fails.

pub mod answer;
pub mod catalog;
pub mod http;
pub mod listed;
pub mod model;
pub mod script;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::app::{PATIENCE, eventually};
use answer::nano_usd;
use http::Request;
use listed::Listed;
use script::{Gate, Script, Step, Truth};

pub const CHAT: &str = "/v1/chat/completions";

pub struct Upstream {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: AbortHandle,
}

/// One request that reached the upstream.
#[derive(Clone, Debug)]
pub struct Call {
    pub request: Request,
    /// Bytes of the answer that the socket has taken.
    pub written: usize,
    /// The peer closed the connection before the script had ended.
    pub gone: bool,
}

impl Call {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.request.body).expect("the forwarded body is JSON")
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.request.body.clone()).expect("the forwarded body is UTF-8")
    }
}

/// How a list of models is answered.
#[derive(Clone)]
pub enum Listing {
    Json(Value),
    Fails(u16),
    Hangs(Gate),
}

struct Generation {
    not_found: u32,
    data: Value,
}

struct State {
    scripts: VecDeque<Script>,
    calls: Vec<Call>,
    models: Listing,
    generations: HashMap<String, Generation>,
    /// What the upstream says each generation used: the last usage or look-up it gave out.
    truths: HashMap<String, Truth>,
    /// Past calls, as it says when it is asked for days.
    listed: Vec<Listed>,
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with the lock held")
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.send_replace(());
        result
    }
}

impl Upstream {
    pub async fn start(models: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket");
        let state = State {
            scripts: VecDeque::new(),
            calls: Vec::new(),
            models: Listing::Json(models),
            generations: HashMap::new(),
            truths: HashMap::new(),
            listed: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: watch::Sender::new(()) });
        let accepting = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Self { shared, address, accepting }
    }

    /// The base URL, up to and including `/v1`.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Queues the answer to the next chat completion.
    pub fn script(&self, script: Script) {
        self.shared.change(|state| state.scripts.push_back(script));
    }

    /// Takes back what was queued and not called for.
    pub fn forget_scripts(&self) {
        self.shared.change(|state| state.scripts.clear());
    }

    pub fn set_models(&self, listing: Listing) {
        self.shared.change(|state| state.models = listing);
    }

    /// `GET /generation` for this id says 404 `not_found` times, then gives `data`.
    pub fn generation(&self, not_found: u32, data: Value) {
        let id = data["id"].as_str().expect("an id").to_string();
        self.shared.change(|state| state.generations.insert(id, Generation { not_found, data }));
    }

    /// What it says of past calls.
    pub fn list(&self, calls: Vec<Listed>) {
        self.shared.change(|state| state.listed = calls);
    }

    /// Every request to `path` so far.
    pub fn calls(&self, path: &str) -> Vec<Call> {
        let state = self.shared.state();
        state.calls.iter().filter(|call| call.request.path() == path).cloned().collect()
    }

    pub fn chats(&self) -> Vec<Call> {
        self.calls(CHAT)
    }

    pub fn last_chat(&self) -> Call {
        self.chats().pop().expect("a chat completion reached the upstream")
    }

    pub fn truth(&self, generation_id: &str) -> Option<Truth> {
        self.shared.state().truths.get(generation_id).cloned()
    }

    pub async fn wait_for_chats(&self, count: usize) {
        self.wait(&format!("{count} chat completions"), |state| chats(state) >= count).await;
    }

    /// Waits until the client of this chat call, counted from 0, has gone.
    pub async fn wait_for_chat_gone(&self, number: usize) {
        self.wait(&format!("the client of chat {number} to go"), |state| {
            let mut chats = state.calls.iter().filter(|call| call.request.path() == CHAT);
            chats.nth(number).is_some_and(|call| call.gone)
        })
        .await;
    }

    /// Waits until `count` chat completions were hung up on by the gateway.
    pub async fn wait_for_gone(&self, count: usize) {
        let what = format!("{count} hang-ups on the upstream");
        self.wait(&what, |state| state.calls.iter().filter(|call| call.gone).count() >= count)
            .await;
    }

    /// Closes the listener and every connection: nobody answers there any more.
    pub async fn stop(&self) {
        self.accepting.abort();
        eventually("the upstream's port is closed", async || {
            TcpStream::connect(self.address).await.err()
        })
        .await;
    }

    async fn wait(&self, what: &str, reached: impl Fn(&State) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let waiting = async {
            while !reached(&self.shared.state()) {
                changed.changed().await.expect("the sender lives in self");
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, waiting).await.is_ok();
        assert!(in_time, "the upstream waited in vain for {what}: {:?}", self.shared.state().calls);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn chats(state: &State) -> usize {
    state.calls.iter().filter(|call| call.request.path() == CHAT).count()
}

/// Accepts until it is aborted; its connections end with it.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        connections.spawn(async move {
            // A broken connection is what many scripts are about, and shows in `Call::gone`.
            let _ = serve(&stream, &shared).await;
        });
    }
}

async fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some(request) = http::read_request(stream, &mut buffer).await {
        let (number, script) = shared.change(|state| take(state, request));
        if !play(stream, shared, number, script).await? {
            break;
        }
    }
    Ok(())
}

/// Keeps the request and finds what to answer.
fn take(state: &mut State, request: Request) -> (usize, Script) {
    let script = match (request.method.as_str(), request.path()) {
        ("POST", CHAT) => state.scripts.pop_front().unwrap_or_else(no_script),
        ("GET", "/v1/models") => listing(&state.models),
        ("GET", "/v1/model/info" | "/model/info") => {
            Script::json(200, catalog::litellm_model_info().to_string())
        }
        ("GET", "/v1/generation") => generation(state, &request),
        ("GET", "/v1/activity") => answered(listed::activity(&state.listed, &request)),
        ("GET", "/spend/logs/v2") => answered(listed::spend_logs(&state.listed, &request)),
        _ => error(404, "no such path"),
    };
    if let Some((id, truth)) = script.truth.clone() {
        state.truths.insert(id, truth);
    }
    state.calls.push(Call { request, written: 0, gone: false });
    (state.calls.len() - 1, script)
}

fn no_script() -> Script {
    error(599, "the test queued no script for this request")
}

fn answered((status, text): listed::Answer) -> Script {
    Script::json(status, text)
}

fn error(status: u16, message: &str) -> Script {
    let code = i64::from(status);
    Script::json(status, json!({"error": {"code": code, "message": message}}).to_string())
}

fn listing(listing: &Listing) -> Script {
    match listing {
        Listing::Json(models) => Script::json(200, models.to_string()),
        Listing::Fails(status) => error(*status, "the list of models is not to be had"),
        Listing::Hangs(gate) => Script::new().wait(gate).close(),
    }
}

fn generation(state: &mut State, request: &Request) -> Script {
    let id = request.target.split_once("id=").map(|(_, id)| id).unwrap_or_default();
    let Some(generation) = state.generations.get_mut(id) else {
        let listed = listed::generation(&state.listed, id);
        return listed.map_or_else(|| error(404, "no such generation"), answered);
    };
    if generation.not_found > 0 {
        generation.not_found -= 1;
        return error(404, "not yet");
    }
    let data = generation.data.clone();
    let mut script = Script::json(200, json!({ "data": data }).to_string());
    script.truth = Some((id.to_string(), looked_up(&data)));
    script
}

fn looked_up(data: &Value) -> Truth {
    Truth {
        prompt_tokens: data["native_tokens_prompt"].as_i64().unwrap_or_default(),
        completion_tokens: data["native_tokens_completion"].as_i64().unwrap_or_default(),
        cost_nusd: nano_usd(&data["total_cost"].to_string()),
    }
}

/// Plays a script; `false` when the connection is not to serve another request.
async fn play(
    stream: &TcpStream,
    shared: &Shared,
    number: usize,
    script: Script,
) -> io::Result<bool> {
    let closes = script.steps.iter().any(|step| matches!(step, Step::Close | Step::HalfClose));
    for step in script.steps {
        // A peer that sends nothing more and closes is seen at once, also while a step stalls.
        let mut pipelined = Vec::new();
        let played = tokio::select! {
            played = play_step(stream, shared, number, step) => played,
            read = http::read_some(stream, &mut pipelined) => {
                read.and(Err(io::ErrorKind::ConnectionAborted.into()))
            }
        };
        match played {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => {
                shared.change(|state| state.calls[number].gone = true);
                return Err(error);
            }
        }
    }
    Ok(!closes)
}

async fn play_step(
    stream: &TcpStream,
    shared: &Shared,
    number: usize,
    step: Step,
) -> io::Result<bool> {
    let written = |bytes: usize| shared.change(|state| state.calls[number].written += bytes);
    match step {
        Step::Head(status, headers) => {
            http::write_all(stream, head(status, &headers).as_bytes(), written).await?;
        }
        Step::Write(bytes) => http::write_all(stream, &bytes, written).await?,
        Step::Chunk(bytes) => http::write_all(stream, &chunk(&bytes), written).await?,
        Step::End => http::write_all(stream, b"0\r\n\r\n", written).await?,
        Step::Sleep(time) => tokio::time::sleep(time).await,
        Step::Wait(gate) => gate.passed().await,
        Step::Close => return Ok(false),
        Step::HalfClose => half_close(stream)?,
        Step::Rst => {
            stream.set_zero_linger()?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn head(status: u16, headers: &[(String, String)]) -> String {
    let mut head = format!("HTTP/1.1 {status} Scripted\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head + "\r\n"
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut framed = format!("{:x}\r\n", bytes.len()).into_bytes();
    framed.extend_from_slice(bytes);
    framed.extend_from_slice(b"\r\n");
    framed
}

/// Tokio shuts down one direction only of an owned stream; the standard library's handle on the
/// same socket does it through a reference.
fn half_close(stream: &TcpStream) -> io::Result<()> {
    use std::os::fd::AsFd;
    let socket = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
    socket.shutdown(std::net::Shutdown::Write)
}
