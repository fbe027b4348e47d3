//! Open holds, summed by account and by key, and counted for their limits of rate.

use super::Report;
use crate::models::ids::{AccountId, ApiKeyId};
use crate::models::limits::Subject;
use crate::models::money::NanoUsd;
use crate::models::window::RateWindow;
use crate::store::{Store, StoreError};
use std::collections::HashMap;

/// What is held.
#[derive(Default)]
pub struct Held {
    pub by_account: HashMap<AccountId, NanoUsd>,
    pub by_key: HashMap<ApiKeyId, NanoUsd>,
    /// How many were counted in a window of rate.
    counted: HashMap<Subject, i64>,
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
            for subject in hold.counted_in() {
                *held.counted.entry(subject).or_default() += 1;
            }
        }
    }
}

/// Compares what windows of rate say is open with what is. Takes what it finds.
pub async fn check_windows(
    store: &dyn Store,
    held: &mut Held,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let windows = store.windows_after(after).await?;
        let Some(last) = windows.last() else { break };
        after = Some(last.subject);
        for RateWindow { subject, open_requests, .. } in &windows {
            let counted = held.counted.remove(subject).unwrap_or_default();
            report.check(*open_requests == counted, || {
                let id = subject.0;
                format!("limits of {id}: {open_requests} requests run but {counted} holds are open")
            });
        }
    }
    for (subject, counted) in held.counted.drain() {
        report.check(false, || format!("limits of {}: {counted} open holds, no window", subject.0));
    }
    Ok(())
}

fn add(sum: &mut NanoUsd, amount: NanoUsd) {
    sum.0 = sum.0.saturating_add(amount.0);
}
