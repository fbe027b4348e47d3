//! Limits of rate are exact, however many processes share them: far more is asked for than there is
//! room, and no minute has more than its limit, nor hardly less.
//!
//! A burst takes seconds. `TOLLGATE_TEST_LIMITS_SECONDS` goes on asking for so long, over several
//! windows, and prints what came of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;

use crate::app::process::Process;
use crate::app::{Setup, Store, TestApp, address_of, both_stores, streamed};
use crate::client::{Ask, Exchange};
use crate::upstream::catalog::OLD_MODEL;
use crate::upstream::model::{Manner, Model, PROMPT_TOKENS};

both_stores!(requests_are_exact, tokens_are_exact);

const MINUTE: Duration = Duration::from_secs(60);
const CLIENTS: usize = 60;
/// Who was refused comes back after this: there is always somebody waiting for room.
const PAUSE: Duration = Duration::from_millis(100);
/// So many in a row, and what the others had reserved and did not use is used as well.
const REFUSALS: usize = 5;

/// A call that was let in: some time between these two.
struct LetIn {
    sent: Instant,
    answered: Instant,
    request_id: String,
    /// What it took of the limit.
    weight: i64,
}

/// How long calls go on beyond the first burst.
fn time() -> Duration {
    let seconds = std::env::var("TOLLGATE_TEST_LIMITS_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(0))
}

/// Processes on one database, and an account with a limit.
struct Site {
    app: TestApp,
    model: Model,
    replicas: Vec<Process>,
    addresses: Vec<SocketAddr>,
    key: String,
}

impl Site {
    async fn open(store: Store, limit: [&str; 2]) -> Self {
        let manner = Manner { tokens: 10, spread: 30, ..Manner::obedient() };
        let model = Model::start(manner).await;
        let app = Setup::new(store).env("UPSTREAM_BASE_URL", &model.url()).start().await;
        app.create_account("fast", &[&["--credit", "100000"][..], &limit[..]].concat()).await;
        let key = app.create_key("fast", &[]).await;
        let mut site = Self { addresses: vec![app.address()], app, model, replicas: vec![], key };
        let more = if store == Store::Postgres { 2 } else { 0 };
        for _ in 0..more {
            let (replica, base_url) = site.app.replica().await;
            site.replicas.push(replica);
            site.addresses.push(address_of(&base_url));
        }
        site
    }

    /// Calls until `end` is past and there is no more room.
    async fn client(&self, number: usize, end: Instant) -> Vec<LetIn> {
        let mut body = streamed(OLD_MODEL);
        body["max_tokens"] = json!(40);
        let ask = Ask::post_json("/v1/chat/completions", body.to_string()).bearer(&self.key);
        let (mut admitted, mut refused) = (Vec::new(), 0);
        for call in 0.. {
            if refused >= REFUSALS && Instant::now() >= end {
                break;
            }
            let sent = Instant::now();
            let address = self.addresses[(number + call) % self.addresses.len()];
            let got = Exchange::open(address, &ask.bytes()).await.finish().await;
            if got.status == 200 {
                got.ok();
                let (answered, request_id) = (Instant::now(), got.request_id());
                admitted.push(LetIn { sent, answered, request_id, weight: 1 });
                refused = 0;
                continue;
            }
            assert_eq!(got.json()["error"]["code"], json!("rate_limit_exceeded"), "{}", got.text());
            refused += 1;
            tokio::time::sleep(PAUSE).await;
        }
        admitted
    }

    async fn ask_too_much(&self) -> Vec<LetIn> {
        let end = Instant::now() + time();
        let clients = (0..CLIENTS).map(|number| self.client(number, end));
        let admitted = join_all(clients).await.into_iter().flatten().collect();
        self.app.settled().await;
        admitted
    }

    async fn close(mut self) {
        for replica in &mut self.replicas {
            assert_eq!(replica.status(), None, "a replica ended by itself");
            replica.kill();
        }
        self.app.finish().await;
    }
}

/// The most that was let in within a minute, as far as the clients can know.
fn most_in_a_minute(admitted: &[LetIn]) -> i64 {
    let from = |first: &LetIn| -> i64 {
        let end = first.sent + MINUTE;
        let within = |one: &&LetIn| one.sent >= first.sent && one.answered < end;
        admitted.iter().filter(within).map(|one| one.weight).sum()
    };
    admitted.iter().map(from).max().unwrap_or_default()
}

/// No more than the limit in any minute, and in each no less than 99 % of it.
fn check(what: &str, admitted: &[LetIn], limit: i64, slack: i64, started: Instant) {
    let total: i64 = admitted.iter().map(|one| one.weight).sum();
    let most = most_in_a_minute(admitted);
    let minutes = i64::try_from(time().as_secs() / 60).expect("few");
    let seconds = started.elapsed().as_secs();
    println!("{what}: limit {limit}; in {seconds} s {total} let in, {most} in the fullest minute");
    assert!(most <= limit, "{most} in a minute, and the limit is {limit}");
    let least = (limit - slack) * minutes.max(1) * 99 / 100;
    assert!(total >= least, "{total} let in, and there was room for {least}");
}

async fn requests_are_exact(store: Store) {
    let limit = 100;
    let site = Site::open(store, ["--rpm", "100"]).await;
    let started = Instant::now();
    let admitted = site.ask_too_much().await;
    check("requests", &admitted, limit, 0, started);
    assert_eq!(site.model.chats().len(), admitted.len(), "who is refused calls nobody");
    site.app.records(admitted.len()).await;
    site.close().await;
}

async fn tokens_are_exact(store: Store) {
    let limit = 10_000;
    let site = Site::open(store, ["--tpm", "10000"]).await;
    let started = Instant::now();
    let mut admitted = site.ask_too_much().await;
    let records = site.app.records(admitted.len()).await;
    for one in &mut admitted {
        let record = records.iter().find(|record| record.id == one.request_id);
        let record = record.expect("a record of each");
        assert_eq!(record.prompt_tokens, PROMPT_TOKENS);
        one.weight = record.prompt_tokens + record.completion_tokens;
    }
    // The last to be let in needs room for its cap, which it then does not use.
    check("tokens", &admitted, limit, 100, started);
    site.close().await;
}
