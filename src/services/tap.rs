//! The tap: reads each event of a stream while it passes, and makes the few allowed rewrites.
//!
//! Invariants: bytes pass untouched except for the usage (hidden from a client that did not ask for
//! it, brought into OpenAI's form for one that did, at the client's price), and what is added at
//! the end: a missing `[DONE]`, or an error event where the upstream broke off. Pure: no I/O.

mod failure;
mod operator;
mod rewrite;
mod template;

use crate::error::Error;
use crate::models::money::NanoUsd;
use crate::models::openai::answer::{self, Answer, Reported};
use crate::models::price::Price;
use crate::models::timestamp::Timestamp;
use crate::models::usage::Used;
use crate::services::pricing;
use crate::services::reading::Reading;
use crate::services::sse::{Outgoing, Splitter, TooLong, Verdict, data, is_of_type, without_bom};
use crate::services::tokens::Tokenizer;
use axum::http::StatusCode;
use bytes::Bytes;
use memchr::memmem;
use std::sync::Arc;
use template::Template;

pub use failure::Failure;
pub use operator::Operator;

pub struct Tap {
    splitter: Splitter,
    pub judge: Judge,
}

/// The tap's state between events.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one stream")]
pub struct Judge {
    pub reading: Reading,
    price: Arc<Price>,
    operator: Arc<Operator>,
    asked: Asked,
    has_shown_usage: bool,
    /// A usage that came on a chunk with content, as a chunk of its own for the end.
    usage_chunk: Option<String>,
    pub is_done: bool,
    /// What the upstream said of its failure, in our words.
    failure: Option<Error>,
    /// The client has read of a failure.
    has_told: bool,
    is_first: bool,
    /// The latest chunk that was nothing but a piece of text.
    template: Option<Template>,
}

/// What of the request counts for its answer, whoever gives it.
#[derive(Clone, Copy)]
pub struct Asked {
    pub placed_at: Timestamp,
    /// In the prompt, where each has a fee.
    pub images: i64,
    /// The client asked for the usage chunk.
    pub shows_usage: bool,
}

/// Whether a body that has ended was a whole answer.
#[derive(Clone, Debug)]
pub enum Finish {
    Complete,
    /// Broken off, or the upstream said that it failed.
    Failed(Error),
}

const DONE: &[u8] = b"data: [DONE]\n\n";

impl Tap {
    #[must_use]
    pub fn new(reading: Reading, price: Arc<Price>, operator: Arc<Operator>, asked: Asked) -> Self {
        let judge = Judge {
            reading,
            price,
            operator,
            asked,
            has_shown_usage: false,
            usage_chunk: None,
            is_done: false,
            failure: None,
            has_told: false,
            is_first: true,
            template: None,
        };
        Self { splitter: Splitter::default(), judge }
    }

    /// For another upstream's answer to the same client: nothing is kept of this one's.
    #[must_use]
    pub fn anew(&self, tokenizer: Tokenizer, price: Arc<Price>, operator: Arc<Operator>) -> Self {
        Self::new(Reading::new(tokenizer), price, operator, self.judge.asked)
    }

    /// Reads a frame and puts out what the client gets for it.
    ///
    /// # Errors
    /// [`TooLong`] when an event passes its bound.
    pub fn frame(&mut self, frame: &Bytes, out: &mut Outgoing) -> Result<(), TooLong> {
        let judge = &mut self.judge;
        self.splitter.push(frame, out, |event| judge.event(event))
    }

    /// What was kept back of an event that is not whole.
    pub fn rest(&mut self) -> Bytes {
        self.splitter.take_rest()
    }

    /// The body has ended: adds what is missing.
    pub fn end(&mut self, out: &mut Outgoing) -> Finish {
        self.take_rest(out);
        let judge = &mut self.judge;
        if judge.is_done {
            return judge.finish();
        }
        // What was said before the last of the text is not the usage of all.
        judge.reading.discard_stale_usage();
        if !judge.reading.has_failed && judge.reading.is_finished() {
            if let Some(usage) = judge.own_usage_chunk() {
                out.put(&usage);
            }
            out.put(&Bytes::from_static(DONE));
            return Finish::Complete;
        }
        let error = judge.failure().unwrap_or(Error::UpstreamTruncated);
        if !judge.has_told {
            out.put(&error_event(&error));
        }
        Finish::Failed(error)
    }

    /// An event whose blank line never came is taken when it can be read, else dropped: a client
    /// could not use it.
    fn take_rest(&mut self, out: &mut Outgoing) {
        let rest = self.splitter.take_rest();
        let is_whole = data(&rest).is_some_and(|data| {
            let text = std::str::from_utf8(&data).unwrap_or_default();
            text == "[DONE]" || answer::read(text, |_| ()).is_some()
        });
        if !is_whole {
            return;
        }
        match self.judge.event(&rest) {
            Verdict::Pass => {
                out.put(&rest);
                out.put(&Bytes::from_static(b"\n\n"));
            }
            Verdict::Replace(with) => out.put(&with),
            Verdict::Drop => {}
        }
    }
}

impl Judge {
    /// Takes in a whole completion.
    ///
    /// # Errors
    /// Why it is none: what the upstream says, or that it is nothing that can be read.
    pub fn document(&mut self, text: &str) -> Result<(), Error> {
        let operator = &self.operator;
        let read = answer::read(text, |answer| {
            let failure = answer.failure().map(|said| Failure::read(said).within(operator));
            if answer.choices.0.is_empty() {
                let bare = || Failure::bare(text, false).map(|failure| failure.within(operator));
                if let Some(error) = failure.clone().or_else(bare) {
                    return Err(error);
                }
                // Where it was paid for, there may be nothing to say.
                if answer.reported().is_none() {
                    return Err(not_a_completion("no choices"));
                }
            }
            self.reading.take(answer);
            self.failure = failure;
            Ok(())
        });
        read.unwrap_or_else(|| Err(not_a_completion("not a JSON object")))
    }

    fn event(&mut self, event: &[u8]) -> Verdict {
        let event = if std::mem::take(&mut self.is_first) { without_bom(event) } else { event };
        if let Some((choice, text)) = self.templated(event) {
            self.reading.take_text(choice, text);
            return Verdict::Pass;
        }
        let Some(data) = data(event) else {
            return self.unread(event);
        };
        if data.trim_ascii_start().starts_with(b"{") {
            return self.chunk(event, &data);
        }
        if *data.trim_ascii() == *b"[DONE]" {
            return self.done(event);
        }
        // An array or a text is nobody's chunk; an empty event is a keep-alive.
        if data.is_empty() { self.unread(event) } else { self.unreadable(event) }
    }

    fn templated<'a>(&self, event: &'a [u8]) -> Option<(u32, &'a str)> {
        let template = self.template.as_ref()?;
        Some((template.choice, template.read(event)?))
    }

    fn done(&mut self, event: &[u8]) -> Verdict {
        self.is_done = true;
        self.reading.discard_stale_zero();
        let untold = self.failure().filter(|_| !self.has_told).map(|error| error_event(&error));
        match [self.own_usage_chunk(), untold] {
            [None, None] => Verdict::Pass,
            before => {
                let mut with = before.into_iter().flatten().flatten().collect::<Vec<u8>>();
                with.extend_from_slice(event);
                Verdict::Replace(with.into())
            }
        }
    }

    fn chunk(&mut self, event: &[u8], data: &[u8]) -> Verdict {
        let text = std::str::from_utf8(data).ok();
        let verdict = text.and_then(|text| {
            answer::read(text, |chunk| {
                if let Some((choice, content)) = self.reading.only_text(chunk)
                    && !chunk.has_doubles
                {
                    self.template = Template::learn(event, content, choice);
                }
                self.take(event, text, chunk)
            })
        });
        verdict.unwrap_or_else(|| self.unreadable(event))
    }

    fn take(&mut self, event: &[u8], text: &str, chunk: &Answer<'_>) -> Verdict {
        let is_finished = self.reading.has_finished(chunk);
        self.reading.take(chunk);
        if let Some(said) = chunk.failure() {
            return self.tell(text, Failure::read(said).within(&self.operator));
        }
        if chunk.usage.given {
            return self.usage(text, chunk, is_finished);
        }
        let stranger = chunk.choices.0.is_empty().then(|| self.stranger(event, text)).flatten();
        match stranger {
            Some(verdict) => verdict,
            // Before the usage that counts, which is none, may stand one that does not.
            None if chunk.has_doubles => rewrite::without_usage(text),
            None => Verdict::Pass,
        }
    }

    /// An object that is no piece of an answer, where it is a failure or shows the operator's key.
    fn stranger(&mut self, event: &[u8], text: &str) -> Option<Verdict> {
        match Failure::bare(text, is_error(event)) {
            Some(failure) => Some(self.fail(failure)),
            None => self.operator.has_key(text).then_some(Verdict::Drop),
        }
    }

    /// What cannot be read, though there is something in it.
    fn unreadable(&mut self, event: &[u8]) -> Verdict {
        if is_error(event) {
            return self.fail(Failure::default());
        }
        self.reading.has_unreadable = true;
        self.unread(event)
    }

    /// What is no answer passes, unless it is the upstream talking to its operator.
    fn unread(&self, event: &[u8]) -> Verdict {
        let is_told = self.operator.is_told_of(event) || has_cost(event);
        if is_told { Verdict::Drop } else { Verdict::Pass }
    }

    /// A failure that the upstream tells of in a form of its own.
    fn fail(&mut self, failure: Failure) -> Verdict {
        let error = failure.within(&self.operator);
        let shown = error_event(&error);
        self.reading.has_failed = true;
        self.has_told = true;
        self.failure.get_or_insert(error);
        Verdict::Replace(shown)
    }

    /// A chunk with an error in it.
    fn tell(&mut self, text: &str, error: Error) -> Verdict {
        // Looked for in the text itself: a mended chunk's spans are not the text's.
        let shown = rewrite::with_error(text, &error, self.charge());
        self.has_told |= shown.is_some();
        self.failure.get_or_insert(error);
        shown.map_or(Verdict::Drop, |shown| Verdict::Replace(rewrite::event(&shown)))
    }

    /// A chunk with usage in it.
    fn usage(&mut self, text: &str, chunk: &Answer<'_>, is_finished: bool) -> Verdict {
        // What cannot be believed is not charged by, and not shown.
        let is_believed = chunk.reported().is_some();
        let charge = self.charge();
        let is_usage_chunk = chunk.choices.0.is_empty();
        // The usage chunk of servers that repeat the last choice on it.
        let is_repetition = is_finished && rewrite::is_without_text(chunk);
        if !is_usage_chunk && !is_repetition {
            if is_believed {
                self.usage_chunk = rewrite::usage_chunk(text, charge);
            }
            return rewrite::without_usage(text);
        }
        if !self.asked.shows_usage || !is_believed {
            return Verdict::Drop;
        }
        self.has_shown_usage = true;
        match rewrite::usage_chunk(text, charge) {
            Some(shown) if shown != text => Verdict::Replace(rewrite::event(&shown)),
            Some(_) => Verdict::Pass,
            None => Verdict::Drop,
        }
    }

    /// What the upstream said of itself when it was through.
    #[must_use]
    pub fn finish(&self) -> Finish {
        self.failure().map_or(Finish::Complete, Finish::Failed)
    }

    fn failure(&self) -> Option<Error> {
        // OpenRouter may only stop for the reason "error".
        let unexplained = || Failure::default().within(&self.operator);
        self.reading.has_failed.then(|| self.failure.clone().unwrap_or_else(unexplained))
    }

    /// A whole completion as the client gets it; `None`: as it is.
    ///
    /// # Errors
    /// [`Error::UpstreamFailed`] when it cannot be shown without what is the operator's.
    pub fn shown(&self, text: &str) -> Result<Option<String>, Error> {
        match &self.failure {
            Some(error) => rewrite::with_error(text, error, self.charge())
                .map(Some)
                .ok_or_else(|| error.clone()),
            None => rewrite::plain(text, self.charge()),
        }
    }

    /// What the usage that was read costs the client.
    #[must_use]
    pub fn charge(&self) -> Option<NanoUsd> {
        let Reported { tokens, cost_pico } = self.reading.reported?;
        let Asked { images, placed_at: at, .. } = self.asked;
        let used = Used { tokens, images, cost_pico, has_failed: self.reading.has_failed, at };
        pricing::charge(&self.price, &used).ok()
    }

    /// The usage chunk that the upstream did not send as one.
    fn own_usage_chunk(&mut self) -> Option<Bytes> {
        let is_wanted = self.asked.shows_usage && !self.has_shown_usage;
        let chunk =
            self.usage_chunk.take().filter(|_| is_wanted && self.reading.reported.is_some());
        chunk.map(|chunk| rewrite::event(&chunk))
    }
}

/// What an event says of a failure, in whatever form, where it does; not for a client's eyes.
#[must_use]
pub fn failure_of(event: &[u8]) -> Option<Error> {
    let data = data(event)?;
    let text = std::str::from_utf8(&data).unwrap_or_default();
    let failure = answer::read(text, |chunk| {
        let is_stranger = chunk.choices.0.is_empty() && !chunk.usage.given;
        let bare = || Failure::bare(text, is_error(event)).filter(|_| is_stranger);
        chunk.failure().map(Failure::read).or_else(bare)
    });
    let failure = failure.unwrap_or_else(|| is_error(event).then(Failure::default));
    Some(failure?.within(&Operator::default()))
}

fn is_error(event: &[u8]) -> bool {
    is_of_type(event, b"error")
}

/// What cannot be read may have the operator's cost in it.
fn has_cost(event: &[u8]) -> bool {
    memmem::find(event, b"\"usage\"").is_some() && memmem::find(event, b"cost").is_some()
}

/// A success that is none.
#[must_use]
pub fn not_a_completion(reason: &'static str) -> Error {
    Error::UpstreamFailed { status: StatusCode::OK, reason, retry_after: None }
}

/// An error as OpenAI's SDKs recognise it within a stream: they raise it.
#[must_use]
pub fn error_event(error: &Error) -> Bytes {
    rewrite::event(&error.envelope())
}
