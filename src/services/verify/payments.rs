//! Payments: the ledger entries of each sum to what its row says is kept of it.

use super::Report;
use crate::models::ledger::LedgerEntry;
use crate::models::money::NanoUsd;
use crate::store::payments::session_of;
use crate::store::{Store, StoreError};
use std::collections::HashMap;

/// What entries say of payments, by their sessions.
#[derive(Default)]
pub struct Entered(HashMap<String, NanoUsd>);

impl Entered {
    pub fn count(&mut self, entry: &LedgerEntry) {
        let Some(session) = entry.reference.as_deref().and_then(session_of) else { return };
        let sum = self.0.entry(session.to_owned()).or_default();
        *sum = NanoUsd(sum.0.saturating_add(entry.amount_nusd.0));
    }

    pub async fn check(mut self, store: &dyn Store, report: &mut Report) -> Result<(), StoreError> {
        let mut after = String::new();
        loop {
            let payments = store.payments_after(&after).await?;
            let Some(last) = payments.last() else { break };
            after.clone_from(&last.id);
            for payment in &payments {
                let entered = self.0.remove(&payment.id).unwrap_or_default();
                report.check(entered == payment.kept_nusd, || {
                    let kept = payment.kept_nusd;
                    format!("payment {}: keeps {kept} but its entries sum to {entered}", payment.id)
                });
            }
        }
        for session in self.0.into_keys() {
            report.check(false, || format!("payment {session}: entries without their payment"));
        }
        Ok(())
    }
}
