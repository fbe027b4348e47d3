//! What is measured: counters and gauges in one registry, handed around as a value.
//!
//! Invariants: labels are bounded: a name that a client can choose is one of the catalog's models,
//! and beyond a number of those is `other`; no label is a key, an account, an address or a text of
//! a client. What the books say is counted where they are written, after the commit, so that sums
//! here are sums there. A request itself pays for a few atomic additions.

mod books;
mod identity;
mod ledger;
mod sinks;
mod state;
mod surface;
mod times;
mod upstreams;

use crate::error::Error;
pub use books::BookMetrics;
pub use identity::IdentityMetrics;
pub use ledger::LedgerMetrics;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
pub use sinks::{Sender, SinkMetrics};
pub use state::{Check, StateMetrics};
pub use surface::{Surface, SurfaceMetrics};
pub use upstreams::{CallMetrics, UpstreamMetrics};

/// All that is measured in a process.
pub struct Metrics {
    registry: Registry,
    pub surface: SurfaceMetrics,
    pub identity: IdentityMetrics,
    pub upstreams: UpstreamMetrics,
    pub ledger: LedgerMetrics,
    pub books: BookMetrics,
    pub sinks: SinkMetrics,
    pub state: StateMetrics,
}

/// The media type of [`Metrics::text`].
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/#protocol-negotiation>
pub const TEXT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tollgate");
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The program", Info::new(version.to_vec()));
        Self {
            surface: SurfaceMetrics::new(&mut registry),
            identity: IdentityMetrics::new(&mut registry),
            upstreams: UpstreamMetrics::new(&mut registry),
            ledger: LedgerMetrics::new(&mut registry),
            books: BookMetrics::new(&mut registry),
            sinks: SinkMetrics::new(&mut registry),
            state: StateMetrics::new(&mut registry),
            registry,
        }
    }

    /// As Prometheus reads it.
    ///
    /// # Errors
    /// [`Error::Internal`] when it cannot be written.
    pub fn text(&self) -> Result<String, Error> {
        let mut text = String::new();
        let unwritten = |error| Error::Internal(format!("writing metrics: {error}"));
        encode(&mut text, &self.registry).map_err(unwritten)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
