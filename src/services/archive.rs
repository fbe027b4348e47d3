//! Usage records of past months go to files, and then from the database.
//!
//! Invariants: a month goes as a whole, the oldest first, and only when all of it is over; its rows
//! are removed when its files are on the disk and its sums are in the database. The ledger keeps
//! its entries, which `verify` holds against those sums. Does not read archives back.

mod files;

use crate::models::archive::Unfinished;
use crate::models::archive::{Archive, ArchiveState, ArchivedSpending, Archives, Month};
use crate::models::ids::{ApiKeyId, RequestId};
use crate::models::money::{NanoUsd, OutOfRange};
use crate::models::timestamp::Timestamp;
use crate::models::usage::{UsageCorrection, UsageRecord};
use crate::store::outbox::EventFilter;
use crate::store::{Store, StoreError};
use files::{Folder, Manifest};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("writing the files: {0}")]
    Files(#[from] io::Error),
    #[error("writing a row: {0}")]
    Row(#[from] serde_json::Error),
    #[error("a sum is out of range")]
    OutOfRange(#[from] OutOfRange),
    #[error(
        "{month} is not over: {} open holds, {} look-ups, {} billing events that are not exported",
        .open.holds, .open.lookups, .open.events
    )]
    Unfinished { month: Month, open: Unfinished },
    #[error("{0} is not over: what begins at its end is settled up to two days later")]
    NotOver(Month),
}

/// A month's sums while it is written.
#[derive(Default)]
struct Sums {
    records: i64,
    charge: NanoUsd,
    corrections: i64,
    difference: NanoUsd,
    /// Net, and how many corrections.
    keys: BTreeMap<ApiKeyId, (NanoUsd, i64)>,
}

/// Tries to get the table for a moment, on a busy server.
const REMOVAL_TRIES: u32 = 10;
const REMOVAL_PAUSE: Duration = Duration::from_secs(1);

/// Archives the months before `before`, and tells of each when it is done. One that was interrupted
/// is gone on with. What came to a month when it was archived already stays, and hinders no other:
/// gives the first such month.
///
/// # Errors
/// [`ArchiveError`]; months that were told of are done.
pub async fn run(
    store: &dyn Store,
    before: Month,
    to: &Path,
    tell: &mut (dyn FnMut(&Archive) -> io::Result<()> + Send),
) -> Result<Option<Month>, ArchiveError> {
    let archives = Archives::new(store.archives().await?);
    for archive in archives.all().filter(|archive| archive.state == ArchiveState::Removing) {
        // What came after the files were written, from a journal, is not yet told to everybody.
        let (month, open) = (archive.month, store.unfinished(archive.month).await?);
        if !open.is_nothing() {
            return Err(ArchiveError::Unfinished { month, open });
        }
        remove(store, month).await?;
        tell(archive)?;
    }
    let mut next = archives.all().last().map(|archive| archive.month.next());
    let late = oldest(store, None).await?.filter(|month| Some(*month) < next);
    while let Some(month) = oldest(store, next).await?.filter(|month| *month < before) {
        let archive = write(store, month, to, Timestamp::now()).await?;
        remove(store, month).await?;
        tell(&archive)?;
        next = Some(month.next());
    }
    Ok(late)
}

/// The month of the first usage record, of those that are of this month or a later one.
async fn oldest(store: &dyn Store, from: Option<Month>) -> Result<Option<Month>, StoreError> {
    let page = store.usage_after(from.map(|month| month.ids().0)).await?;
    Ok(page.first().map(|record| Month::of_request(record.id)))
}

/// Writes the files, and the month's sums into the database.
async fn write(
    store: &dyn Store,
    month: Month,
    to: &Path,
    now: Timestamp,
) -> Result<Archive, ArchiveError> {
    if !month.is_over(now) {
        return Err(ArchiveError::NotOver(month));
    }
    let open = store.unfinished(month).await?;
    if !open.is_nothing() {
        return Err(ArchiveError::Unfinished { month, open });
    }
    let mut folder = Folder::create(to, month)?;
    let mut sums = Sums::default();
    write_records(store, month, &mut folder, &mut sums).await?;
    write_corrections(store, month, &mut folder, &mut sums).await?;
    write_events(store, month, &mut folder).await?;
    let Sums { records, charge, corrections, difference, keys } = sums;
    let manifest_hash = folder.finish(&Manifest {
        month,
        records,
        charge_nusd: charge,
        corrections,
        difference_nusd: difference,
        files: &[],
    })?;
    let archive = Archive {
        month,
        records,
        charge_nusd: charge,
        corrections,
        difference_nusd: difference,
        manifest_hash,
        state: ArchiveState::Removing,
        // What is entered from now on is in none of the files.
        archived_at: Timestamp::now(),
    };
    let spending: Vec<_> = keys
        .into_iter()
        .map(|(api_key_id, (spent_nusd, corrections))| ArchivedSpending {
            month,
            api_key_id,
            spent_nusd,
            corrections,
        })
        .collect();
    store.begin_archive(&archive, &spending).await?;
    Ok(archive)
}

async fn write_records(
    store: &dyn Store,
    month: Month,
    folder: &mut Folder,
    sums: &mut Sums,
) -> Result<(), ArchiveError> {
    let (from, until) = month.ids();
    let mut file = folder.file("usage_records.ndjson")?;
    let mut after = from;
    loop {
        let page = store.usage_after(Some(after)).await?;
        let of_month = page.iter().take_while(|record| record.id < until);
        let mut count = 0;
        for record in of_month {
            file.write(record)?;
            sums.record(record)?;
            after = record.id;
            count += 1;
        }
        // Nothing of the month is left, or the next month has begun.
        if count == 0 || count < page.len() {
            return Ok(folder.close(file)?);
        }
    }
}

async fn write_corrections(
    store: &dyn Store,
    month: Month,
    folder: &mut Folder,
    sums: &mut Sums,
) -> Result<(), ArchiveError> {
    let (from, until) = month.ids();
    let mut file = folder.file("usage_corrections.ndjson")?;
    let mut after = from;
    loop {
        let mut page = store.corrections_after(Some(after)).await?;
        let whole = page.len();
        page.retain(|correction| correction.request_id < until);
        let ids: Vec<RequestId> = page.iter().map(|row| row.request_id).collect();
        let records = store.records_of(&ids).await?;
        let keys: HashMap<RequestId, Option<ApiKeyId>> =
            records.into_iter().map(|record| (record.id, record.api_key_id)).collect();
        for correction in &page {
            file.write(correction)?;
            sums.correction(correction, keys.get(&correction.request_id).copied().flatten())?;
            after = correction.request_id;
        }
        if page.is_empty() || page.len() < whole {
            return Ok(folder.close(file)?);
        }
    }
}

/// An event's id begins with that of its request, so that they come in the order of requests.
async fn write_events(
    store: &dyn Store,
    month: Month,
    folder: &mut Folder,
) -> Result<(), ArchiveError> {
    let (from, until) = month.ids();
    let mut file = folder.file("billing_events.ndjson")?;
    let mut after = from.to_string();
    loop {
        let page = store.billing_events_after(&EventFilter::default(), &after).await?;
        let of_month = page.iter().take_while(|event| event.request_id < until);
        let mut count = 0;
        for event in of_month {
            file.write(event)?;
            after.clone_from(&event.id);
            count += 1;
        }
        if count == 0 || count < page.len() {
            return Ok(folder.close(file)?);
        }
    }
}

/// Removes a month's rows, however often that is interrupted.
async fn remove(store: &dyn Store, month: Month) -> Result<(), ArchiveError> {
    let mut tries = 0;
    loop {
        match store.remove_archived(month).await {
            Ok(true) => return Ok(()),
            // One batch of many.
            Ok(false) => tries = 0,
            Err(error) if error.is_transient() && tries < REMOVAL_TRIES => {
                tries += 1;
                tokio::time::sleep(REMOVAL_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl Sums {
    fn record(&mut self, record: &UsageRecord) -> Result<(), OutOfRange> {
        self.records += 1;
        self.charge = self.charge.plus(record.charge_nusd)?;
        if let Some(key) = record.api_key_id {
            let (spent, _) = self.keys.entry(key).or_default();
            *spent = spent.plus(record.charge_nusd)?;
        }
        Ok(())
    }

    fn correction(
        &mut self,
        correction: &UsageCorrection,
        key: Option<ApiKeyId>,
    ) -> Result<(), OutOfRange> {
        self.corrections += 1;
        self.difference = self.difference.plus(correction.difference_nusd)?;
        if let Some(key) = key {
            let (spent, corrections) = self.keys.entry(key).or_default();
            *spent = spent.minus(correction.difference_nusd)?;
            *corrections += 1;
        }
        Ok(())
    }
}
