//! Sums over what was written down, and a payer's own records.
//!
//! Invariants: an account sees its own rows only, whatever ids it names; corrections are taken in,
//! so that sums of charges are what the ledger says; answers are bounded in rows and in time.
//! Reads only.

/// In both dialects.
pub(super) mod statements;

use crate::models::ids::{AccountId, RequestId};
use crate::models::report::{Adjustment, CreditTotals, Question, Span, UsageLine, UsageSum};
use crate::models::timestamp::Timestamp;
use crate::store::StoreError;
use async_trait::async_trait;
use std::time::Duration;

/// Most groups in one answer: about 7 MB of JSON.
pub const GROUPS_MAX: usize = 10_000;
/// A statement of a report is given up after this. A million records took 2 s on a loaded machine.
pub const STATEMENT_WAIT: Duration = Duration::from_secs(15);

#[async_trait]
pub trait ReportStore: Send + Sync {
    /// Sums by bucket and group, in no order; groups without a record are left out. At most
    /// [`GROUPS_MAX`] and one more, which says that there are too many.
    async fn usage_sums(&self, question: &Question) -> Result<Vec<UsageSum>, StoreError>;

    /// Corrections that were entered by hand, by the time of their entry.
    async fn adjustments(
        &self,
        account: AccountId,
        buckets: &[Span],
    ) -> Result<Vec<Adjustment>, StoreError>;

    /// `None`: there is no such account.
    async fn credit_totals(&self, account: AccountId) -> Result<Option<CreditTotals>, StoreError>;

    /// An account's records after one and before an instant, in their order, a page of them.
    async fn usage_lines(
        &self,
        account: AccountId,
        after: RequestId,
        before: Timestamp,
    ) -> Result<Vec<UsageLine>, StoreError>;
}
