//! Rows of the books as the last commit left them, so that the next need not read them.
//!
//! Invariants: what is known is what the file says. It is taken out before anything is written and
//! put back only after COMMIT; whoever else has the writing connection makes it forgotten; and what
//! another connection has written, of this process or another, shows in `data_version`, which is
//! asked within the transaction. What is not known may be there all the same.

use crate::models::account::Account;
use crate::models::hold::Hold;
use crate::models::ids::{AccountId, ApiKeyId, RequestId};
use crate::models::key::KeyBudget;
use crate::models::limits::Subject;
use crate::models::window::RateWindow;
use crate::store::books::{Books, Needs};
use std::collections::{BTreeMap, BTreeSet};

/// So many accounts, keys and windows of rate each: a row is about a kilobyte.
const PAYERS_MAX: usize = 2_048;
/// Fewer than the streams that may be open: those of long ones are seldom needed.
const HOLDS_MAX: usize = 512;

#[derive(Default)]
pub struct Known {
    /// The file's, when this was last right.
    /// <https://www.sqlite.org/pragma.html#pragma_data_version>
    pub version: Option<i64>,
    accounts: BTreeMap<AccountId, Account>,
    budgets: BTreeMap<ApiKeyId, KeyBudget>,
    holds: BTreeMap<RequestId, Hold>,
    windows: BTreeMap<Subject, RateWindow>,
}

impl Known {
    /// What the books are after a commit. With too many rows nothing is known: what is still used
    /// is read again, and only that.
    pub fn after(version: i64, books: Books) -> Self {
        let Books { accounts, budgets, holds, windows, .. } = books;
        let payers = [accounts.len(), budgets.len(), windows.len()];
        if holds.len() > HOLDS_MAX || payers.into_iter().any(|count| count > PAYERS_MAX) {
            return Self::default();
        }
        Self { version: Some(version), accounts, budgets, holds, windows }
    }

    /// What has to be read first; which windows are needed is only known when the holds are there.
    /// A request with a hold has no usage record: settling it takes the hold away, in the same
    /// transaction.
    pub fn lacks(&self, needs: &Needs) -> Needs {
        Needs {
            accounts: missing(&needs.accounts, &self.accounts),
            keys: missing(&needs.keys, &self.budgets),
            requests: missing(&needs.requests, &self.holds),
            ..Needs::default()
        }
    }

    /// The books with these rows.
    pub fn into_books(self) -> Books {
        let Self { accounts, budgets, holds, windows, .. } = self;
        Books { accounts, budgets, holds, windows, ..Books::default() }
    }
}

fn missing<K: Ord + Copy, V>(keys: &BTreeSet<K>, known: &BTreeMap<K, V>) -> BTreeSet<K> {
    keys.iter().filter(|key| !known.contains_key(key)).copied().collect()
}

#[cfg(test)]
mod tests;
