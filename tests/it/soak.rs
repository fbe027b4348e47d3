//! Soak: mixed load for as long as one likes; memory and file descriptors stay flat.
//!
//! `TOLLGATE_TEST_SOAK_SECONDS` says for how long (20 here; an hour is 3600), on both stores.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;

use crate::app::process::Process;
use crate::app::{Setup, Store, TestApp, both_stores, question, streamed};
use crate::client::{Ask, Exchange};
use crate::random::Random;
use crate::upstream::catalog::OLD_MODEL;
use crate::upstream::model::{Manner, Model};

both_stores!(memory_and_descriptors_stay_flat);

const CLIENTS: u64 = 6;
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

fn seconds() -> u64 {
    let given = std::env::var("TOLLGATE_TEST_SOAK_SECONDS").ok();
    given.map_or(20, |text| text.parse().expect("TOLLGATE_TEST_SOAK_SECONDS is a number"))
}

/// Resident memory and open descriptors.
#[derive(Clone, Copy)]
struct Sample {
    kilobytes: usize,
    descriptors: usize,
}

impl Sample {
    fn of(process: &Process) -> Self {
        let kilobytes = process.resident_bytes() >> 10;
        let folder = format!("/proc/{}/fd", process.id());
        let descriptors = std::fs::read_dir(folder).expect("it lives").count();
        Self { kilobytes, descriptors }
    }
}

/// The most of each in a quarter of the samples.
fn most(samples: &[Sample]) -> Sample {
    let of = |number: fn(&Sample) -> usize| samples.iter().map(number).max().expect("samples");
    Sample { kilobytes: of(|it| it.kilobytes), descriptors: of(|it| it.descriptors) }
}

/// What a caller or an operator does, one of it.
async fn one(address: SocketAddr, key: &str, operator: &str, random: &Random) {
    let ask = |body: serde_json::Value| {
        Ask::post_json("/v1/chat/completions", body.to_string()).bearer(key)
    };
    let asked = match random.below(12) {
        0..4 => ask(streamed(OLD_MODEL)),
        4..7 => ask(question(OLD_MODEL)),
        7 => {
            // Hangs up in the middle.
            let mut exchange = Exchange::open(address, &ask(streamed(OLD_MODEL)).bytes()).await;
            exchange.linger(5).await;
            return exchange.hang_up();
        }
        8 => Ask::get("/v1/organization/costs?start_time=1764547200").bearer(key),
        9 => Ask::get("/admin/v1/accounts").bearer(operator),
        10 => Ask::post_json("/v1/chat/completions", "{\"model\":").bearer(key),
        _ => Ask::get("/v1/models").bearer("sk-tg-nobody"),
    };
    let got = Exchange::open(address, &asked.bytes()).await.finish().await;
    assert!([200, 400, 401, 429].contains(&got.status), "{}: {}", got.status, got.text());
}

async fn memory_and_descriptors_stay_flat(store: Store) {
    let random = Random::from_environment();
    let manner =
        Manner { tokens: 1, spread: 60, pause: Duration::from_millis(1), ..Manner::obedient() };
    let model = Model::start(manner).await;
    let setup = Setup::new(store).credit("1000000").env("UPSTREAM_BASE_URL", &model.url());
    let app = setup.start().await;
    let operator = app.create_key("test", &["--role", "service"]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients = (0..CLIENTS).map(|number| {
        let (stop, random) = (stop.clone(), Random::new(random.seed() + number));
        let (address, key, operator) = (app.address(), app.key.clone(), operator.clone());
        async move {
            while !stop.load(Ordering::SeqCst) {
                one(address, &key, &operator, &random).await;
            }
        }
    });
    let clients = tokio::spawn(join_all(clients));
    let samples = sample(&app).await;
    stop.store(true, Ordering::SeqCst);
    clients.await.expect("no client panics");
    let quarter = samples.len() / 4;
    let (early, late) = (most(&samples[quarter..2 * quarter]), most(&samples[3 * quarter..]));
    println!(
        "{random}: {} calls; second quarter {} kB and {} descriptors, last {} kB and {}",
        model.chats().len(),
        early.kilobytes,
        early.descriptors,
        late.kilobytes,
        late.descriptors
    );
    assert!(model.chats().len() > 20, "there was no load");
    // A quarter more and what a few connections come to: allocators keep what they had once.
    let flat = early.kilobytes + early.kilobytes / 4 + 16 * 1024;
    assert!(late.kilobytes <= flat, "{random}: memory grows: {} kB", late.kilobytes);
    assert!(late.descriptors <= early.descriptors + 32, "{random}: {}", late.descriptors);
    app.finish().await;
}

async fn sample(app: &TestApp) -> Vec<Sample> {
    let began = tokio::time::Instant::now();
    let mut samples = Vec::new();
    while began.elapsed() < Duration::from_secs(seconds()) {
        samples.push(Sample::of(&app.process));
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
    samples
}
