//! SIGHUP: the files of prices and upstreams are read again, while requests run.
//!
//! Invariant: a file with a fault changes nothing and is one line in the log. The environment of a
//! running process does not change, so that nothing but these files can be other than before.

use super::signup_terms;
use crate::config::Config;
use crate::services::catalog::OperatorTable;
use crate::state::App;
use tokio::signal::unix::Signal;

/// Reloads at each signal, one after the other. Signals that come meanwhile are one.
pub async fn follow(app: &App, hangups: &mut Signal) {
    while hangups.recv().await.is_some() {
        match reload(app).await {
            Ok(upstreams) => tracing::info!(upstreams, "the files were read again"),
            Err(error) => {
                // A fault in TOML is told in several lines.
                let error = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
                tracing::error!("reading the files again: {error}; what was in force stays so");
            }
        }
    }
}

/// Gives the number of upstreams.
async fn reload(app: &App) -> anyhow::Result<usize> {
    let (config, table) = tokio::task::spawn_blocking(read).await??;
    let known = &app.admission.settler.upstreams;
    let upstreams = if config.upstreams.list.is_empty() {
        // The demo has no file.
        known.all().to_vec()
    } else {
        known.renewed(&config.upstreams)?
    };
    if let Some(table) = &table {
        // A table without the plan of first logins is a fault.
        signup_terms(&config.identity.signup, table)?;
    }
    let count = upstreams.len();
    app.catalog.reload(table, upstreams).await?;
    Ok(count)
}

/// No table where there is no file of it: one that was set while running is in the store.
fn read() -> anyhow::Result<(Config, Option<OperatorTable>)> {
    let config = Config::from_env()?;
    let file = config.money.prices.as_deref();
    let table = file.map(|path| OperatorTable::read(Some(path))).transpose()?;
    Ok((config, table))
}
