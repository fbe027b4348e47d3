//! A chat completion request: the members that decide routing, price and stream, checked.
//!
//! Members not named here pass to the upstream unseen. Messages are only held as text.

use super::depth::{DEPTH_MAX, is_too_deep};
use super::pairs::{Pairs, folded};
use super::refused::is_refused;
use super::splice::Edits;
use super::tools::{self, FileEngine};
use crate::models::money::Tokens;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Why a request is refused: a message for its sender and the member it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    pub message: String,
    pub param: Option<Cow<'static, str>>,
}

/// The members that matter, each as it stands in the body.
#[derive(Debug)]
pub struct ChatRequest<'a> {
    pub model: Cow<'a, str>,
    pub messages: &'a RawValue,
    /// The text of all else that a model may read: tools, functions, schemas.
    pub rest: String,
    /// Searches and the like may be charged on top of tokens.
    pub has_fees: bool,
    /// By what the files in its prompt are read.
    pub file_engine: FileEngine,
    pub stream: bool,
    /// Whether the client asked for the usage chunk.
    pub include_usage: bool,
    /// The client's cap on the completion.
    pub completion_tokens_max: Option<Tokens>,
    pub choices: i64,
    /// How many probabilities come with each token of the answer.
    pub probabilities: i64,
    body: &'a str,
    raw: Members<'a>,
}

/// The members as they stand in the body; presence matters, `null` included: a member is replaced
/// where it stands.
#[derive(Debug, Default)]
struct Members<'a> {
    model: Option<&'a RawValue>,
    messages: Option<&'a RawValue>,
    stream: Option<&'a RawValue>,
    stream_options: Option<&'a RawValue>,
    max_tokens: Option<&'a RawValue>,
    max_completion_tokens: Option<&'a RawValue>,
    n: Option<&'a RawValue>,
    logprobs: Option<&'a RawValue>,
    top_logprobs: Option<&'a RawValue>,
    user: Option<&'a RawValue>,
    service_tier: Option<&'a RawValue>,
    /// Everything else that a model may read: tools, functions, schemas.
    rest: Vec<&'a RawValue>,
    has_fees: bool,
    file_engine: Option<FileEngine>,
    /// OpenRouter's older way to ask for the usage chunk.
    includes_usage: bool,
    is_steered: bool,
}

/// The tiers of service that cost no more than the price in the book. The others (`priority`,
/// `fast`, `scale`) are billed at prices of their own, which no list of models has.
/// <https://platform.openai.com/docs/api-reference/chat/create>
const TIERS: &[&str] = &["auto", "default", "flex", "on_demand", "standard", "standard_only"];
/// Brings fees on top of tokens: they are held for.
const SEARCH: &str = "web_search_options";
/// OpenRouter's, which names and ranks the providers that may answer.
const PROVIDER: &str = "provider";
/// Steer the call; no model reads them.
const UNREAD: &[&str] =
    &["metadata", PROVIDER, "logit_bias", "reasoning", "trace", "cache_control", "stop"];

#[derive(Debug, Default, Deserialize)]
struct StreamOptions<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    include_usage: Option<&'a RawValue>,
}

impl<'a> Members<'a> {
    fn read(body: &'a str) -> Result<Self, Invalid> {
        let Pairs(pairs): Pairs<'_> = serde_json::from_str(body).map_err(|error| {
            invalid(&format!("We could not parse the JSON body: {error}"), None)
        })?;
        let mut members = Self::default();
        for (name, value) in pairs {
            members.take(&name, value)?;
        }
        Ok(members)
    }

    /// Names are told apart by case, as JSON has it, but an upstream in another language may not do
    /// so: a name that differs from one of ours by case only is refused.
    fn take(&mut self, name: &str, value: &'a RawValue) -> Result<(), Invalid> {
        let lower = folded(name);
        if is_refused(&lower, value) {
            return Err(invalid(&format!("The parameter '{name}' is not supported here."), None));
        }
        if let Some((param, slot)) = self.slot(&lower) {
            if name != lower {
                return Err(invalid(&format!("Unknown parameter: '{name}'."), Some(param)));
            }
            if slot.replace(value).is_some() {
                return Err(invalid(&format!("Duplicate parameter: '{name}'."), Some(param)));
            }
            return Ok(());
        }
        self.has_fees |= lower == SEARCH && value.get() != "null";
        self.is_steered |= lower == PROVIDER && !["null", "{}"].contains(&value.get());
        let unsupported =
            |name| invalid(&format!("'{name}' in '{lower}' is not supported here."), None);
        match lower.as_str() {
            "tools" => self.has_fees |= tools::bring_fees(value).map_err(unsupported)?,
            "tool_choice" => tools::check_choice(value).map_err(unsupported)?,
            "plugins" => {
                let found = tools::plugins(value).map_err(unsupported)?;
                self.has_fees |= found.searches;
                self.file_engine = self.file_engine.max(Some(found.engine));
            }
            "usage" => self.includes_usage = asks_for_usage(value),
            _ => {}
        }
        // Numbers and words are settings; what a model reads comes as objects, lists or long texts.
        let is_text = value.get().starts_with(['{', '[']) || value.get().len() > SETTING_BYTES_MAX;
        if is_text && !UNREAD.contains(&lower.as_str()) {
            self.rest.push(value);
        }
        Ok(())
    }

    fn slot(&mut self, name: &str) -> Option<(&'static str, &mut Option<&'a RawValue>)> {
        Some(match name {
            "model" => ("model", &mut self.model),
            "messages" => ("messages", &mut self.messages),
            "stream" => ("stream", &mut self.stream),
            "stream_options" => ("stream_options", &mut self.stream_options),
            "max_tokens" => ("max_tokens", &mut self.max_tokens),
            "max_completion_tokens" => ("max_completion_tokens", &mut self.max_completion_tokens),
            "n" => ("n", &mut self.n),
            "logprobs" => ("logprobs", &mut self.logprobs),
            "top_logprobs" => ("top_logprobs", &mut self.top_logprobs),
            "user" => ("user", &mut self.user),
            "service_tier" => ("service_tier", &mut self.service_tier),
            _ => return None,
        })
    }
}

/// How an upstream reads what differs among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// The name of the cap on a completion.
    pub cap: &'static str,
    /// It passes over the other one, and answers at any length.
    pub is_sole: bool,
    /// It takes a `user`; else one is not added.
    pub takes_user: bool,
}

/// The names of the cap.
pub const OLDER: &str = "max_tokens";
pub const NEWER: &str = "max_completion_tokens";

/// A setting's value is no longer than this.
const SETTING_BYTES_MAX: usize = 64;

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A model's name is no longer than this; it goes into tables and log lines.
const MODEL_BYTES_MAX: usize = 256;
/// OpenAI's own limit for `n`.
const CHOICES_MAX: i64 = 128;

impl<'a> ChatRequest<'a> {
    /// Reads and checks a body.
    ///
    /// # Errors
    /// [`Invalid`] with the member at fault.
    pub fn parse(body: &'a [u8]) -> Result<Self, Invalid> {
        let body = std::str::from_utf8(body)
            .map_err(|_| invalid("The request body is not valid UTF-8.", None))?;
        let body = body.strip_prefix('\u{feff}').unwrap_or(body);
        if !body.trim_start().starts_with('{') {
            return Err(invalid("The request body must be a JSON object.", None));
        }
        if is_too_deep(body.as_bytes()) {
            let message = format!("The request body is nested deeper than {DEPTH_MAX} levels.");
            return Err(invalid(&message, None));
        }
        let raw = Members::read(body)?;
        check_tier(raw.service_tier)?;
        Ok(Self {
            model: model(raw.model)?,
            messages: messages(raw.messages)?,
            rest: raw.rest.iter().map(|raw| raw.get()).collect::<Vec<_>>().join(" "),
            has_fees: raw.has_fees,
            file_engine: raw.file_engine.unwrap_or_default(),
            stream: optional(raw.stream, "stream", "a boolean")?.unwrap_or(false),
            include_usage: include_usage(raw.stream_options)? || raw.includes_usage,
            completion_tokens_max: completion_tokens_max(&raw)?,
            choices: choices(raw.n)?,
            probabilities: probabilities(&raw),
            body,
            raw,
        })
    }

    /// It says which of an upstream's providers may answer.
    #[must_use]
    pub fn is_steered(&self) -> bool {
        self.raw.is_steered
    }

    /// The body for the upstream: `user` set, the usage chunk asked for on streams, and the
    /// completion capped where `cap` says so, in the upstream's dialect; `model`: its own name
    /// of the model, where that is another.
    #[must_use]
    pub fn forwarded(
        &self,
        user: &str,
        cap: Option<Tokens>,
        dialect: Dialect,
        model: Option<&str>,
    ) -> String {
        let mut edits = Edits::default();
        let mut added = Vec::new();
        // `user` is one of our own ids: nothing in it needs escaping.
        match self.raw.user {
            Some(given) => edits.replace(self.body, given, format!("\"{user}\"")),
            None if dialect.takes_user => added.push(format!("\"user\":\"{user}\"")),
            None => {}
        }
        if self.stream {
            self.ask_for_usage(&mut edits, &mut added);
        }
        if let (Some(given), Some(model)) = (self.raw.model, model) {
            // A text has no way to fail.
            let model = serde_json::to_string(model).unwrap_or_default();
            edits.replace(self.body, given, model);
        }
        self.cap_completion(cap, dialect, &mut edits, &mut added);
        if !added.is_empty() {
            edits.add_members(self.body, self.body, &added.join(","));
        }
        edits.apply(self.body)
    }

    fn cap_completion(
        &self,
        cap: Option<Tokens>,
        Dialect { cap: member, is_sole, .. }: Dialect,
        edits: &mut Edits,
        added: &mut Vec<String>,
    ) {
        let raw = &self.raw;
        let given = [(OLDER, raw.max_tokens), (NEWER, raw.max_completion_tokens)];
        let given = given.into_iter().filter_map(|(name, raw)| Some((name, raw?)));
        let (read, unread): (Vec<_>, Vec<_>) =
            given.partition(|(name, _)| !is_sole || *name == member);
        let is_told = |raw: &RawValue| raw.get() != "null";
        let is_unread = is_sole && !read.iter().any(|(_, raw)| is_told(raw));
        // An upstream that reads one of the names only gets what was said by the other.
        let cap = cap.or(self.completion_tokens_max.filter(|_| is_unread));
        let Some(Tokens(cap)) = cap else { return };
        // Both are replaced where both are given: an upstream may obey either.
        for (_, raw) in read.iter().chain(&unread) {
            edits.replace(self.body, raw, cap.to_string());
        }
        match (&read[..], &unread[..]) {
            ([], [(_, raw), ..]) => edits.rename(self.body, raw, member),
            ([], []) => added.push(format!("\"{member}\":{cap}")),
            _ => {}
        }
    }

    fn ask_for_usage(&self, edits: &mut Edits, added: &mut Vec<String>) {
        let Some(given) = self.raw.stream_options else {
            added.push(r#""stream_options":{"include_usage":true}"#.to_owned());
            return;
        };
        if given.get() == "null" {
            edits.replace(self.body, given, r#"{"include_usage":true}"#.to_owned());
            return;
        }
        // The options were read once before: they are an object.
        let options: StreamOptions<'_> = serde_json::from_str(given.get()).unwrap_or_default();
        match options.include_usage {
            Some(include) if include.get() == "true" => {}
            Some(include) => edits.replace(self.body, include, "true".to_owned()),
            None => edits.add_members(self.body, given.get(), r#""include_usage":true"#),
        }
    }
}

fn invalid(message: &str, param: Option<&'static str>) -> Invalid {
    Invalid { message: message.to_owned(), param: param.map(Cow::Borrowed) }
}

fn missing(param: &'static str) -> Invalid {
    invalid(&format!("Missing required parameter: '{param}'."), Some(param))
}

fn wrong_type(param: &'static str, wanted: &str) -> Invalid {
    invalid(&format!("Invalid type for '{param}': expected {wanted}."), Some(param))
}

fn optional<'a, T: Deserialize<'a>>(
    raw: Option<&'a RawValue>,
    param: &'static str,
    wanted: &str,
) -> Result<Option<T>, Invalid> {
    let Some(raw) = raw else { return Ok(None) };
    serde_json::from_str::<Option<T>>(raw.get()).map_err(|_| wrong_type(param, wanted))
}

fn model(raw: Option<&RawValue>) -> Result<Cow<'_, str>, Invalid> {
    /// Borrows where nothing is escaped; a plain `Cow` would always copy.
    #[derive(Deserialize)]
    struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

    let Some(Name(name)) = optional::<Name<'_>>(raw, "model", "a string")? else {
        return Err(missing("model"));
    };
    if name.is_empty() || name.len() > MODEL_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(invalid("Invalid value for 'model'.", Some("model")));
    }
    Ok(name)
}

fn messages(raw: Option<&RawValue>) -> Result<&RawValue, Invalid> {
    let raw = raw.ok_or_else(|| missing("messages"))?;
    if !raw.get().starts_with('[') {
        return Err(wrong_type("messages", "an array of objects"));
    }
    let mut items = raw.get()[1..].trim_start().chars();
    match items.next() {
        Some('{') => Ok(raw),
        Some(']') => Err(invalid("'messages' must not be empty.", Some("messages"))),
        _ => Err(wrong_type("messages", "an array of objects")),
    }
}

/// `{"include": true}`. <https://openrouter.ai/docs/guides/administration/usage-accounting>
fn asks_for_usage(usage: &RawValue) -> bool {
    let pairs: Result<Pairs<'_>, _> = serde_json::from_str(usage.get());
    pairs.is_ok_and(|Pairs(members)| {
        members.iter().any(|(name, value)| name == "include" && value.get() == "true")
    })
}

fn include_usage(raw: Option<&RawValue>) -> Result<bool, Invalid> {
    // A derived struct would take an array for an object.
    if raw.is_some_and(|raw| raw.get().starts_with('[')) {
        return Err(wrong_type("stream_options", "an object"));
    }
    let named: Option<Pairs<'_>> = optional(raw, "stream_options", "an object")?;
    let names = named.iter().flat_map(|Pairs(pairs)| pairs).map(|(name, _)| name);
    if names.into_iter().any(|name| name != "include_usage" && folded(name) == "include_usage") {
        let message = "Unknown parameter in 'stream_options': 'include_usage' in another case.";
        return Err(invalid(message, Some("stream_options")));
    }
    let options: Option<StreamOptions<'_>> = optional(raw, "stream_options", "an object")?;
    let raw = options.and_then(|options| options.include_usage);
    let include = optional(raw, "stream_options", "an object with a boolean 'include_usage'")?;
    Ok(include.unwrap_or(false))
}

fn completion_tokens_max(raw: &Members<'_>) -> Result<Option<Tokens>, Invalid> {
    let newer = positive(raw.max_completion_tokens, "max_completion_tokens", i64::MAX)?;
    let older = positive(raw.max_tokens, "max_tokens", i64::MAX)?;
    // An upstream may obey either: the larger one is the worst case.
    Ok(newer.max(older).map(Tokens))
}

fn check_tier(raw: Option<&RawValue>) -> Result<(), Invalid> {
    let tier: Option<String> = optional(raw, "service_tier", "a string")?;
    if tier.is_none_or(|tier| TIERS.contains(&tier.as_str())) {
        return Ok(());
    }
    let message = format!(
        "Unsupported value for 'service_tier': one of {} has a price here.",
        TIERS.join(", ")
    );
    Err(invalid(&message, Some("service_tier")))
}

fn choices(raw: Option<&RawValue>) -> Result<i64, Invalid> {
    Ok(positive(raw, "n", CHOICES_MAX)?.unwrap_or(1))
}

/// A token's own, and those of the likeliest in its place. Other types are the upstream's to
/// refuse.
fn probabilities(raw: &Members<'_>) -> i64 {
    let number = |raw: Option<&RawValue>| raw.and_then(|raw| raw.get().parse().ok());
    let own = match raw.logprobs.map(RawValue::get) {
        Some("true") => 1,
        // Together's: how many of the likeliest.
        _ => number(raw.logprobs).unwrap_or(0_i64),
    };
    let likeliest = number(raw.top_logprobs).unwrap_or(0_i64);
    own.max(0).saturating_add(likeliest.max(0))
}

fn positive(raw: Option<&RawValue>, param: &'static str, max: i64) -> Result<Option<i64>, Invalid> {
    match optional::<i64>(raw, param, "a positive integer")? {
        Some(number) if number < 1 || number > max => Err(wrong_type(param, "a positive integer")),
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests;
