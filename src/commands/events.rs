//! `tollgate events …` and `tollgate verify`.

use super::{Output, print, said};
use crate::config::SINKS;
use crate::models::billing::DeliveryState;
use crate::models::timestamp::Timestamp;
use crate::services::directory::{self, OPERATOR};
use crate::services::{backfill, verify};
use crate::store::Store;
use crate::store::outbox::EventFilter;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Events {
    /// List billing events.
    List {
        /// Only those that were given up until somebody acts.
        #[arg(long)]
        parked: bool,
        /// Only those for this sink.
        #[arg(long, value_parser = PossibleValuesParser::new(SINKS))]
        sink: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Send parked events again; prints their number.
    Retry(Retry),
    /// Say that parked events are dealt with by other means, as by hand: they, and what they were
    /// merged with, are not sent any more. Not of what may be at the sink: see `exports`. Prints
    /// their number.
    Dismiss {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Keep waiting events back until they are retried; prints their number.
    Park {
        #[arg(required = true)]
        ids: Vec<String>,
        #[arg(long, default_value = "by the operator")]
        reason: String,
    },
    /// Make the events of this month that `verify` misses; prints their number.
    Backfill,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Retry {
    /// All that are parked.
    #[arg(long)]
    parked: bool,
    ids: Vec<String>,
}

pub async fn run(command: Events, store: &dyn Store) -> anyhow::Result<()> {
    match command {
        Events::List { parked, sink, output } => {
            let state = parked.then_some(DeliveryState::Parked);
            list(store, output, &EventFilter { sink, state, account: None }).await
        }
        Events::Retry(Retry { parked: true, .. }) => retry_parked(store).await,
        Events::Retry(Retry { ids, .. }) => {
            let count = directory::retry_events(store, OPERATOR, &ids).await?;
            said(count, "events", "parked")
        }
        Events::Dismiss { ids } => {
            let count = directory::dismiss_events(store, OPERATOR, &ids).await?;
            said(count, "events", "parked, and surely not at the sink")
        }
        Events::Park { ids, reason } => {
            let count = directory::park_events(store, OPERATOR, &ids, &reason).await?;
            said(count, "events", "waiting and not on its way")
        }
        Events::Backfill => {
            say!("{}", backfill::backfill(store, Timestamp::now()).await?);
            Ok(())
        }
    }
}

/// Page by page, each once: what is parked again meanwhile stays so.
async fn retry_parked(store: &dyn Store) -> anyhow::Result<()> {
    let parked = EventFilter { state: Some(DeliveryState::Parked), ..EventFilter::default() };
    let mut count = 0;
    let mut after = String::new();
    loop {
        let page = store.billing_events_after(&parked, &after).await?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.id);
        let ids: Vec<String> = page.into_iter().map(|event| event.id).collect();
        count += directory::retry_events(store, OPERATOR, &ids).await?;
    }
    say!("{count}");
    Ok(())
}

async fn list(store: &dyn Store, output: Output, wanted: &EventFilter) -> anyhow::Result<()> {
    let mut after = String::new();
    loop {
        let page = store.billing_events_after(wanted, &after).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after.clone_from(&last.id);
        for event in &page {
            print(event, output, || {
                let reason = event.reason.as_deref().unwrap_or_default();
                format!("{}  {}  attempts {}  {reason}", event.id, event.state, event.attempts)
            })?;
        }
    }
}

pub async fn verify(store: &dyn Store) -> anyhow::Result<ExitCode> {
    let report = verify::verify(store).await?;
    for difference in &report.differences {
        say!("DIFFERS  {difference}");
    }
    say!(
        "{} accounts, {} ledger entries, {} usage records, {} open holds: {} differences",
        report.accounts,
        report.entries,
        report.records,
        report.open_holds,
        report.differences.len()
    );
    for (sink, counts) in &report.sinks {
        let verify::EventCounts { exported, waiting, parked } = counts;
        say!("{sink}: {exported} exported, {waiting} waiting, {parked} parked");
    }
    Ok(if report.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
