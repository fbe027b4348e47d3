//! What every request handler can reach. Built once, in `commands::serve`.

use crate::config::Config;
use crate::services::admission::Admission;
use crate::services::auth::Auth;
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
    /// Readiness is off: no new work, please.
    pub leaving: CancellationToken,
    /// Streams end now, with an error event.
    pub stop: CancellationToken,
}
