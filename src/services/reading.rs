//! What was read of an answer: its text counted, its usage, who served it, how it stopped.
//!
//! Invariant: the last believable usage counts, an explicit zero is a zero, and text is counted
//! whether or not the upstream says a number. Of an answer that was broken off, a usage that came
//! before its last text is none. Keeps no text beyond what counting needs.

use crate::models::money::Tokens;
use crate::models::openai::answer::{Answer, Choice, Delta, Reported};
use crate::models::usage::{shortened, tells_of_failure};
use crate::services::tokens::{Field, Lane, StreamCounter, Tokenizer};
use std::borrow::Cow;

pub struct Reading {
    pub generation_id: Option<String>,
    pub model: Option<String>,
    pub provider: Option<String>,
    pub finish_reason: Option<String>,
    pub reported: Option<Reported>,
    /// Text has come since the usage in `reported`.
    is_usage_stale: bool,
    pub counter: StreamCounter,
    /// The upstream said in the stream that it failed.
    pub has_failed: bool,
    /// Something passed that could not be read, so the count may be short.
    pub has_unreadable: bool,
    /// The choices that were seen, and those that gave their reason to stop.
    begun: Vec<u32>,
    finished: Vec<u32>,
}

/// Choices looked after; OpenAI allows 128.
const CHOICES_MAX: usize = 256;

impl Reading {
    #[must_use]
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self {
            generation_id: None,
            model: None,
            provider: None,
            finish_reason: None,
            reported: None,
            is_usage_stale: false,
            counter: StreamCounter::new(tokenizer),
            has_failed: false,
            has_unreadable: false,
            begun: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Every choice that began has stopped.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        !self.finished.is_empty() && self.begun.iter().all(|index| self.finished.contains(index))
    }

    /// Every choice of this chunk had stopped before it.
    #[must_use]
    pub fn has_finished(&self, chunk: &Answer<'_>) -> bool {
        chunk.choices.0.iter().all(|choice| self.finished.contains(&index_of(&choice.value)))
    }

    /// Whether the client got anything that is worth money.
    #[must_use]
    pub fn is_worth_something(&self) -> bool {
        // The shortest text may be no token yet.
        self.reported.is_some() || self.counter.tokens_so_far() > 0 || self.counter.held_bytes() > 0
    }

    /// The answer was not heard to its end: servers that say the usage so far on each chunk, or
    /// nothing yet on the first, have not said the usage of what came after.
    pub fn discard_stale_usage(&mut self) {
        if self.is_usage_stale {
            self.reported = None;
        }
    }

    /// The answer was heard to its end: a usage that came before its last text is that of all,
    /// unless it says that there was none.
    pub fn discard_stale_zero(&mut self) {
        if self.reported.is_some_and(|reported| reported.tokens.completion == Tokens(0)) {
            self.discard_stale_usage();
        }
    }

    /// Takes the answer's name out of a chunk that is taken in later.
    pub fn take_id(&mut self, answer: &Answer<'_>) {
        first(&mut self.generation_id, answer.id.0.as_ref());
    }

    /// Takes in a chunk or a whole completion.
    pub fn take(&mut self, answer: &Answer<'_>) {
        self.take_id(answer);
        first(&mut self.model, answer.model.0.as_ref());
        first(&mut self.provider, answer.provider.0.as_ref());
        for choice in &answer.choices.0 {
            self.take_choice(&choice.value);
        }
        let by_choice = || answer.reported_by_choice().filter(|_| self.begun.len() <= 1);
        if let Some(reported) = answer.reported().or_else(by_choice) {
            self.reported = Some(reported);
            self.is_usage_stale = false;
        }
        self.has_failed |= answer.failure().is_some();
    }

    /// The choice and text of a chunk that is a piece of an answer's content and nothing else.
    #[must_use]
    pub fn only_text<'a>(&self, chunk: &'a Answer<'_>) -> Option<(u32, &'a str)> {
        let [choice] = &chunk.choices.0[..] else { return None };
        let choice = &choice.value;
        let is_plain = !chunk.usage.given && chunk.failure().is_none();
        let content = choice.only_content().filter(|_| is_plain)?;
        Some((index_of(choice), content))
    }

    /// Takes in a further piece of a choice's content, known from [`Reading::only_text`].
    pub fn take_text(&mut self, choice: u32, text: &str) {
        self.is_usage_stale |= !text.is_empty();
        self.counter.push(Lane { choice, field: Field::Content }, text);
    }

    fn take_choice(&mut self, choice: &Choice<'_>) {
        if let Some(reason) = &choice.finish_reason.0 {
            self.finish_reason = Some(shortened(reason));
            self.has_failed |= tells_of_failure(reason);
        }
        let index = index_of(choice);
        note_index(&mut self.begun, index);
        if choice.finish_reason.0.is_some() {
            note_index(&mut self.finished, index);
        }
        self.take_delta(index, choice.said());
    }

    fn take_delta(&mut self, choice: u32, delta: &Delta<'_>) {
        self.has_unreadable |= delta.has_more();
        let mut push = |field, text: Option<&str>| {
            if let Some(text) = text {
                self.is_usage_stale |= !text.is_empty();
                self.counter.push(Lane { choice, field }, text);
            }
        };
        push(Field::Content, delta.content.text.as_deref());
        push(Field::Refusal, delta.refusal.0.as_deref());
        push(Field::Reasoning, delta.thought());
        for (place, call) in (0_u32..).zip(&delta.tool_calls.0) {
            let call = &call.value;
            let index = call.index.0.and_then(|index| u32::try_from(index).ok());
            let index = index.unwrap_or(place);
            let (function, custom) = (&call.function.value, &call.custom.value);
            push(Field::ToolName(index), function.name.0.as_deref());
            push(Field::ToolArguments(index), function.arguments.0.as_deref());
            push(Field::ToolName(index), custom.name.0.as_deref());
            push(Field::ToolArguments(index), custom.input.0.as_deref());
        }
        let function = &delta.function_call.value;
        push(Field::FunctionName, function.name.0.as_deref());
        push(Field::FunctionArguments, function.arguments.0.as_deref());
    }
}

fn index_of(choice: &Choice<'_>) -> u32 {
    choice.index.0.and_then(|index| u32::try_from(index).ok()).unwrap_or(0)
}

fn note_index(known: &mut Vec<u32>, index: u32) {
    if !known.contains(&index) && known.len() < CHOICES_MAX {
        known.push(index);
    }
}

fn first(known: &mut Option<String>, given: Option<&Cow<'_, str>>) {
    if known.is_none()
        && let Some(given) = given
        && !given.is_empty()
    {
        *known = Some(shortened(given));
    }
}
