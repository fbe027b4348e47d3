//! An upstream that really generates: a token an event, as many as it wants and, when it obeys, as
//! many as it may. It keeps the truth, which is what each generation used and would cost, whoever
//! hung up and whenever, and tells it to those who ask by `GET /generation`.
//!
//! Every token is the word " the", which is one token in every vocabulary of tiktoken.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::answer::{DONE, event};
use super::http::{self, Request};
use super::listed::{self, Listed};
use super::script::Gate;
use super::{CHAT, catalog, chunk};
use crate::app::books::UsageRecord;

/// The model's price, in nano-USD a token: `openai/gpt-4` of the catalogue.
pub const PROMPT_NUSD: i64 = 30_000;
pub const COMPLETION_NUSD: i64 = 60_000;
/// What the upstream says that every prompt was.
pub const PROMPT_TOKENS: i64 = 12;

/// Where it waits for the test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stall {
    Head,
    FirstToken,
    /// After so many tokens.
    Tokens(i64),
    Usage,
    Done,
}

/// How it behaves; may be changed at any time for the calls to come.
#[derive(Clone)]
pub struct Manner {
    /// Honours `max_tokens`.
    pub obeys: bool,
    /// It says so many tokens at least, and up to `spread` more, when it may.
    pub tokens: i64,
    pub spread: i64,
    /// Tokens beyond its cap, when it does not obey.
    pub excess: i64,
    /// So many tokens of a stream it thinks first, and does not show; the last one it does.
    pub unseen: i64,
    pub head_after: Duration,
    pub pause: Duration,
    /// Ends the stream with its usage.
    pub tells_usage: bool,
    /// Stops generating when its client hangs up, and bills what it had made by then.
    pub stops: bool,
    pub provider: &'static str,
    /// `GET /generation` says 404 so often before it tells.
    pub not_found: u32,
    pub stall: Option<(Stall, Gate)>,
    /// Of so many calls one fails before it has begun; 0: none.
    pub fails_one_in: usize,
}

impl Manner {
    async fn stall(&self, at: Stall) {
        if let Some((place, gate)) = &self.stall
            && *place == at
        {
            gate.passed().await;
        }
    }

    pub fn obedient() -> Self {
        Self {
            obeys: true,
            tokens: 20,
            spread: 1,
            excess: 0,
            unseen: 0,
            head_after: Duration::ZERO,
            pause: Duration::ZERO,
            tells_usage: true,
            stops: false,
            provider: "OpenAI",
            not_found: 0,
            stall: None,
            fails_one_in: 0,
        }
    }
}

/// The truth of one generation.
#[derive(Clone, Debug)]
pub struct Generation {
    pub id: String,
    pub completion_tokens: i64,
    /// What `max_tokens` said.
    pub cap: Option<i64>,
    /// It will not generate any more.
    pub is_over: bool,
    /// The whole answer was written to the gateway.
    pub is_told: bool,
    pub began_at: OffsetDateTime,
    not_found: u32,
    provider: &'static str,
}

impl Generation {
    pub fn cost_nusd(&self) -> i64 {
        PROMPT_TOKENS * PROMPT_NUSD + self.completion_tokens * COMPLETION_NUSD
    }

    /// Tokens and charge of this record are the upstream's; the default markup is a fifth.
    pub fn is_told_by(&self, record: &UsageRecord) -> bool {
        let tokens = (record.prompt_tokens, record.completion_tokens);
        ["upstream", "lookup"].contains(&record.source.as_str())
            && tokens == (PROMPT_TOKENS, self.completion_tokens)
            && record.charge_nusd == self.cost_nusd() * 12 / 10
            && record.shortfall_nusd == 0
    }

    fn cost_text(&self) -> String {
        let cost = self.cost_nusd();
        format!("{}.{:09}", cost / 1_000_000_000, cost % 1_000_000_000)
    }

    fn usage_text(&self) -> String {
        let completion = self.completion_tokens;
        let total = PROMPT_TOKENS + completion;
        format!(
            r#"{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{completion},"total_tokens":{total},"cost":{},"is_byok":false,"cost_details":{{"upstream_inference_cost":null}}}}"#,
            self.cost_text()
        )
    }

    fn looked_up(&self) -> String {
        let mut data = json!({
            "id": self.id,
            "model": catalog::OLD_MODEL,
            "provider_name": self.provider,
            "is_byok": false,
            "tokens_prompt": PROMPT_TOKENS + 100,
            "tokens_completion": self.completion_tokens + 100,
            "native_tokens_prompt": PROMPT_TOKENS,
            "native_tokens_completion": self.completion_tokens,
            "native_tokens_reasoning": 0,
            "native_tokens_cached": 0,
            "finish_reason": "stop",
            "total_cost": "COST",
        });
        data["usage"] = json!("COST");
        // As digits, so that nothing is rounded.
        json!({ "data": data }).to_string().replace(r#""COST""#, &self.cost_text())
    }
}

/// The generation that an answer, or its beginning, is of.
pub fn generation_of(text: &str) -> Option<String> {
    let (_, rest) = text.split_once(r#""id":""#)?;
    Some(rest.split_once('"')?.0.to_string())
}

struct State {
    manner: Manner,
    generations: BTreeMap<String, Generation>,
    chats: Vec<Value>,
    calls: usize,
}

struct Shared(Mutex<State>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with the lock held")
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Generation)) {
        change(self.state().generations.get_mut(id).expect("it was begun"));
    }

    /// Whether this call is one of those that fail.
    fn fails(&self) -> bool {
        let mut state = self.state();
        state.calls += 1;
        state.calls.checked_rem(state.manner.fails_one_in) == Some(0)
    }

    /// The truth as a list of calls.
    fn listed(&self) -> Vec<Listed> {
        let state = self.state();
        let listed = state.generations.values().map(|generation| Listed {
            id: generation.id.clone(),
            at: generation.began_at,
            model: catalog::OLD_MODEL.to_string(),
            user: String::new(),
            prompt: PROMPT_TOKENS,
            completion: generation.completion_tokens,
            cost_pico: generation.cost_nusd() * 1_000,
        });
        listed.collect()
    }

    fn generation(&self, id: &str) -> Generation {
        self.state().generations[id].clone()
    }
}

pub struct Model {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Model {
    pub async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket");
        let state = State { manner, generations: BTreeMap::new(), chats: Vec::new(), calls: 0 };
        let shared = Arc::new(Shared(Mutex::new(state)));
        let accepting = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Self { shared, address, accepting }
    }

    /// The base URL, up to and including `/v1`.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn behave(&self, manner: Manner) {
        self.shared.state().manner = manner;
    }

    /// The truth, by generation id.
    pub fn generations(&self) -> BTreeMap<String, Generation> {
        self.shared.state().generations.clone()
    }

    /// The bodies of all chat completions so far.
    pub fn chats(&self) -> Vec<Value> {
        self.shared.state().chats.clone()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        connections.spawn(async move {
            // A broken connection is what the tests are about.
            let _ = serve(&stream, &shared).await;
        });
    }
}

async fn serve(stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some(request) = http::read_request(stream, &mut buffer).await {
        match (request.method.as_str(), request.path()) {
            ("POST", CHAT) => chat(stream, shared, &request).await?,
            ("GET", "/v1/models") => {
                json_answer(stream, 200, &[], &catalog::openrouter_models().to_string()).await?;
            }
            ("GET", "/v1/generation") => generation(stream, shared, &request).await?,
            ("GET", "/spend/logs/v2") => {
                let (status, text) = listed::spend_logs(&shared.listed(), &request);
                json_answer(stream, status, &[], &text).await?;
            }
            _ => json_answer(stream, 404, &[], r#"{"error":{"message":"no such path"}}"#).await?,
        }
    }
    Ok(())
}

/// Begins a generation, whose truth is kept from here on.
fn begin(shared: &Shared, body: &Value) -> (Generation, Manner, i64) {
    let mut state = shared.state();
    let manner = state.manner.clone();
    let number = i64::try_from(state.chats.len()).expect("few");
    state.chats.push(body.clone());
    let cap = ["max_tokens", "max_completion_tokens"].iter().find_map(|name| body[*name].as_i64());
    // Different lengths, the same ones in every run.
    let wants = manner.tokens + (number * 7_919) % manner.spread.max(1);
    let says = match cap {
        Some(cap) if manner.obeys => wants.min(cap),
        Some(cap) => wants.max(cap + manner.excess),
        None => wants,
    };
    let generation = Generation {
        id: format!("gen-{:06}", number + 1),
        completion_tokens: 0,
        cap,
        is_over: false,
        is_told: false,
        began_at: OffsetDateTime::now_utc(),
        not_found: manner.not_found,
        provider: manner.provider,
    };
    state.generations.insert(generation.id.clone(), generation.clone());
    (generation, manner, says)
}

async fn chat(stream: &TcpStream, shared: &Shared, request: &Request) -> io::Result<()> {
    let body: Value = serde_json::from_slice(&request.body).expect("the forwarded body is JSON");
    if shared.fails() {
        return json_answer(stream, 503, &[], r#"{"error":{"message":"overloaded"}}"#).await;
    }
    let (generation, manner, says) = begin(shared, &body);
    let id = &generation.id;
    let speak = async {
        tokio::time::sleep(manner.head_after).await;
        manner.stall(Stall::Head).await;
        if body["stream"] == json!(true) {
            speak(stream, shared, id, &manner, says).await
        } else {
            shared.change(id, |generation| generation.completion_tokens = says);
            tokio::time::sleep(manner.pause).await;
            let text = plain(&shared.generation(id), says);
            json_answer(stream, 200, &[("X-Generation-Id", id)], &text).await
        }
    };
    // A peer that hangs up is seen at once, also between two tokens.
    let mut nothing = Vec::new();
    let spoken = tokio::select! {
        spoken = speak => spoken,
        read = http::read_some(stream, &mut nothing) => {
            read.and(Err(io::ErrorKind::ConnectionAborted.into()))
        }
    };
    shared.change(id, |generation| {
        // Nobody listens any more: a provider that does not stop makes, and bills, the rest.
        if spoken.is_err() && !manner.stops {
            generation.completion_tokens = says;
        }
        generation.is_over = true;
        generation.is_told = spoken.is_ok();
    });
    spoken
}

async fn speak(
    stream: &TcpStream,
    shared: &Shared,
    id: &str,
    manner: &Manner,
    says: i64,
) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nX-Generation-Id: {id}\r\n\r\n"
    );
    write(stream, head.as_bytes()).await?;
    let word =
        r#"[{"index":0,"delta":{"role":"assistant","content":" the"},"finish_reason":null}]"#;
    manner.stall(Stall::FirstToken).await;
    for said in 0..says {
        manner.stall(Stall::Tokens(said)).await;
        shared.change(id, |generation| generation.completion_tokens += 1);
        if said >= manner.unseen || said + 1 == says {
            write(stream, &chunk(chunk_text(id, manner, word, "").as_bytes())).await?;
        }
        if !manner.pause.is_zero() {
            tokio::time::sleep(manner.pause).await;
        }
    }
    let stop = r#"[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]"#;
    write(stream, &chunk(chunk_text(id, manner, stop, "").as_bytes())).await?;
    manner.stall(Stall::Usage).await;
    if manner.tells_usage {
        let usage = format!(r#","usage":{}"#, shared.generation(id).usage_text());
        write(stream, &chunk(chunk_text(id, manner, "[]", &usage).as_bytes())).await?;
    }
    manner.stall(Stall::Done).await;
    write(stream, &chunk(DONE.as_bytes())).await?;
    write(stream, b"0\r\n\r\n").await
}

fn chunk_text(id: &str, manner: &Manner, choices: &str, usage: &str) -> String {
    let (provider, model) = (manner.provider, catalog::OLD_MODEL);
    event(&format!(
        r#"{{"id":"{id}","provider":"{provider}","model":"{model}","object":"chat.completion.chunk","created":1764000000,"choices":{choices}{usage}}}"#
    ))
}

fn plain(generation: &Generation, says: i64) -> String {
    let text = " the".repeat(usize::try_from(says).expect("few"));
    let (id, usage, model) = (&generation.id, generation.usage_text(), catalog::OLD_MODEL);
    format!(
        r#"{{"id":"{id}","provider":"{}","object":"chat.completion","created":1764000000,"model":"{model}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}","refusal":null}},"logprobs":null,"finish_reason":"stop"}}],"usage":{usage}}}"#,
        generation.provider
    )
}

async fn generation(stream: &TcpStream, shared: &Shared, request: &Request) -> io::Result<()> {
    let id = request.target.split_once("id=").map(|(_, id)| id).unwrap_or_default();
    let found = {
        let mut state = shared.state();
        let generation = state.generations.get_mut(id).filter(|generation| generation.is_over);
        match generation {
            Some(generation) if generation.not_found == 0 => Some(generation.looked_up()),
            Some(generation) => {
                generation.not_found -= 1;
                None
            }
            None => None,
        }
    };
    if let Some(text) = found {
        return json_answer(stream, 200, &[], &text).await;
    }
    json_answer(stream, 404, &[], r#"{"error":{"code":404,"message":"not yet, or never"}}"#).await
}

async fn json_answer(
    stream: &TcpStream,
    status: u16,
    extra: &[(&str, &str)],
    body: &str,
) -> io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {status} Model\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in extra {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head += "\r\n";
    write(stream, (head + body).as_bytes()).await
}

async fn write(stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    http::write_all(stream, bytes, |_| {}).await
}
