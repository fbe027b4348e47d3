//! Calls of upstreams: what became of each, and how soon.

use super::times::Times;
use crate::models::attempt::Failure;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    upstream: Arc<str>,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    upstream: Arc<str>,
}

/// Clones are the same numbers.
#[derive(Clone)]
pub struct UpstreamMetrics {
    calls: Family<Ended, Counter>,
    answers: Family<Of, Histogram, fn() -> Histogram>,
    up: Family<Of, Gauge>,
    models_out: Family<Of, Gauge>,
    drains: Gauge,
}

/// The handles of one upstream, found once.
#[derive(Clone)]
pub struct CallMetrics {
    results: Arc<[Counter; RESULTS.len()]>,
    answers: Times,
    up: Gauge,
    models_out: Gauge,
}

const RESULTS: [&str; 9] = [
    "answered",
    "unreachable",
    "timed_out",
    "rate_limited",
    "refused",
    "rejected",
    "no_model",
    "failed",
    "left",
];
/// The place of `left`: the client has gone before there was an answer.
const LEFT: usize = RESULTS.len() - 1;

fn place(failure: Option<Failure>) -> usize {
    match failure {
        None => 0,
        Some(Failure::Unreachable) => 1,
        Some(Failure::TimedOut) => 2,
        Some(Failure::RateLimited) => 3,
        Some(Failure::Refused) => 4,
        Some(Failure::Rejected) => 5,
        Some(Failure::NoModel) => 6,
        Some(Failure::Failed) => 7,
    }
}

impl UpstreamMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let calls = Family::default();
        registry.register("upstream_calls", "Calls of upstreams that have ended", calls.clone());
        let answers = Family::new_with_constructor(Times::of_answers as fn() -> Histogram);
        registry.register(
            "upstream_answer_seconds",
            "From a call to its answer's beginning, or to its failure",
            answers.clone(),
        );
        let up = Family::default();
        registry.register("upstream_up", "0: left alone because of its failures", up.clone());
        let models_out = Family::default();
        registry.register(
            "upstream_models_left_alone",
            "Models left alone at an upstream because of their failures",
            models_out.clone(),
        );
        let drains = Gauge::default();
        registry.register(
            "drains",
            "Answers that are read on for clients that have gone",
            drains.clone(),
        );
        Self { calls, answers, up, models_out, drains }
    }

    /// Of an upstream in the configuration: their names are few.
    #[must_use]
    pub fn of(&self, upstream: &str) -> CallMetrics {
        let upstream: Arc<str> = Arc::from(upstream);
        let result =
            |result| self.calls.get_or_create_owned(&Ended { upstream: upstream.clone(), result });
        let of = Of { upstream: upstream.clone() };
        let up = self.up.get_or_create_owned(&of);
        up.set(1);
        CallMetrics {
            results: Arc::new(RESULTS.map(result)),
            answers: Times(self.answers.get_or_create_owned(&of)),
            up,
            models_out: self.models_out.get_or_create_owned(&of),
        }
    }

    /// It has left the configuration: what was called stays counted, how it stands is nobody's
    /// business any more.
    pub fn forget(&self, upstream: &str) {
        let of = Of { upstream: Arc::from(upstream) };
        self.up.remove(&of);
        self.models_out.remove(&of);
    }

    pub fn draining(&self, answers: usize) {
        self.drains.set(i64::try_from(answers).unwrap_or(i64::MAX));
    }
}

impl CallMetrics {
    pub fn ended(&self, failure: Option<Failure>, took: Duration) {
        self.results[place(failure)].inc();
        self.answers.observe(took);
    }

    /// Its client has gone before there was an answer.
    pub fn left(&self) {
        self.results[LEFT].inc();
    }

    /// How it stands now.
    pub fn stands(&self, is_up: bool, models_out: usize) {
        self.up.set(i64::from(is_up));
        self.models_out.set(i64::try_from(models_out).unwrap_or(i64::MAX));
    }
}
