//! Late truths: a request that was settled by an estimate is asked after for a day.
//!
//! Invariant: the usage record stays as it was; the charge is put right by one correcting ledger
//! entry. A 404 means "not yet".

use crate::models::hold::PendingLookup;
use crate::models::money::NanoUsd;
use crate::models::openai::answer::Reported;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{UsageCorrection, UsageRecord, Used, tells_of_failure};
use crate::services::pricing;
use crate::services::settle::Settler;
use crate::services::upstream::Found;
use crate::store::{Correction, LedgerOp, Store, StoreError, in_time};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub struct LateTruths {
    pub store: Arc<dyn Store>,
    pub settler: Arc<Settler>,
}

/// How often the table is looked at for what is due.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Look-ups in one round; the next one follows soon.
const LOOKUPS_MAX: i64 = 20;

impl LateTruths {
    /// Asks until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_EVERY.min(self.settler.slow_lookup_every));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let round = async {
                looks.tick().await;
                self.round().await
            };
            let done = tokio::select! {
                done = round => done,
                () = stop.cancelled() => return,
            };
            if let Err(error) = done {
                tracing::warn!("late look-ups: {error}");
            }
        }
    }

    async fn round(&self) -> Result<(), StoreError> {
        let now = Timestamp::now();
        let again = now.plus(self.settler.slow_lookup_every);
        let due = in_time(self.store.claim_lookups(now, again, LOOKUPS_MAX)).await?;
        let requests: Vec<_> = due.iter().map(|lookup| lookup.request_id).collect();
        let records = in_time(self.store.records_of(&requests)).await?;
        let mut records: HashMap<_, _> =
            records.into_iter().map(|record| (record.id, record)).collect();
        for lookup in due {
            let Some(record) = records.remove(&lookup.request_id) else { continue };
            // Taken out of the configuration: it may be back before this is given up.
            let Some(upstream) = self.settler.upstreams.get(&record.upstream) else { continue };
            match upstream.look_up_once(&lookup.generation_id).await {
                Ok(Some(found)) => self.correct(lookup, record, found, now).await?,
                Ok(None) => {}
                Err(error) => tracing::debug!("a late look-up failed: {error}"),
            }
        }
        Ok(())
    }

    async fn correct(
        &self,
        lookup: PendingLookup,
        record: UsageRecord,
        found: Found,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let price = in_time(self.store.price(&record.price_id)).await?;
        let Some(price) = price else { return Ok(()) };
        let Reported { tokens, cost_pico } = found.reported;
        let before = record.used();
        let reason = found.finish_reason.as_deref();
        let has_failed = before.has_failed || reason.is_some_and(tells_of_failure);
        let used = Used { tokens, cost_pico, has_failed, ..before };
        let Ok(charge) = pricing::charge(&price, &used) else { return Ok(()) };
        let correction = UsageCorrection {
            request_id: record.id,
            account_id: record.account_id,
            generation_id: lookup.generation_id,
            prompt_tokens: tokens.prompt,
            completion_tokens: tokens.completion,
            upstream_cost_pusd: cost_pico.and_then(|pico| i64::try_from(pico).ok()),
            charge_nusd: charge,
            difference_nusd: NanoUsd::ZERO,
            created_at: now,
        };
        // Lost when the queue is full: the look-up stays and is due again.
        self.settler.ledger.note(LedgerOp::Correct(Box::new(Correction {
            api_key_id: record.api_key_id,
            charged_nusd: record.charge_nusd,
            correction,
        })));
        Ok(())
    }
}
