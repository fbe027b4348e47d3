//! The upstreams of this process, by name.
//!
//! Invariant: never empty, and the names do not change while it runs: holds and records keep them.

use crate::config::{UpstreamConfig, UpstreamsConfig};
use crate::error::Error;
use crate::services::metrics::UpstreamMetrics;
use crate::services::upstream::Upstream;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub struct Upstreams {
    all: Vec<Arc<Upstream>>,
    lookup_wait: Duration,
}

impl Upstreams {
    /// # Errors
    /// [`Error::Internal`] when an address or a key cannot be used in a request.
    pub fn new(config: &UpstreamsConfig, metrics: &UpstreamMetrics) -> Result<Self, Error> {
        let mut list: Vec<&UpstreamConfig> = config.list.iter().collect();
        // As they are tried, and as their lists of models are merged.
        list.sort_by_key(|upstream| upstream.offer.order);
        let all =
            list.into_iter().map(|one| Upstream::new(one, metrics.of(&one.name)).map(Arc::new));
        Ok(Self { all: all.collect::<Result<_, _>>()?, lookup_wait: config.defaults.lookup })
    }

    /// Tells how they stand.
    pub fn measure(&self) {
        let now = Instant::now();
        for upstream in &self.all {
            let (is_up, models_out) = upstream.health.stands(now);
            upstream.measured.stands(is_up, models_out);
        }
    }

    /// The lowest order first.
    pub fn all(&self) -> &[Arc<Upstream>] {
        &self.all
    }

    /// `None`: it was taken out of the configuration.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.all.iter().find(|upstream| upstream.name == name)
    }

    /// How long a look-up may take, whoever is asked.
    #[must_use]
    pub fn lookup_wait(&self) -> Duration {
        self.lookup_wait
    }
}
