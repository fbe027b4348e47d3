//! Configuration: environment variables, each read once, here.
//!
//! Invariant: every variable that is read is in `.env.example` and the other way round (a test
//! compares them), an unknown `TOLLGATE_*` is an error, and secrets never show in
//! [`Config::shown`].

mod billing;
mod database;
mod identity;
mod log;
mod money;
mod payments;
mod reader;
mod server;
mod upstream;

pub use billing::{BillingConfig, OpenMeterConfig, StreamConfig, StripeConfig, WebhookConfig};
pub use billing::{OPENMETER, SINKS, STRIPE, WEBHOOK};
pub use database::{DatabaseConfig, DatabaseKind, OutageConfig};
use hyper::Uri;
pub use identity::{IdentityConfig, SignInConfig, SignupConfig, TokenConfig};
pub use log::{LogConfig, TraceConfig};
pub use money::MoneyConfig;
pub use payments::PaymentsConfig;
use reader::{Name, Reader};
pub use server::ServerConfig;
use std::net::IpAddr;
pub use upstream::{Disconnect, OfferConfig, UpstreamConfig, UpstreamKind};
pub use upstream::{UpstreamTerms, UpstreamsConfig};

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// All that can be set, in groups.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: ServerConfig,
    pub database: DatabaseConfig,
    pub upstreams: UpstreamsConfig,
    pub money: MoneyConfig,
    pub billing: BillingConfig,
    pub payments: PaymentsConfig,
    pub identity: IdentityConfig,
    pub log: LogConfig,
    pub trace: TraceConfig,
    shown: Vec<(Name, String)>,
}

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable at fault.
    pub fn from_env() -> Result<Self, ConfigError> {
        let mut env = Reader::of_process()?;
        let server = ServerConfig::read(&mut env)?;
        let database = DatabaseConfig::read(&mut env)?;
        let upstreams = UpstreamsConfig::read(&mut env)?;
        let money = MoneyConfig::read(&mut env)?;
        let billing = BillingConfig::read(&mut env)?;
        let payments = PaymentsConfig::read(&mut env)?;
        let identity = IdentityConfig::read(&mut env)?;
        let log = LogConfig::read(&mut env)?;
        let trace = TraceConfig::read(&mut env)?;
        let shown = env.finish()?;
        Ok(Self {
            server,
            database,
            upstreams,
            money,
            billing,
            payments,
            identity,
            log,
            trace,
            shown,
        })
    }

    /// What is in force, secrets masked.
    #[must_use]
    pub fn shown(&self) -> &[(Name, String)] {
        &self.shown
    }

    /// The demo gives answers away: it must not be reachable or meet real accounts.
    ///
    /// # Errors
    /// [`ConfigError`] saying what to set.
    pub fn check_demo(&self) -> Result<(), ConfigError> {
        if !self.upstreams.list.is_empty() {
            return Ok(());
        }
        let reason = if self.database.kind == DatabaseKind::Postgres {
            "on PostgreSQL"
        } else if !self.server.listen.ip().is_loopback() {
            "on an address that others can reach"
        } else {
            return Ok(());
        };
        Err(ConfigError(format!(
            "no upstream is set, and the demo does not run {reason}: \
             set OPENROUTER_API_KEY, or UPSTREAM_BASE_URL and UPSTREAM_API_KEY, or \
             TOLLGATE_UPSTREAMS"
        )))
    }
}

/// HTTPS, or a server on this machine: nobody on the way reads a secret or changes a key.
fn is_safe(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    match uri.scheme_str() {
        Some("https") => !host.is_empty(),
        Some("http") => is_loopback(host),
        _ => false,
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
