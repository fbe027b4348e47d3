//! What the books stand at, for whoever watches them.
//!
//! Invariants: reads only, and little, whatever the number of records: open holds, which are few;
//! what waits or is parked, by its index and up to a bound; a page of accounts. Each question is
//! one statement, so that it sees one state of the books, and ends in time.

use crate::models::ids::{AccountId, InstanceId};
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::store::StoreError;
use async_trait::async_trait;
use serde::Deserialize;
use std::time::Duration;

/// Events counted at most: where there are more, a sink has been away for long, and counting them
/// all would not tell anything new.
pub const EVENTS_COUNTED_MAX: i64 = 100_000;
/// Accounts in one question.
pub const ACCOUNTS_PER_PAGE: i64 = 1_000;
/// A question that takes longer is given up.
pub const LOOK_WAIT: Duration = Duration::from_secs(5);

/// Open holds of all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct OpenHolds {
    pub holds: i64,
    pub amount_nusd: NanoUsd,
    /// Those of the process that asks.
    pub own: i64,
    pub oldest: Option<Timestamp>,
}

/// What a sink has not got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Backlog {
    pub waiting: i64,
    pub oldest_waiting: Option<Timestamp>,
    /// Merged into exports that wait.
    pub merged: i64,
    pub oldest_merged: Option<Timestamp>,
    /// For somebody to look at.
    pub parked: i64,
    pub oldest_parked: Option<Timestamp>,
    /// Parked until their accounts have a customer at the sink: of many accounts that is normal.
    pub without_customer: i64,
}

/// Accounts held against their open holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct HeldPage {
    pub accounts: i64,
    /// Where what is set aside is not what the holds sum to.
    pub different: i64,
    /// Where the next page begins.
    pub last: Option<AccountId>,
}

impl Backlog {
    #[must_use]
    pub fn oldest(&self) -> Option<Timestamp> {
        [self.oldest_waiting, self.oldest_merged].into_iter().flatten().min()
    }
}

/// A statement and the names of its columns.
pub(super) type Statement = (String, &'static [&'static str]);

/// `$1`: whose are counted apart.
pub(super) fn open_holds() -> Statement {
    let statement = "SELECT COUNT(*) AS holds, \
         CAST(COALESCE(SUM(amount_nusd), 0) AS BIGINT) AS amount_nusd, \
         CAST(COALESCE(SUM(CASE WHEN owner = $1 THEN 1 ELSE 0 END), 0) AS BIGINT) AS own, \
         MIN(placed_at) AS oldest FROM holds";
    (statement.to_owned(), &["holds", "amount_nusd", "own", "oldest"])
}

/// Of sink `$1`. What was merged is counted by the export of the charge: only its unit is not 1.
pub(super) fn backlog() -> Statement {
    let max = EVENTS_COUNTED_MAX;
    let statement = format!(
        "SELECT w.waiting, w.oldest_waiting, m.merged, m.oldest_merged, p.parked, \
          p.oldest_parked, c.without_customer FROM \
         (SELECT COUNT(*) AS waiting, MIN(created_at) AS oldest_waiting FROM \
          (SELECT created_at FROM billing_events WHERE sink = $1 AND state = 'waiting' \
           AND export_group IS NULL ORDER BY next_attempt_at LIMIT {max}) e) w CROSS JOIN \
         (SELECT CAST(COALESCE(SUM(members), 0) AS BIGINT) AS merged, \
           MIN(used_at) AS oldest_merged FROM \
          (SELECT members, used_at FROM exports WHERE sink = $1 AND state = 'waiting' \
           AND unit <> 1 LIMIT {max}) x) m CROSS JOIN \
         (SELECT COUNT(*) AS parked, MIN(created_at) AS oldest_parked FROM \
          ({below} UNION ALL {above} UNION ALL {bare}) q) p \
         CROSS JOIN (SELECT COUNT(*) AS without_customer FROM ({missing}) q) c",
        below = parked("created_at", "reason < 'no_customer'"),
        above = parked("created_at", "reason > 'no_customer'"),
        bare = parked("created_at", "reason IS NULL"),
        // Of these there may be many, and the index alone tells their number.
        missing = parked("1", "reason = 'no_customer'"),
    );
    (statement, BACKLOG)
}

const BACKLOG: &[&str] = &[
    "waiting",
    "oldest_waiting",
    "merged",
    "oldest_merged",
    "parked",
    "oldest_parked",
    "without_customer",
];

/// A range of the index of what is parked.
fn parked(column: &str, range: &str) -> String {
    format!(
        "SELECT * FROM (SELECT {column} FROM billing_events WHERE sink = $1 \
          AND state = 'parked' AND {range} LIMIT {EVENTS_COUNTED_MAX}) r"
    )
}

/// The accounts after `$1`. Holds have no index by account: they are read once, not for each.
pub(super) fn held_page() -> Statement {
    let statement = format!(
        "SELECT COUNT(*) AS accounts, CAST(COALESCE(SUM(CASE WHEN t.held = t.open THEN 0 \
          ELSE 1 END), 0) AS BIGINT) AS different, MAX(CAST(t.id AS TEXT)) AS last FROM \
         (SELECT a.id, a.held_nusd AS held, COALESCE(h.open, 0) AS open FROM accounts a \
          LEFT JOIN (SELECT account_id, SUM(amount_nusd) AS open FROM holds GROUP BY account_id) h \
          ON h.account_id = a.id WHERE a.id > $1 ORDER BY a.id LIMIT {ACCOUNTS_PER_PAGE}) t"
    );
    (statement, &["accounts", "different", "last"])
}

#[async_trait]
pub trait WatchStore: Send + Sync {
    /// `own`: whose holds are counted apart.
    async fn open_holds(&self, own: InstanceId) -> Result<OpenHolds, StoreError>;

    async fn backlog(&self, sink: &str) -> Result<Backlog, StoreError>;

    /// A page of accounts after `after`, from the first where there is none.
    async fn held_page(&self, after: Option<AccountId>) -> Result<HeldPage, StoreError>;
}

/// The one row of a question that always has one.
pub(super) fn only<T>(mut rows: Vec<T>) -> Result<T, StoreError> {
    rows.pop().ok_or_else(|| StoreError::Setup("a sum without a row".to_owned()))
}
