//! Months of usage records that leave the database once they are in files.
//!
//! Invariants: rows go only when the month's row in `archives` is committed, and that is written
//! only while nothing of the month is unfinished and its rows are those that were counted. An
//! archive that was interrupted is gone on with, and leaves what came to the month meanwhile, which
//! is in no file. Ledger entries never go.

use crate::models::archive::{Archive, ArchivedSpending, Month, Unfinished};
use crate::store::StoreError;
use async_trait::async_trait;

/// What a month sums to in the tables.
pub(super) type Counted = (i64, i64, i64, i64);

#[async_trait]
pub trait ArchiveStore: Send + Sync {
    /// All of them: twelve a year.
    async fn archives(&self) -> Result<Vec<Archive>, StoreError>;

    async fn archived_spending(&self) -> Result<Vec<ArchivedSpending>, StoreError>;

    async fn unfinished(&self, month: Month) -> Result<Unfinished, StoreError>;

    /// From now on the month's rows may go.
    async fn begin_archive(
        &self,
        archive: &Archive,
        spending: &[ArchivedSpending],
    ) -> Result<(), StoreError>;

    /// Removes some of a month's rows, or all; true when there are none any more.
    async fn remove_archived(&self, month: Month) -> Result<bool, StoreError>;
}

/// `from` and `until`: the first id of the month and that of the next, in either dialect.
pub(super) fn unfinished(from: &str, until: &str) -> String {
    let of = |table: &str, more: &str| {
        format!(
            "(SELECT COUNT(*) FROM {table} \
             WHERE request_id >= {from} AND request_id < {until} {more})"
        )
    };
    let (holds, lookups) = (of("holds", ""), of("lookups", ""));
    let events = of("billing_events", "AND state <> 'exported'");
    format!("SELECT {holds} AS holds, {lookups} AS lookups, {events} AS events")
}

/// What there is of a month: records, their charges, corrections, their differences.
pub(super) fn counted(from: &str, until: &str) -> String {
    let of = |what: &str, table: &str, id: &str| {
        format!(
            "(SELECT CAST({what} AS BIGINT) FROM {table} WHERE {id} >= {from} AND {id} < {until})"
        )
    };
    format!(
        "SELECT {}, {}, {}, {}",
        of("COUNT(*)", "usage_records", "id"),
        of("COALESCE(SUM(charge_nusd), 0)", "usage_records", "id"),
        of("COUNT(*)", "usage_corrections", "request_id"),
        of("COALESCE(SUM(difference_nusd), 0)", "usage_corrections", "request_id"),
    )
}

/// Whether a row of one of a month's tables came when the month was archived already, as from the
/// journal of an outage: by when it was entered in the ledger. `month`, in either dialect.
pub(super) fn is_late(table: &str, month: &str) -> String {
    let archived = format!("(SELECT archived_at FROM archives WHERE month = {month})");
    let is_charged_late = |id: &str| {
        format!(
            "EXISTS (SELECT 1 FROM ledger_entries l WHERE l.kind = 'charge' \
             AND l.request_id = {table}.{id} AND l.created_at > {archived})"
        )
    };
    match table {
        "usage_records" => is_charged_late("id"),
        "usage_corrections" => format!("{table}.created_at > {archived}"),
        _ => format!("({table}.created_at > {archived} OR {})", is_charged_late("request_id")),
    }
}

/// Whether what there is, is what was written to the files.
pub(super) fn check(
    archive: &Archive,
    counted: Counted,
    unfinished: Unfinished,
) -> Result<(), StoreError> {
    let Archive { records, charge_nusd, corrections, difference_nusd, .. } = archive;
    let written = (*records, charge_nusd.0, *corrections, difference_nusd.0);
    if written == counted && unfinished.is_nothing() {
        return Ok(());
    }
    let month = archive.month;
    Err(StoreError::Setup(format!("{month} has changed while it was written: try again")))
}
