//! What becomes of an exchange whose client has gone.
//!
//! Invariant: bounded in time, bytes and number; when the process is about to end, what was read
//! until then is settled as it stands.

use super::{Ending, Leg, Live};
use crate::config::Disconnect;
use crate::error::Error;
use std::collections::VecDeque;

/// Bytes read on at most for a client that has gone.
const DRAIN_BYTES_MAX: usize = 64 << 20;

impl Live {
    /// The client has gone. Decides, and hands over what takes time.
    pub(super) fn client_gone(mut self: Box<Self>) {
        let settler = self.open.settler.clone();
        match self.leg {
            // Nothing has left: nothing was used.
            Leg::NotCalled => self.open.void(Ending::ClientGone),
            Leg::Over => self.conclude_gone(),
            Leg::Calling(_) | Leg::Reading(_) => {
                // A plain answer cannot be cancelled to any effect: it is billed in full.
                let provider = self.tap.judge.reading.provider.as_deref();
                let drains = !self.is_streamed || settler.disconnect(provider) == Disconnect::Drain;
                let permit = drains.then(|| settler.drains.clone().try_acquire_owned().ok());
                let Some(permit) = permit.flatten() else {
                    self.leg = Leg::Over;
                    self.conclude_gone();
                    return;
                };
                let task = async move {
                    self.drain().await;
                    drop(permit);
                };
                settler.tasks.spawn_on(task, &settler.runtime);
            }
        }
    }

    /// Reads on to the usage, then settles.
    async fn drain(mut self: Box<Self>) {
        let settler = self.open.settler.clone();
        let read = tokio::time::timeout(settler.drain_wait, self.read_to_end());
        let failure = tokio::select! {
            read = read => read.ok().and_then(Result::err),
            () = settler.stop.cancelled() => None,
        };
        match failure {
            // It failed before it gave anything of use: no client would have paid for it.
            Some(_) if self.open.upstream_status.is_none() || !self.is_streamed => {
                self.open.void(Ending::ClientGone);
            }
            _ => self.conclude_gone(),
        }
    }

    /// A client that leaves over an upstream's failure was not the one to end it.
    fn conclude_gone(self: Box<Self>) {
        let has_failed = self.tap.judge.reading.has_failed;
        self.conclude(if has_failed { Ending::UpstreamFailed } else { Ending::ClientGone });
    }

    async fn read_to_end(&mut self) -> Result<(), Error> {
        let idle = self.open.settler.drain_wait;
        if matches!(self.leg, Leg::Calling(_)) {
            self.answered().await?;
        }
        if !self.is_streamed {
            return self.document(idle).await.map(drop);
        }
        let mut discarded = VecDeque::new();
        let mut bytes = 0_usize;
        while let Some(frame) = self.next_frame(idle).await? {
            bytes = bytes.saturating_add(frame.len());
            if self.frame(&frame, &mut discarded)? || bytes > DRAIN_BYTES_MAX {
                return Ok(());
            }
            discarded.clear();
        }
        self.tap.end(&mut discarded);
        Ok(())
    }
}
