//! Reading an upstream's body frame by frame, and a plain answer whole.
//!
//! Invariants: each frame is waited for no longer than is allowed, nor the whole; what has come is
//! kept where a drain goes on with it.

use super::{Leg, Live, not_a_completion, poll_noted};
use crate::error::Error;
use crate::models::timestamp::Timestamp;
use bytes::Bytes;
use http_body_util::BodyExt;
use std::time::{Duration, Instant};

/// A plain answer larger than this is a fault: it is held in memory to be read.
pub const DOCUMENT_BYTES_MAX: usize = 64 << 20;

impl Live {
    pub(super) async fn document(&mut self, idle: Duration) -> Result<Bytes, Error> {
        let (began, whole) = (Instant::now(), self.open.upstream.terms.whole);
        while let Some(frame) =
            self.next_frame(idle.min(whole.saturating_sub(began.elapsed()))).await?
        {
            self.document.extend_from_slice(&frame);
            if self.document.len() > DOCUMENT_BYTES_MAX {
                return Err(not_a_completion("the answer is too long"));
            }
        }
        self.leg = Leg::Over;
        let document = self.document.split().freeze();
        // First: a client that leaves while it waits pays for what it says.
        let shown = self.read_document(&document)?;
        std::future::poll_fn(|cx| poll_noted(&mut self.noting, cx)).await;
        self.open.first_byte_at = Some(Timestamp::now());
        Ok(shown.unwrap_or(document))
    }

    pub(super) async fn next_frame(&mut self, idle: Duration) -> Result<Option<Bytes>, Error> {
        match self.peeked.take() {
            Some(frame) => Ok(Some(frame)),
            None => self.body_frame(idle).await,
        }
    }

    pub(super) async fn body_frame(&mut self, idle: Duration) -> Result<Option<Bytes>, Error> {
        let Leg::Reading(body) = &mut self.leg else {
            return Ok(None);
        };
        loop {
            let frame = tokio::time::timeout(idle, body.frame())
                .await
                .map_err(|_| Error::UpstreamTimeout("reading an answer"))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(Error::UpstreamUnavailable(format!("broke off: {error}")));
                }
                // Trailers are not for the client.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Takes in a completion; the text to show instead of it where its price is rewritten.
    fn read_document(&mut self, document: &[u8]) -> Result<Option<Bytes>, Error> {
        let text =
            std::str::from_utf8(document).map_err(|_| not_a_completion("not valid UTF-8"))?;
        let judge = &mut self.tap.judge;
        judge.document(text)?;
        Ok(judge.shown(text)?.map(Bytes::from))
    }
}
