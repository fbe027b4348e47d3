//! `tollgate events …` and `tollgate verify`.

use super::{Output, print};
use crate::services::verify;
use crate::store::Store;
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Events {
    /// List billing events.
    List {
        #[command(flatten)]
        output: Output,
    },
}

pub async fn run(command: Events, store: &dyn Store) -> anyhow::Result<()> {
    let Events::List { output } = command;
    let mut after = String::new();
    loop {
        let page = store.billing_events_after(&after).await?;
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
    Ok(if report.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
