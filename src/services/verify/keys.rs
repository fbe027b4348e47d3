//! What keys have spent, made again from the entries of their requests.

use super::Report;
use super::archived::Archived;
use super::holds::Held;
use crate::models::ids::ApiKeyId;
use crate::models::key::KeyBudget;
use crate::models::ledger::{EntryKind, LedgerEntry};
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::store::{Store, StoreError};
use std::collections::HashMap;

/// The budgets as they are, and as the entries make them.
pub struct Spending {
    keys: HashMap<ApiKeyId, Key>,
}

struct Key {
    stored: KeyBudget,
    /// Day, week, month, total.
    spent: [i64; 4],
    /// What is given back of an older window is cut off at zero in this one: the windows of such a
    /// key cannot be told from the entries alone.
    has_corrections: bool,
}

impl Spending {
    /// What they had spent in archived months is counted.
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let mut keys = Self::of_budgets(store).await?;
        for past in store.archived_spending().await? {
            let Some(key) = keys.get_mut(&past.api_key_id) else { continue };
            let [.., total] = &mut key.spent;
            *total = total.saturating_add(past.spent_nusd.0);
            key.has_corrections |= past.corrections > 0;
        }
        Ok(Self { keys })
    }

    async fn of_budgets(store: &dyn Store) -> Result<HashMap<ApiKeyId, Key>, StoreError> {
        let mut keys = HashMap::new();
        let mut after = None;
        loop {
            let budgets = store.key_budgets_after(after).await?;
            let Some(last) = budgets.last() else { return Ok(keys) };
            after = Some(last.api_key_id);
            for stored in budgets {
                let key = Key { spent: [0; 4], has_corrections: false, stored };
                keys.insert(key.stored.api_key_id, key);
            }
        }
    }

    /// Counts an entry of one of the key's requests.
    pub fn count(&mut self, key: ApiKeyId, entry: &LedgerEntry) {
        let Some(key) = self.keys.get_mut(&key) else { return };
        key.has_corrections |= entry.kind == EntryKind::Correction;
        let starts = key.starts();
        let [windows @ .., total] = &mut key.spent;
        for (spent, start) in windows.iter_mut().zip(starts) {
            if entry.created_at >= start {
                *spent = spent.saturating_sub(entry.amount_nusd.0);
            }
        }
        *total = total.saturating_sub(entry.amount_nusd.0);
    }

    /// Compares. A window may have requests in it whose records are gone: it cannot be told.
    pub fn check(&self, held: &Held, archived: &Archived, report: &mut Report) {
        for (id, key) in &self.keys {
            let KeyBudget { held_nusd, day_nusd, week_nusd, month_nusd, total_nusd, .. } =
                key.stored;
            let holds = held.by_key.get(id).copied().unwrap_or_default();
            report.check(held_nusd == holds, || {
                format!("key {id}: held {held_nusd} but open holds are {holds}")
            });
            let stored = [day_nusd, week_nusd, month_nusd, total_nusd];
            let names = ["this day", "this week", "this month", "in all"];
            let [day, week, month] = key.starts().map(|start| archived.reach(start));
            let untold = [day, week, month, false].into_iter();
            let sums = stored.into_iter().zip(key.spent).zip(names).zip(untold);
            for (((stored, spent), name), is_untold) in sums {
                let is_told = !is_untold && (name == "in all" || !key.has_corrections);
                report.check(!is_told || stored.0 == spent, || {
                    format!(
                        "key {id}: spent {stored} {name} but its entries sum to {}",
                        NanoUsd(spent)
                    )
                });
            }
        }
    }
}

impl Key {
    /// Of the day, the week and the month that the budget is in.
    fn starts(&self) -> [Timestamp; 3] {
        [self.stored.day_start, self.stored.week_start, self.stored.month_start]
    }
}
