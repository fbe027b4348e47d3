//! The writer's queue: what waits to be written down, and for whose company it waits.
//!
//! Invariants: operations leave in the order in which they came; every wait for company ends, and
//! who waits for an answer is not kept for longer than a commit took.

use super::snapshots::Coming;
use super::{Failed, Hurry};
use crate::store::{LedgerOp, Outcome};
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Operations of one transaction. Larger batches gain nothing and answer later.
pub const BATCH_OPS_MAX: usize = 256;
/// What nobody waits for goes with the next operation that somebody does, or after this: a commit
/// of its own would be half of all commits. Should the process die meanwhile, recovery settles.
const COMPANY_WAIT: Duration = Duration::from_millis(10);
/// What somebody will wait for goes with what that somebody sends next, or after this. It is about
/// as long as a commit takes, for a process that dies meanwhile has called an upstream without a
/// hold.
const AHEAD_WAIT: Duration = Duration::from_millis(2);
/// An operation that somebody waits for is not held back longer for the company of others.
const GATHER_MAX: Duration = Duration::from_millis(5);

pub struct Queue {
    receiver: mpsc::Receiver<Queued>,
    hurry: Hurry,
    last: Last,
}

/// The last commit.
#[derive(Default)]
struct Last {
    took: Duration,
    /// Its operations that somebody waited for.
    awaited: usize,
}

pub struct Queued {
    pub op: LedgerOp,
    pub sent: Sent,
}

/// How an operation came into the queue.
pub struct Sent {
    pub at: Instant,
    pub answer: Option<oneshot::Sender<Result<Outcome, Failed>>>,
    wanted: Wanted,
    /// Until it is decided.
    _coming: Option<Coming>,
}

/// When an operation is wanted in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// Somebody waits for it.
    Now,
    /// Somebody is about to, and says so by [`Hurry`].
    Soon,
    /// Nobody waits.
    InTime,
}

impl Queued {
    pub fn new(
        op: LedgerOp,
        answer: Option<oneshot::Sender<Result<Outcome, Failed>>>,
        wanted: Wanted,
        coming: Option<Coming>,
    ) -> Self {
        Self { op, sent: Sent { at: Instant::now(), answer, wanted, _coming: coming } }
    }
}

impl Queue {
    pub fn new(receiver: mpsc::Receiver<Queued>, hurry: Hurry) -> Self {
        Self { receiver, hurry, last: Last::default() }
    }

    /// For an outage, which reads the queue in the writer's place.
    pub fn receiver(&mut self) -> &mut mpsc::Receiver<Queued> {
        &mut self.receiver
    }

    /// Takes what belongs into the next transaction; how many wait for it. `None` at the end, when
    /// every way to the queue is gone.
    ///
    /// While others are in flight who may have something to write, and who did so together just
    /// now, it is worth waiting as long as a commit takes: nobody is then later than twice that.
    pub async fn next(&mut self, queued: &mut Vec<Queued>) -> Option<usize> {
        if self.receiver.recv_many(queued, BATCH_OPS_MAX).await == 0 {
            return None;
        }
        let began = tokio::time::Instant::now();
        // One for all that come: a timer set anew is a system call that wakes the runtime.
        let mut end = pin!(tokio::time::sleep_until(began + COMPANY_WAIT));
        let mut hurried = 0;
        loop {
            hurried += self.hurry.take();
            let now = queued.iter().filter(|queued| queued.sent.wanted == Wanted::Now).count();
            let awaited = now + hurried;
            let room = BATCH_OPS_MAX.saturating_sub(queued.len());
            if room == 0 || awaited > 0 && awaited >= self.company() {
                return Some(awaited);
            }
            let wait = match queued.iter().map(|queued| queued.sent.wanted).min() {
                _ if awaited > 0 => self.last.took.min(GATHER_MAX),
                Some(Wanted::Soon) => AHEAD_WAIT,
                _ => COMPANY_WAIT,
            };
            if end.deadline() != began + wait {
                end.as_mut().reset(began + wait);
            }
            let is_more = tokio::select! {
                biased;
                is_more = self.more(queued, room) => is_more,
                () = &mut end => false,
            };
            if !is_more {
                return Some(awaited);
            }
        }
    }

    /// A transaction took so long, and so many waited for it.
    pub fn took(&mut self, took: Duration, awaited: usize) {
        self.last = Last { took, awaited };
    }

    /// Takes what comes, or hears that somebody waits; `false` when nothing will come.
    async fn more(&mut self, queued: &mut Vec<Queued>, room: usize) -> bool {
        tokio::select! {
            received = self.receiver.recv_many(queued, room) => received > 0,
            () = self.hurry.said() => true,
        }
    }

    /// Requests that may still write: each has a place reserved for its settlement.
    fn company(&self) -> usize {
        let in_flight = self.receiver.max_capacity() - self.receiver.capacity();
        if self.last.awaited > 1 { in_flight } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ids::RequestId;

    struct Way {
        sender: mpsc::Sender<Queued>,
        hurry: Hurry,
    }

    impl Way {
        async fn send(&self, wanted: Wanted) {
            let op = LedgerOp::Abandon(RequestId::generate());
            assert!(self.sender.send(Queued::new(op, None, wanted, None)).await.is_ok());
        }
    }

    fn queue() -> (Way, Queue) {
        let (sender, receiver) = mpsc::channel(BATCH_OPS_MAX * 2);
        let hurry = Hurry::default();
        (Way { sender, hurry: hurry.clone() }, Queue::new(receiver, hurry))
    }

    /// How many operations there are in the next transaction, and how many are awaited.
    async fn next(queue: &mut Queue) -> (usize, usize) {
        let mut queued = Vec::new();
        let awaited = queue.next(&mut queued).await;
        (queued.len(), awaited.unwrap())
    }

    #[tokio::test]
    async fn what_is_awaited_takes_along_what_waits() {
        let (way, mut queue) = queue();
        way.send(Wanted::InTime).await;
        way.send(Wanted::Soon).await;
        let (next, ()) = tokio::join!(next(&mut queue), way.send(Wanted::Now));
        assert_eq!(next, (3, 1));
    }

    #[tokio::test]
    async fn what_was_sent_ahead_leaves_when_it_is_waited_for() {
        let (way, mut queue) = queue();
        way.send(Wanted::Soon).await;
        let (hurried, ()) = tokio::join!(next(&mut queue), async { way.hurry.say() });
        assert_eq!(hurried, (1, 1));
        way.send(Wanted::Soon).await;
        assert_eq!(next(&mut queue).await, (1, 0), "that hurry is over");
    }

    #[tokio::test]
    async fn a_hurry_during_a_commit_is_heard_after_it() {
        let (way, mut queue) = queue();
        way.hurry.say();
        way.send(Wanted::Soon).await;
        assert_eq!(next(&mut queue).await, (1, 1));
    }

    #[tokio::test]
    async fn nothing_waits_for_ever_for_company() {
        let (way, mut queue) = queue();
        let own = way.sender.clone().reserve_owned().await;
        let other = way.sender.clone().reserve_owned().await;
        queue.took(Duration::from_hours(1), 2);
        for (wanted, awaited) in [(Wanted::InTime, 0), (Wanted::Soon, 0), (Wanted::Now, 1)] {
            way.send(wanted).await;
            assert_eq!(next(&mut queue).await, (1, awaited), "{wanted:?}");
        }
        drop((own, other));
    }

    #[tokio::test]
    async fn who_waits_is_joined_by_those_in_flight() {
        let (way, mut queue) = queue();
        let own = way.sender.clone().reserve_owned().await;
        let other = way.sender.clone().reserve_owned().await.unwrap();
        let settlement = async {
            let op = LedgerOp::Abandon(RequestId::generate());
            other.send(Queued::new(op, None, Wanted::InTime, None));
        };
        queue.took(Duration::from_hours(1), 2);
        way.send(Wanted::Now).await;
        let (next, ()) = tokio::join!(next(&mut queue), settlement);
        assert_eq!(next, (2, 1));
        drop(own);
    }

    #[tokio::test]
    async fn a_batch_has_an_end_and_the_queue_too() {
        let (way, mut queue) = queue();
        for _ in 0..=BATCH_OPS_MAX {
            way.send(Wanted::InTime).await;
        }
        assert_eq!(next(&mut queue).await, (BATCH_OPS_MAX, 0));
        drop(way);
        assert_eq!(next(&mut queue).await, (1, 0), "nothing more will come");
        assert_eq!(queue.next(&mut Vec::new()).await, None);
    }
}
