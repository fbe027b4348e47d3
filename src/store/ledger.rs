//! What changes the books, and who answers for an open hold.
//!
//! Invariants: one call is one transaction; a batch is decided by `books`. Where processes share a
//! store, leases go by its clock and by none of theirs.

use crate::models::hold::Hold;
use crate::models::ids::{InstanceId, RequestId};
use crate::models::limits::Subject;
use crate::models::timestamp::Timestamp;
use crate::models::usage::UsageRecord;
use crate::models::window::RateWindow;
use crate::store::{LedgerOp, Outcome, StoreError};
use async_trait::async_trait;
use std::time::Duration;

#[async_trait]
pub trait LedgerStore: Send + Sync {
    /// Changes the books: all of the batch in one transaction, or nothing. An operation that is
    /// refused changes nothing and does not fail the batch.
    async fn commit(&self, batch: &[LedgerOp], now: Timestamp) -> Result<Vec<Outcome>, StoreError>;

    /// The records of those of the requests that are settled, for who has found that they are.
    async fn settled(&self, requests: &[RequestId]) -> Result<Vec<UsageRecord>, StoreError>;

    /// Extends the lease of all holds of `owner`.
    async fn renew_leases(
        &self,
        owner: InstanceId,
        now: Timestamp,
        lease: Duration,
    ) -> Result<(), StoreError>;

    /// Takes over holds whose lease has expired, at most `limit` of them; none of `except`, whose
    /// leases are only late.
    async fn claim_orphans(
        &self,
        owner: InstanceId,
        except: InstanceId,
        now: Timestamp,
        lease: Duration,
        limit: i64,
    ) -> Result<Vec<Hold>, StoreError>;

    /// Gives up a hold that could not be settled: recovery will find it.
    async fn abandon_hold(&self, request: RequestId) -> Result<(), StoreError>;

    /// Ends the leases of every other owner: only for a store that one process owns alone.
    async fn expire_leases_of_others(&self, owner: InstanceId) -> Result<(), StoreError>;

    async fn holds_after(&self, after: Option<RequestId>) -> Result<Vec<Hold>, StoreError>;

    /// The windows of those with limits of rate.
    async fn windows_after(&self, after: Option<Subject>) -> Result<Vec<RateWindow>, StoreError>;
}
