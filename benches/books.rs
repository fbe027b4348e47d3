//! What the books take when there are many of them: fills a database with calls whose events wait
//! for OpenMeter and Stripe, has the real binary verify it, and drains the events into sinks that
//! take everything. Prints times, rates and memory.
//!
//! `BENCH_DATABASE_URL=… cargo bench --bench books -- 1000000` on an empty database. Arguments after
//! the number: `stream` drains by Stripe's meter event stream. No test runs this.

#![expect(clippy::expect_used, reason = "a bench fails loudly")]

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tollgate::models::money::{Markup, PicoUsd};
use tollgate::models::price::{Price, Rates, Rule, Terms};
use tollgate::models::timestamp::Timestamp;

#[path = "../tests/it/seed.rs"]
mod seed;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
const ACCOUNTS: usize = 200;
/// The outage that made the backlog.
const DAY_SECONDS: u64 = 86_400;
/// Calls that are made and written at once.
const PART: usize = 10_000;
/// A sink that was told nothing for so long has everything.
const QUIET: Duration = Duration::from_secs(15);

/// What a sink was told.
#[derive(Default)]
struct Told {
    calls: AtomicUsize,
    events: AtomicUsize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let count = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let is_stream = arguments.iter().any(|argument| argument == "stream");
    let url = std::env::var("BENCH_DATABASE_URL").expect("BENCH_DATABASE_URL: an empty database");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let began = Instant::now();
    runtime.block_on(fill(&url, count));
    println!("filled with {count} calls in {:?}", began.elapsed());
    verify(&url);
    drain(&url, count, is_stream);
    verify(&url);
}

fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments).env_clear().env("DATABASE_URL", url).stdin(Stdio::null());
    command
}

async fn fill(url: &str, count: usize) {
    let mut accounts = Vec::new();
    for number in 0..ACCOUNTS {
        let (name, customer) = (format!("a{number}"), format!("cus_{number}"));
        let create = ["account", "create", "--name", &name, "--credit", "1000000"];
        let create = [&create[..], &["--stripe-customer", &customer]].concat();
        let made = command(url, &create).output().expect("the binary runs");
        let id = String::from_utf8(made.stdout).expect("an id");
        accounts.push(id.trim().parse().expect("an id"));
    }
    let store = seed::open(url, &["openmeter", "stripe"]).await;
    store
        .register_sinks(Timestamp::now().minus(Duration::from_secs(2 * DAY_SECONDS)))
        .await
        .expect("sinks");
    let price = Price::new(Terms {
        upstream: String::new(),
        model: "bench/model".to_owned(),
        plan: String::new(),
        rule: Rule::CostPlus,
        markup_ppm: Markup(1_200_000),
        rates: Rates { prompt: PicoUsd(1), completion: PicoUsd(1), ..Rates::default() },
        overrides: vec![],
    });
    store.put_prices(&[Arc::new(price.clone())], Timestamp::now()).await.expect("a price");
    let began = Timestamp::now().minus(Duration::from_secs(DAY_SECONDS));
    let step = DAY_SECONDS * 1_000_000 / u64::try_from(count).expect("a number");
    for first in (0..count).step_by(PART) {
        let calls: Vec<seed::Call> = (first..count.min(first + PART))
            .map(|number| seed::Call {
                key: None,
                account: accounts[number % ACCOUNTS],
                upstream: "openrouter",
                generation_id: format!("gen-{number}"),
                prompt: 100,
                completion: 50,
                cost_pico: 1_234_567 + i64::try_from(number).expect("small"),
                at: began.plus(Duration::from_micros(step * u64::try_from(number).expect("small"))),
                seconds: 1,
            })
            .collect();
        seed::write(store.as_ref(), &price, &calls, u64::try_from(first).expect("small")).await;
    }
}

/// A line of `/proc/<pid>/status`.
fn status(child: &Child, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    let text = text.unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim_matches([':', '\t', ' ']).to_owned()
}

fn verify(url: &str) {
    let began = Instant::now();
    let mut child = command(url, &["verify"]).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut peak = String::new();
    let ended = loop {
        if let Some(ended) = child.try_wait().expect("a child") {
            break ended;
        }
        let now = status(&child, "VmHWM");
        peak = if now.is_empty() { peak } else { now };
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut said = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
    println!("verify: {:?}, at most {peak}, {ended}\n{}", began.elapsed(), said.trim());
}

fn drain(url: &str, count: usize, is_stream: bool) {
    let (openmeter, stripe) = (Arc::new(Told::default()), Arc::new(Told::default()));
    let (at_openmeter, at_stripe) = (listen(openmeter.clone()), listen(stripe.clone()));
    let mut serve = command(url, &["serve"]);
    serve
        .env("TOLLGATE_LISTEN", "127.0.0.1:0")
        .env("UPSTREAM_BASE_URL", "http://127.0.0.1:1/v1")
        .env("OPENMETER_URL", format!("{at_openmeter}/api/v1/events"))
        .env("STRIPE_SECRET_KEY", "sk_test_bench")
        .env("STRIPE_API_BASE", &at_stripe)
        .env("STRIPE_STREAM_BASE", &at_stripe)
        .env("STRIPE_METER_STREAM", if is_stream { "on" } else { "off" })
        .env("STRIPE_CALLS_PER_SECOND", "1000000")
        .env("TOLLGATE_LOG", "warn")
        .stdout(Stdio::null());
    let mut child = serve.spawn().expect("it runs");
    let began = Instant::now();
    let mut sums = (0, Instant::now());
    let (mut half_openmeter, mut marks) = (false, String::new());
    let seen = |told: &Told| told.events.load(Ordering::Relaxed);
    while sums.1.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(200));
        let (o, s) = (seen(&openmeter), seen(&stripe));
        if o + s != sums.0 {
            sums = (o + s, Instant::now());
        }
        let is_mark = marks.is_empty() && o + s > 0 || !half_openmeter && o * 2 > count;
        half_openmeter |= o * 2 > count;
        if is_mark || o == count && !marks.contains("openmeter done") {
            let done = if o == count { "openmeter done, " } else { "" };
            let rss = status(&child, "VmRSS");
            let _ = writeln!(marks, "{done}after {:?}: {o} + {s} events, {rss}", began.elapsed());
        }
    }
    let took = sums.1.duration_since(began);
    println!(
        "{marks}drained in {took:?}: OpenMeter {} events in {} calls, Stripe {} in {} calls, \
         at the end {}, at most {}",
        seen(&openmeter),
        openmeter.calls.load(Ordering::Relaxed),
        seen(&stripe),
        stripe.calls.load(Ordering::Relaxed),
        status(&child, "VmRSS"),
        status(&child, "VmHWM")
    );
    child.kill().expect("a child");
    child.wait().expect("a child");
}

/// A sink that takes everything; its address.
fn listen(told: Arc<Told>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let told = told.clone();
            std::thread::spawn(move || take(stream, &told));
        }
    });
    address
}

fn take(mut stream: TcpStream, told: &Told) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let head = loop {
            let end = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
            more(&mut stream, &mut buffer)?;
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let end = head + length.map_or(0, |text| text.trim().parse().unwrap_or(0));
        while buffer.len() < end {
            more(&mut stream, &mut buffer)?;
        }
        let body = String::from_utf8_lossy(&buffer[head..end]);
        let is_session = text.contains("meter_event_session");
        // One in each event: of a CloudEvent, and of Stripe's two forms.
        let events = body.matches("specversion").count() + body.matches("identifier").count();
        if !is_session {
            told.calls.fetch_add(1, Ordering::Relaxed);
            told.events.fetch_add(events, Ordering::Relaxed);
        }
        let answer = r#"{"authentication_token":"t","expires_at":"2999-01-01T00:00:00Z"}"#;
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        stream.write_all(answer.as_bytes()).ok()?;
        buffer.drain(..end);
    }
}

fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut space = vec![0; 64 * 1024];
    let read = stream.read(&mut space).ok().filter(|read| *read > 0)?;
    buffer.extend_from_slice(&space[..read]);
    Some(())
}
