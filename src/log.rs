//! Tracing to standard error, pretty for people or JSON for machines.

use crate::config::LogConfig;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging; may be called once in a process.
///
/// # Errors
/// When the filter does not parse or logging was started before.
pub fn start(config: &LogConfig) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.filter)?;
    // Colours are for people.
    let is_terminal = std::io::stderr().is_terminal();
    let registry = tracing_subscriber::registry().with(filter);
    if config.json {
        registry.with(layer().json().with_writer(std::io::stderr)).try_init()?;
    } else {
        registry.with(layer().with_writer(std::io::stderr).with_ansi(is_terminal)).try_init()?;
    }
    Ok(())
}
