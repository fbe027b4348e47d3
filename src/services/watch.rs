//! Looks at the books now and then, for the metrics: what is open, what waits, what does not fit.
//!
//! Invariants: a look is bounded in rows and in time, whatever the size of the books, and a request
//! waits for it only as long as open holds take to be counted. What it finds is a reason to run
//! `tollgate verify`, which looks at everything.

use crate::models::ids::{AccountId, InstanceId};
use crate::models::timestamp::Timestamp;
use crate::services::ledger::Ledger;
use crate::services::metrics::{Check, Metrics};
use crate::services::verify::verify_settled;
use crate::store::watch::ACCOUNTS_PER_PAGE;
use crate::store::{Store, StoreError, within};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub struct Watch {
    pub store: Arc<dyn Store>,
    pub ledger: Ledger,
    pub metrics: Arc<Metrics>,
    pub instance: InstanceId,
    pub sinks: Vec<&'static str>,
}

/// Prometheus asks every 15 seconds by default: what it gets is not much older.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A look that takes longer is given up; the next one follows.
const LOOK_WAIT: Duration = Duration::from_secs(20);
/// How long the ledger stands still at most, for its holds to be counted.
const QUIET_WAIT: Duration = Duration::from_millis(500);
/// Usage records looked at in one question.
const RECORDS_PER_PAGE: usize = 1_000;

/// How far the checks have come.
#[derive(Default)]
struct Progress {
    /// Accounts up to this one have been looked at in this pass …
    accounts: Option<AccountId>,
    /// … of which this many did not fit, in this pass and in the one before.
    different: i64,
    different_before: i64,
    /// Of records that were looked at.
    missing: i64,
}

impl Watch {
    /// Looks until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut progress = Progress::default();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            match within(LOOK_WAIT, self.look(&mut progress)).await {
                Ok(()) => self.metrics.state.looked(Timestamp::now()),
                // `books_looked_at_seconds` stands still then.
                Err(error) => tracing::debug!("the books could not be looked at: {error}"),
            }
        }
    }

    async fn look(&self, progress: &mut Progress) -> Result<(), StoreError> {
        // A busy database may have no time for this one and yet for the others.
        let holds = self.look_at_holds().await;
        for sink in &self.sinks {
            let backlog = self.store.backlog(sink).await?;
            self.metrics.sinks.stand(sink, &backlog, Timestamp::now());
        }
        self.look_at_accounts(progress).await?;
        self.look_at_records(progress).await?;
        holds
    }

    /// Holds of this process: as many are open as it has placed and not closed.
    async fn look_at_holds(&self) -> Result<(), StoreError> {
        let quiet = self.ledger.measured().quiet().await;
        let open = within(QUIET_WAIT, self.store.open_holds(self.instance)).await;
        let expected = self.metrics.books.holds.expected_open();
        drop(quiet);
        let open = open?;
        self.metrics.state.holds(&open, Timestamp::now());
        let difference = i64::try_from(expected).unwrap_or(i64::MAX).abs_diff(open.own);
        let difference = i64::try_from(difference).unwrap_or(i64::MAX);
        self.metrics.state.checked(Check::Holds, open.own.unsigned_abs(), difference);
        Ok(())
    }

    /// One page; the next look goes on, and begins anew after the last.
    async fn look_at_accounts(&self, progress: &mut Progress) -> Result<(), StoreError> {
        let page = self.store.held_page(progress.accounts).await?;
        progress.different = progress.different.saturating_add(page.different);
        progress.accounts = page.last.filter(|_| page.accounts >= ACCOUNTS_PER_PAGE);
        if progress.accounts.is_none() {
            progress.different_before = std::mem::take(&mut progress.different);
        }
        // What the last pass found stands until this one is over.
        let known = progress.different.max(progress.different_before);
        self.metrics.state.checked(Check::Held, page.accounts.unsigned_abs(), known);
        Ok(())
    }

    /// What this process has settled since the last look.
    async fn look_at_records(&self, progress: &mut Progress) -> Result<(), StoreError> {
        let settled = self.ledger.measured().take_settled();
        for page in settled.chunks(RECORDS_PER_PAGE) {
            let differences = verify_settled(self.store.as_ref(), page).await?;
            if let Some(first) = differences.first() {
                let count = differences.len();
                tracing::error!(differences = count, "the books do not fit, first: {first}");
            }
            let missing = i64::try_from(differences.len()).unwrap_or(i64::MAX);
            progress.missing = progress.missing.saturating_add(missing);
            let rows = u64::try_from(page.len()).unwrap_or(u64::MAX);
            self.metrics.state.checked(Check::Usage, rows, progress.missing);
        }
        if settled.is_empty() {
            self.metrics.state.checked(Check::Usage, 0, progress.missing);
        }
        Ok(())
    }
}
