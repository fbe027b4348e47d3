//! A webhook's receiver that believes nothing: it checks every signature and time before it reads.
//!
//! The HMAC is made with another library call than the program's: over the parts, one by one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::server::{Fault, Faults, Handler, Reply, Server};
use crate::app::clock::Clock;
use crate::upstream::http::Request;

/// `whsec_` and 32 bytes.
pub const SECRET: &str = "whsec_dG9sbGdhdGUtd2ViaG9vay1zZWNyZXQtMDQ1MTAxMjM=";
/// The standard's tolerance.
const SECONDS_MAX: i64 = 300;

#[derive(Default)]
struct State {
    events: BTreeMap<String, Value>,
    deliveries: usize,
    forged: usize,
    stale: usize,
}

#[derive(Default)]
pub struct Books {
    state: Mutex<State>,
    clock: Clock,
}

pub struct Webhook {
    pub server: Server,
    books: Arc<Books>,
    pub faults: Arc<Faults>,
}

impl Webhook {
    pub async fn start() -> Self {
        Self::start_by(&Clock::default()).await
    }

    pub async fn start_by(clock: &Clock) -> Self {
        let books = Arc::new(Books { clock: clock.clone(), ..Books::default() });
        let faults = Arc::new(Faults::default());
        let server = Server::start(books.clone(), faults.clone()).await;
        Self { server, books, faults }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hooks", self.server.address)
    }

    /// By `webhook-id`.
    pub fn events(&self) -> BTreeMap<String, Value> {
        self.books.state.lock().expect("no panic").events.clone()
    }

    /// What had the wrong time: of a call during which a test moved the clock.
    pub fn stale(&self) -> usize {
        self.books.state.lock().expect("no panic").stale
    }

    /// What could not be verified.
    pub fn forged(&self) -> usize {
        self.books.state.lock().expect("no panic").forged
    }

    pub fn deliveries(&self) -> usize {
        self.books.state.lock().expect("no panic").deliveries
    }
}

impl Handler for Books {
    async fn handle(&self, request: &Request, fault: Fault) -> Reply {
        let mut state = self.state.lock().expect("no panic");
        state.deliveries += 1;
        let Some((id, at)) = verified(request) else {
            state.forged += 1;
            return Reply::empty(401);
        };
        if (self.clock.seconds() - at).abs() > SECONDS_MAX {
            state.stale += 1;
            return Reply::empty(401);
        }
        let event: Value = serde_json::from_slice(&request.body).expect("a signed body is JSON");
        let first = state.events.entry(id).or_insert_with(|| event.clone());
        assert_eq!(*first, event, "the same id is the same event");
        if let Fault::FailAfter(status) = fault { Reply::empty(status) } else { Reply::empty(200) }
    }
}

/// Whose signature is right: its id and time.
fn verified(request: &Request) -> Option<(String, i64)> {
    let id = request.header("webhook-id")?;
    let at = request.header("webhook-timestamp")?;
    let secret = STANDARD.decode(SECRET.strip_prefix("whsec_")?).ok()?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    let mut signer = hmac::Context::with_key(&key);
    for part in [id.as_bytes(), b".", at.as_bytes(), b".", &request.body] {
        signer.update(part);
    }
    let expected = STANDARD.encode(signer.sign().as_ref());
    let signatures = request.header("webhook-signature")?.split(' ');
    let mut given = signatures.filter_map(|signature| signature.strip_prefix("v1,"));
    given.any(|given| given == expected).then_some((id.to_string(), at.parse().ok()?))
}
