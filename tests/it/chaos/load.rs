//! Clients as they are: many keys, plain and streamed, another replica when one does not answer.
//!
//! What is counted: a request succeeds when one of its attempts gives a whole answer. An attempt
//! that gets no connection, a broken answer or a 5xx is followed by one to the next replica, after
//! a moment; when all three have been asked, after the seconds of `Retry-After`; up to
//! [`ATTEMPTS_MAX`]. Every attempt that failed is kept with its second, the fault in
//! force and the reason, also where the request succeeded.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;

use crate::client::{Answered, Ask, Exchange};
use crate::random::Random;
use crate::upstream::model::generation_of;

/// Three rounds of three replicas: an SDK's first try and its two retries, behind a load balancer
/// that passes by who does not answer.
const ATTEMPTS_MAX: usize = 9;
const PAUSE: Duration = Duration::from_millis(100);
/// As our own 503 says it.
const ROUND_PAUSE: Duration = Duration::from_secs(2);
/// An attempt that takes longer has failed.
const ATTEMPT_WAIT: Duration = Duration::from_secs(15);

pub struct Load {
    shared: Arc<Shared>,
    clients: tokio::task::JoinHandle<Vec<()>>,
}

struct Shared {
    addresses: Vec<SocketAddr>,
    keys: Vec<String>,
    bodies: Vec<Value>,
    began: Instant,
    fault: Mutex<&'static str>,
    is_over: AtomicBool,
    tally: Mutex<Tally>,
}

/// All that the clients saw.
#[derive(Default)]
pub struct Tally {
    pub served: Vec<Served>,
    pub failed: Vec<Failure>,
    pub attempts_failed: Vec<Failure>,
    /// Generations of which a byte reached somebody in an attempt that failed.
    pub glimpsed: Vec<String>,
    pub slowest: Duration,
}

/// A whole answer.
pub struct Served {
    pub request: String,
    pub generation: String,
}

#[derive(Clone)]
pub struct Failure {
    pub second: u64,
    pub fault: &'static str,
    pub reason: String,
}

impl Load {
    pub fn start(
        addresses: Vec<SocketAddr>,
        keys: Vec<String>,
        bodies: Vec<Value>,
        clients: u64,
        seed: u64,
    ) -> Self {
        let shared = Arc::new(Shared {
            addresses,
            keys,
            bodies,
            began: Instant::now(),
            fault: Mutex::new("none"),
            is_over: AtomicBool::new(false),
            tally: Mutex::default(),
        });
        let clients = (0..clients).map(|number| call(shared.clone(), Random::new(seed + number)));
        let clients = tokio::spawn(join_all(clients));
        Self { shared, clients }
    }

    /// From now on this is to blame.
    pub fn fault(&self, name: &'static str) {
        *self.shared.fault.lock().expect("no panic") = name;
    }

    pub fn second(&self) -> u64 {
        self.shared.began.elapsed().as_secs()
    }

    pub fn served(&self) -> usize {
        self.shared.tally.lock().expect("no panic").served.len()
    }

    pub async fn end(self) -> Tally {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.clients.await.expect("no client panics");
        std::mem::take(&mut self.shared.tally.lock().expect("no panic"))
    }
}

impl Shared {
    fn served(&self, served: Served, after: Duration) {
        let mut tally = self.tally.lock().expect("no panic");
        tally.served.push(served);
        tally.slowest = tally.slowest.max(after);
    }

    fn failed(&self, reason: String, generation: Option<String>) -> Failure {
        let fault = *self.fault.lock().expect("no panic");
        let failure = Failure { second: self.began.elapsed().as_secs(), fault, reason };
        let mut tally = self.tally.lock().expect("no panic");
        tally.attempts_failed.push(failure.clone());
        tally.glimpsed.extend(generation);
        failure
    }
}

async fn call(shared: Arc<Shared>, random: Random) {
    while !shared.is_over.load(Ordering::SeqCst) {
        request(&shared, &random).await;
        let pause = u64::try_from(20 + random.below(60)).expect("few");
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn request(shared: &Shared, random: &Random) {
    let body = random.pick(&shared.bodies).to_string();
    let key: &String = random.pick(&shared.keys);
    let ask = Ask::post_json("/v1/chat/completions", body).bearer(key);
    let (bytes, first, began) = (ask.bytes(), random.below(3), Instant::now());
    let mut last = None;
    for attempt in 0..ATTEMPTS_MAX {
        let address = shared.addresses[(first + attempt) % shared.addresses.len()];
        let got = tokio::time::timeout(ATTEMPT_WAIT, try_once(address, &bytes)).await;
        let got = got.unwrap_or_else(|_| Err(("no answer in time".to_owned(), None)));
        match got {
            Ok(served) => return shared.served(served, began.elapsed()),
            Err((reason, generation)) => {
                let reason = format!("replica {}: {reason}", (first + attempt) % 3);
                last = Some(shared.failed(reason, generation));
            }
        }
        let is_round = (attempt + 1) % shared.addresses.len() == 0;
        tokio::time::sleep(if is_round { ROUND_PAUSE } else { PAUSE }).await;
    }
    shared.tally.lock().expect("no panic").failed.extend(last);
}

/// What came, or why it is no whole answer and which generation it was the beginning of.
async fn try_once(address: SocketAddr, bytes: &[u8]) -> Result<Served, (String, Option<String>)> {
    let exchange = Exchange::try_open(address, bytes).await;
    let exchange = exchange.map_err(|error| (format!("no connection: {error}"), None))?;
    let got = exchange.finish().await;
    let generation = generation_of(&got.text()).filter(|_| got.status == 200);
    match (is_whole(&got), generation) {
        (true, Some(generation)) => Ok(Served { request: got.request_id(), generation }),
        (_, generation) => Err((reason(&got), generation)),
    }
}

fn is_whole(got: &Answered) -> bool {
    let is_stream = got.header("content-type").is_some_and(|it| it.starts_with("text/event"));
    got.status == 200 && got.complete && (!is_stream || got.text().ends_with("data: [DONE]\n\n"))
}

fn reason(got: &Answered) -> String {
    match got.status {
        0 => "the connection ended before an answer".to_owned(),
        200 => "the answer broke off".to_owned(),
        status => {
            let error: Value = serde_json::from_slice(&got.body).unwrap_or_default();
            format!("{status} {}", error["error"]["code"])
        }
    }
}
