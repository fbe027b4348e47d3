//! What the scripted upstream does with one request: steps, played in order.
//!
//! A step is as close to the socket as a test needs it: one `Write` or `Chunk` is one write call,
//! and one `Chunk` is one chunk of the chunked encoding, which HTTP clients hand on as one frame.
//! So a test decides where frames begin and end without sleeping.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Holds a script back until the test lets it go on.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub async fn passed(&self) {
        let mut seen = self.0.subscribe();
        // The sender lives in `self`, so this can only end by the gate opening.
        let _ = seen.wait_for(|open| *open).await;
    }
}

#[derive(Clone)]
pub enum Step {
    /// Status line and headers.
    Head(u16, Vec<(String, String)>),
    /// Raw bytes in one write.
    Write(Vec<u8>),
    /// One chunk of the chunked encoding, in one write.
    Chunk(Vec<u8>),
    Sleep(Duration),
    /// Stall until the gate opens.
    Wait(Gate),
    /// The zero chunk: a clean end, after which the connection serves the next request.
    End,
    /// Both directions closed in good order.
    Close,
    /// No more bytes from here, but the socket stays open until the peer closes.
    HalfClose,
    /// The connection is reset.
    Rst,
}

/// What a call really used, as its own upstream reports it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Truth {
    pub prompt_tokens: i64,
    pub completion_tokens: i64,
    /// `None`: the upstream does not say.
    pub cost_nusd: Option<i64>,
}

#[derive(Clone, Default)]
pub struct Script {
    pub steps: Vec<Step>,
    /// Generation id and usage, when the script reports a usage.
    pub truth: Option<(String, Truth)>,
}

impl Script {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    pub fn head(self, status: u16, headers: &[(&str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        self.step(Step::Head(status, headers.collect()))
    }

    /// The head of a streamed answer.
    pub fn stream() -> Self {
        Self::new()
            .head(200, &[("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
    }

    /// A whole JSON answer.
    pub fn json(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self::json_with(status, &[], body)
    }

    pub fn json_with(status: u16, extra: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let length = body.len().to_string();
        let mut headers =
            vec![("Content-Type", "application/json"), ("Content-Length", length.as_str())];
        headers.extend_from_slice(extra);
        Self::new().head(status, &headers).write(body)
    }

    pub fn write(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::Write(bytes.as_ref().to_vec()))
    }

    pub fn chunk(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::Chunk(bytes.as_ref().to_vec()))
    }

    pub fn chunks<T: AsRef<[u8]>>(self, chunks: impl IntoIterator<Item = T>) -> Self {
        chunks.into_iter().fold(self, Self::chunk)
    }

    pub fn sleep(self, milliseconds: u64) -> Self {
        self.step(Step::Sleep(Duration::from_millis(milliseconds)))
    }

    pub fn wait(self, gate: &Gate) -> Self {
        self.step(Step::Wait(gate.clone()))
    }

    /// Goes on with another script, and has its truth.
    pub fn then(mut self, rest: Self) -> Self {
        self.steps.extend(rest.steps);
        Self { truth: rest.truth, ..self }
    }

    pub fn end(self) -> Self {
        self.step(Step::End)
    }

    pub fn rst(self) -> Self {
        self.step(Step::Rst)
    }

    pub fn close(self) -> Self {
        self.step(Step::Close)
    }
}
