//! The tap: reads each event of a stream while it passes, and makes the few allowed rewrites.
//!
//! Invariants: bytes pass untouched except for the usage (hidden from a client that did not ask for
//! it, brought into OpenAI's form for one that did, at the client's price), and what is added at
//! the end: a missing `[DONE]`, or an error event where the upstream broke off. Pure: no I/O.

mod failure;
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
use crate::services::sse::{Splitter, TooLong, Verdict, data, without_bom};
use crate::services::tokens::Tokenizer;
use axum::http::StatusCode;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use template::Template;

pub use failure::Failure;

pub struct Tap {
    splitter: Splitter,
    pub judge: Judge,
}

/// The tap's state between events.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one stream")]
pub struct Judge {
    pub reading: Reading,
    price: Arc<Price>,
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

/// How a body that ended had ended.
#[derive(Clone, Debug)]
pub enum Finish {
    Complete,
    /// Broken off, or the upstream said that it failed.
    Failed(Error),
}

const DONE: &[u8] = b"data: [DONE]\n\n";

impl Tap {
    #[must_use]
    pub fn new(reading: Reading, price: Arc<Price>, asked: Asked) -> Self {
        let judge = Judge {
            reading,
            price,
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
    pub fn anew(&self, tokenizer: Tokenizer, price: Arc<Price>) -> Self {
        Self::new(Reading::new(tokenizer), price, self.judge.asked)
    }

    /// Reads a frame and puts out what the client gets for it.
    ///
    /// # Errors
    /// [`TooLong`] when an event passes its bound.
    pub fn frame(&mut self, frame: &Bytes, out: &mut VecDeque<Bytes>) -> Result<(), TooLong> {
        let judge = &mut self.judge;
        self.splitter.push(frame, out, |event| judge.event(event))
    }

    /// What was kept back of an event that is not whole.
    pub fn rest(&mut self) -> Option<Bytes> {
        Some(self.splitter.take_rest()).filter(|rest| !rest.is_empty())
    }

    /// The body has ended: adds what is missing.
    pub fn end(&mut self, out: &mut VecDeque<Bytes>) -> Finish {
        self.take_rest(out);
        let judge = &mut self.judge;
        if judge.is_done {
            return judge.finish();
        }
        if !judge.reading.has_failed && judge.reading.is_finished() {
            out.extend(judge.own_usage_chunk());
            out.push_back(Bytes::from_static(DONE));
            return Finish::Complete;
        }
        let error = judge.failure().unwrap_or(Error::UpstreamTruncated);
        if !judge.has_told {
            out.push_back(error_event(&error));
        }
        Finish::Failed(error)
    }

    /// An event whose blank line never came is taken when it can be read, else dropped: a client
    /// could not use it.
    fn take_rest(&mut self, out: &mut VecDeque<Bytes>) {
        let rest = self.splitter.take_rest();
        let is_whole = data(&rest).is_some_and(|data| {
            let text = std::str::from_utf8(&data).unwrap_or_default();
            text == "[DONE]" || answer::read(text, |_| ()).is_some()
        });
        if !is_whole {
            return;
        }
        match self.judge.event(&rest) {
            Verdict::Pass => out.extend([rest, Bytes::from_static(b"\n\n")]),
            Verdict::Replace(with) => out.push_back(with),
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
        let read = answer::read(text, |answer| {
            let failure = answer.failure().map(|said| Failure::read(said).within());
            if let Some(error) = &failure
                && answer.choices.0.is_empty()
            {
                return Err(error.clone());
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
            return unread(event);
        };
        if data.starts_with(b"{") {
            return self.chunk(event, &data);
        }
        if *data.trim_ascii() == *b"[DONE]" {
            return self.done(event);
        }
        // An array or a text is nobody's chunk; an empty event is a keep-alive.
        self.reading.has_unreadable |= !data.is_empty();
        unread(event)
    }

    fn templated<'a>(&self, event: &'a [u8]) -> Option<(u32, &'a str)> {
        let template = self.template.as_ref()?;
        Some((template.choice, template.read(event)?))
    }

    fn done(&mut self, event: &[u8]) -> Verdict {
        self.is_done = true;
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
                if let Some((choice, content)) = self.reading.only_text(chunk) {
                    self.template = Template::learn(event, content, choice);
                }
                self.take(text, chunk)
            })
        });
        verdict.unwrap_or_else(|| {
            self.reading.has_unreadable = true;
            unread(event)
        })
    }

    fn take(&mut self, text: &str, chunk: &Answer<'_>) -> Verdict {
        let is_finished = self.reading.has_finished(chunk);
        self.reading.take(chunk);
        if let Some(said) = chunk.failure() {
            return self.tell(text, Failure::read(said).within());
        }
        if !chunk.usage.given {
            return Verdict::Pass;
        }
        self.usage(text, chunk, is_finished)
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
            return rewrite::without_usage(text).map_or(Verdict::Pass, Verdict::Replace);
        }
        if !self.asked.shows_usage || !is_believed {
            return Verdict::Drop;
        }
        self.has_shown_usage = true;
        match rewrite::usage_chunk(text, charge) {
            Some(shown) if shown != text => Verdict::Replace(rewrite::event(&shown)),
            _ => Verdict::Pass,
        }
    }

    /// What the upstream said of itself when it was through.
    #[must_use]
    pub fn finish(&self) -> Finish {
        self.failure().map_or(Finish::Complete, Finish::Failed)
    }

    fn failure(&self) -> Option<Error> {
        // OpenRouter may only stop for the reason «error».
        let unexplained = || Failure::default().within();
        self.reading.has_failed.then(|| self.failure.clone().unwrap_or_else(unexplained))
    }

    /// A whole completion as the client gets it; `None`: as it is.
    #[must_use]
    pub fn shown(&self, text: &str) -> Option<String> {
        match &self.failure {
            Some(error) => rewrite::with_error(text, error, self.charge()),
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
        let chunk =
            self.usage_chunk.take().filter(|_| self.asked.shows_usage && !self.has_shown_usage);
        chunk.map(|chunk| rewrite::event(&chunk))
    }
}

/// What is no answer passes, unless it is the upstream talking to its operator.
fn unread(event: &[u8]) -> Verdict {
    if failure::tells_of_operator(event) { Verdict::Drop } else { Verdict::Pass }
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
