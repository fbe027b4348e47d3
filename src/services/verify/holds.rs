//! Open holds, summed by account and by key.

use super::Report;
use crate::models::ids::{AccountId, ApiKeyId};
use crate::models::money::NanoUsd;
use crate::store::{Store, StoreError};
use std::collections::HashMap;

/// Checks the keys' budgets, and gives what is held by account.
pub async fn check(
    store: &dyn Store,
    report: &mut Report,
) -> Result<HashMap<AccountId, NanoUsd>, StoreError> {
    let mut by_account: HashMap<AccountId, NanoUsd> = HashMap::new();
    let mut by_key: HashMap<ApiKeyId, NanoUsd> = HashMap::new();
    let mut after = None;
    loop {
        let holds = store.holds_after(after).await?;
        let Some(last) = holds.last() else { break };
        after = Some(last.request_id);
        report.open_holds += holds.len();
        for hold in &holds {
            add(by_account.entry(hold.account_id).or_default(), hold.amount_nusd);
            if let Some(key) = hold.api_key_id {
                add(by_key.entry(key).or_default(), hold.amount_nusd);
            }
        }
    }
    check_keys(store, &by_key, report).await?;
    Ok(by_account)
}

fn add(sum: &mut NanoUsd, amount: NanoUsd) {
    sum.0 = sum.0.saturating_add(amount.0);
}

async fn check_keys(
    store: &dyn Store,
    held: &HashMap<ApiKeyId, NanoUsd>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let budgets = store.key_budgets_after(after).await?;
        let Some(last) = budgets.last() else { return Ok(()) };
        after = Some(last.api_key_id);
        for budget in &budgets {
            let id = budget.api_key_id;
            let holds = held.get(&id).copied().unwrap_or_default();
            report.check(budget.held_nusd == holds, || {
                format!("key {id}: held {} but open holds are {holds}", budget.held_nusd)
            });
        }
    }
}
