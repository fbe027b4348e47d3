//! The tokens of a chat request's prompt: counted when the upstream does not say, and bounded
//! cheaply before the upstream is called.
//!
//! Invariants: nothing fails and nothing panics, whatever the JSON; what is not understood is
//! counted as its JSON text and marked estimated; for ordinary text
//! `estimate_prompt >= count_prompt` with `o200k_base`.
//!
//! The framing of messages is the one published for chat models. What is not published is a guess:
//! the framing of tool calls, the form in which tools reach the model (as JSON here), and pictures,
//! sound, video and files, which have a flat number each because their price depends on contents
//! and model.
//!
//! This module does not fetch, decode or measure media, and knows no other vendor's framing.

use std::borrow::Cow;

use memchr::memchr_iter;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::models::openai::pairs::Pairs;

use super::vocabulary::{Count, Tokenizer, Vocabulary, tokens_from};

/// `<|start|>`, the separator and the end of one message.
const TOKENS_PER_MESSAGE: i64 = 3;
const TOKENS_PER_NAME: i64 = 1;
/// The answer is primed with `<|start|>assistant<|message|>`.
const TOKENS_PRIMING: i64 = 3;
/// tiktoken-rs's own guess for the framing of a tool call.
const TOKENS_PER_CALL: i64 = 1;

/// The largest picture of the models that count tiles (85 + 8 * 170), and of those that count
/// pixels, rounded up.
const TOKENS_PER_IMAGE: i64 = 1_600;
/// One minute of sound at the dearest published rate, 32 tokens a second.
pub(super) const TOKENS_PER_AUDIO: i64 = 1_920;
/// Two pages of a PDF at 2,500 tokens each.
pub(super) const TOKENS_PER_FILE: i64 = 5_000;
/// Half a minute of video at about 300 tokens a second.
pub(super) const TOKENS_PER_VIDEO: i64 = 9_000;

/// Letters that a token holds at least, on average, in words of a text that is not random.
const LETTERS_PER_TOKEN: usize = 4;
/// The same for the bytes of characters outside ASCII: two for most alphabets, three for CJK.
const WIDE_BYTES_PER_TOKEN: usize = 2;

/// Tokens of a chat request's prompt, from the JSON text of its `messages` and of its `tools` (or
/// whatever else the upstream puts into the prompt as a schema, such as `response_format`).
///
/// Tokenises everything, so a large prompt belongs on a blocking thread.
#[must_use]
pub fn count_prompt(tokenizer: &Tokenizer, messages_json: &str, tools_json: Option<&str>) -> Count {
    let total = Count { tokens: TOKENS_PRIMING, estimated: !tokenizer.exact };
    let mut counter = PromptCounter { vocabulary: &tokenizer.vocabulary, total };
    match serde_json::from_str::<Vec<&RawValue>>(messages_json) {
        Ok(messages) => messages.into_iter().for_each(|message| counter.message(message)),
        Err(_) => counter.unknown(messages_json),
    }
    if let Some(tools) = tools_json.map(str::trim).filter(|tools| !is_nothing(tools)) {
        counter.unknown(tools);
    }
    counter.total
}

/// An upper bound for ordinary text, without tokenising, for holds. Linear, allocates nothing, and
/// takes about 10 us for 100 kB.
///
/// How it is chosen. A token never crosses from letters to digits, from digits to punctuation or
/// from either to a space, so text with many of those has many tokens: `1, 2, 3` has one per byte,
/// and half its length would be too low. Long tokens come from words and from runs of spaces. So
/// each ASCII byte that is no letter counts as one token (but a run of spaces as one), four letters
/// count as one, two bytes of a character outside ASCII as one, and one more for a character
/// outside the basic plane, most of which are emoji. The rule is applied to the JSON text as it
/// stands, whose keys, quotes and braces pay for the framing of the messages.
///
/// Measured against `o200k_base`: 1.2 to 2.8 times the count for code and for languages in Latin,
/// Cyrillic and CJK letters (down to 1.0 for rare characters, as in Cantonese), up to 5 times for
/// alphabets that `o200k_base` packs well (Greek, Hebrew, Hindi, Georgian). It is no bound for
/// random letters (0.5), base64 as text (0.6), phonetic script (0.7) and the few scripts that have
/// nearly a token per byte (Amharic and Lao, 0.8): no cheap rule covers those without doubling
/// everybody's hold. Text escaped as `\uXXXX` is bounded several times too high.
///
/// Media parts cost what [`count_prompt`] takes for them, and their data is left out: see `media`.
#[must_use]
pub fn estimate_prompt(messages_json: &str, tools_json: Option<&str>) -> i64 {
    let mut bound = Bound::default();
    bound.add_messages(messages_json.as_bytes());
    bound.add(tools_json.unwrap_or_default().as_bytes());
    bound.tokens().saturating_add(TOKENS_PRIMING)
}

struct PromptCounter<'t> {
    vocabulary: &'t Vocabulary,
    total: Count,
}

/// However many: the body's size is bounded. A key given twice counts twice, since the upstream may
/// read either.
pub(super) type Members<'a> = Pairs<'a, { usize::MAX }>;

/// A JSON string, borrowed where it has no escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

impl PromptCounter<'_> {
    fn message(&mut self, message: &RawValue) {
        self.add(TOKENS_PER_MESSAGE);
        let Some(Pairs(members)) = parse::<Members<'_>>(message) else {
            return self.unknown(message.get());
        };
        for (key, value) in members {
            match &*key {
                _ if is_nothing(value.get()) => {}
                "role" | "refusal" => self.text(value),
                "content" => self.content(value),
                "name" => {
                    self.add(TOKENS_PER_NAME);
                    self.text(value);
                }
                "tool_calls" => self.each(value, Self::call),
                "function_call" => self.function(value),
                "audio" => self.guess(TOKENS_PER_AUDIO),
                "tool_call_id" | "cache_control" => {}
                _ => self.unknown(value.get()),
            }
        }
    }

    fn content(&mut self, content: &RawValue) {
        if content.get().starts_with('[') {
            self.each(content, Self::part);
        } else {
            self.text(content);
        }
    }

    fn part(&mut self, part: &RawValue) {
        let Some(Pairs(members)) = parse::<Members<'_>>(part) else {
            return self.unknown(part.get());
        };
        let Some(kind) = part_kind(&members) else {
            return self.unknown(part.get());
        };
        if let Some(tokens) = media_tokens(kind.as_bytes()) {
            return self.guess(tokens);
        }
        if !matches!(&*kind, "text" | "refusal") {
            return self.unknown(part.get());
        }
        for (key, value) in members {
            match &*key {
                "type" | "cache_control" => {}
                "text" | "refusal" => self.text(value),
                _ => self.unknown(value.get()),
            }
        }
    }

    fn call(&mut self, call: &RawValue) {
        let Some(Pairs(members)) = parse::<Members<'_>>(call) else {
            return self.unknown(call.get());
        };
        for (key, value) in members {
            match &*key {
                "id" | "type" | "index" => {}
                "function" | "custom" => self.function(value),
                _ => self.unknown(value.get()),
            }
        }
    }

    fn function(&mut self, function: &RawValue) {
        let Some(Pairs(members)) = parse::<Members<'_>>(function) else {
            return self.unknown(function.get());
        };
        self.guess(TOKENS_PER_CALL);
        for (key, value) in members {
            match &*key {
                "name" | "arguments" | "input" => self.text(value),
                _ => self.unknown(value.get()),
            }
        }
    }

    fn each(&mut self, list: &RawValue, count: fn(&mut Self, &RawValue)) {
        match parse::<Vec<&RawValue>>(list) {
            Some(items) => items.into_iter().for_each(|item| count(self, item)),
            None => self.unknown(list.get()),
        }
    }

    fn text(&mut self, text: &RawValue) {
        match parse(text) {
            Some(Text(text)) => self.total += self.vocabulary.count(&text),
            None => self.unknown(text.get()),
        }
    }

    /// Counts what is not understood as it stands. `null` and `[]` hold nothing.
    fn unknown(&mut self, json: &str) {
        if !is_nothing(json) {
            self.total += self.vocabulary.count(json);
            self.total.estimated = true;
        }
    }

    fn guess(&mut self, tokens: i64) {
        self.add(tokens);
        self.total.estimated = true;
    }

    fn add(&mut self, tokens: i64) {
        self.total += Count { tokens, estimated: false };
    }
}

pub(super) fn parse<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Option<T> {
    serde_json::from_str(json.get()).ok()
}

/// The `type` of a part. None if there are two: the upstream may read either, and a picture's flat
/// number must not hide a text.
fn part_kind<'a>(members: &[(Cow<'a, str>, &'a RawValue)]) -> Option<Cow<'a, str>> {
    let mut kinds = members.iter().filter(|(key, _)| key == "type");
    let (_, kind) = kinds.next()?;
    let Text(kind) = parse(kind)?;
    kinds.next().is_none().then_some(kind)
}

fn is_nothing(json: &str) -> bool {
    matches!(json, "" | "null" | "[]" | "{}")
}

/// The flat number for a part of this `type`, when it is media.
fn media_tokens(kind: &[u8]) -> Option<i64> {
    match kind {
        b"image_url" | b"input_image" | b"image" => Some(TOKENS_PER_IMAGE),
        b"input_audio" | b"audio" => Some(TOKENS_PER_AUDIO),
        b"file" | b"input_file" | b"document" => Some(TOKENS_PER_FILE),
        b"video_url" | b"input_video" | b"video" => Some(TOKENS_PER_VIDEO),
        _ => None,
    }
}

/// What bounds a text's tokens: its bytes by kind.
#[derive(Default)]
struct Bound {
    letters: usize,
    wide: usize,
    others: usize,
    media: i64,
}

impl Bound {
    /// Adds the JSON text of messages without the data of pictures and the like.
    fn add_messages(&mut self, json: &[u8]) {
        let mut text_from = 0;
        for Literal { parent, key, start, end } in values(json) {
            if key == b"type" {
                let tokens = media_tokens(&json[start..end]).unwrap_or(0);
                self.media = self.media.saturating_add(tokens);
            } else if is_media_data(parent, key) {
                self.add(&json[text_from..start]);
                text_from = end;
            }
        }
        self.add(&json[text_from..]);
    }

    fn add(&mut self, text: &[u8]) {
        let (blocks, rest) = text.as_chunks::<BLOCK_BYTES>();
        for block in blocks {
            self.add_block(block);
        }
        self.add_block(rest);

        let behind = text.get(1..).unwrap_or_default();
        let (pairs, last) = behind.as_chunks::<BLOCK_BYTES>();
        let repeated = blocks.iter().zip(pairs).map(|(a, b)| repeated_spaces(a, b)).sum::<usize>();
        self.others -= repeated + repeated_spaces(&text[pairs.len() * BLOCK_BYTES..], last);
    }

    fn add_block(&mut self, block: &[u8]) {
        let count = |kind: fn(&u8) -> bool| -> usize {
            block.iter().map(|byte| u8::from(kind(byte))).sum::<u8>().into()
        };
        let letters = count(u8::is_ascii_alphabetic);
        let wide = count(|byte| !byte.is_ascii());
        let astral = if wide > 0 { count(|byte| *byte >= 0xF0) } else { 0 };
        self.letters += letters;
        self.wide += wide;
        self.others += block.len() + astral - letters - wide;
    }

    fn tokens(&self) -> i64 {
        let letters = self.letters.div_ceil(LETTERS_PER_TOKEN);
        let wide = self.wide.div_ceil(WIDE_BYTES_PER_TOKEN);
        tokens_from(letters + wide + self.others).saturating_add(self.media)
    }
}

/// A block's counts fit into a u8, and its length is known: the compiler counts many bytes at a
/// time.
const BLOCK_BYTES: usize = 128;

/// Spaces behind a space; `behind`: the same text without its first byte.
fn repeated_spaces(text: &[u8], behind: &[u8]) -> usize {
    let pairs = text.iter().zip(behind).map(|(a, b)| u8::from(*a == b' ' && *b == b' '));
    pairs.sum::<u8>().into()
}

/// A string that is a value: where it is, its key, and the last key before it that opened an object
/// or a list.
pub(super) struct Literal<'a> {
    pub(super) parent: &'a [u8],
    pub(super) key: &'a [u8],
    pub(super) start: usize,
    pub(super) end: usize,
}

pub(super) fn values(json: &[u8]) -> impl Iterator<Item = Literal<'_>> {
    let (mut parent, mut key): (&[u8], &[u8]) = (b"", b"");
    literals(json).filter_map(move |(start, end)| {
        let literal = &json[start..end];
        match value_behind_key(&json[end..]) {
            Some(b'{' | b'[') => (parent, key) = (literal, b""),
            Some(_) => key = literal,
            None => return Some(Literal { parent, key, start, end }),
        }
        None
    })
}

/// The strings of a JSON text, keys included, as byte ranges between their quotes.
fn literals(json: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut quotes = memchr_iter(b'"', json).filter(|&at| !is_escaped(&json[..at]));
    std::iter::from_fn(move || Some((quotes.next()? + 1, quotes.next()?)))
}

/// Does an odd number of backslashes stand before this place?
fn is_escaped(before: &[u8]) -> bool {
    before.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// If the string is a key, the first byte of its value. `behind` starts with the closing quote.
fn value_behind_key(behind: &[u8]) -> Option<u8> {
    let mut bytes = behind.iter().skip(1).filter(|byte| !byte.is_ascii_whitespace());
    match bytes.next() {
        Some(b':') => Some(bytes.next().copied().unwrap_or(b' ')),
        _ => None,
    }
}

/// Is the string the data (or the address) of a picture, a sound or a file? `parent` is the last
/// key before it that opened an object or a list. No upstream reads these members as text of the
/// message, so leaving them out does not let a client hide its prompt there. What a file says once
/// it is opened is in its flat number.
fn is_media_data(parent: &[u8], key: &[u8]) -> bool {
    matches!(
        (parent, key),
        (b"input_audio", b"data")
            | (b"image_url" | b"video_url", b"url")
            | (_, b"file_data" | b"image_url" | b"video_url")
    )
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};
    use serde_json::{Value, json};
    use tiktoken_rs::{ChatCompletionRequestMessage, num_tokens_from_messages};

    use super::{
        super::{
            cut::testing::text,
            vocabulary::testing::{cl100k, o200k},
        },
        *,
    };

    fn counted(tokens: i64) -> Count {
        Count { tokens, estimated: false }
    }

    fn estimated(tokens: i64) -> Count {
        Count { tokens, estimated: true }
    }

    fn count(messages: &Value) -> Count {
        count_prompt(&o200k(), &messages.to_string(), None)
    }

    /// The tokens of one text.
    fn of(text: &str) -> i64 {
        o200k().vocabulary.count(text).tokens
    }

    #[test]
    fn messages_count_as_openai_counts_them() {
        // The example of OpenAI's cookbook, whose counts were checked against OpenAI's API.
        let messages = json!([
            { "role": "system", "content": "You are a helpful, pattern-following assistant that \
                translates corporate jargon into plain English." },
            { "role": "system", "name": "example_user",
              "content": "New synergies will help drive top-line growth." },
            { "role": "system", "name": "example_assistant",
              "content": "Things working well together will increase revenue." },
            { "role": "system", "name": "example_user",
              "content": "Let's circle back when we have more bandwidth to touch base on \
                opportunities for increased leverage." },
            { "role": "system", "name": "example_assistant",
              "content": "Let's talk later when we're less busy about how to do better." },
            { "role": "user",
              "content": "This late pivot means we don't have time to boil the ocean for the \
                client deliverable." },
        ]);
        assert_eq!(count(&messages), counted(124));
        assert_eq!(count_prompt(&cl100k(), &messages.to_string(), None), counted(129));
    }

    #[test]
    fn each_member_counts_what_it_should() {
        for (message, expected) in [
            // 3 to prime the answer, 3 for the message, 1 for the role.
            (json!({ "role": "user" }), counted(7)),
            (json!({ "role": "user", "content": "hello world" }), counted(9)),
            (json!({ "role": "user", "content": null, "tool_calls": null }), counted(7)),
            (json!({ "role": "user", "content": "" }), counted(7)),
            (json!({ "role": "user", "content": "hello", "name": "bob" }), counted(10)),
            (json!({ "role": "user", "content": "hello", "name": null }), counted(8)),
            (json!({ "role": "tool", "content": "hello", "tool_call_id": "call_1" }), counted(8)),
            (json!({ "role": "assistant", "refusal": "hello" }), counted(8)),
            (
                json!({ "role": "user", "content": [
                    { "type": "text", "text": "hello world" },
                    { "text": "hello", "type": "text", "cache_control": { "type": "ephemeral" } },
                    { "type": "refusal", "refusal": "hello" },
                ] }),
                counted(7 + 4),
            ),
            (
                json!({ "role": "user", "content": [
                    { "type": "text", "text": "hello" },
                    { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA" } },
                    { "type": "input_audio", "input_audio": { "data": "AAAA", "format": "wav" } },
                    { "type": "file", "file": { "file_id": "file-1" } },
                    { "type": "video_url", "video_url": { "url": "https://example.com/v" } },
                ] }),
                estimated(8 + 1_600 + 1_920 + 5_000 + 9_000),
            ),
            (
                json!({ "role": "assistant", "content": null, "tool_calls": [
                    { "id": "call_1", "type": "function", "index": 0,
                      "function": { "name": "hello", "arguments": "hello world" } },
                    { "id": "call_2", "type": "custom",
                      "custom": { "name": "hello", "input": "hello" } },
                ] }),
                estimated(7 + 1 + 3 + 1 + 2),
            ),
            (
                json!({ "role": "assistant",
                    "function_call": { "name": "hello", "arguments": "hello" } }),
                estimated(7 + 1 + 2),
            ),
            (json!({ "role": "assistant", "audio": { "id": "a" } }), estimated(7 + 1_920)),
        ] {
            assert_eq!(count(&json!([message])), expected, "{message}");
        }
    }

    #[test]
    fn what_is_not_understood_counts_as_its_json() {
        let odd = json!({ "type": "hologram", "text": "hello" });
        for (message, tokens) in [
            (json!("hello"), of("\"hello\"")),
            (json!(7), 1),
            (json!({ "content": 12 }), 1),
            (json!({ "content": [["x"]] }), of(r#"["x"]"#)),
            (json!({ "content": { "a": 1 } }), of(r#"{"a":1}"#)),
            (json!({ "content": [odd] }), of(&odd.to_string())),
            (json!({ "content": [{ "type": 1 }] }), of(r#"{"type":1}"#)),
            (json!({ "content": [{ "type": "text", "x": "y" }] }), of("\"y\"")),
            (json!({ "reasoning": "hello" }), of("\"hello\"")),
            (json!({ "tool_calls": "hello" }), of("\"hello\"")),
            (json!({ "tool_calls": ["hello"] }), of("\"hello\"")),
            (json!({ "tool_calls": [{ "function": "hello" }] }), of("\"hello\"")),
            (json!({ "function_call": { "arguments": { "a": 1 } } }), 1 + of(r#"{"a":1}"#)),
        ] {
            assert_eq!(count(&json!([message])), estimated(6 + tokens), "{message}");
        }
    }

    #[test]
    fn malformed_json_counts_as_text() {
        for text in ["", "hello", "{", "[{]", "[1,", r#""hello""#, r#"{"role":"user"}"#] {
            let count = count_prompt(&o200k(), text, None);
            assert_eq!(count.tokens, 3 + of(text), "{text}");
            assert!(count.estimated || text.is_empty(), "{text}");
        }
        let lone_surrogate = r#"[{"content":"\ud800"}]"#;
        assert_eq!(count_prompt(&o200k(), lone_surrogate, None), estimated(6 + of(r#""\ud800""#)));
        let deep = "[".repeat(100_000);
        assert_eq!(count_prompt(&o200k(), &deep, None), estimated(3 + of(&deep)));
        let deep = format!("[{}{}]", "[".repeat(50_000), "]".repeat(50_000));
        assert!(count_prompt(&o200k(), &deep, None).estimated);
        assert_eq!(count_prompt(&o200k(), "[]", None), counted(3));
    }

    #[test]
    fn a_member_given_twice_counts_twice() {
        let json = r#"[{"role":"user","content":"hello","content":"hello world"}]"#;
        assert_eq!(count_prompt(&o200k(), json, None), counted(10));
        let json = r#"[{"content":[{"type":"text","text":"hello","text":"hello world"}]}]"#;
        assert_eq!(count_prompt(&o200k(), json, None), counted(9));
    }

    #[test]
    fn a_client_cannot_shrink_its_prompt_with_special_tokens() {
        let text = "<|endoftext|>".repeat(100);
        assert_eq!(count(&json!([{ "role": "user", "content": text }])), counted(7 + 601));
    }

    #[test]
    fn tools_count_as_their_json() {
        let messages = r#"[{"role":"user","content":"hello"}]"#;
        let tools = r#"[{"type":"function","function":{"name":"f","parameters":{}}}]"#;
        let count = |tools| count_prompt(&o200k(), messages, tools);
        assert_eq!(count(Some(tools)), estimated(8 + of(tools)));
        for nothing in [None, Some(""), Some("null"), Some("[]"), Some(" [] ")] {
            assert_eq!(count(nothing), counted(8));
        }
    }

    #[test]
    fn an_inexact_tokenizer_is_marked() {
        let tokenizer = Tokenizer { exact: false, ..o200k() };
        assert_eq!(count_prompt(&tokenizer, r#"[{"role":"user"}]"#, None), estimated(7));
    }

    /// Ordinary text of many kinds.
    const CORPUS: &[&str] = &[
        "",
        "?",
        "The quick brown fox jumps over the lazy dog. It's 5 o'clock; we've eaten already!\n",
        "PLEASE PROCEED TO GATE SEVENTEEN IMMEDIATELY. THIS IS THE FINAL CALL.",
        "fn add(a: i64, b: i64) -> i64 {\n    a.checked_add(b).unwrap_or(i64::MAX)\n}\n",
        "if (a !== b) { return x?.y ?? [...z, `${w}`]; } // eslint-disable-line\r\n",
        "!function(e,t){'object'==typeof exports?t(exports):(e=e||self).X={}}(this);",
        r#"{"id":"chatcmpl-1","choices":[{"delta":{"content":"Hi \"you\""},"index":0}]}"#,
        "| a | b |\n|---|---|\n| 1 | 2 |\n",
        "1, 2, 3, 4, 5, 6, 7, 8, 9",
        "0 1 1 0 1 0 0 1",
        "12.50,7.31,0.03\n9.99,8.88,100.01\n",
        "2026-11-24T11:10:04.123Z INFO id=f47ac10b-58cc-4372-a567-0e02b2c3d479 status=200",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b at 0x7ffd42a1",
        r"\int_0^\infty e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2}",
        "Donaudampfschifffahrtsgesellschaft: Größe, Maß und Überprüfungsverfahren.",
        "Mae'r tywydd yn braf heddiw ac rydym yn mynd i'r farchnad i brynu llysiau.",
        "Az időjárás ma gyönyörű, ezért elmegyünk a piacra friss zöldségeket vásárolni.",
        "Hyvää huomenta! Epäjärjestelmällisyydellään hän hämmästytti kaikki kuulijansa.",
        "Xin chào thế giới, hôm nay thời tiết đẹp và chúng tôi đi chợ mua rau quả.",
        "Сегодня прекрасная погода, и мы идём на рынок за свежими овощами.",
        "Γεια σου κόσμε, σήμερα ο καιρός είναι ωραίος και πάμε στην αγορά.",
        "مرحبا بالعالم، الطقس جميل اليوم وسنذهب إلى السوق لشراء الخضروات.",
        "नमस्ते दुनिया, आज मौसम बहुत अच्छा है और हम बाज़ार जा रहे हैं।",
        "สวัสดีครับ วันนี้อากาศดีมาก เราไปเดินเล่นที่สวนสาธารณะกันเถอะ",
        "今天天气很好，我们一起去公园散步吧。人工智能正在改变世界。",
        "今日は天気がいいので、公園に散歩に行きましょう。カタカナも。",
        "滕王高閣臨江渚，佩玉鳴鸞罷歌舞。畫棟朝飛南浦雲，珠簾暮捲西山雨。",
        "憂鬱な薔薇の蕾が、朧げな靄の中で静かに綻び始めた。",
        "🫠🫶🫵🫷🪄🪩🧿🦩🦦🪷🥹🪼",
        "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β = ¬(¬α ∨ β), ∑ᵢ aᵢ ≤ ∫₀^∞ f(x)dx ≠ ∅",
        "오늘은 날씨가 좋아서 우리는 시장에 채소를 사러 갑니다.",
        "Great! 🎉🎉 👩‍💻 🇩🇪 👍🏽 ❤️ 😀😃😄😁😆😅🤣😂🙂🙃🫠😉😊😇🥰😍🤩😘😗☺️😚",
        "<|endoftext|><|im_start|>",
    ];

    #[test]
    fn the_estimate_is_an_upper_bound_for_ordinary_text() {
        let check = |what: &str, messages: &Value, tools: Option<&str>| {
            let messages = messages.to_string();
            let counted = count_prompt(&o200k(), &messages, tools).tokens;
            let estimate = estimate_prompt(&messages, tools);
            assert!(estimate >= counted, "{what:?}: {estimate} for {counted}");
        };
        for text in CORPUS {
            for repeat in [1, 100] {
                let text = text.repeat(repeat);
                let part = json!({ "type": "text", "text": text });
                let function = json!({ "name": "f", "arguments": text });
                check(&text, &json!([{ "role": "user", "content": text }]), None);
                check(&text, &json!([{ "content": text }]), None);
                check(&text, &json!([{ "role": "user", "content": [part, part] }]), None);
                check(&text, &json!([{ "tool_calls": [{ "function": function }] }]), None);
                check(&text, &json!([{ "role": "user", "thoughts": text }]), Some(&text));
                check(&text, &json!(text), None);
            }
        }
        let image = json!({ "type": "image_url", "image_url": { "url": "https://a.b/c.png" } });
        let audio = json!({ "type": "input_audio", "input_audio": { "data": "QUJD" } });
        let file = json!({ "file": { "file_data": "data:a/b;base64,QUJD" }, "type": "file" });
        check("media", &json!([{ "content": [image, image, audio, file] }]), None);
        check("many", &Value::Array(vec![json!({}); 1_000]), None);
        check("many", &Value::Array(vec![json!({ "name": "x" }); 1_000]), None);
        check("many", &Value::Array(vec![json!({ "role": "user", "content": "?" }); 1_000]), None);
        check("none", &json!([]), Some("[]"));
    }

    #[test]
    fn the_estimate_is_not_far_above_the_count() {
        for text in CORPUS.iter().filter(|text| text.len() > 20) {
            let text = text.repeat(100);
            let messages = json!([{ "role": "user", "content": text }]).to_string();
            let counted = count_prompt(&o200k(), &messages, None).tokens;
            let estimate = estimate_prompt(&messages, None);
            assert!(estimate <= 5 * counted, "{text:.20}: {estimate} for {counted}");
        }
    }

    #[test]
    fn media_costs_its_flat_number_and_its_data_nothing() {
        let data = "QUJDREVGR0g9".repeat(100_000);
        let url = format!("data:image/png;base64,{data}");
        let parts = [
            (json!({ "type": "image_url", "image_url": { "url": url } }), TOKENS_PER_IMAGE),
            (json!({ "type": "input_image", "image_url": url }), TOKENS_PER_IMAGE),
            (
                json!({ "input_audio": { "data": data, "format": "wav" }, "type": "input_audio" }),
                TOKENS_PER_AUDIO,
            ),
            (json!({ "type": "file", "file": { "file_data": url } }), TOKENS_PER_FILE),
        ];
        for ((part, tokens), text) in parts.iter().zip(["5\" wide", "C:\\", "\\\"", "\\\\\""]) {
            let text = json!({ "type": "text", "text": text });
            let messages = json!([{ "role": "user", "content": [text, part, part] }]);
            for json in [messages.to_string(), serde_json::to_string_pretty(&messages).unwrap()] {
                let estimate = estimate_prompt(&json, None);
                assert!((2 * tokens..2 * tokens + 300).contains(&estimate), "{estimate}");
                let count = count_prompt(&o200k(), &json, None);
                assert!(count.estimated && (2 * tokens..2 * tokens + 12).contains(&count.tokens));
            }
        }
    }

    #[test]
    fn a_client_cannot_hide_text_behind_media() {
        let text = "hello world ".repeat(1_000);
        let two_types = format!(r#"{{"type":"image_url","type":"text","text":"{text}"}}"#);
        let json = format!(r#"[{{"content":[{two_types}]}}]"#);
        assert_eq!(count_prompt(&o200k(), &json, None), estimated(6 + of(&two_types)));

        let details = json!([{ "type": "reasoning.encrypted", "data": text }]);
        let audio = json!({ "type": "input_audio", "input_audio": { "data": "QUJD" } });
        let messages = json!([{ "content": [audio], "reasoning_details": details }]);
        let estimate = estimate_prompt(&messages.to_string(), None);
        assert!(estimate >= count(&messages).tokens && estimate > of(&text));
    }

    #[test]
    fn text_that_looks_like_media_is_text() {
        let url = format!("data:image/png;base64,{}", "hello world ".repeat(10_000));
        for text in [
            url.clone(),
            format!(r#"{{"type":"image_url","image_url":{{"url":"{url}"}}}}"#),
            format!(r#"x","url":"{url}"#),
        ] {
            let messages = json!([
                { "role": "user", "content": text },
                { "role": "user", "content": [{ "type": "text", "text": text }] },
            ]);
            assert!(!count(&messages).estimated);
            let estimate = estimate_prompt(&messages.to_string(), None);
            assert!(estimate >= count(&messages).tokens, "{estimate}");
            assert!(estimate < 100_000, "no flat numbers: {estimate}");
        }
    }

    /// Strings put together from a list that is separated by `~`.
    fn made_of(pieces: &'static str, max: usize) -> impl Strategy<Value = String> {
        let piece = select(pieces.split('~').collect::<Vec<_>>());
        vec(piece, 0..max).prop_map(|pieces| pieces.concat())
    }

    /// Words, numbers and signs as they come in prompts, without random letters.
    const ORDINARY: &str = "the~ of~ Gateway~count~\n~\n    ~  ~ ~\t~0~7~42~1999~, ~. ~!~?~-~--~/~\
        \\~\"~'~'s~(~)~{~}~[~]~:~;~#~=~==~<~>~|~&~é~ü~中~文~。~を~한~я~😀~👩‍💻";

    /// Pieces of JSON that is nearly right.
    const JSON: &str = "[~]~{~}~,~:~\"~\\~\"role\":~\"user\"~\"content\":~null~\"type\":~\"text\"~\
        \"image_url\"~\"url\":~\"data:~\"tool_calls\":[~\"function\":{~\"\\ud800\"~1~ ~é~\
        [{\"role\":\"user\",\"content\":\"hi\"}]";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn counts_agree_with_tiktoken_rs(
            texts in vec((text(), proptest::option::of(made_of(ORDINARY, 9))), 0..5),
        ) {
            // Its count takes the text of special tokens for the tokens.
            let texts: Vec<_> =
                texts.into_iter().map(|(text, name)| (text.replace("<|", "<"), name)).collect();
            let messages: Vec<Value> = texts.iter().map(|(text, name)| {
                json!({ "role": "user", "content": text, "name": name })
            }).collect();
            let theirs: Vec<_> = texts.into_iter().map(|(text, name)| {
                let (role, content) = ("user".to_owned(), Some(text));
                ChatCompletionRequestMessage { role, content, name, ..Default::default() }
            }).collect();
            let expected = num_tokens_from_messages("gpt-4o", &theirs).unwrap();
            prop_assert_eq!(count(&Value::Array(messages)), counted(tokens_from(expected)));
        }

        /// Whatever the length: blocks have edges.
        #[test]
        fn bytes_are_told_apart_one_by_one(text in vec(select(&b"a  1\xC3\xF0"[..]), 0..700)) {
            let (mut letters, mut wide, mut others) = (0, 0, 0);
            for (at, byte) in text.iter().enumerate() {
                match byte {
                    b'a' => letters += 1,
                    0x80.. => wide += 1,
                    b' ' if at > 0 && text[at - 1] == b' ' => {}
                    _ => others += 1,
                }
                others += usize::from(*byte >= 0xF0);
            }
            let mut bound = Bound::default();
            bound.add(&text);
            prop_assert_eq!((bound.letters, bound.wide, bound.others), (letters, wide, others));
        }

        #[test]
        fn the_estimate_bounds_generated_text(text in made_of(ORDINARY, 60)) {
            let messages = json!([{ "role": "user", "content": text }]);
            let estimate = estimate_prompt(&messages.to_string(), None);
            prop_assert!(estimate >= count(&messages).tokens);
        }

        #[test]
        fn nothing_panics(messages in made_of(JSON, 20), tools in made_of(JSON, 20)) {
            let count = count_prompt(&o200k(), &messages, Some(&tools));
            prop_assert!(count.tokens >= TOKENS_PRIMING);
            prop_assert!(estimate_prompt(&messages, Some(&tools)) >= TOKENS_PRIMING);
        }
    }
}
