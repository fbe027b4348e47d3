//! What every request handler can reach. Built once, in `commands::serve`.

use crate::config::Config;
use crate::services::admission::Admission;
use crate::services::auth::Auth;
use crate::services::billing::payments::Payments;
use crate::services::catalog::Catalog;
use crate::services::reports::Reports;
use crate::store::Store;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub struct App {
    pub config: Config,
    pub store: Arc<dyn Store>,
    pub auth: Auth,
    pub catalog: Arc<Catalog>,
    pub admission: Admission,
    pub reports: Reports,
    pub payments: Arc<Payments>,
    /// Readiness is off: no new work, please.
    pub leaving: CancellationToken,
    /// Streams end now, with an error event.
    pub stop: CancellationToken,
}

impl App {
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
}
