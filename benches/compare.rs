//! Tollgate beside nginx: the same requests to the same upstream through both, in one run, and what
//! each needed of the processor for one of them. Prints a table.
//!
//! `taskset -c 1 cargo bench --bench compare`: everything on one core, so that neither profits from
//! a wake-up that happens elsewhere. Needs nginx. SQLite, or `BENCH_DATABASE_URL` on an empty
//! PostgreSQL database, whose own work is then in no column. Arguments: rounds, and seconds of each.
//!
//! Everything of Tollgate's is on: key, limits, hold, tap, tiktoken, durable settlement. The figure
//! to trust is the ratio; the times are the machine's.

#![expect(clippy::expect_used, reason = "a bench fails loudly")]
#![expect(clippy::float_arithmetic, reason = "ratios for people; no money")]

#[path = "compare/load.rs"]
mod load;
#[path = "compare/site.rs"]
mod site;
#[path = "compare/upstream.rs"]
mod upstream;

use std::time::Duration;

use load::{Measured, Scenario};
use site::Site;

const SCENARIOS: [Scenario; 4] = [
    Scenario { name: "small plain, 32 at once", model: "plain", clients: 32, prompt: 100 },
    Scenario { name: "100-event stream, 32 at once", model: "burst", clients: 32, prompt: 100 },
    Scenario {
        name: "20 events, 10 ms apart, 50 at once",
        model: "paced",
        clients: 50,
        prompt: 100,
    },
    Scenario { name: "100 kB prompt, 16 at once", model: "plain", clients: 16, prompt: 100_000 },
];

/// Streams that are held open while memory is read.
const HELD: usize = 1_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse().ok());
    let rounds: u64 = numbers.next().unwrap_or(3);
    let window = Duration::from_secs(numbers.next().unwrap_or(3));
    let site = Site::start().await;
    let at_rest = site.tollgate.resident_kib();
    println!("| scenario | nginx | Tollgate | ratio | first byte later, p50 | p99 |");
    println!("|---|--:|--:|--:|--:|--:|");
    for scenario in &SCENARIOS {
        let mut of = [Measured::default(), Measured::default()];
        for _ in 0..rounds {
            for (server, best) in [&site.nginx, &site.tollgate].into_iter().zip(&mut of) {
                best.merge(load::run(scenario, server, window).await);
            }
        }
        println!("{}", row(scenario, &of));
    }
    let per_stream = site.memory_per_stream(HELD).await;
    println!("\nat rest {at_rest} KiB; {HELD} open streams: {per_stream:.1} KiB each");
    site.finish();
}

fn row(scenario: &Scenario, [nginx, tollgate]: &[Measured; 2]) -> String {
    let later = |share: f64| {
        let micros = |measured: &Measured| measured.first_byte(share).as_secs_f64() * 1e6;
        micros(tollgate) - micros(nginx)
    };
    let (ours, theirs) = (tollgate.micros, nginx.micros);
    let (ratio, p50, p99) = (ours / theirs, later(0.5), later(0.99));
    format!(
        "| {} | {theirs:.0} µs | {ours:.0} µs | {ratio:.1} | {p50:.0} µs | {p99:.0} µs |",
        scenario.name
    )
}
