//! The store: business transactions in batches, on SQLite or PostgreSQL.
//!
//! Invariant: what one call changes it changes in one transaction, and both implementations decide
//! with the same code (`books`). Rows travel as JSON both ways, so that the structs in `models` are
//! the only mapping (`table`). No SQL outside this module, no prices or HTTP inside it.

pub mod books;
pub mod postgres;
pub mod sqlite;
mod table;

use crate::error::Error;
use crate::models::account::{Account, ApiKey, KeyBudget};
use crate::models::hold::{Hold, PendingLookup};
use crate::models::ids::{AccountId, ApiKeyId, InstanceId, RequestId};
use crate::models::ledger::EntryKind;
use crate::models::ledger::LedgerEntry;
use crate::models::money::{NanoUsd, Tokens};
use crate::models::price::Price;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{UsageCorrection, UsageRecord};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One change of the books.
#[derive(Clone, Debug)]
pub enum LedgerOp {
    /// Sets money aside: what is wanted, or what there is down to a floor, else refused.
    Place(Placement),
    /// Adds to a hold what is wanted, or what there is down to a floor.
    Extend(Extension),
    /// Writes down what recovery would need to know.
    Note(Note),
    /// Closes a hold with its usage record: charged, or voided with a charge of zero.
    Settle(Box<Settlement>),
    /// Puts a charge right by a new entry, when the truth comes late.
    Correct(Box<Correction>),
    /// Adds a credit or a correction.
    Enter(Entry),
    /// Its settlement was lost within this process: its hold is left to recovery.
    Abandon(RequestId),
}

#[derive(Clone, Debug)]
pub struct Placement {
    /// Its amount is what is wanted.
    pub hold: Hold,
    /// Less than this is of no use.
    pub floor_nusd: NanoUsd,
}

#[derive(Clone, Debug)]
pub struct Extension {
    pub request_id: RequestId,
    pub account_id: AccountId,
    pub api_key_id: Option<ApiKeyId>,
    pub add_nusd: NanoUsd,
    pub floor_nusd: NanoUsd,
}

#[derive(Clone, Debug)]
pub struct Settlement {
    pub record: UsageRecord,
    /// The numbers are an estimate, and the upstream may yet tell the truth.
    pub look_up: Option<LookUpPlan>,
}

/// When an estimate is asked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookUpPlan {
    pub first_at: Timestamp,
    pub give_up_at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct Correction {
    pub api_key_id: Option<ApiKeyId>,
    /// What the usage record was charged.
    pub charged_nusd: NanoUsd,
    /// `difference_nusd` is decided by the books.
    pub correction: UsageCorrection,
}

#[derive(Clone, Debug)]
pub struct Note {
    pub request_id: RequestId,
    pub account_id: AccountId,
    pub generation_id: Option<String>,
    pub completion_tokens_seen: Tokens,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub account_id: AccountId,
    pub kind: EntryKind,
    pub amount_nusd: NanoUsd,
    pub reason: String,
}

/// What became of one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was set aside, and what is left. Also the answer to a repetition.
    Placed {
        amount: NanoUsd,
        available: NanoUsd,
    },
    /// The hold's new amount.
    Extended {
        amount: NanoUsd,
        available: NanoUsd,
    },
    /// There is less than the floor.
    Refused {
        available: NanoUsd,
        by: Limit,
    },
    /// The idempotency key was used for another request.
    Repeated,
    Corrected {
        difference: NanoUsd,
    },
    Noted,
    Settled {
        charge: NanoUsd,
        available: NanoUsd,
    },
    /// The usage record was there before: nothing was changed.
    AlreadySettled,
    /// There is neither a hold nor a usage record of this id: nothing was changed.
    NoHold,
    Entered {
        balance: NanoUsd,
    },
    NoAccount,
    Abandoned,
    /// The account is suspended.
    Suspended,
    /// A sum left the range of its type: nothing was changed.
    OutOfRange,
}

/// A key, who pays for it, and what it may spend.
pub type KnownKey = (ApiKey, Account, KeyBudget);

/// What stood in the way of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Account,
    Key,
}

/// A copy of a usage record on its way to a sink, as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillingEvent {
    pub id: String,
    pub sink: String,
    pub request_id: RequestId,
    pub account_id: AccountId,
    pub state: String,
    pub attempts: i64,
    pub next_attempt_at: Timestamp,
    pub leased_until: Option<Timestamp>,
    pub reason: Option<String>,
    pub created_at: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is away, slow or shutting down: the same call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// The call itself cannot succeed.
    #[error("the database refused: {0}")]
    Refused(#[source] sqlx::Error),
    /// A unique name or secret exists already.
    #[error("{0} exists already")]
    Exists(&'static str),
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
        matches!(self, Self::Unavailable(_))
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Database(error.to_string()),
            other => Self::Internal(other.to_string()),
        }
    }
}

/// A page of rows is no longer than this.
pub const PAGE_ROWS_MAX: i64 = 1_000;

#[async_trait]
pub trait Store: Send + Sync {
    /// Applies pending migrations.
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Answers when the database does.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Changes the books: all of the batch in one transaction, or nothing. An operation that is
    /// refused changes nothing and does not fail the batch.
    async fn commit(&self, batch: &[LedgerOp], now: Timestamp) -> Result<Vec<Outcome>, StoreError>;

    async fn create_account(&self, account: &Account) -> Result<(), StoreError>;
    async fn account(&self, id: AccountId) -> Result<Option<Account>, StoreError>;
    async fn account_by_name(&self, name: &str) -> Result<Option<Account>, StoreError>;
    async fn accounts_after(&self, after: Option<AccountId>) -> Result<Vec<Account>, StoreError>;

    async fn create_key(&self, key: &ApiKey, budget: &KeyBudget) -> Result<(), StoreError>;
    async fn key_budgets_after(
        &self,
        after: Option<ApiKeyId>,
    ) -> Result<Vec<KeyBudget>, StoreError>;
    async fn key_by_hash(&self, secret_hash: &str) -> Result<Option<KnownKey>, StoreError>;
    async fn keys_of(&self, account: AccountId) -> Result<Vec<ApiKey>, StoreError>;
    /// True when the key exists.
    async fn revoke_key(&self, id: ApiKeyId, at: Timestamp) -> Result<bool, StoreError>;

    /// Adds versions that are not there yet, and from when on they count where that is news.
    async fn put_prices(&self, prices: &[Arc<Price>], at: Timestamp) -> Result<(), StoreError>;
    async fn price(&self, id: &str) -> Result<Option<Price>, StoreError>;

    /// Extends the lease of all holds of `owner`.
    async fn renew_leases(&self, owner: InstanceId, until: Timestamp) -> Result<(), StoreError>;
    /// Takes over holds whose lease has expired, at most `limit` of them; none of `except`, whose
    /// leases are only late.
    async fn claim_orphans(
        &self,
        owner: InstanceId,
        except: InstanceId,
        now: Timestamp,
        until: Timestamp,
        limit: i64,
    ) -> Result<Vec<Hold>, StoreError>;
    /// Gives up a hold that could not be settled: recovery will find it.
    async fn abandon_hold(&self, request: RequestId) -> Result<(), StoreError>;
    /// Ends the leases of every other owner: only for a store that one process owns alone.
    async fn expire_leases_of_others(&self, owner: InstanceId) -> Result<(), StoreError>;

    /// Takes look-ups that are due, at most `limit`; they are due again at `next`.
    async fn claim_lookups(
        &self,
        now: Timestamp,
        next: Timestamp,
        limit: i64,
    ) -> Result<Vec<PendingLookup>, StoreError>;
    /// Housekeeping: makes the next months' partitions, forgets look-ups whose day is over and
    /// idempotency keys that have expired.
    async fn sweep(&self, now: Timestamp) -> Result<(), StoreError>;
    async fn usage_record(&self, id: RequestId) -> Result<Option<UsageRecord>, StoreError>;
    async fn corrections_after(
        &self,
        after: Option<RequestId>,
    ) -> Result<Vec<UsageCorrection>, StoreError>;

    async fn billing_events_after(&self, after: &str) -> Result<Vec<BillingEvent>, StoreError>;
    async fn holds_after(&self, after: Option<RequestId>) -> Result<Vec<Hold>, StoreError>;
    async fn ledger_after(
        &self,
        account: AccountId,
        seq: i64,
    ) -> Result<Vec<LedgerEntry>, StoreError>;
    async fn usage_after(&self, after: Option<RequestId>) -> Result<Vec<UsageRecord>, StoreError>;

    /// Calls `changed` whenever another process may have changed accounts or keys, and once at the
    /// beginning; returns only with an error.
    async fn follow_changes(&self, changed: &(dyn Fn() + Sync)) -> Result<(), StoreError>;
    /// Tells other processes that accounts or keys were changed.
    async fn announce_change(&self) -> Result<(), StoreError>;
}
