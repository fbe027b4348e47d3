//! Journals that processes have left behind: whoever starts beside them puts them into the books.
//!
//! Invariant: a journal is only taken when its process is dead, by one process, and taken away when
//! all of it is in the books. Its open holds are then anybody's orphans.

use super::committer::{Committer, settled_before};
use super::journal::{Journal, Page};
use super::measured::Measured;
use super::writer::report;
use crate::store::Store;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub struct Leftovers {
    committer: Committer,
    folder: PathBuf,
    lease: Duration,
}

/// How often the folder is looked at: a process beside this one may have died.
const LOOK_EVERY: Duration = Duration::from_secs(10);

impl Leftovers {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, measured: &Measured, folder: &Path, lease: Duration) -> Self {
        let committer = Committer::new(store, measured.of_others());
        Self { committer, folder: folder.to_owned(), lease }
    }

    /// Looks for them until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            let round = async {
                self.round().await;
                tokio::time::sleep(LOOK_EVERY).await;
            };
            tokio::select! {
                () = round => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn round(&self) {
        let paths = match tokio::task::block_in_place(|| Journal::list(&self.folder)) {
            Ok(paths) => paths,
            Err(error) => return tracing::error!("journals cannot be looked for: {error}"),
        };
        for path in paths {
            match tokio::task::block_in_place(|| Journal::adopt(&path)) {
                Ok(Some(journal)) => self.take(journal, &path).await,
                Ok(None) => {}
                // Another process was faster.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => tracing::error!("{} cannot be read: {error}", path.display()),
            }
        }
    }

    /// Replays it to its end, or until the database is away: the next round begins again.
    async fn take(&self, mut journal: Journal, path: &Path) {
        let mut count = 0_usize;
        while !journal.is_empty() {
            let Ok(Page { ops, end }) = tokio::task::block_in_place(|| journal.page()) else {
                return tracing::error!("{} cannot be read", path.display());
            };
            count = count.saturating_add(ops.len());
            let Ok(replayed) = self.committer.replay(ops, self.lease).await else {
                return tracing::warn!("a journal waits for the database");
            };
            // What was replayed half way before is there already.
            let is_news = |(op, decided): &&(_, _)| settled_before((op, decided)).is_none();
            replayed.iter().filter(is_news).for_each(|(op, decided)| report(op, decided));
            if let Err(error) = tokio::task::block_in_place(|| journal.replayed(end)) {
                return tracing::error!("{} cannot be written: {error}", path.display());
            }
        }
        if let Err(error) = journal.remove() {
            tracing::error!("{} cannot be removed: {error}", path.display());
        }
        if count > 0 {
            tracing::info!(ledger.ops = count, "the journal of a process that died is replayed");
        }
    }
}
