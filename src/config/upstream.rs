//! Who answers, how long that may take, and what happens when a client hangs up.

use super::ConfigError;
use super::reader::Reader;
use secrecy::SecretString;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    pub kind: UpstreamKind,
    /// Up to and including `/v1`. `None`: the built-in demo.
    pub base_url: Option<String>,
    pub api_key: Option<SecretString>,
    /// For OpenRouter's sums by day; it cannot run completions.
    pub management_key: Option<SecretString>,
    pub connect: Duration,
    pub head: Duration,
    pub idle: Duration,
    /// A stream may take this long in all.
    pub stream: Duration,
    /// Further attempts when a call fails before its first byte.
    pub retries: u32,
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

impl UpstreamConfig {
    pub(super) fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let kinds = [
            ("openrouter", UpstreamKind::OpenRouter),
            ("litellm", UpstreamKind::LiteLlm),
            ("openai", UpstreamKind::OpenAi),
        ];
        let kind = env.one_of("UPSTREAM_KIND", "openrouter", &kinds)?;
        let openrouter_key = env.secret("OPENROUTER_API_KEY");
        let management_key = env.secret("OPENROUTER_MANAGEMENT_KEY");
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
            management_key,
            connect: env.positive_seconds("TOLLGATE_UPSTREAM_CONNECT_SECONDS", "5")?,
            head: env.positive_seconds("TOLLGATE_UPSTREAM_HEAD_SECONDS", "300")?,
            idle: env.positive_seconds("TOLLGATE_UPSTREAM_IDLE_SECONDS", "120")?,
            stream: env.positive_seconds("TOLLGATE_STREAM_SECONDS", "3600")?,
            retries: env.parsed("TOLLGATE_UPSTREAM_RETRIES", "2")?,
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
