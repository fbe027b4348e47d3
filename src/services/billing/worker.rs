//! One sink's worker: takes parcels under a lease, sends them, and writes down what became of them.
//!
//! Invariants: no transaction is open while the sink is called; nothing is sent after its lease
//! could have ended, also where the machine has slept; after `stop` nothing new is sent, and
//! what was not sent goes back. A process that dies leaves leases that end by themselves.

use super::exporter::{Exporter, Trouble, Verdict};
use super::pace::{PATIENCE, Waking, heard};
use super::queue::{Done, Lane, Lease, Queue};
use crate::models::timestamp::Timestamp;
use crate::services::breaker::{Breaker, Heard, Leave};
use crate::services::http::Silence;
use crate::services::metrics::Sender;
use crate::store::{StoreError, within};
use futures::StreamExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[derive(Clone)]
pub struct Terms {
    /// The longest that a call may take.
    pub wait: Duration,
    pub lease: Duration,
    pub measured: Sender,
}

pub struct Worker<Q, E> {
    pub queue: Q,
    pub exporter: E,
    pub terms: Terms,
}

/// How often an empty queue is looked at. Nobody is told of new events: a sink is in no hurry.
const IDLE_PAUSE: Duration = Duration::from_secs(1);
/// After the store has failed.
const STORE_PAUSE: Duration = Duration::from_secs(3);
/// A store that does not answer in this time is away.
const STORE_WAIT: Duration = Duration::from_secs(30);
/// Lanes taken for each call that may go on at once, so that none of those waits for the store.
const LANES_PER_CALL: usize = 4;
/// Lanes whose ends are written down in one transaction, where that many have ended.
const LANES_PER_FINISH: usize = 32;

/// Whether the sink may be called, and the clock by which its pauses go.
struct Standing {
    breaker: Breaker,
    clock: Waking,
}

/// What holds for one round.
struct Round<'a> {
    lease: Lease,
    /// No call begins after this.
    send_until: Instant,
    standing: &'a Mutex<Standing>,
    stop: &'a CancellationToken,
}

impl<Q, E> Worker<Q, E>
where
    Q: Queue,
    E: Exporter<Parcel = Q::Parcel>,
{
    /// Works until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let standing = Mutex::new(Standing::new());
        while !stop.is_cancelled() {
            let leave = lock(&standing).leave();
            let pause = match leave {
                // No timer counts the time in which the machine sleeps.
                Leave::Nothing(pause) => pause.min(IDLE_PAUSE),
                Leave::One => self.round(1, &standing, &stop).await,
                Leave::All => self.round(E::CALLS_MAX * LANES_PER_CALL, &standing, &stop).await,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// One round; gives the pause after it.
    async fn round(
        &self,
        lanes: usize,
        standing: &Mutex<Standing>,
        stop: &CancellationToken,
    ) -> Duration {
        match self.deliver(lanes, standing, stop).await {
            Ok(0) => IDLE_PAUSE,
            Ok(_) => Duration::ZERO,
            Err(error) => {
                tracing::warn!(sink = E::SINK, "billing events wait for the database: {error}");
                STORE_PAUSE
            }
        }
    }

    /// Takes, sends and finishes; gives the number of parcels.
    async fn deliver(
        &self,
        lanes: usize,
        standing: &Mutex<Standing>,
        stop: &CancellationToken,
    ) -> Result<usize, StoreError> {
        // Before the lease begins, so that it is never relied on for too long.
        let send_until = lock(standing).now() + self.terms.lease.saturating_sub(self.terms.wait);
        let now = Timestamp::now();
        let until = now.plus(self.terms.lease);
        let lease = Lease { by: Uuid::now_v7().to_string(), now, until };
        let taken = within(STORE_WAIT, self.queue.take(&lease, lanes)).await?;
        let round = Round { lease, send_until, standing, stop };
        let sending = taken.into_iter().map(|lane| self.send(lane, &round));
        let mut ended = futures::stream::iter(sending)
            .buffer_unordered(E::CALLS_MAX)
            .ready_chunks(LANES_PER_FINISH);
        let mut count = 0;
        let mut first_error = None;
        while let Some(lanes) = ended.next().await {
            let done: Done<Q::Parcel> = lanes.into_iter().flatten().collect();
            count += done.len();
            say_parked(E::SINK, &done);
            self.measure(&done);
            // What cannot be written down is found again when its lease ends.
            let finish = within(STORE_WAIT, self.queue.finish(&round.lease, &done));
            if let Err(error) = finish.await {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(count), Err)
    }

    /// A lane's calls, one after the other; after the first trouble the rest goes back. What is
    /// refused together is halved until a bad parcel is alone, as long as the lease allows: a batch
    /// of a hundred is at most two hundred calls.
    async fn send(&self, lane: Lane<Q::Parcel>, round: &Round<'_>) -> Done<Q::Parcel> {
        let mut done = Vec::new();
        let mut is_well = true;
        let unsent = |parcels| Call { parcels, refused: None };
        let mut waiting: Vec<Call<Q::Parcel>> = lane.into_iter().rev().map(unsent).collect();
        while let Some(Call { parcels, refused }) = waiting.pop() {
            let verdicts = if is_well && round.may_send() {
                self.call(&parcels, round).await
            } else {
                vec![Verdict::unsent(refused); parcels.len()]
            };
            is_well &= !verdicts.iter().any(|verdict| matches!(verdict, Verdict::Later(_)));
            let ended = parcels.into_iter().zip(verdicts);
            let is_together = |(_, it): &(_, Verdict)| matches!(it, Verdict::Together(_));
            let (refused, told): (Done<Q::Parcel>, Done<Q::Parcel>) = ended.partition(is_together);
            done.extend(told);
            halve(refused, &mut done, &mut waiting);
        }
        done
    }

    fn measure(&self, done: &Done<Q::Parcel>) {
        let Sender { delivered, later, rejected } = &self.terms.measured;
        for (_, verdict) in done {
            match verdict {
                Verdict::Delivered => drop(delivered.inc()),
                Verdict::Later(_) => drop(later.inc()),
                Verdict::Rejected(_) => drop(rejected.inc()),
                Verdict::Together(_) | Verdict::Untouched | Verdict::Missing => {}
            }
        }
    }

    async fn call(&self, parcels: &[Q::Parcel], round: &Round<'_>) -> Vec<Verdict> {
        let sending = tokio::time::timeout(self.terms.wait, self.exporter.send(parcels));
        let verdicts = sending.await.unwrap_or_else(|_| {
            let silence = Trouble::silence(Silence::unknown("no answer in time"));
            vec![Verdict::Later(silence); parcels.len()]
        });
        let has_opened = heard(&verdicts).is_some_and(|heard| lock(round.standing).learn(heard));
        if has_opened && let Some(Verdict::Later(trouble)) = verdicts.first() {
            tracing::warn!(
                sink = E::SINK,
                "the sink is left alone for a while: {}",
                trouble.reason
            );
        }
        verdicts
    }
}

impl Round<'_> {
    fn may_send(&self) -> bool {
        let mut standing = lock(self.standing);
        let now = standing.now();
        let leave = standing.breaker.leave(now);
        !self.stop.is_cancelled() && now < self.send_until && !matches!(leave, Leave::Nothing(_))
    }
}

impl Standing {
    fn new() -> Self {
        let clock = Waking::new(Instant::now(), Timestamp::now());
        Self { breaker: Breaker::default(), clock }
    }

    fn now(&mut self) -> Instant {
        self.clock.now(Instant::now(), Timestamp::now())
    }

    fn leave(&mut self) -> Leave {
        let now = self.now();
        self.breaker.leave(now)
    }

    /// True when this opened the circuit.
    fn learn(&mut self, heard: Heard) -> bool {
        let now = self.now();
        self.breaker.learn(heard, &PATIENCE, now)
    }
}

fn lock(standing: &Mutex<Standing>) -> MutexGuard<'_, Standing> {
    standing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call that is to be made.
struct Call<P> {
    parcels: Vec<P>,
    /// Why the sink refused them, together with others.
    refused: Option<String>,
}

/// Puts what was refused together before what waits; what was refused alone is done with.
fn halve<P>(mut refused: Done<P>, done: &mut Done<P>, waiting: &mut Vec<Call<P>>) {
    if refused.len() > 1 {
        let second = refused.split_off(refused.len() / 2);
        waiting.extend([second, refused].map(|half| Call {
            refused: half.first().and_then(|(_, verdict)| verdict.refusal()),
            parcels: half.into_iter().map(|(parcel, _)| parcel).collect(),
        }));
    } else {
        done.extend(refused.into_iter().map(|(parcel, verdict)| (parcel, verdict.alone())));
    }
}

/// A sink that refuses usage is money that does not arrive: said aloud, once for a batch.
fn say_parked<P>(sink: &str, done: &Done<P>) {
    let reasons: Vec<&String> = done
        .iter()
        .filter_map(|(_, verdict)| match verdict {
            Verdict::Rejected(reason) => Some(reason),
            _ => None,
        })
        .collect();
    if let Some(first) = reasons.first() {
        let count = reasons.len();
        tracing::error!(sink, events.parked = count, "parked, the first because: {first}");
    }
}
