//! The upstreams of this process, by name.
//!
//! Invariants: never empty; a name stands for one upstream at a time. Another list takes the place
//! of this one as a whole, and what is under way keeps the upstream that it began with. Those that
//! have left can still be asked about what they answered.

use crate::config::{UpstreamConfig, UpstreamsConfig};
use crate::error::Error;
use crate::services::breaker::Leave;
use crate::services::metrics::UpstreamMetrics;
use crate::services::upstream::Upstream;
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

pub struct Upstreams {
    known: RwLock<Known>,
    lookup_wait: Duration,
    metrics: UpstreamMetrics,
}

struct Known {
    /// The lowest order first.
    all: Arc<[Arc<Upstream>]>,
    /// No longer in the configuration, the latest last.
    left: VecDeque<Arc<Upstream>>,
}

/// As many as one file may have: names that come and go are not kept for ever.
const LEFT_MAX: usize = 32;

impl Upstreams {
    /// # Errors
    /// [`Error::Internal`] when an address or a key cannot be used in a request.
    pub fn new(config: &UpstreamsConfig, metrics: &UpstreamMetrics) -> Result<Self, Error> {
        let all = in_order(config).map(|one| Upstream::new(one, metrics.of(&one.name)));
        let all = all.map(|one| one.map(Arc::new)).collect::<Result<_, _>>()?;
        let known = RwLock::new(Known { all, left: VecDeque::new() });
        Ok(Self { known, lookup_wait: config.defaults.lookup, metrics: metrics.clone() })
    }

    /// Tells how they stand.
    pub fn measure(&self) {
        let now = Instant::now();
        for upstream in self.all().iter() {
            let seen = upstream.health.seen(now);
            upstream.measured.stands(seen.whole == Leave::All, seen.models.len());
        }
    }

    /// The lowest order first.
    pub fn all(&self) -> Arc<[Arc<Upstream>]> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).all.clone()
    }

    /// `None`: it is in no configuration of this process's.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Upstream>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut both = known.all.iter().chain(known.left.iter().rev());
        both.find(|upstream| upstream.name == name).cloned()
    }

    /// The upstreams of another configuration, not in force yet. One that stays is the same, and
    /// what is known of its health stays with it.
    ///
    /// # Errors
    /// [`Error::Internal`] when an address or a key cannot be used in a request.
    pub fn renewed(&self, config: &UpstreamsConfig) -> Result<Vec<Arc<Upstream>>, Error> {
        let known = self.all();
        let renewed = in_order(config).map(|one| {
            let fresh = Upstream::new(one, self.metrics.of(&one.name))?;
            Ok(match known.iter().find(|old| old.is_same_upstream(&fresh)) {
                Some(old) if old.is_configured_like(&fresh) => old.clone(),
                Some(old) => Arc::new(fresh.with_health_of(old)),
                None => Arc::new(fresh),
            })
        });
        renewed.collect()
    }

    /// Puts a list in force.
    pub fn replace(&self, all: Vec<Arc<Upstream>>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let Known { all: before, left } = &mut *known;
        let has_name = |name: &str| all.iter().any(|upstream| upstream.name == name);
        left.retain(|old| !has_name(&old.name));
        for old in before.iter().filter(|old| !has_name(&old.name)) {
            self.metrics.forget(&old.name);
            left.push_back(old.clone());
        }
        let surplus = left.len().saturating_sub(LEFT_MAX);
        left.drain(..surplus);
        *before = all.into();
    }

    /// How long a look-up may take, whoever is asked.
    #[must_use]
    pub fn lookup_wait(&self) -> Duration {
        self.lookup_wait
    }
}

/// As they are tried, and as their lists of models are merged.
fn in_order(config: &UpstreamsConfig) -> impl Iterator<Item = &UpstreamConfig> {
    let mut list: Vec<&UpstreamConfig> = config.list.iter().collect();
    list.sort_by_key(|upstream| upstream.offer.order);
    list.into_iter()
}
