//! Who answers, how long that may take, and what happens when a client hangs up.
//!
//! One upstream is a few variables; several are a file (`TOLLGATE_UPSTREAMS`), read in `file`.
//! Invariant: no two upstreams have the same name, which holds and usage records keep.

mod file;

use super::ConfigError;
use super::reader::Reader;
use crate::models::openai::request::{NEWER, OLDER};
use secrecy::SecretString;
use std::collections::BTreeMap;
use std::time::Duration;

/// All upstreams, and what holds for whichever answers.
#[derive(Clone, Debug)]
pub struct UpstreamsConfig {
    /// Empty: the built-in demo.
    pub list: Vec<UpstreamConfig>,
    /// What the file's upstreams have where they say nothing else.
    pub defaults: UpstreamTerms,
    /// For OpenRouter's sums by day; it cannot run completions.
    pub management_key: Option<SecretString>,
    /// How long, and how often, the truth of an estimate is asked for afterwards.
    pub slow_lookup: Duration,
    pub slow_lookup_every: Duration,
}

#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    pub name: String,
    pub kind: UpstreamKind,
    /// Up to and including `/v1`.
    pub base_url: String,
    pub api_key: Option<SecretString>,
    pub terms: UpstreamTerms,
    pub offer: OfferConfig,
}

/// Waits and policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamTerms {
    pub connect: Duration,
    pub head: Duration,
    pub idle: Duration,
    /// An answer may take this long in all.
    pub whole: Duration,
    /// The one name by which it reads the cap on a completion. `None`: as is right for the kind.
    pub cap_member: Option<&'static str>,
    /// It is told whose request it is, in `user`.
    pub takes_user: bool,
    /// Further attempts when a call fails before its first byte.
    pub retries: u32,
    pub disconnect: Disconnect,
    pub disconnect_drain: Duration,
    pub lookup: Duration,
    pub lookup_first: Duration,
}

/// Which of its models an upstream serves, by which names, and before or after whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferConfig {
    /// Patterns of clients' names for models; empty: all.
    pub models: Vec<String>,
    /// The client's name and the upstream's.
    pub rename: BTreeMap<String, String>,
    /// Put before the upstream's names where they are not renamed.
    pub prefix: String,
    /// Lower ones are tried first.
    pub order: u32,
    /// Its share among those of the same order.
    pub weight: u32,
    /// It stands in a file: prices made from its costs carry its name.
    pub is_one_of_several: bool,
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

const KINDS: [(&str, UpstreamKind); 3] = [
    ("openrouter", UpstreamKind::OpenRouter),
    ("litellm", UpstreamKind::LiteLlm),
    ("openai", UpstreamKind::OpenAi),
];
const POLICIES: [(&str, Disconnect); 4] = [
    ("auto", Disconnect::Auto),
    ("drain", Disconnect::Drain),
    ("lookup", Disconnect::Lookup),
    ("count", Disconnect::Count),
];
const CAP_MEMBERS: [(&str, Option<&str>); 3] =
    [("auto", None), (OLDER, Some(OLDER)), (NEWER, Some(NEWER))];
const USERS: [(&str, bool); 2] = [("account", true), ("none", false)];
const OPENROUTER: &str = "https://openrouter.ai/api/v1";

impl UpstreamsConfig {
    pub(super) fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let one = OneUpstream::read(env)?;
        let management_key = env.secret("OPENROUTER_MANAGEMENT_KEY");
        let path = env.optional("TOLLGATE_UPSTREAMS");
        let defaults = UpstreamTerms {
            connect: env.positive_seconds("TOLLGATE_UPSTREAM_CONNECT_SECONDS", "5")?,
            head: env.positive_seconds("TOLLGATE_UPSTREAM_HEAD_SECONDS", "300")?,
            idle: env.positive_seconds("TOLLGATE_UPSTREAM_IDLE_SECONDS", "120")?,
            whole: env.positive_seconds("TOLLGATE_STREAM_SECONDS", "3600")?,
            cap_member: env.one_of("TOLLGATE_CAP_MEMBER", "auto", &CAP_MEMBERS)?,
            takes_user: env.one_of("TOLLGATE_UPSTREAM_USER", "account", &USERS)?,
            retries: env.parsed("TOLLGATE_UPSTREAM_RETRIES", "2")?,
            disconnect: env.one_of("TOLLGATE_DISCONNECT", "auto", &POLICIES)?,
            disconnect_drain: env.seconds("TOLLGATE_DISCONNECT_DRAIN_SECONDS", "120")?,
            lookup: env.seconds("TOLLGATE_LOOKUP_SECONDS", "300")?,
            lookup_first: env.milliseconds("TOLLGATE_LOOKUP_FIRST_MS", "1000")?,
        };
        let slow_lookup = env.seconds("TOLLGATE_SLOW_LOOKUP_SECONDS", "86400")?;
        let slow_lookup_every =
            env.positive_seconds("TOLLGATE_SLOW_LOOKUP_EVERY_SECONDS", "600")?;
        let list = match path {
            Some(path) => {
                one.check_unset()?;
                file::read(env, &path, defaults)?
            }
            None => one.upstream(defaults)?.into_iter().collect(),
        };
        Ok(Self { list, defaults, management_key, slow_lookup, slow_lookup_every })
    }
}

/// The variables of the one upstream.
struct OneUpstream {
    kind: UpstreamKind,
    is_kind_set: bool,
    openrouter_key: Option<SecretString>,
    base_url: Option<String>,
    api_key: Option<SecretString>,
}

impl OneUpstream {
    fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        Ok(Self {
            is_kind_set: env.is_set("UPSTREAM_KIND"),
            kind: env.one_of("UPSTREAM_KIND", "openrouter", &KINDS)?,
            openrouter_key: env.secret("OPENROUTER_API_KEY"),
            base_url: env.address("UPSTREAM_BASE_URL"),
            api_key: env.secret("UPSTREAM_API_KEY"),
        })
    }

    /// The file says it all: what would be passed over in silence is a mistake. The keys may be
    /// named in it.
    fn check_unset(&self) -> Result<(), ConfigError> {
        let set = match self {
            Self { base_url: Some(_), .. } => "UPSTREAM_BASE_URL",
            Self { is_kind_set: true, .. } => "UPSTREAM_KIND",
            _ => return Ok(()),
        };
        Err(ConfigError(format!(
            "{set} and TOLLGATE_UPSTREAMS are both set: with a file, upstreams are set in it"
        )))
    }

    /// `None`: there is none.
    fn upstream(self, terms: UpstreamTerms) -> Result<Option<UpstreamConfig>, ConfigError> {
        let Self { kind, openrouter_key, base_url, api_key, .. } = self;
        // OpenRouter's key is for OpenRouter only.
        let is_openrouter = kind == UpstreamKind::OpenRouter;
        let api_key = api_key.or(openrouter_key.filter(|_| is_openrouter));
        if !is_openrouter && base_url.is_none() {
            let message = format!("UPSTREAM_KIND={} needs UPSTREAM_BASE_URL", kind.name());
            return Err(ConfigError(message));
        }
        let base_url = base_url.or_else(|| api_key.is_some().then(|| OPENROUTER.to_owned()));
        Ok(base_url.map(|url| UpstreamConfig {
            base_url: url.trim_end_matches('/').to_owned(),
            api_key,
            ..UpstreamConfig::only(kind, String::new(), terms)
        }))
    }
}

impl UpstreamConfig {
    /// One that stands alone: it has the name of its kind, and serves all that it lists.
    #[must_use]
    pub fn only(kind: UpstreamKind, base_url: String, terms: UpstreamTerms) -> Self {
        let offer = OfferConfig {
            models: vec![],
            rename: BTreeMap::new(),
            prefix: String::new(),
            order: 1,
            weight: 1,
            is_one_of_several: false,
        };
        Self { name: kind.name().to_owned(), kind, base_url, api_key: None, terms, offer }
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
