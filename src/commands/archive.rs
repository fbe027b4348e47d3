//! `tollgate archive`: usage records of past months go into files.

use crate::config::Config;
use crate::models::archive::Month;
use crate::models::timestamp::Timestamp;
use crate::services::archive;
use crate::store::Store;
use anyhow::Context;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
pub struct Archive {
    /// The first month that stays, as 2026-08. Default: by `TOLLGATE_RETENTION_MONTHS`.
    #[arg(long)]
    before: Option<Month>,
    /// The folder that gets one of each month.
    #[arg(long)]
    to: PathBuf,
}

/// Prints each month when it is done.
pub async fn run(command: Archive, config: &Config, store: &dyn Store) -> anyhow::Result<()> {
    let kept = || {
        let months = config.database.retention_months?;
        Some(Month::of(Timestamp::now()).minus(months))
    };
    let before = command.before.or_else(kept);
    let before = before.context("say --before, or set TOLLGATE_RETENTION_MONTHS")?;
    let mut tell = |archive: &crate::models::archive::Archive| {
        let (month, records) = (archive.month, archive.records);
        writeln!(std::io::stdout(), "{month}: {records} usage records, {}", archive.manifest_hash)
    };
    if let Some(month) = archive::run(store, before, &command.to, &mut tell).await? {
        let late = "that came when later ones were archived stay: see `tollgate verify`";
        writeln!(std::io::stderr(), "usage records of {month} {late}")?;
    }
    Ok(())
}
