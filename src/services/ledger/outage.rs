//! The database is away: what comes is decided by what is known, journalled and answered, and
//! replayed in its order when the database is back.
//!
//! Invariants: nothing is answered before it is on the disk; whoever is let in has room for its
//! settlement there; nothing goes past the journal while something is in it. An operation that was
//! tried before may be in the books already: replaying it changes nothing.

use super::committer::{Committer, Decided, RETRY_MAX};
use super::exposure::{Denied, Exposure, Left};
use super::journal::{Journal, Page};
use super::queue::{BATCH_OPS_MAX, Queued};
use super::writer::{Memory, report};
use super::{Away, Failed, OutageTerms};
use crate::models::hold::Hold;
use crate::models::ids::RequestId;
use crate::models::limits::Counted;
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::store::books::Books;
use crate::store::{Extension, LedgerOp, Outcome, Placement, Rest, Settlement};
use futures::future::BoxFuture;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How the writer goes on.
pub struct Outage {
    terms: Terms,
    journal: Journal,
    /// It could not be written, and is not written again before all of it is replayed.
    is_broken: bool,
    /// What could not be journalled and must not be lost: settlements of requests from before.
    kept: Vec<LedgerOp>,
    exposure: Exposure,
    /// Limits of rate, counted by this process alone.
    windows: Books,
    counted: HashMap<RequestId, Hold>,
    /// Let in, and not settled.
    open: HashSet<RequestId>,
    /// Refused without the books being asked: their settlements say nothing.
    refused: HashSet<RequestId>,
}

struct Terms {
    exposure: NanoUsd,
    lease: Duration,
    committer: Committer,
    memory: Memory,
    away: Away,
}

/// What becomes of an operation.
#[expect(clippy::large_enum_variant, reason = "most of them are written, and none is kept")]
enum Verdict {
    /// It is journalled, and then answered with this.
    Write(LedgerOp, Option<Outcome>),
    Answer(Decided),
    Drop,
}

/// Operations with what is answered once they are on the disk.
type Writing = Vec<(LedgerOp, Option<Outcome>, Option<oneshot::Sender<Decided>>)>;
/// What was replayed, and up to where; `None`: of what was kept.
type Replayed = (Option<u64>, Result<Vec<(LedgerOp, Decided)>, Failed>);

/// Room of the journal for one operation: a settlement with all its names and attempts.
const OP_ROOM_BYTES: u64 = 8 << 10;
const RETRY_FIRST: Duration = Duration::from_millis(100);

impl Outage {
    pub(super) fn new(
        terms: OutageTerms,
        committer: Committer,
        memory: Memory,
        away: Away,
    ) -> Self {
        let OutageTerms { exposure, lease, journal, .. } = terms;
        Self {
            terms: Terms { exposure, lease, committer, memory, away },
            journal,
            is_broken: false,
            kept: Vec::new(),
            exposure: Exposure::new(exposure),
            windows: Books::default(),
            counted: HashMap::new(),
            open: HashSet::new(),
            refused: HashSet::new(),
        }
    }

    /// Goes on until the database is back and has all; or, when nobody can send any more, until all
    /// is on the disk.
    pub(super) async fn outlast(
        &mut self,
        undecided: Vec<Queued>,
        receiver: &mut mpsc::Receiver<Queued>,
    ) {
        let (since, mut pause) = (Instant::now(), RETRY_FIRST);
        tracing::error!("the database is away: going on with the journal");
        self.terms.away.set_away(true);
        self.take_in(undecided, true);
        let (mut queued, mut is_sent) = (Vec::with_capacity(BATCH_OPS_MAX), true);
        let (mut replay, _) = self.replay(pause);
        // Nothing is taken in until then: under load there is always something more to replay.
        let mut held_off: Option<Instant> = None;
        loop {
            let hold_off = tokio::time::sleep_until(held_off.unwrap_or_else(Instant::now).into());
            tokio::select! {
                count = receiver.recv_many(&mut queued, BATCH_OPS_MAX),
                    if is_sent && held_off.is_none() =>
                {
                    is_sent = count > 0;
                    self.take_in(std::mem::take(&mut queued), false);
                }
                () = hold_off, if held_off.is_some() => held_off = None,
                (end, replayed) = &mut replay => {
                    let is_back = replayed.is_ok();
                    let is_done = replayed.is_ok_and(|replayed| self.replayed(end, replayed));
                    if is_done || (!is_back && !is_sent && self.kept.is_empty()) {
                        break;
                    }
                    let longer = (pause * 2).clamp(RETRY_FIRST, RETRY_MAX);
                    pause = if is_back { Duration::ZERO } else { longer };
                    let is_last;
                    (replay, is_last) = self.replay(pause);
                    let patience = self.terms.away.patience().unwrap_or_default();
                    held_off = (is_back && is_last).then(|| Instant::now() + patience);
                }
            }
        }
        if self.journal.is_empty() {
            let seconds = since.elapsed().as_secs();
            tracing::info!(seconds, "the database is back, and has what was journalled");
        } else {
            tracing::warn!("what is journalled is left to the next start");
        }
        self.begin_anew();
    }

    fn begin_anew(&mut self) {
        self.exposure = Exposure::new(self.terms.exposure);
        self.windows = Books::default();
        self.counted.clear();
        self.open.clear();
        self.refused.clear();
        self.is_broken = false;
        self.terms.away.set_away(false);
        self.terms.away.set_can_serve(true);
    }

    /// At the end of the process: an empty journal has nothing to tell.
    pub(super) fn end(self) {
        if self.journal.is_empty()
            && let Err(error) = self.journal.remove()
        {
            tracing::warn!("an empty journal stays: {error}");
        }
    }

    // === into the journal ===

    /// Decides, writes down and answers what came.
    fn take_in(&mut self, queued: Vec<Queued>, was_tried: bool) {
        let holds = queued.iter().filter(|queued| matches!(queued.op, LedgerOp::Place(_))).count();
        let has_room = self.has_room(holds);
        let mut writing = Writing::new();
        for Queued { op, sent } in queued {
            let refused = match &op {
                LedgerOp::Place(placement) if !was_tried => Some(placement.hold.request_id),
                _ => None,
            };
            match self.decide(op, has_room) {
                Verdict::Write(op, outcome) => writing.push((op, outcome, sent.answer)),
                Verdict::Answer(decided) => {
                    self.refused.extend(refused);
                    if let Some(answer) = sent.answer {
                        let _ = answer.send(decided);
                    }
                }
                Verdict::Drop => {}
            }
        }
        self.write(writing);
        let can_serve = !self.is_broken && self.exposure.left() > NanoUsd::ZERO;
        self.terms.away.set_can_serve(can_serve);
    }

    /// Room for these holds, for what else is said of them, and for the settlements of all.
    fn has_room(&mut self, holds: usize) -> bool {
        let ops = self.open.len().saturating_add(holds.saturating_mul(3));
        let bytes = OP_ROOM_BYTES.saturating_mul(u64::try_from(ops).unwrap_or(u64::MAX));
        let reserved = tokio::task::block_in_place(|| self.journal.reserve(bytes));
        if let Err(error) = &reserved {
            tracing::error!("no room for the journal: {error}");
        }
        reserved.is_ok() && !self.is_broken
    }

    fn decide(&mut self, op: LedgerOp, has_room: bool) -> Verdict {
        match op {
            LedgerOp::Place(_) | LedgerOp::Extend(_) if !has_room => {
                Verdict::Answer(Err(Failed::Away))
            }
            LedgerOp::Place(placement) => self.place(placement),
            LedgerOp::Extend(extension) => self.extend(extension),
            LedgerOp::Settle(settlement) => self.settle(settlement),
            LedgerOp::Note(_) if !has_room => Verdict::Answer(Err(Failed::Away)),
            LedgerOp::Note(note) => Verdict::Write(LedgerOp::Note(note), Some(Outcome::Noted)),
            LedgerOp::Abandon(request) if self.refused.remove(&request) => Verdict::Drop,
            other => Verdict::Write(other, None),
        }
    }

    fn place(&mut self, placement: Placement) -> Verdict {
        let Placement { hold, floor_nusd, demand, funds, .. } = placement;
        // Whether it is a repetition, only the books know.
        let is_new = hold.idempotency_key.is_none();
        let account = self.terms.memory.account(hold.account_id, funds).filter(|_| is_new);
        let Some((account, key)) = account.zip(self.terms.memory.key(hold.api_key_id, funds))
        else {
            return Verdict::Answer(Err(Failed::Away));
        };
        let amount = match self.exposure.place(&hold, floor_nusd, Left { account, key }) {
            Ok(amount) => amount,
            Err(denied) => return Verdict::Answer(refusal(denied, account)),
        };
        let (counted, room) = match self.windows.count(&hold, demand, Timestamp::now()) {
            Ok(counted) => counted,
            Err(limited) => {
                self.exposure.forget(hold.request_id);
                return Verdict::Answer(Ok(Outcome::Limited(limited)));
            }
        };
        self.open.insert(hold.request_id);
        if counted.counted_at.is_some() {
            self.counted.insert(hold.request_id, Hold { counted, ..hold.clone() });
        }
        let hold = Hold { amount_nusd: amount, counted: Counted::default(), ..hold };
        let granted = Placement { hold, floor_nusd, demand: None, funds: None, is_granted: true };
        // What others were let in with is not known here: nothing more is promised.
        let left = NanoUsd::ZERO;
        let rest = Rest { account, key: None };
        let outcome = Outcome::Placed { amount, rest, left, room };
        Verdict::Write(LedgerOp::Place(granted), Some(outcome))
    }

    fn extend(&mut self, mut extension: Extension) -> Verdict {
        let account = self.terms.memory.account(extension.account_id, None);
        let key = self.terms.memory.key(extension.api_key_id, None);
        let Some((account, key)) = account.zip(key) else {
            return Verdict::Answer(Err(Failed::Away));
        };
        match self.exposure.extend(&extension, Left { account, key }) {
            Ok(add) => {
                let amount = extension.held_nusd.plus(add).unwrap_or(extension.held_nusd);
                extension.add_nusd = add;
                let rest = Rest { account, key: None };
                let outcome = Outcome::Extended { amount, rest };
                Verdict::Write(LedgerOp::Extend(extension), Some(outcome))
            }
            Err(denied) => Verdict::Answer(refusal(denied, account)),
        }
    }

    fn settle(&mut self, settlement: Box<Settlement>) -> Verdict {
        let record = &settlement.record;
        if self.refused.remove(&record.id) && !record.is_billable() {
            return Verdict::Drop;
        }
        self.exposure.settled(record);
        self.open.remove(&record.id);
        if let Some(hold) = self.counted.remove(&record.id) {
            self.windows.discount(&hold, record, Timestamp::now());
        }
        Verdict::Write(LedgerOp::Settle(settlement), None)
    }

    /// Writes down and answers; what cannot be written is refused or, where it must not be lost,
    /// kept.
    fn write(&mut self, writing: Writing) {
        if writing.is_empty() {
            return;
        }
        let ops = || writing.iter().map(|(op, ..)| op);
        let written = if self.is_broken {
            Err(std::io::ErrorKind::Other.into())
        } else {
            tokio::task::block_in_place(|| self.journal.append(ops()))
        };
        if let Err(error) = &written {
            tracing::error!("the journal cannot be written: {error}");
            self.is_broken = true;
        }
        for (op, outcome, answer) in writing {
            let decided = match (&written, outcome) {
                (Ok(()), Some(outcome)) => Ok(outcome),
                (Ok(()), None) => continue,
                (Err(_), _) => {
                    self.keep(op);
                    Err(Failed::Away)
                }
            };
            if let Some(answer) = answer {
                let _ = answer.send(decided);
            }
        }
    }

    /// What was not let in after all is forgotten with it.
    fn keep(&mut self, op: LedgerOp) {
        match op {
            LedgerOp::Place(placement) => {
                let id = placement.hold.request_id;
                self.exposure.forget(id);
                self.open.remove(&id);
                self.counted.remove(&id);
            }
            LedgerOp::Extend(_) | LedgerOp::Note(_) => {}
            LedgerOp::Settle(_)
            | LedgerOp::Correct(_)
            | LedgerOp::Enter(_)
            | LedgerOp::Abandon(_) => self.kept.push(op),
        }
    }

    // === out of the journal ===

    /// The next try: of the journal's next page, else of what was kept. Whether that is all.
    fn replay(&mut self, pause: Duration) -> (BoxFuture<'static, Replayed>, bool) {
        let (end, ops) = match tokio::task::block_in_place(|| self.journal.page()) {
            Ok(Page { ops, end }) if !ops.is_empty() => (Some(end), ops),
            Ok(_) => (None, self.kept.clone()),
            Err(error) => {
                // Tried again: a disk may come back. Nothing goes past it.
                tracing::error!("the journal cannot be read: {error}");
                let later = async {
                    tokio::time::sleep(RETRY_MAX).await;
                    (None, Err(Failed::Away))
                };
                return (Box::pin(later), false);
            }
        };
        let is_last = end.is_none_or(|end| self.kept.is_empty() && self.journal.ends_at(end));
        let (committer, lease) = (self.terms.committer.clone(), self.terms.lease);
        let replay = async move {
            tokio::time::sleep(pause).await;
            (end, committer.replay(ops, lease).await)
        };
        (Box::pin(replay), is_last)
    }

    /// Takes note of what the books have now; `true` when that is all.
    fn replayed(&mut self, end: Option<u64>, replayed: Vec<(LedgerOp, Decided)>) -> bool {
        let kept = if end.is_none() { replayed.len() } else { 0 };
        self.kept.drain(..kept.min(self.kept.len()));
        for (op, decided) in replayed {
            self.terms.memory.remember(&op, &decided, &self.terms.away);
            report(&op, &decided);
            match &op {
                LedgerOp::Place(placement) => self.exposure.forget(placement.hold.request_id),
                LedgerOp::Extend(extension) => self.exposure.forget(extension.request_id),
                LedgerOp::Settle(settlement) => self.exposure.forget(settlement.record.id),
                _ => {}
            }
        }
        if let Some(end) = end
            && let Err(error) = tokio::task::block_in_place(|| self.journal.replayed(end))
        {
            tracing::error!("the journal cannot begin anew: {error}");
            self.is_broken = true;
        }
        self.journal.is_empty() && self.kept.is_empty()
    }
}

fn refusal(denied: Denied, account: NanoUsd) -> Decided {
    match denied {
        Denied::NoMoney(by) => Ok(Outcome::Refused { rest: Rest { account, key: None }, by }),
        Denied::Exposed => Err(Failed::Away),
    }
}
