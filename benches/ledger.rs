//! What a decision costs, and what a row costs when it goes with others: the books alone, and each
//! store's transactions of one, 32 and 256 requests of one account, and of 256 of a thousand; and
//! 256 settlements alone.
//!
//! `cargo bench --bench ledger`; a database that `BENCH_DATABASE_URL` names, of either kind and with
//! whatever is in it, is measured beside a new SQLite file. An element is one request, placed and
//! settled; "row by row" is the batch of one.

#![expect(clippy::expect_used, reason = "a bench fails loudly")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tollgate::models::account::{Account, AccountKind, NewAccount};
use tollgate::models::audit::AuditEntry;
use tollgate::models::ids::AccountId;
use tollgate::models::ledger::EntryKind;
use tollgate::models::limits::RateLimits;
use tollgate::models::money::{Markup, NanoUsd, PicoUsd};
use tollgate::models::price::{Price, Rates, Rule, Terms};
use tollgate::models::timestamp::Timestamp;
use tollgate::services::tokens::{Vocabularies, count_prompt, estimate_prompt};
use tollgate::store::books::Books;
use tollgate::store::directory::Opening;
use tollgate::store::{Entry, Outcome, Store};

#[path = "../tests/it/seed.rs"]
mod seed;

/// Requests at once, and the accounts that they are of.
const BATCHES: [(usize, usize); 4] = [(1, 1), (32, 1), (256, 1), (256, 1_000)];
/// Numbers of requests that the other benches do not reach.
const SETTLED_FROM: u64 = 1 << 40;
const PLENTY: NanoUsd = NanoUsd(1_000_000_000_000_000);

fn price() -> Price {
    Price::new(Terms {
        upstream: String::new(),
        model: "bench/model".to_owned(),
        plan: String::new(),
        rule: Rule::CostPlus,
        markup_ppm: Markup(1_200_000),
        rates: Rates { prompt: PicoUsd(1), completion: PicoUsd(1), ..Rates::default() },
        overrides: Vec::new(),
    })
}

fn account(name: &str) -> Account {
    let new = NewAccount {
        name: name.to_owned(),
        kind: AccountKind::Prepaid,
        plan: None,
        limit_nusd: None,
        stripe_customer_id: None,
        rates: RateLimits::default(),
    };
    Account::open(new, Timestamp::now())
}

fn call(account: AccountId) -> seed::Call {
    seed::Call {
        account,
        key: None,
        upstream: "openrouter",
        generation_id: "gen-1764547200-a1b2c3d4e5f6".to_owned(),
        prompt: 100,
        completion: 50,
        cost_pico: 1_234_567,
        at: Timestamp::now(),
        seconds: 1,
    }
}

/// What is decided for one request in memory: its worst prompt, and whether its account can pay.
fn admission(criterion: &mut Criterion) {
    let tokenizer = Vocabularies::load().expect("vocabularies").for_model("gpt-4o-mini");
    let text = "Summarise the attached minutes in five points. ".repeat(40);
    let messages = serde_json::json!([{"role": "user", "content": text}]).to_string();
    let account = account("bench");
    let account = Account { balance_nusd: PLENTY, ..account };
    let (place, _) = seed::request(&price(), &call(account.id), 1);
    let books = || Books { accounts: [(account.id, account.clone())].into(), ..Books::default() };
    let (outcomes, _) = books().apply(std::slice::from_ref(&place), Timestamp::now());
    assert!(matches!(outcomes[..], [Outcome::Placed { .. }]), "{outcomes:?}");
    let mut group = criterion.benchmark_group("admission");
    group.bench_function("estimate of a 2 kB prompt", |bencher| {
        bencher.iter(|| estimate_prompt(black_box(&messages), None));
    });
    group.bench_function("tiktoken on the same prompt", |bencher| {
        bencher.iter(|| count_prompt(&tokenizer, black_box(&messages), None));
    });
    let now = Timestamp::now();
    group.bench_function("decision of the books", |bencher| {
        bencher.iter_batched(
            books,
            |mut books| books.apply(black_box(std::slice::from_ref(&place)), now),
            criterion::BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// A store with so many accounts that never run dry.
async fn filled(url: &str, name: &str, accounts: usize) -> (Box<dyn Store>, Vec<AccountId>) {
    let store = seed::open(url, &[]).await;
    store.migrate().await.expect("tables");
    let mut ids = Vec::with_capacity(accounts);
    for number in 0..accounts {
        let (account, now) = (account(&format!("{name} {number}")), Timestamp::now());
        ids.push(account.id);
        let credit = Entry {
            account_id: account.id,
            kind: EntryKind::Credit,
            amount_nusd: PLENTY,
            reason: "bench".to_owned(),
            reference: None,
            audit: None,
        };
        let audit = AuditEntry::new("bench", "account.create", &account.id, now);
        let opening = Opening { account, audit, member: None, credit: Some(credit) };
        store.open_account(&opening).await.expect("an account");
    }
    (store, ids)
}

fn batches(criterion: &mut Criterion, url: &str, kind: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let name = format!("bench {}", Timestamp::now());
    let price = price();
    let mut number = 0;
    let mut group = criterion.benchmark_group(format!("place and settle, {kind}"));
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for (size, spread) in BATCHES {
        let name = format!("{name} of {spread}, {size}");
        let (store, accounts) = runtime.block_on(filled(url, &name, spread));
        let mut turn = accounts.iter().cycle();
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(format!("{size} at once, accounts: {spread}"), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    let calls: Vec<_> = turn.by_ref().take(size).map(|id| call(*id)).collect();
                    let first = number;
                    number += calls.len() as u64;
                    let began = Instant::now();
                    runtime.block_on(seed::write(store.as_ref(), &price, &calls, first));
                    took += began.elapsed();
                }
                took
            });
        });
    }
    group.finish();
    settlements(criterion, url, kind);
}

/// The heavier half alone: holds that are there become records, entries and events.
fn settlements(criterion: &mut Criterion, url: &str, kind: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (name, price) = (format!("settle {}", Timestamp::now()), price());
    let (store, accounts) = runtime.block_on(filled(url, &name, 1));
    let size = BATCHES[BATCHES.len() - 1].0;
    let mut number = SETTLED_FROM;
    let mut group = criterion.benchmark_group(format!("settle, {kind}"));
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Elements(size as u64));
    group.bench_function(format!("{size} at once, accounts: 1"), |bencher| {
        bencher.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                let mut request = || {
                    number += 1;
                    seed::request(&price, &call(accounts[0]), number)
                };
                let requests = std::iter::repeat_with(&mut request).take(size);
                let (places, settles): (Vec<_>, Vec<_>) = requests.unzip();
                let commit = |ops| runtime.block_on(store.commit(ops, Timestamp::now()));
                commit(&places).expect("the store takes holds");
                let began = Instant::now();
                let settled = commit(black_box(&settles)).expect("the store settles");
                took += began.elapsed();
                let is_settled = |outcome: &Outcome| matches!(outcome, Outcome::Settled { .. });
                assert!(settled.iter().all(is_settled), "{settled:?}");
            }
            took
        });
    });
    group.finish();
}

fn stores(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = format!("sqlite://{}", folder.path().join("bench.db").display());
    batches(criterion, &file, "SQLite");
    if let Ok(url) = std::env::var("BENCH_DATABASE_URL") {
        let kind = if url.starts_with("sqlite:") { "SQLite as named" } else { "PostgreSQL" };
        batches(criterion, &url, kind);
    } else {
        eprintln!("PostgreSQL is not measured: BENCH_DATABASE_URL is not set");
    }
}

criterion_group!(benches, admission, stores);
criterion_main!(benches);
