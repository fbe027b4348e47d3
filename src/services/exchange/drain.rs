//! What becomes of an exchange whose client has gone.
//!
//! Invariants: bounded in time, bytes and number; when the process is about to end, what was read
//! until then is settled as it stands, and whom that cut off pays as for an upstream's failure.

use super::{Ending, Leg, Live};
use crate::config::Disconnect;
use crate::error::Error;
use crate::services::sse::Outgoing;
use crate::services::tap::Finish;
use tracing::Instrument;

/// Bytes read on at most for a client that has gone.
const DRAIN_BYTES_MAX: usize = 64 << 20;

/// How far an answer is read for a client that has gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadOn {
    /// It tells the usage at its end, or is billed in full whatever is done.
    ToTheEnd,
    /// Then it is cancelled and looked up.
    ToItsName,
    Nowhere,
}

impl Live {
    /// The client has gone. Decides, and hands over what takes time.
    pub(super) fn client_gone(mut self: Box<Self>) {
        let settler = self.open.settler.clone();
        if settler.stop.is_cancelled() {
            return self.cut_by_us();
        }
        match self.leg {
            // Nothing has left: nothing was used.
            Leg::NotCalled => self.open.void(Ending::ClientGone),
            Leg::Over => self.conclude_gone(),
            Leg::Calling(_) | Leg::Reading(_) => {
                let goal = self.read_on();
                let reads = goal != ReadOn::Nowhere;
                let permit = reads.then(|| settler.drains.clone().try_acquire_owned().ok());
                let Some(permit) = permit.flatten() else {
                    // There are too many: a plain answer goes on, and nobody counts it.
                    self.tap.judge.reading.has_unreadable |= self.is_plain();
                    self.leg = Leg::Over;
                    self.conclude_gone();
                    return;
                };
                let span = self.open.span.clone();
                let task = async move {
                    self.drain(goal).await;
                    drop(permit);
                };
                settler.tasks.spawn_on(task.instrument(span), &settler.runtime);
            }
        }
    }

    /// It is us who go: the client waited, and got no answer.
    fn cut_by_us(self: Box<Self>) {
        if self.is_streamed && self.tap.judge.reading.is_worth_something() {
            self.conclude(Ending::UpstreamFailed);
        } else {
            self.open.void(Ending::UpstreamFailed);
        }
    }

    fn read_on(&self) -> ReadOn {
        let reading = &self.tap.judge.reading;
        match self.open.upstream.disconnect(reading.provider.as_deref()) {
            // A plain answer cannot be cancelled to any effect: it is billed in full.
            _ if self.is_plain() => ReadOn::ToTheEnd,
            Disconnect::Drain => ReadOn::ToTheEnd,
            Disconnect::Lookup if reading.generation_id.is_none() => ReadOn::ToItsName,
            Disconnect::Lookup | Disconnect::Count | Disconnect::Auto => ReadOn::Nowhere,
        }
    }

    /// Reads on as far as wanted, then settles.
    async fn drain(mut self: Box<Self>, goal: ReadOn) {
        let settler = self.open.settler.clone();
        let wait = self.open.upstream.terms.disconnect_drain;
        let read = tokio::time::timeout(wait, self.read_to(goal));
        let read = tokio::select! {
            read = read => read.ok(),
            () = settler.stop.cancelled() => None,
        };
        match read {
            // The upstream goes on, and bills an answer that nobody has counted: whichever of the
            // two limits of time was first.
            Some(Err(Error::UpstreamTimeout(_))) if self.open.upstream_status.is_some() => {
                self.tap.judge.reading.has_unreadable |= self.is_plain();
            }
            // It failed before it gave anything of use: no client would have paid for it.
            Some(Err(_)) if !self.is_worth_something() => {
                self.open.void(Ending::ClientGone);
                return;
            }
            None if self.is_plain() => self.tap.judge.reading.has_unreadable = true,
            _ => {}
        }
        // What has not been read is not wanted.
        self.leg = Leg::Over;
        self.conclude_gone();
    }

    /// Whether there is something to charge for, or to be asked after.
    fn is_worth_something(&self) -> bool {
        let has_begun = self.open.upstream_status.is_some() && !self.is_plain();
        let reading = &self.tap.judge.reading;
        has_begun && (reading.is_worth_something() || reading.generation_id.is_some())
    }

    /// A client that leaves over an upstream's failure was not the one to end it.
    fn conclude_gone(self: Box<Self>) {
        let has_failed = self.tap.judge.reading.has_failed;
        self.conclude(if has_failed { Ending::UpstreamFailed } else { Ending::ClientGone });
    }

    async fn read_to(&mut self, goal: ReadOn) -> Result<(), Error> {
        let idle = self.open.upstream.terms.disconnect_drain;
        if matches!(self.leg, Leg::Calling(_)) {
            self.answered().await?;
        }
        if self.is_plain() {
            return self.document(idle).await.map(drop);
        }
        let mut discarded = Outgoing::default();
        let mut bytes = 0_usize;
        if goal == ReadOn::ToItsName && self.tap.judge.reading.generation_id.is_some() {
            return Ok(());
        }
        while let Some(frame) = self.next_frame(idle).await? {
            bytes = bytes.saturating_add(frame.len());
            if self.frame(&frame, &mut discarded)? || bytes > DRAIN_BYTES_MAX {
                return Ok(());
            }
            if goal == ReadOn::ToItsName && self.tap.judge.reading.generation_id.is_some() {
                return Ok(());
            }
            discarded.clear();
        }
        match self.tap.end(&mut discarded) {
            Finish::Complete => Ok(()),
            Finish::Failed(error) => Err(error),
        }
    }
}
