//! The store: business transactions in batches, on SQLite or PostgreSQL.
//!
//! Invariant: what one call changes it changes in one transaction, and both implementations decide
//! with the same code (`books`). Rows travel as JSON both ways, in the ledger's batches mostly as
//! bound values, so that the structs in `models` are the only mapping (`table`). No SQL outside
//! this module, no prices or HTTP inside it.

/// Months that are kept in files.
pub mod archives;
/// Decides a batch.
pub mod books;
/// Accounts and keys.
pub mod directory;
/// Structs as the values of columns.
mod encode;
/// Merged billing events.
pub mod exports;
/// Holds and the batches that change the books.
pub mod ledger;
/// What can be asked of the books.
mod ops;
/// Billing events.
pub mod outbox;
/// What owners and operators look at.
pub mod overview;
/// What Stripe says.
pub mod payments;
pub mod postgres;
/// Versions of prices.
pub mod prices;
/// Sums to be held against what others say.
pub mod reconcile;
/// What was written down.
pub mod records;
/// Sums, and a payer's own records.
pub mod reports;
pub mod sqlite;
/// Columns, once for both.
mod table;
/// What a check of the books asks: the rows that belong to others.
pub mod verify;
/// What the metrics ask: what is open, what waits, what accounts have.
pub mod watch;

use crate::error::Error;
use crate::models::timestamp::Timestamp;
use archives::ArchiveStore;
use async_trait::async_trait;
use directory::DirectoryStore;
use exports::ExportStore;
use ledger::LedgerStore;
pub use ops::*;
use outbox::OutboxStore;
use overview::OverviewStore;
use payments::PaymentStore;
use prices::PriceStore;
use reconcile::ReconcileStore;
use records::RecordStore;
use reports::ReportStore;
use std::time::Duration;
use verify::VerifyStore;
use watch::WatchStore;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is away, slow or shutting down: the same call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] sqlx::Error),
    #[error("the database did not answer in time")]
    Silent,
    /// The call itself cannot succeed.
    #[error("the database refused: {0}")]
    Refused(#[source] sqlx::Error),
    /// A unique name or secret exists already.
    #[error("{0} exists already")]
    Exists(&'static str),
    #[error("the opening credit was not entered: {0}")]
    NotEntered(String),
    #[error("a row does not read as its type: {0}")]
    Inconsistent(#[from] serde_json::Error),
    #[error("migration: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("{0}")]
    Setup(String),
}

impl StoreError {
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Silent)
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::Silent => Self::Database(error.to_string()),
            StoreError::Exists(what) => Self::Exists(what),
            other => Self::Internal(other.to_string()),
        }
    }
}

/// How long anybody waits for an answer who has no shorter time of their own.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// [`within`] the time of somebody who has no shorter one.
///
/// # Errors
/// The answer's, or [`StoreError::Silent`].
pub async fn in_time<T>(
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    within(ANSWER_WAIT, answer).await
}

/// An answer of the store's: a database whose machine is gone after it has heard the question would
/// be waited for without end. Who has no time left begins nothing.
///
/// # Errors
/// The answer's, or [`StoreError::Silent`].
pub async fn within<T, E: From<StoreError>>(
    wait: Duration,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    if wait.is_zero() {
        return Err(StoreError::Silent.into());
    }
    tokio::time::timeout(wait, answer).await.unwrap_or_else(|_| Err(StoreError::Silent.into()))
}

/// What becomes of a database that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMissing {
    Make,
    /// In an empty database every check finds that all is well: who looks at one must not make it.
    Refuse,
}

/// A page of rows is no longer than this.
pub const PAGE_ROWS_MAX: i64 = 1_000;

/// A window of rate that nobody has used for so long is forgotten. A minute would do, if the clocks
/// of all processes were right.
const WINDOW_UNUSED_FOR: Duration = Duration::from_secs(3_600);

/// Billing events, and what they are merged into.
pub trait Outbox: OutboxStore + ExportStore {}
impl<T: OutboxStore + ExportStore> Outbox for T {}

/// All that a database does for Tollgate, by area; this one is its housekeeping.
#[async_trait]
pub trait Store:
    LedgerStore
    + DirectoryStore
    + PriceStore
    + RecordStore
    + Outbox
    + ReportStore
    + OverviewStore
    + PaymentStore
    + ReconcileStore
    + VerifyStore
    + WatchStore
    + ArchiveStore
{
    /// Refuses a way to the database on which the books would go wrong; free once it was good.
    async fn check(&self) -> Result<(), StoreError>;

    /// Checks, and applies pending migrations.
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Answers when the database does.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Housekeeping: makes the next months' partitions, forgets look-ups whose day is over,
    /// idempotency keys that have expired, windows of rate that nobody uses, and Stripe's old
    /// events.
    async fn sweep(&self, now: Timestamp) -> Result<(), StoreError>;

    /// Calls `changed` whenever another process may have changed accounts or keys, and once at the
    /// beginning; returns only with an error.
    async fn follow_changes(&self, changed: &(dyn Fn() + Sync)) -> Result<(), StoreError>;

    /// Tells other processes that accounts, keys or the price table were changed.
    async fn announce_change(&self) -> Result<(), StoreError>;
}
