//! Recovery: the holds of processes that died are settled by whoever finds them.
//!
//! Invariants: a hold is only taken over when its lease has expired, by one process; what it is
//! charged comes from the upstream where that can be asked, else from what the hold says was seen,
//! marked as an estimate. Our own leases are renewed here, well before they expire, so nothing
//! here may wait for an upstream.

use crate::models::hold::Hold;
use crate::models::ids::InstanceId;
use crate::models::openai::answer::Reported;
use crate::models::price::Price;
use crate::models::timestamp::Timestamp;
use crate::models::usage::{Ending, TokenUsage, UsageRecord, UsageSource};
use crate::services::pricing;
use crate::services::settle::Settler;
use crate::services::upstream::Found;
use crate::store::{LedgerOp, Settlement, Store, StoreError, in_time, within};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub struct Recovery {
    pub store: Arc<dyn Store>,
    pub settler: Arc<Settler>,
    pub instance: InstanceId,
    pub lease: Duration,
    /// Nobody else uses this store: whoever left a hold is dead.
    pub is_alone: bool,
}

/// Orphans taken over, and looked up, at once.
const ORPHANS_MAX: usize = 64;

/// A database that takes longer to renew leases is away: the next round may find it. As long as the
/// time between two of them, but for leases so short that a slow one would never be done.
const ROUND_WAIT_MIN: Duration = Duration::from_secs(5);

/// Since when this process has met the database at every round, and when it last did.
struct Reached {
    since: Instant,
    last: Instant,
}

impl Reached {
    /// The database is there. Whether it has been for a whole lease, in which every process that
    /// lives has renewed its own. An outage need not be an error: a database that was silent makes
    /// a round late, by so much that others may have been too late.
    fn for_a_lease(&mut self, lease: Duration) -> bool {
        let now = Instant::now();
        if now.duration_since(self.last) >= lease / 3 * 2 {
            self.since = now;
        }
        self.last = now;
        now.duration_since(self.since) >= lease
    }
}

impl Recovery {
    /// Renews and recovers until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        // Three times in a lease: one lost renewal costs nothing.
        let mut ticks = tokio::time::interval(self.lease / 3);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // After an outage of the database every lease has expired, those of the living too: they
        // get as long as a lease to renew theirs before anybody takes them over.
        let mut reached = Reached { since: Instant::now(), last: Instant::now() };
        let room = Arc::new(Semaphore::new(ORPHANS_MAX));
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let wait = (self.lease / 3).max(ROUND_WAIT_MIN);
            let round = tokio::select! {
                round = within(wait, self.round(&mut reached, &room)) => round,
                () = stop.cancelled() => return,
            };
            if let Err(error) = round {
                tracing::warn!("leases and orphans: {error}");
                reached.since = Instant::now();
            }
        }
    }

    async fn round(&self, reached: &mut Reached, room: &Arc<Semaphore>) -> Result<(), StoreError> {
        let now = Timestamp::now();
        self.store.renew_leases(self.instance, now, self.lease).await?;
        let may_claim = reached.for_a_lease(self.lease) || self.is_alone;
        // Each may take as long as a look-up, and keeps no other waiting but by the room it takes.
        let free = room.available_permits();
        // What is claimed while the process ends could not be asked for any more.
        if !may_claim || free == 0 || self.settler.stop.is_cancelled() {
            return Ok(());
        }
        // Claimed under an id of their own, whose lease nobody renews: what is not settled by then
        // is found again. Long enough for the look-ups.
        let claim = InstanceId::generate();
        let lease = self.lease + self.settler.upstreams.lookup_wait();
        let limit = i64::try_from(free).unwrap_or(i64::MAX);
        let asked = Instant::now();
        let orphans = self.store.claim_orphans(claim, self.instance, now, lease, limit).await?;
        if orphans.is_empty() {
            return Ok(());
        }
        if asked.elapsed() >= self.lease / 3 {
            // The database was silent meanwhile, in which the living may not have renewed theirs:
            // they can settle them yet. What nobody settles is found when this claim ends.
            tracing::warn!(holds = orphans.len(), "a claim came late: left alone");
            return Ok(());
        }
        tracing::info!(holds = orphans.len(), "settling the holds of a process that died");
        for hold in orphans {
            let (store, settler) = (self.store.clone(), self.settler.clone());
            let permit = room.clone().try_acquire_owned().ok();
            // Look-ups take a while; leases must go on being renewed meanwhile.
            self.settler.tasks.spawn(async move {
                settle(&store, &settler, hold).await;
                drop(permit);
            });
        }
        Ok(())
    }
}

async fn settle(store: &Arc<dyn Store>, settler: &Arc<Settler>, hold: Hold) {
    let found = look_up(settler, &hold).await;
    if found.is_none() && hold.generation_id.is_some() && settler.stop.is_cancelled() {
        // An estimate would be charged for what can still be asked: whoever finds the hold when the
        // lease of this claim ends has the time for it.
        tracing::info!(request.id = %hold.request_id, "an orphan is left to the next process");
        return;
    }
    let price = match in_time(store.price(&hold.price_id)).await {
        Ok(price) => price,
        Err(error) => {
            // The hold stays open and is found again when the lease of this claim ends.
            tracing::warn!(request.id = %hold.request_id, "the price of an orphan: {error}");
            return;
        }
    };
    let record = record(&hold, found, price.as_ref());
    let look_up = settler.look_up_plan(&record);
    let settlement = Settlement { record, look_up };
    settler.ledger.note(LedgerOp::Settle(Box::new(settlement)));
}

/// Only the upstream that it was sent to knows of it.
async fn look_up(settler: &Settler, hold: &Hold) -> Option<Found> {
    let id = hold.generation_id.as_deref()?;
    let Some(upstream) = settler.upstreams.get(&hold.upstream) else {
        let name = &hold.upstream;
        tracing::warn!(request.id = %hold.request_id, "there is no upstream '{name}' to be asked");
        return None;
    };
    upstream.look_up(id, &settler.stop).await
}

fn record(hold: &Hold, found: Option<Found>, price: Option<&Price>) -> UsageRecord {
    let source = if found.is_some() { UsageSource::Lookup } else { UsageSource::Estimated };
    let reported = found.as_ref().map_or_else(|| estimate(hold), |found| found.reported);
    let mut record = hold.closed(Ending::Killed, source, reported, Timestamp::now());
    record.counted_completion_tokens = Some(hold.completion_tokens_seen);
    if let Some(Found { model, provider, finish_reason, .. }) = found {
        record.model_served = model;
        record.provider = provider;
        record.finish_reason = finish_reason;
    }
    record.charge_nusd = price
        .and_then(|price| pricing::charge(price, &record.used()).ok())
        // Without a price, what was set aside is the best that is known.
        .unwrap_or(hold.amount_nusd);
    record
}

/// The prompt was sent; of the answer, what was noted before the process died.
fn estimate(hold: &Hold) -> Reported {
    let tokens = TokenUsage {
        prompt: hold.prompt_tokens_estimate,
        completion: hold.completion_tokens_seen,
        ..TokenUsage::default()
    };
    Reported { tokens, cost_pico: None }
}
