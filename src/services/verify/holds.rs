//! Open holds, summed by account and by key.

use super::Report;
use crate::models::ids::{AccountId, ApiKeyId};
use crate::models::money::NanoUsd;
use crate::store::{Store, StoreError};
use std::collections::HashMap;

/// What is held.
#[derive(Default)]
pub struct Held {
    pub by_account: HashMap<AccountId, NanoUsd>,
    pub by_key: HashMap<ApiKeyId, NanoUsd>,
}

/// Sums the open holds.
pub async fn sum(store: &dyn Store, report: &mut Report) -> Result<Held, StoreError> {
    let mut held = Held::default();
    let mut after = None;
    loop {
        let holds = store.holds_after(after).await?;
        let Some(last) = holds.last() else { return Ok(held) };
        after = Some(last.request_id);
        report.open_holds += holds.len();
        for hold in &holds {
            add(held.by_account.entry(hold.account_id).or_default(), hold.amount_nusd);
            if let Some(key) = hold.api_key_id {
                add(held.by_key.entry(key).or_default(), hold.amount_nusd);
            }
        }
    }
}

fn add(sum: &mut NanoUsd, amount: NanoUsd) {
    sum.0 = sum.0.saturating_add(amount.0);
}
