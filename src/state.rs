//! What every request handler can reach. Built once, in `commands::serve`.

use crate::config::Config;
use crate::error::Error;
use crate::models::ids::{ApiKeyId, UserId};
use crate::services::admission::Admission;
use crate::services::auth::Auth;
use crate::services::billing::payments::Payments;
use crate::services::bodies::Bodies;
use crate::services::catalog::Catalog;
use crate::services::metrics::Metrics;
use crate::services::pulse::Pulse;
use crate::services::reports::Reports;
use crate::services::settle::DRAINS_MAX;
use crate::services::trace::Tracer;
use crate::store::Store;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

pub struct App {
    pub config: Config,
    pub store: Arc<dyn Store>,
    pub auth: Auth,
    pub bodies: Arc<Bodies>,
    pub pulse: Pulse,
    pub catalog: Arc<Catalog>,
    pub admission: Admission,
    pub reports: Reports,
    pub metrics: Arc<Metrics>,
    pub payments: Arc<Payments>,
    /// `None`: nobody collects traces.
    pub tracer: Option<Tracer>,
    pub repeated_news: RepeatedNews,
    /// Readiness is off: no new work, please.
    pub leaving: CancellationToken,
    /// Streams end now, with an error event.
    pub stop: CancellationToken,
}

/// News costs every process all that it remembers of callers and accounts. What was told before is
/// told again this often at most, whoever asks for it and however often.
const REPEATED_EVERY: Duration = Duration::from_secs(1);

/// When this process told something again last.
#[derive(Default)]
pub struct RepeatedNews(Mutex<Option<Instant>>);

impl RepeatedNews {
    /// Whether it is time; then it is taken.
    fn begin(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| last.elapsed() >= REPEATED_EVERY);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

impl App {
    /// All that is measured, as of now.
    ///
    /// # Errors
    /// [`Error::Internal`] when it cannot be written.
    pub fn measured(&self) -> Result<String, Error> {
        let Admission { ledger, settler, .. } = &self.admission;
        let queued = i64::try_from(ledger.queued()).unwrap_or(i64::MAX);
        self.metrics.ledger.queued.set(queued);
        settler.upstreams.measure();
        let drains = DRAINS_MAX.saturating_sub(settler.drains.available_permits());
        self.metrics.upstreams.draining(drains);
        self.metrics.text()
    }

    /// Drops what is remembered of accounts, keys and prices: some have changed.
    pub fn forget(&self) {
        self.auth.forget();
        self.admission.ledger.forget_snapshots();
        self.catalog.look_again();
    }

    /// As [`App::forget`], here and in other processes. What was changed stands in any case, and
    /// its answer may have a secret that is not to be had again: without the news, other processes
    /// notice when what they remember has aged.
    pub async fn changed(&self) {
        self.forget();
        if let Err(error) = self.store.announce_change().await {
            tracing::warn!("other processes are not told of a change: {error}");
        }
    }

    /// A key was changed, here.
    pub async fn key_changed(&self, key: ApiKeyId) {
        self.auth.forget_key(key);
        self.changed().await;
    }

    /// A key was changed a short while ago: the news of it may not have arrived everywhere.
    pub async fn key_changed_lately(&self, key: ApiKeyId) {
        if self.repeated_news.begin() {
            self.key_changed(key).await;
        }
    }

    /// A user acts for another account, or for none.
    pub async fn member_changed(&self, user: UserId) {
        self.auth.forget_user(user);
        self.changed().await;
    }
}
