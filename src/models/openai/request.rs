//! A chat completion request: the members that decide routing, price and stream, checked.
//!
//! Members not named here pass to the upstream unseen. Messages are only held as text.

use super::splice::Edits;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Why a request is refused: a message for its sender and the member it is about.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    pub message: String,
    pub param: Option<&'static str>,
}

/// The members that matter, each as it stands in the body.
#[derive(Debug)]
pub struct ChatRequest<'a> {
    pub model: Cow<'a, str>,
    pub messages: &'a RawValue,
    pub tools: Option<&'a RawValue>,
    pub stream: bool,
    /// Whether the client asked for the usage chunk.
    pub include_usage: bool,
    /// The client's cap on the completion.
    pub completion_tokens_max: Option<i64>,
    pub choices: i64,
    body: &'a str,
    raw: Members<'a>,
}

/// Presence matters, `null` included: a member is replaced where it stands.
#[derive(Debug, Default, Deserialize)]
struct Members<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    model: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    messages: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    tools: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    stream: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    n: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    user: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    include_usage: Option<&'a RawValue>,
}

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
        let raw: Members<'a> = serde_json::from_str(body).map_err(|error| {
            invalid(&format!("We could not parse the JSON body: {error}"), None)
        })?;
        Ok(Self {
            model: model(raw.model)?,
            messages: messages(raw.messages)?,
            tools: raw.tools,
            stream: optional(raw.stream, "stream", "a boolean")?.unwrap_or(false),
            include_usage: include_usage(raw.stream_options)?,
            completion_tokens_max: completion_tokens_max(&raw)?,
            choices: choices(raw.n)?,
            body,
            raw,
        })
    }

    /// The body for the upstream: `user` set, the usage chunk asked for on streams, and the
    /// completion capped where `cap` says so; `cap_member` is the upstream's word for it.
    #[must_use]
    pub fn forwarded(&self, user: &str, cap: Option<i64>, cap_member: &str) -> String {
        let mut edits = Edits::default();
        let mut added = Vec::new();
        // `user` is one of our own ids: nothing in it needs escaping.
        match self.raw.user {
            Some(given) => edits.replace(self.body, given, format!("\"{user}\"")),
            None => added.push(format!("\"user\":\"{user}\"")),
        }
        if self.stream {
            self.ask_for_usage(&mut edits, &mut added);
        }
        if let Some(cap) = cap {
            self.cap_completion(cap, cap_member, &mut edits, &mut added);
        }
        if !added.is_empty() {
            edits.add_members(self.body, self.body, &added.join(","));
        }
        edits.apply(self.body)
    }

    fn cap_completion(&self, cap: i64, member: &str, edits: &mut Edits, added: &mut Vec<String>) {
        // Both are replaced where both are given: an upstream may obey either.
        let given: Vec<_> =
            [self.raw.max_tokens, self.raw.max_completion_tokens].into_iter().flatten().collect();
        for given in &given {
            edits.replace(self.body, given, cap.to_string());
        }
        if given.is_empty() {
            added.push(format!("\"{member}\":{cap}"));
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
            Some(_) if self.include_usage => {}
            Some(include) => edits.replace(self.body, include, "true".to_owned()),
            None => edits.add_members(self.body, given.get(), r#""include_usage":true"#),
        }
    }
}

fn invalid(message: &str, param: Option<&'static str>) -> Invalid {
    Invalid { message: message.to_owned(), param }
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

fn include_usage(raw: Option<&RawValue>) -> Result<bool, Invalid> {
    // A derived struct would take an array for an object.
    if raw.is_some_and(|raw| raw.get().starts_with('[')) {
        return Err(wrong_type("stream_options", "an object"));
    }
    let options: Option<StreamOptions<'_>> = optional(raw, "stream_options", "an object")?;
    let raw = options.and_then(|options| options.include_usage);
    let include = optional(raw, "stream_options", "an object with a boolean 'include_usage'")?;
    Ok(include.unwrap_or(false))
}

fn completion_tokens_max(raw: &Members<'_>) -> Result<Option<i64>, Invalid> {
    let newer = positive(raw.max_completion_tokens, "max_completion_tokens", i64::MAX)?;
    let older = positive(raw.max_tokens, "max_tokens", i64::MAX)?;
    // An upstream may obey either: the larger one is the worst case.
    Ok(newer.max(older))
}

fn choices(raw: Option<&RawValue>) -> Result<i64, Invalid> {
    Ok(positive(raw, "n", CHOICES_MAX)?.unwrap_or(1))
}

fn positive(raw: Option<&RawValue>, param: &'static str, max: i64) -> Result<Option<i64>, Invalid> {
    match optional::<i64>(raw, param, "a positive integer")? {
        Some(number) if number < 1 || number > max => Err(wrong_type(param, "a positive integer")),
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

    fn forwarded(body: &str) -> String {
        ChatRequest::parse(body.as_bytes()).unwrap().forwarded("u", None, "max_tokens")
    }

    #[test]
    fn usage_is_asked_for_and_every_other_byte_stays() {
        let plain = format!(r#"{{ "model":"m", {MESSAGES} , "zzz": 1.50 }}"#);
        assert_eq!(forwarded(&plain), plain.replacen('{', r#"{"user":"u","#, 1));

        for (given, sent) in [
            ("", r#""stream_options":{"include_usage":true},"#),
            (r#""stream_options":null,"#, r#""stream_options":{"include_usage":true},"#),
            (r#""stream_options":{},"#, r#""stream_options":{"include_usage":true},"#),
            (
                r#""stream_options":{"include_usage":false},"#,
                r#""stream_options":{"include_usage":true},"#,
            ),
            (r#""stream_options":{"x":1},"#, r#""stream_options":{"include_usage":true,"x":1},"#),
        ] {
            let body = format!(r#"{{{given}"stream":true,"user":null,"model":"m",{MESSAGES}}}"#);
            let want = body.replace(r#""user":null"#, r#""user":"u""#);
            let want = match given {
                "" => want.replacen('{', &format!("{{{sent}"), 1),
                _ => want.replace(given, sent),
            };
            assert_eq!(forwarded(&body), want);
        }
    }

    #[test]
    fn the_cap_is_lowered_where_it_stands() {
        let capped = |members: &str| {
            let body = format!(r#"{{{members}"model":"m","user":"","messages":[{{}}]}}"#);
            let request = ChatRequest::parse(body.as_bytes()).unwrap();
            request.forwarded("u", Some(7), "max_tokens")
        };
        let rest = r#""model":"m","user":"u","messages":[{}]}"#;
        assert_eq!(capped(""), format!(r#"{{"max_tokens":7,{rest}"#));
        assert_eq!(capped(r#""max_tokens":99,"#), format!(r#"{{"max_tokens":7,{rest}"#));
        assert_eq!(
            capped(r#""max_completion_tokens":99,"max_tokens":null,"#),
            format!(r#"{{"max_completion_tokens":7,"max_tokens":7,{rest}"#)
        );
    }

    #[test]
    fn a_member_at_fault_is_named() {
        for (body, param) in [
            (r#"{"messages":[{}]}"#, Some("model")),
            (r#"{"model":1,"messages":[{}]}"#, Some("model")),
            (r#"{"model":"","messages":[{}]}"#, Some("model")),
            (r#"{"model":"a\nb","messages":[{}]}"#, Some("model")),
            (r#"{"model":"m"}"#, Some("messages")),
            (r#"{"model":"m","messages":[]}"#, Some("messages")),
            (r#"{"model":"m","messages":"hi"}"#, Some("messages")),
            (r#"{"model":"m","messages":[{}],"stream":"yes"}"#, Some("stream")),
            (r#"{"model":"m","messages":[{}],"stream_options":[]}"#, Some("stream_options")),
            (r#"{"model":"m","messages":[{}],"n":0}"#, Some("n")),
            (r#"{"model":"m","messages":[{}],"n":1e3}"#, Some("n")),
            (r#"{"model":"m","messages":[{}],"max_tokens":-1}"#, Some("max_tokens")),
            (r#"{"model":"m","model":"n","messages":[{}]}"#, None),
            ("[]", None),
            (r#"{"model":"#, None),
            ("", None),
        ] {
            let refusal = ChatRequest::parse(body.as_bytes()).expect_err(body);
            assert_eq!(refusal.param, param, "{body}: {}", refusal.message);
        }
    }
}
