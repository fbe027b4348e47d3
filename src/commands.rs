//! The command line: `serve`, and the commands that do an operator's work beside a running server.
//!
//! Invariants: a command changes the books through the same `Store` as the server. What a program
//! reads (a new key, a new account's id) is alone on standard output. A database is made by what
//! begins one: a check in the wrong folder must not find that its books are right.

/// Like `println!`, but a reader that has gone is an error and not a panic.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($arg)*)?;
    }};
}

mod account;
mod archive;
mod events;
mod exports;
mod key;
mod member;
mod payments;
mod reconcile;
mod serve;

use crate::config::{Config, DatabaseConfig, DatabaseKind};
use crate::models::limits::RateLimits;
use crate::services::catalog::OperatorTable;
use crate::store::postgres::PostgresStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{IfMissing, Store};
use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, value_parser};
use secrecy::ExposeSecret;
use std::process::ExitCode;
use std::sync::Arc;

/// An OpenAI-compatible gateway that keeps the books.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway (default).
    Serve,
    /// Apply pending migrations.
    Migrate,
    /// Print what is configured, secrets masked.
    Config,
    /// Accounts: who pays.
    #[command(subcommand)]
    Account(account::Account),
    /// Credit of prepaid accounts.
    #[command(subcommand)]
    Credit(account::Credit),
    /// API keys.
    #[command(subcommand)]
    Key(key::Key),
    /// Users of Supabase who act for an account.
    #[command(subcommand)]
    Member(member::Member),
    /// Who changed what.
    #[command(subcommand)]
    Audit(member::Audit),
    /// Billing events on their way to the sinks.
    #[command(subcommand)]
    Events(events::Events),
    /// Merged events, as they go to Stripe, and what somebody knows of them.
    #[command(subcommand)]
    Exports(exports::Exports),
    /// What was paid through Stripe.
    #[command(subcommand)]
    Payments(payments::Payments),
    /// Move the usage records of past months into files.
    Archive(archive::Archive),
    /// Recompute the books; fails when anything differs.
    Verify,
    /// Compare the books with the upstream and the sinks; fails when anything differs.
    Reconcile(reconcile::Reconcile),
}

impl Command {
    /// An operator begins with one of these; the others have nothing to work on without a database.
    fn if_missing(&self) -> IfMissing {
        match self {
            Self::Serve | Self::Migrate | Self::Account(account::Account::Create { .. }) => {
                IfMissing::Make
            }
            _ => IfMissing::Refuse,
        }
    }
}

/// How lists are printed.
#[derive(Args, Clone, Copy)]
struct Output {
    /// Print JSON, one object per line.
    #[arg(long)]
    json: bool,
}

/// Limits of rate. What is left out is the plan's.
#[derive(Args, Clone, Copy)]
struct Rates {
    /// Requests per minute.
    #[arg(long, value_parser = value_parser!(i64).range(1..))]
    rpm: Option<i64>,
    /// Tokens per minute, prompt and completion together.
    #[arg(long, value_parser = value_parser!(i64).range(1..))]
    tpm: Option<i64>,
    /// Requests that run at the same time.
    #[arg(long, value_parser = value_parser!(i64).range(1..))]
    concurrent: Option<i64>,
}

impl From<Rates> for RateLimits {
    fn from(rates: Rates) -> Self {
        Self {
            requests_per_minute: rates.rpm,
            tokens_per_minute: rates.tpm,
            concurrent_requests: rates.concurrent,
        }
    }
}

/// Runs a command to its end.
///
/// # Errors
/// Whatever keeps it from its work; the message is for the operator.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let config = Config::from_env()?;
    let command = cli.command.unwrap_or(Command::Serve);
    if matches!(command, Command::Config) {
        for (name, value) in config.shown() {
            say!("{name}={value}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Both TLS users (upstream and database) take this provider.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a crypto provider was installed before"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(dispatch(command, config))
}

async fn dispatch(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    if matches!(command, Command::Serve) {
        return serve::run(config).await;
    }
    let store = open_store(&config, command.if_missing()).await?;
    if config.database.migrate || matches!(command, Command::Migrate) {
        store.migrate().await.context("applying migrations")?;
    } else {
        store.check().await?;
    }
    let store = store.as_ref();
    let table = OperatorTable::in_force(store, config.money.prices.as_deref()).await?;
    match command {
        Command::Account(command) => account::run_account(command, store, &table).await?,
        Command::Credit(command) => account::run_credit(command, store).await?,
        Command::Key(command) => key::run(command, store, &table).await?,
        Command::Member(command) => member::run(command, store).await?,
        Command::Audit(command) => member::run_audit(command, store).await?,
        Command::Events(command) => events::run(command, store).await?,
        Command::Exports(command) => exports::run(command, store).await?,
        Command::Payments(command) => payments::run(command, store).await?,
        Command::Archive(command) => archive::run(command, &config, store).await?,
        Command::Verify => return events::verify(store).await,
        Command::Reconcile(command) => return reconcile::run(command, &config, store).await,
        Command::Serve | Command::Config | Command::Migrate => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn open_store(config: &Config, if_missing: IfMissing) -> anyhow::Result<Arc<dyn Store>> {
    let DatabaseConfig { url, kind, .. } = &config.database;
    let url = url.expose_secret();
    let events = config.billing.event_terms();
    Ok(match kind {
        DatabaseKind::Sqlite => Arc::new(SqliteStore::open_or(if_missing, url, events).await?),
        DatabaseKind::Postgres => {
            let store = PostgresStore::open(url, events)?;
            if if_missing == IfMissing::Refuse {
                store.check_is_begun().await?;
            }
            Arc::new(store)
        }
    })
}

/// Prints how many rows were changed; none is an error.
fn said(count: u64, rows: &str, state: &str) -> anyhow::Result<()> {
    if count == 0 {
        bail!("none of these {rows} is {state}");
    }
    say!("{count}");
    Ok(())
}

/// Prints a row as JSON or as words.
fn print<T: serde::Serialize>(
    row: &T,
    output: Output,
    words: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    if output.json {
        say!("{}", serde_json::to_string(row)?);
    } else {
        say!("{}", words());
    }
    Ok(())
}
