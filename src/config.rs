//! Configuration: environment variables, each read once, here.
//!
//! Invariant: every variable that is read is in `.env.example` and the other way round (a test
//! compares them), an unknown `TOLLGATE_*` is an error, and secrets never show in
//! [`Config::shown`].

mod reader;

use crate::models::money::Markup;
use reader::Reader;
use secrecy::{ExposeSecret, SecretString};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// All that can be set, in groups.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: ServerConfig,
    pub database: DatabaseConfig,
    pub upstream: UpstreamConfig,
    pub money: MoneyConfig,
    pub billing: BillingConfig,
    pub log: LogConfig,
    shown: Vec<(&'static str, String)>,
}

#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    pub body_bytes_max: usize,
    /// How long open streams may run on after SIGTERM.
    pub drain: Duration,
    /// Between readiness going off and the listener closing: load balancers notice in this time.
    pub shutdown_delay: Duration,
}

#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    pub url: SecretString,
    pub kind: DatabaseKind,
    pub migrate: bool,
    /// How long a request waits for the database.
    pub wait: Duration,
    /// A hold whose owner has not renewed it for this long belongs to a dead process.
    pub lease: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    Sqlite,
    Postgres,
}

#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    pub kind: UpstreamKind,
    /// Up to and including `/v1`. `None`: the built-in demo.
    pub base_url: Option<String>,
    pub api_key: Option<SecretString>,
    pub connect: Duration,
    pub head: Duration,
    pub idle: Duration,
    pub disconnect: Disconnect,
    pub disconnect_drain: Duration,
    pub lookup: Duration,
    pub lookup_first: Duration,
    /// How long, and how often, the truth of an estimate is asked for afterwards.
    pub slow_lookup: Duration,
    pub slow_lookup_every: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamKind {
    OpenRouter,
    LiteLlm,
    OpenAi,
}

/// What to do with an upstream's answer when its client has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnect {
    /// What is right for the provider.
    Auto,
    /// Read on to the usage.
    Drain,
    /// Cancel, then ask the upstream what it charged.
    Lookup,
    /// Cancel, then charge what was counted.
    Count,
}

#[derive(Clone, Debug)]
pub struct MoneyConfig {
    pub markup: Markup,
    /// TOML file of prices.
    pub prices: Option<String>,
    /// Assumed for the hold of a request without a cap of its own.
    pub completion_tokens_max: i64,
}

/// The sinks that billing events are written for.
#[derive(Clone, Debug)]
pub struct BillingConfig {
    pub stripe: bool,
    pub openmeter: bool,
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub filter: String,
    pub json: bool,
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
        let upstream = UpstreamConfig::read(&mut env)?;
        let money = MoneyConfig::read(&mut env)?;
        let billing = BillingConfig::read(&mut env);
        let log = LogConfig::read(&mut env)?;
        let shown = env.finish()?;
        Ok(Self { server, database, upstream, money, billing, log, shown })
    }

    /// What is in force, secrets masked.
    #[must_use]
    pub fn shown(&self) -> &[(&'static str, String)] {
        &self.shown
    }

    /// The demo gives answers away: it must not be reachable or meet real accounts.
    ///
    /// # Errors
    /// [`ConfigError`] saying what to set.
    pub fn check_demo(&self) -> Result<(), ConfigError> {
        if self.upstream.base_url.is_some() {
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
             set OPENROUTER_API_KEY, or UPSTREAM_BASE_URL and UPSTREAM_API_KEY"
        )))
    }
}

impl ServerConfig {
    fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let mut listen: SocketAddr = env.parsed("TOLLGATE_LISTEN", "127.0.0.1:8080")?;
        // A host that gives a port means a container: it must be reachable from outside of it.
        if let Some(port) = env.optional("PORT") {
            let port = port.parse().map_err(|_| ConfigError("PORT is not a port".into()))?;
            listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        }
        Ok(Self {
            listen,
            body_bytes_max: env.parsed("TOLLGATE_BODY_BYTES_MAX", "33554432")?,
            drain: env.seconds("TOLLGATE_DRAIN_SECONDS", "30")?,
            shutdown_delay: env.seconds("TOLLGATE_SHUTDOWN_DELAY_SECONDS", "0")?,
        })
    }
}

impl DatabaseConfig {
    fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let url = env.secret_or("DATABASE_URL", "sqlite://tollgate.db");
        let scheme = url.expose_secret().split(':').next().unwrap_or_default();
        let kind = match scheme {
            "sqlite" => DatabaseKind::Sqlite,
            "postgres" | "postgresql" => DatabaseKind::Postgres,
            _ => {
                let message = "DATABASE_URL must begin with sqlite:// or postgres://";
                return Err(ConfigError(message.into()));
            }
        };
        Ok(Self {
            url,
            kind,
            migrate: env.one_of("TOLLGATE_MIGRATE", "on", &[("on", true), ("off", false)])?,
            wait: env.positive_seconds("TOLLGATE_DATABASE_SECONDS", "5")?,
            lease: env.positive_seconds("TOLLGATE_LEASE_SECONDS", "30")?,
        })
    }
}

impl UpstreamConfig {
    fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let kinds = [
            ("openrouter", UpstreamKind::OpenRouter),
            ("litellm", UpstreamKind::LiteLlm),
            ("openai", UpstreamKind::OpenAi),
        ];
        let kind = env.one_of("UPSTREAM_KIND", "openrouter", &kinds)?;
        let openrouter_key = env.secret("OPENROUTER_API_KEY");
        let base_url = env.optional("UPSTREAM_BASE_URL");
        let api_key = env.secret("UPSTREAM_API_KEY");
        // OpenRouter's key is for OpenRouter only.
        let is_openrouter = kind == UpstreamKind::OpenRouter;
        let api_key = api_key.or(openrouter_key.filter(|_| is_openrouter));
        if !is_openrouter && base_url.is_none() {
            let message = format!("UPSTREAM_KIND={} needs UPSTREAM_BASE_URL", kind.name());
            return Err(ConfigError(message));
        }
        let base_url = base_url
            .or_else(|| api_key.is_some().then(|| "https://openrouter.ai/api/v1".to_owned()));
        let policies = [
            ("auto", Disconnect::Auto),
            ("drain", Disconnect::Drain),
            ("lookup", Disconnect::Lookup),
            ("count", Disconnect::Count),
        ];
        Ok(Self {
            kind,
            base_url: base_url.map(|url| url.trim_end_matches('/').to_owned()),
            api_key,
            connect: env.positive_seconds("TOLLGATE_UPSTREAM_CONNECT_SECONDS", "5")?,
            head: env.positive_seconds("TOLLGATE_UPSTREAM_HEAD_SECONDS", "300")?,
            idle: env.positive_seconds("TOLLGATE_UPSTREAM_IDLE_SECONDS", "120")?,
            disconnect: env.one_of("TOLLGATE_DISCONNECT", "auto", &policies)?,
            disconnect_drain: env.seconds("TOLLGATE_DISCONNECT_DRAIN_SECONDS", "120")?,
            lookup: env.seconds("TOLLGATE_LOOKUP_SECONDS", "300")?,
            slow_lookup: env.seconds("TOLLGATE_SLOW_LOOKUP_SECONDS", "86400")?,
            slow_lookup_every: env.positive_seconds("TOLLGATE_SLOW_LOOKUP_EVERY_SECONDS", "600")?,
            lookup_first: env.milliseconds("TOLLGATE_LOOKUP_FIRST_MS", "1000")?,
        })
    }
}

impl UpstreamKind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenRouter => "openrouter",
            Self::LiteLlm => "litellm",
            Self::OpenAi => "openai",
        }
    }

    /// Whether the upstream tells afterwards what a call used (`GET /generation`).
    #[must_use]
    pub fn has_lookup(self) -> bool {
        self == Self::OpenRouter
    }
}

impl MoneyConfig {
    fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let markup = env.text("TOLLGATE_MARKUP", "1.20");
        Ok(Self {
            markup: Markup::parse(&markup)
                .ok_or_else(|| ConfigError("TOLLGATE_MARKUP is not a factor like 1.20".into()))?,
            prices: env.optional("TOLLGATE_PRICES"),
            completion_tokens_max: env.parsed("TOLLGATE_COMPLETION_TOKENS_MAX", "16384")?,
        })
    }
}

impl BillingConfig {
    fn read(env: &mut Reader) -> Self {
        Self {
            stripe: env.secret("STRIPE_SECRET_KEY").is_some(),
            openmeter: env.optional("OPENMETER_URL").is_some(),
        }
    }

    #[must_use]
    pub fn sinks(&self) -> Vec<String> {
        let named = [("stripe", self.stripe), ("openmeter", self.openmeter)];
        named.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()).collect()
    }
}

impl LogConfig {
    fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let formats = [("pretty", false), ("json", true)];
        Ok(Self {
            filter: env.text("TOLLGATE_LOG", "tollgate=info,warn"),
            json: env.one_of("TOLLGATE_LOG_FORMAT", "pretty", &formats)?,
        })
    }
}
