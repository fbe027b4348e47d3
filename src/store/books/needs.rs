//! The rows that a batch needs.
//!
//! Invariant: what a batch may change is loaded before it is decided.

use crate::models::hold::Hold;
use crate::models::ids::{AccountId, ApiKeyId, RequestId};
use crate::models::limits::Subject;
use crate::store::{Correction, Demand, LedgerOp, Placement};
use std::collections::BTreeSet;

/// The ids that a batch needs loaded.
#[derive(Debug, Default)]
pub struct Needs {
    pub accounts: BTreeSet<AccountId>,
    pub keys: BTreeSet<ApiKeyId>,
    pub requests: BTreeSet<RequestId>,
    pub idempotency: BTreeSet<String>,
    /// Accounts and keys with limits of rate. Those that a hold was counted in come with the hold:
    /// see [`Needs::add_windows_of`].
    pub windows: BTreeSet<Subject>,
    /// Corrections are rare: their table is only asked when there is one.
    pub corrections: BTreeSet<RequestId>,
    pub references: BTreeSet<String>,
}

impl Needs {
    #[must_use]
    pub fn of(batch: &[LedgerOp]) -> Self {
        let mut needs = Self::default();
        for op in batch {
            needs.add(op);
        }
        needs
    }

    fn add(&mut self, op: &LedgerOp) {
        let (account, key, request) = match op {
            LedgerOp::Place(Placement { hold, demand, .. }) => {
                self.idempotency.extend(hold.idempotency_id());
                self.add_limited(hold, *demand);
                (hold.account_id, hold.api_key_id, Some(hold.request_id))
            }
            LedgerOp::Extend(extension) => {
                (extension.account_id, extension.api_key_id, Some(extension.request_id))
            }
            LedgerOp::Note(note) => (note.account_id, None, Some(note.request_id)),
            LedgerOp::Settle(settlement) => {
                let record = &settlement.record;
                (record.account_id, record.api_key_id, Some(record.id))
            }
            LedgerOp::Correct(correction) => {
                let Correction { api_key_id, correction, .. } = correction.as_ref();
                self.corrections.insert(correction.request_id);
                (correction.account_id, *api_key_id, Some(correction.request_id))
            }
            LedgerOp::Enter(entry) => {
                self.references.extend(entry.reference.clone());
                (entry.account_id, None, None)
            }
            LedgerOp::Abandon(_) => return,
        };
        self.accounts.insert(account);
        self.keys.extend(key);
        self.requests.extend(request);
    }

    fn add_limited(&mut self, hold: &Hold, demand: Option<Demand>) {
        let Some(Demand { limits, .. }) = demand else { return };
        if !limits.account.is_none() {
            self.windows.insert(hold.account_id.into());
        }
        if !limits.key.is_none() {
            self.windows.extend(hold.api_key_id.map(Subject::from));
        }
    }

    /// What these holds were counted in is put right when they end.
    pub fn add_windows_of<'a>(&mut self, holds: impl Iterator<Item = &'a Hold>) {
        for hold in holds {
            self.windows.extend(hold.counted_in());
        }
    }
}
