//! What reading a stream costs: the tap against an SSE decoder with a JSON parser behind it, and the
//! counter against tiktoken on the whole text.
//!
//! `cargo bench --bench stream`. Times are the machine's; the comparison within a run is the figure.

#![expect(clippy::expect_used, reason = "a bench fails loudly")]

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use eventsource_stream::Eventsource;
use futures::StreamExt;
use tiktoken_rs::o200k_base_singleton;
use tollgate::models::money::{Markup, PicoUsd};
use tollgate::models::price::{Price, Rates, Rule, Terms};
use tollgate::models::timestamp::Timestamp;
use tollgate::services::reading::Reading;
use tollgate::services::sse::Outgoing;
use tollgate::services::tap::{Asked, Operator, Tap};
use tollgate::services::tokens::{Field, Lane, StreamCounter, Tokenizer, Vocabularies};

const EVENTS: usize = 100;
/// An answer of some length, as it comes: a word at a time.
const WORDS: [&str; 8] = ["The ", "ledger ", "is ", "append-only", ", ", "and ", "balances", ". "];

fn chunk(delta: &str, finish: &str, usage: &str) -> String {
    format!(
        "data: {{\"id\":\"gen-1764547200-a1b2c3d4e5f6\",\"provider\":\"OpenAI\",\
         \"model\":\"openai/gpt-4o-mini\",\"object\":\"chat.completion.chunk\",\
         \"created\":1764547200,\"choices\":[{{\"index\":0,\"delta\":{delta},\
         \"finish_reason\":{finish},\"native_finish_reason\":{finish},\"logprobs\":null}}]{usage}}}\
         \n\n"
    )
}

/// A stream as OpenRouter sends it, one event a frame.
fn frames() -> Vec<Bytes> {
    let content = |number: usize| {
        let word = WORDS[number % WORDS.len()];
        chunk(&format!("{{\"role\":\"assistant\",\"content\":\"{word}\"}}"), "null", "")
    };
    let usage = ",\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":100,\
                 \"total_tokens\":200,\"cost\":0.000075}";
    let mut events: Vec<String> = (0..EVENTS).map(content).collect();
    events.push(chunk("{\"content\":\"\"}", "\"stop\"", ""));
    events.push(chunk("{\"content\":\"\"}", "null", usage));
    events.push("data: [DONE]\n\n".to_owned());
    events.into_iter().map(Bytes::from).collect()
}

fn price() -> Arc<Price> {
    let rates =
        Rates { prompt: PicoUsd(150_000), completion: PicoUsd(600_000), ..Rates::default() };
    Arc::new(Price::new(Terms {
        upstream: String::new(),
        model: "openai/gpt-4o-mini".to_owned(),
        plan: String::new(),
        rule: Rule::CostPlus,
        markup_ppm: Markup(1_200_000),
        rates,
        overrides: Vec::new(),
    }))
}

/// All that the path does with a stream's bytes: split, read, counted, rewritten.
fn tap(frames: &[Bytes], tokenizer: &Tokenizer, price: &Arc<Price>) -> i64 {
    let asked = Asked { placed_at: Timestamp::now(), images: 0, shows_usage: true };
    let mut tap = Tap::new(
        Reading::new(tokenizer.clone()),
        price.clone(),
        Arc::new(Operator::default()),
        asked,
    );
    let mut out = Outgoing::default();
    for frame in frames {
        tap.frame(frame, &mut out).expect("events of a common length");
        out.clear();
    }
    black_box(tap.end(&mut out));
    tap.judge.reading.counter.finish().tokens
}

/// The same reading with a decoder and a parser for everything, and nothing rewritten.
fn decode(frames: &[Bytes]) -> i64 {
    let frames = futures::stream::iter(frames.iter().cloned().map(Ok::<_, std::io::Error>));
    let mut events = frames.eventsource();
    let mut text = String::new();
    while let Some(Some(event)) = futures::FutureExt::now_or_never(events.next()) {
        let event = event.expect("events");
        if let Ok(chunk) = serde_json::from_str::<serde_json::Value>(&event.data) {
            text += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        }
    }
    by_tiktoken(&text)
}

/// By tiktoken alone, which splits all of the text.
fn by_tiktoken(text: &str) -> i64 {
    let tokens = o200k_base_singleton().encode(text, &HashSet::new()).expect("a text like any");
    i64::try_from(tokens.0.len()).expect("a few")
}

fn taps(criterion: &mut Criterion) {
    let tokenizer = Vocabularies::load().expect("vocabularies").for_model("gpt-4o-mini");
    let (frames, price) = (frames(), price());
    let ours = tap(&frames, &tokenizer, &price);
    assert_eq!(ours, decode(&frames), "both count the same");
    let mut group = criterion.benchmark_group("stream of 100 events");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group.bench_function("tap", |bencher| {
        bencher.iter(|| tap(black_box(&frames), &tokenizer, &price));
    });
    group.bench_function("eventsource-stream, serde_json::Value, tiktoken", |bencher| {
        bencher.iter(|| decode(black_box(&frames)));
    });
    group.finish();
}

fn counters(criterion: &mut Criterion) {
    let tokenizer = Vocabularies::load().expect("vocabularies").for_model("gpt-4o-mini");
    let mut text = String::new();
    for number in 0..800 {
        let _ = write!(text, "{}{number} ", WORDS[number % WORDS.len()]);
    }
    let pieces: Vec<&str> = text.split_inclusive(' ').collect();
    let lane = Lane { choice: 0, field: Field::Content };
    let count = |pieces: &[&str]| {
        let mut counter = StreamCounter::new(tokenizer.clone());
        for piece in pieces {
            counter.push(lane, piece);
        }
        counter.finish().tokens
    };
    assert_eq!(count(&pieces), by_tiktoken(&text), "both count the same");
    let mut group = criterion.benchmark_group("count an answer");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("as it streams", |bencher| bencher.iter(|| count(black_box(&pieces))));
    group.bench_function("tiktoken on the whole text", |bencher| {
        bencher.iter(|| by_tiktoken(black_box(&text)));
    });
    // What it saves the caller from: the count so far, made anew with each piece.
    group.bench_function("tiktoken anew for each piece", |bencher| {
        bencher.iter_batched(
            String::new,
            |mut so_far| {
                for piece in &pieces[..pieces.len() / 8] {
                    so_far.push_str(piece);
                    black_box(by_tiktoken(&so_far));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, taps, counters);
criterion_main!(benches);
