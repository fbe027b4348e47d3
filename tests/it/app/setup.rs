//! What a test may choose before the program starts: store, kind of upstream, environment, credit.

use super::TestApp;
use super::clock::Clock;
use super::cluster::Cluster;
use super::history;
use super::pgbouncer::PgBouncer;
use super::process::Environment;
use super::proxy::Proxy;
use super::store::{Database, Store, server_of};
use crate::upstream::{Upstream, catalog};

/// The key that the gateway shows to its upstream, and to nobody else.
pub const UPSTREAM_KEY: &str = "sk-upstream-secret-0451";

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    OpenRouter,
    OpenAi,
    LiteLlm,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenRouter => "openrouter",
            Self::OpenAi => "openai",
            Self::LiteLlm => "litellm",
        }
    }
}

pub struct Setup {
    store: Store,
    kind: Kind,
    environment: Environment,
    /// By a clock that the test sets.
    clocked: bool,
    credit: &'static str,
    prices: Option<&'static str>,
    upstreams: Option<String>,
    /// The address of another PostgreSQL than that of the test command.
    cluster: Option<String>,
    proxied: bool,
    pooled: Option<&'static str>,
    /// The schema that is there when the program first starts.
    schema: Option<i64>,
}

impl Setup {
    /// OpenRouter's kind, ten dollars of credit, look-ups that give up within a second, and time
    /// for a database whose machine stands still for a while.
    pub fn new(store: Store) -> Self {
        let setup = Self {
            store,
            kind: Kind::OpenRouter,
            environment: Environment::new(),
            clocked: false,
            credit: "10",
            prices: None,
            upstreams: None,
            cluster: None,
            proxied: false,
            pooled: None,
            schema: None,
        };
        setup
            .env("TOLLGATE_LISTEN", "127.0.0.1:0")
            .env("UPSTREAM_API_KEY", UPSTREAM_KEY)
            .env("TOLLGATE_UPSTREAM_RETRIES", "0")
            .env("TOLLGATE_LOOKUP_FIRST_MS", "20")
            .env("TOLLGATE_LOOKUP_SECONDS", "1")
            .env("TOLLGATE_DATABASE_SECONDS", "15")
    }

    /// The kind `openai` has no prices of its own, so it comes with the operator's table.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self.prices = (kind == Kind::OpenAi).then_some(catalog::PRICES_TOML);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_string(), value.to_string());
        self
    }

    /// By a clock that the test sets, as are the operator's commands.
    pub fn clock(mut self, clock: &Clock) -> Self {
        self.environment = clock.of(&self.environment);
        self.clocked = true;
        self
    }

    /// What was chosen so far, for a restart with it.
    pub fn environment(self) -> Environment {
        self.environment
    }

    /// `drain`, `lookup` or `count`.
    pub fn policy(self, policy: &str) -> Self {
        self.env("TOLLGATE_DISCONNECT", policy)
    }

    /// In USD.
    pub fn credit(mut self, credit: &'static str) -> Self {
        self.credit = credit;
        self
    }

    pub fn prices(mut self, toml: &'static str) -> Self {
        self.prices = Some(toml);
        self
    }

    /// Several upstreams: the text of their file.
    pub fn upstreams(mut self, toml: String) -> Self {
        self.upstreams = Some(toml);
        self
    }

    /// On a PostgreSQL of the test's own.
    pub fn cluster(self, cluster: &Cluster) -> Self {
        self.server(cluster.url())
    }

    /// On PostgreSQL's server at this address, as the user that it names.
    pub fn server(mut self, url: String) -> Self {
        self.cluster = Some(url);
        self
    }

    /// With a pooler of these settings in front of PostgreSQL.
    pub fn pooled(mut self, settings: &'static str) -> Self {
        self.pooled = Some(settings);
        self
    }

    /// On a database that was left by an earlier version, with this migration as its last.
    pub fn schema(mut self, schema: i64) -> Self {
        self.schema = Some(schema);
        self
    }

    /// With a wire to PostgreSQL that can be cut: `TestApp::proxy`.
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    pub async fn start(self) -> TestApp {
        let models = match self.kind {
            Kind::OpenRouter => catalog::openrouter_models(),
            Kind::OpenAi | Kind::LiteLlm => catalog::openai_models(),
        };
        let upstream = Upstream::start(models).await;
        self.start_with(upstream).await
    }

    async fn database(&self) -> Database {
        let server = self.cluster.as_deref();
        match self.schema {
            Some(schema) => {
                let database = Database::create(self.store, server).await;
                history::leave(&database, schema).await;
                database
            }
            // Tables of months are made by the clock.
            None if server.is_none() && !self.clocked => Database::prepared(self.store).await,
            None => Database::create(self.store, server).await,
        }
    }

    /// With an upstream that the test has prepared, or whose address it has replaced.
    pub async fn start_with(mut self, upstream: Upstream) -> TestApp {
        let database = self.database().await;
        let mut url = database.url.clone();
        let mut proxy = None;
        if self.proxied {
            let wire = Proxy::start(server_of(&url)).await;
            url = url.replace(server_of(&url), &wire.address().to_string());
            proxy = Some(wire);
        }
        let mut pooler = None;
        if let Some(settings) = self.pooled {
            let between = PgBouncer::start(&url, settings).await;
            url = between.url(&url);
            pooler = Some(between);
        }
        let environment = &mut self.environment;
        environment.insert("DATABASE_URL".to_string(), url);
        let mut file = |variable: &str, name: &str, text: &str| {
            let path = database.folder.path().join(name);
            std::fs::write(&path, text).expect("the test's own folder");
            environment.insert(variable.to_string(), path.display().to_string());
        };
        if let Some(toml) = self.prices {
            file("TOLLGATE_PRICES", "prices.toml", toml);
        }
        if let Some(toml) = &self.upstreams {
            file("TOLLGATE_UPSTREAMS", "upstreams.toml", toml);
        } else {
            environment.insert("UPSTREAM_KIND".to_string(), self.kind.name().to_string());
            environment.entry("UPSTREAM_BASE_URL".to_string()).or_insert_with(|| upstream.url());
        }
        let mut app = TestApp::launch(upstream, database, self.environment, self.credit).await;
        app.proxy = proxy;
        app.pooler = pooler;
        app
    }
}
