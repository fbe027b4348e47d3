//! `tollgate reconcile`: the books against the upstream and the sinks.

use super::{Output, print};
use crate::config::Config;
use crate::models::archive::Archives;
use crate::models::reconcile::Day;
use crate::models::timestamp::Timestamp;
use crate::services::metrics::Metrics;
use crate::services::reconcile::{self, Kind, Report, Sources, Terms};
use crate::services::upstreams::Upstreams;
use crate::store::Store;
use anyhow::anyhow;
use clap::{Args, value_parser};
use serde_json::json;
use std::process::ExitCode;

/// More than that is a load test of the upstream.
const SAMPLES_MAX: i64 = 1_000;

#[derive(Args)]
pub struct Reconcile {
    /// One day of UTC, as 2026-11-24. Without it: the last thirty that are over.
    #[arg(long)]
    day: Option<Day>,
    /// Calls, drawn at random, that OpenRouter is asked about one by one.
    #[arg(long, default_value = "20", value_parser = value_parser!(i64).range(0..=SAMPLES_MAX))]
    samples: i64,
    /// Draws the same calls again; the seed of a run is in its last line.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    output: Output,
}

pub async fn run(
    command: Reconcile,
    config: &Config,
    store: &dyn Store,
) -> anyhow::Result<ExitCode> {
    let Reconcile { day, samples, seed, output } = command;
    let now = Timestamp::now();
    // The clock is random enough for which calls are looked at.
    let seed = seed.unwrap_or(now.unix_micros().unsigned_abs());
    let archives = Archives::new(store.archives().await?);
    let terms = Terms::new(day, now, usize::try_from(samples)?, seed)
        .and_then(|terms| terms.told(&archives))
        .map_err(|why| anyhow!(why))?;
    let configured = Some(&config.upstreams).filter(|upstreams| !upstreams.list.is_empty());
    // Nobody reads what a command measures.
    let measured = Metrics::new();
    let upstreams = configured.map(|set| Upstreams::new(set, &measured.upstreams)).transpose()?;
    let sources = Sources {
        upstreams: upstreams.as_ref(),
        management_key: config.upstreams.management_key.as_ref(),
        sinks: &config.billing,
    };
    let report = reconcile::run(store, sources, &terms).await?;
    for finding in &report.findings {
        print(finding, output, || finding.to_string())?;
    }
    let summary = json!({
        "kind": "summary",
        "days": terms.days.len(),
        "seed": seed,
        "compared": report.compared,
        "counts": report.counts,
    });
    print(&summary, output, || words(&report, &terms))?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn words(report: &Report, terms: &Terms) -> String {
    let compared: Vec<String> =
        report.compared.iter().map(|(against, count)| format!("{against} {count}")).collect();
    let compared = if compared.is_empty() { "nothing".to_owned() } else { compared.join(", ") };
    format!(
        "{} days, seed {}; compared: {compared}: {} differences, {} waiting, {} unread",
        terms.days.len(),
        terms.seed,
        report.count(Kind::Difference),
        report.count(Kind::Waiting),
        report.count(Kind::Unread),
    )
}
