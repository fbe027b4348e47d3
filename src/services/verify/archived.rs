//! Months whose usage records are in files: what the ledger's entries of their requests sum to is
//! what was written down when the records left.

use super::Report;
use crate::models::archive::{Archives, Month};
use crate::models::ids::RequestId;
use crate::models::ledger::{EntryKind, LedgerEntry};
use crate::models::timestamp::Timestamp;
use crate::store::{Store, StoreError};
use std::collections::HashMap;

#[derive(Default)]
pub struct Archived {
    archives: Archives,
    entered: HashMap<Month, Entered>,
    /// When the newest entry of an archived request was made: weeks after its month, where nobody
    /// was there to settle or to correct it before.
    until: Option<Timestamp>,
}

/// What the entries of a month's requests come to.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Entered {
    charges: i64,
    charged: i64,
    corrections: i64,
    corrected: i64,
}

impl Archived {
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        Ok(Self { archives: Archives::new(store.archives().await?), ..Self::default() })
    }

    /// Whether the request's record may be gone.
    pub fn has(&self, request: RequestId) -> bool {
        self.archives.has(request)
    }

    /// Whether what is of this time may be about requests whose records are gone, once all entries
    /// are counted.
    pub fn reach(&self, at: Timestamp) -> bool {
        self.until.is_some_and(|until| at <= until)
    }

    /// Counts an entry of an archived request.
    pub fn count(&mut self, request: RequestId, entry: &LedgerEntry) {
        self.until = self.until.max(Some(entry.created_at));
        let entered = self.entered.entry(Month::of_request(request)).or_default();
        let amount = entry.amount_nusd.0;
        match entry.kind {
            EntryKind::Charge => {
                entered.charges += 1;
                entered.charged = entered.charged.saturating_sub(amount);
            }
            EntryKind::Correction => {
                entered.corrections += 1;
                entered.corrected = entered.corrected.saturating_add(amount);
            }
            EntryKind::Credit => {}
        }
    }

    /// Compares.
    pub fn check(&self, report: &mut Report) {
        for archive in self.archives.all() {
            let written = Entered {
                charges: archive.records,
                charged: archive.charge_nusd.0,
                corrections: archive.corrections,
                corrected: archive.difference_nusd.0,
            };
            let entered = self.entered.get(&archive.month).copied().unwrap_or_default();
            report.check(entered == written, || {
                let month = archive.month;
                format!("archive {month}: the entries of its requests are not what it sums to")
            });
        }
    }
}
