//! The response body of a stream whose upstream takes its time: comments until it answers, then
//! the answer.
//!
//! Invariants: a failure ends it with an error event, as it would end a stream that has begun; a
//! client that leaves is treated as one that left before it was told anything.

use crate::error::Error;
use crate::services::exchange::Answer;
use crate::services::forwarding::{Answered, Forwarding};
use crate::services::meter::{KEEP_ALIVE, KEEP_ALIVE_EVERY, Meter};
use crate::services::tap::{error_event, not_a_completion};
use bytes::Bytes;
use http_body::{Body, Frame};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::Span;

pub struct Waiting {
    stage: Stage,
    /// Goes off at once: the head alone may be kept back by a proxy.
    quiet: Interval,
    token: CancellationToken,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The request's.
    span: Span,
}

enum Stage {
    Calling(Forwarding),
    Answering(Box<Meter>),
    Over,
}

impl Waiting {
    /// `stop` ends it with an error event because the process ends.
    #[must_use]
    pub fn new(forwarding: Forwarding, stop: CancellationToken) -> Self {
        let mut quiet = interval(KEEP_ALIVE_EVERY);
        // To a client that took nothing for a while, one is enough.
        quiet.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            stage: Stage::Calling(forwarding),
            quiet,
            token: stop.clone(),
            stop: Box::pin(stop.cancelled_owned()),
            span: Span::current(),
        }
    }

    fn answered(&mut self, answered: Answered) -> Option<Bytes> {
        match answered {
            Ok((exchange, Answer::Events)) => {
                let meter = Meter::new(exchange, self.token.clone());
                self.stage = Stage::Answering(Box::new(meter));
                None
            }
            // Too late for one: a stream has been promised.
            Ok((mut exchange, Answer::Document(_))) => {
                let error = not_a_completion("a document instead of a stream");
                exchange.void(&error);
                Some(self.fail(&error))
            }
            Err(error) => Some(self.fail(&error)),
        }
    }

    fn fail(&mut self, error: &Error) -> Bytes {
        self.stage = Stage::Over;
        error.log("a stream did not begin");
        error_event(error)
    }
}

impl Body for Waiting {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        loop {
            let said = match &mut this.stage {
                Stage::Over => return Poll::Ready(None),
                Stage::Answering(meter) => return Pin::new(meter.as_mut()).poll_frame(cx),
                Stage::Calling(forwarding) => {
                    // Left when the handler returned.
                    let _entered = this.span.clone().entered();
                    if let Poll::Ready(answered) = Pin::new(forwarding).poll(cx) {
                        this.answered(answered)
                    } else if this.stop.as_mut().poll(cx).is_ready() {
                        Some(this.fail(&Error::ShuttingDown))
                    } else {
                        ready!(this.quiet.poll_tick(cx));
                        Some(KEEP_ALIVE)
                    }
                }
            };
            if let Some(said) = said {
                return Poll::Ready(Some(Ok(Frame::data(said))));
            }
        }
    }
}
