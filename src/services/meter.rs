//! The response body of a stream: the upstream's body with the tap in its way.
//!
//! Invariants: an event leaves when the frame that completes it arrives, in the same poll and on
//! the same task, together with what else is there by then (a long one for itself); the upstream is
//! only read when the client takes, so a slow client slows the upstream; a stream never ends
//! silently before its end.

use crate::error::Error;
use crate::services::exchange::Exchange;
use crate::services::sse::Outgoing;
use crate::services::tap::error_event;
use crate::services::upstream::AnswerBody;
use crate::services::woken::Woken;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::Span;

pub struct Meter {
    exchange: Exchange,
    /// `None` when it has ended.
    upstream: Option<AnswerBody>,
    out: Outgoing,
    /// The upstream's longest silence.
    idle: Duration,
    silence: Pin<Box<Sleep>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The two above are polled only when they were woken.
    woken: Woken,
    last_frame_at: Instant,
    /// The upstream is not read: the money for it is waited for.
    is_unpaid: bool,
    /// When the client last got something, until the answer has begun.
    quiet_since: Option<Instant>,
    ends_at: Instant,
    /// The request's.
    span: Span,
}

/// What has come instead of a frame.
enum Instead {
    /// The client should hear something: proxies give up on silent streams.
    Quiet,
    TooLong,
    /// The process ends.
    Stop,
}

/// As OpenRouter sends them; every client passes over a comment.
/// <https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes>
pub(super) const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");
pub(super) const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// The timer's next look is at least so far away.
const TICK: Duration = Duration::from_millis(10);
/// What the upstream has ready leaves together, up to about so much: a write for each event costs
/// more than the copy.
const GATHER_BYTES: usize = 16 << 10;
/// A stream's end where the books let it wait for too long.
const UNPAID: &str = "a hold is not extended in time";
/// How long the upstream's last bytes are waited for after `[DONE]`.
const AFTER_DONE: Duration = Duration::from_secs(2);

impl Meter {
    /// A body that reads the exchange's; `stop` ends the stream with an error event because the
    /// process ends.
    #[must_use]
    pub fn new(mut exchange: Exchange, stop: CancellationToken) -> Self {
        let now = Instant::now();
        let [idle, whole] = exchange.waits();
        let peeked = exchange.take_peeked();
        let mut meter = Self {
            upstream: exchange.take_body(),
            exchange,
            out: Outgoing::default(),
            idle,
            silence: Box::pin(tokio::time::sleep(idle.min(KEEP_ALIVE_EVERY))),
            stop: Box::pin(stop.cancelled_owned()),
            woken: Woken::default(),
            last_frame_at: now,
            is_unpaid: false,
            quiet_since: Some(now),
            ends_at: now + whole,
            span: Span::current(),
        };
        if let Some(frame) = peeked {
            meter.take(Frame::data(frame));
        }
        meter
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        self.last_frame_at = Instant::now();
        if self.last_frame_at >= self.ends_at {
            return self.fail(&Error::UpstreamTimeout("for the whole of a stream"));
        }
        // Trailers are not for the client.
        let Ok(data) = frame.into_data() else { return };
        self.quiet_since = None;
        match self.exchange.frame(&data, &mut self.out) {
            Ok(false) => {}
            // The end of the books; the upstream's last bytes still pass.
            Ok(true) => {
                let ended = self.exchange.done(&mut self.out);
                self.log(ended.as_ref().err());
                self.idle = self.idle.min(AFTER_DONE);
                self.silence.as_mut().reset(tokio::time::Instant::now() + self.idle);
                self.woken.renew();
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &Error) {
        if self.exchange.is_over() {
            // The answer is whole: an upstream that does not hang up changes nothing.
            self.upstream = None;
            return;
        }
        self.log(Some(error));
        self.upstream = None;
        self.out.put(&error_event(error));
        self.exchange.break_off();
    }

    fn cut_off(&mut self, error: &Error) {
        self.log(Some(error));
        self.upstream = None;
        self.out.put(&error_event(error));
        self.exchange.cut_off();
    }

    fn end(&mut self) {
        self.upstream = None;
        let ended = self.exchange.end(&mut self.out);
        self.log(ended.as_ref().err());
    }

    /// The one log line of a stream that did not end well. The request's span has been left when a
    /// body is polled.
    fn log(&self, error: Option<&Error>) {
        let Some(error) = error else { return };
        let _entered = self.span.enter();
        error.log("a stream broke off");
    }

    /// What is there to leave; the end when there is nothing.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.out.is_empty() {
            ready!(self.exchange.poll_noted(cx));
        }
        Poll::Ready(self.out.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    /// Does what is to be done while nothing comes, of the upstream or of the money for it.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(self.poll_instead(cx)) {
            Instead::Quiet => self.out.put(&KEEP_ALIVE),
            Instead::TooLong if self.is_unpaid => {
                self.cut_off(&Error::Database(UNPAID.to_owned()));
            }
            Instead::TooLong => self.fail(&Error::UpstreamTimeout("between two frames")),
            Instead::Stop => self.fail(&Error::ShuttingDown),
        }
        Poll::Ready(())
    }

    /// What comes while the upstream says nothing.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<Instead> {
        let Self { woken, silence, stop, last_frame_at, quiet_since, ends_at, idle, .. } = self;
        woken.poll(cx, |cx| {
            if stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Instead::Stop);
            }
            // The timer is not moved with every frame: when it goes off, the rest is waited for.
            loop {
                ready!(silence.as_mut().poll(cx));
                let now = Instant::now();
                let too_long = (*last_frame_at + *idle).min(*ends_at);
                if now >= too_long {
                    return Poll::Ready(Instead::TooLong);
                }
                let quiet = quiet_since.map(|since| since + KEEP_ALIVE_EVERY);
                let next = quiet.map_or(too_long, |quiet| quiet.min(too_long));
                silence.as_mut().reset(next.max(now + TICK).into());
                if quiet.is_some_and(|quiet| now >= quiet) {
                    *quiet_since = Some(now);
                    return Poll::Ready(Instead::Quiet);
                }
            }
        })
    }
}

impl Body for Meter {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        loop {
            if this.out.len() >= GATHER_BYTES || this.upstream.is_none() {
                return this.poll_out(cx);
            }
            match this.exchange.poll_paid(cx) {
                // The silence until now was not the upstream's.
                Poll::Ready(Ok(())) if this.is_unpaid => {
                    this.is_unpaid = false;
                    this.last_frame_at = Instant::now();
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    this.cut_off(&error);
                    continue;
                }
                Poll::Pending if !this.out.is_empty() => return this.poll_out(cx),
                // The database does not answer: the stream may have to end before it does.
                Poll::Pending => {
                    if !std::mem::replace(&mut this.is_unpaid, true) {
                        this.last_frame_at = Instant::now();
                    }
                    ready!(this.poll_silence(cx));
                    continue;
                }
            }
            let Some(upstream) = &mut this.upstream else { continue };
            match Pin::new(upstream).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => this.take(frame),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!("the upstream's body broke off: {error}");
                    this.end();
                }
                Poll::Ready(None) => this.end(),
                Poll::Pending if !this.out.is_empty() => return this.poll_out(cx),
                Poll::Pending => ready!(this.poll_silence(cx)),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.out.is_empty() && self.upstream.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(upstream) = self.upstream.take() {
            self.exchange.return_body(upstream);
        }
    }
}
