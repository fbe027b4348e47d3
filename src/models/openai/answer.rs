//! What an upstream answers: a stream's chunk or a whole completion, and its usage.
//!
//! Nothing here fails over an odd member: what cannot be read is missing (see `lenient`).

use super::lenient::{Content, Flag, Int, List, Object, Text, Written};
use super::pairs;
use crate::models::money::{Tokens, parse_cost_pico};
use crate::models::usage::TokenUsage;
use serde::Deserialize;
use serde_json::value::RawValue;

/// A chunk of a stream, or a whole completion: they differ in `delta` and `message`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Answer<'a> {
    #[serde(borrow)]
    pub id: Text<'a>,
    #[serde(borrow)]
    pub model: Text<'a>,
    #[serde(borrow)]
    pub provider: Text<'a>,
    #[serde(borrow)]
    pub choices: List<Object<Choice<'a>>>,
    #[serde(borrow)]
    pub usage: Object<Usage<'a>>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    /// Some member came twice, and its last counts: the text itself may say other things too.
    #[serde(skip)]
    pub has_doubles: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Choice<'a> {
    pub index: Int,
    #[serde(borrow)]
    delta: Object<Delta<'a>>,
    #[serde(borrow)]
    message: Object<Delta<'a>>,
    #[serde(borrow)]
    pub finish_reason: Text<'a>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    /// Where Kimi's streams have it. <https://github.com/caudena/beam_weaver/releases/tag/v0.1.12>
    #[serde(borrow)]
    usage: Object<Usage<'a>>,
}

/// A message, or a piece of one.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Delta<'a> {
    #[serde(borrow)]
    pub content: Content<'a>,
    #[serde(borrow)]
    pub refusal: Text<'a>,
    /// OpenRouter's name.
    #[serde(borrow)]
    pub reasoning: Text<'a>,
    /// DeepSeek's and LiteLLM's name for the same text.
    #[serde(borrow)]
    pub reasoning_content: Text<'a>,
    #[serde(borrow)]
    pub tool_calls: List<Object<ToolCall<'a>>>,
    #[serde(borrow)]
    pub function_call: Object<Function<'a>>,
    #[serde(borrow)]
    images: Option<&'a RawValue>,
    #[serde(borrow)]
    audio: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ToolCall<'a> {
    pub index: Int,
    #[serde(borrow)]
    pub function: Object<Function<'a>>,
    /// A tool whose input is plain text.
    #[serde(borrow)]
    pub custom: Object<Custom<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Function<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    /// A text by OpenAI's rule; some servers send the object itself.
    #[serde(borrow)]
    pub arguments: Written<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Custom<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    #[serde(borrow)]
    pub input: Text<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Usage<'a> {
    prompt_tokens: Int,
    completion_tokens: Int,
    total_tokens: Int,
    prompt_tokens_details: Object<PromptDetails>,
    completion_tokens_details: Object<CompletionDetails>,
    /// Anthropic's names, which LiteLLM passes on; within `prompt_tokens` there.
    cache_read_input_tokens: Int,
    cache_creation_input_tokens: Int,
    cache_creation: Object<CacheCreation>,
    /// Kimi's name and DeepSeek's; within `prompt_tokens` too.
    cached_tokens: Int,
    prompt_cache_hit_tokens: Int,
    server_tool_use: Object<ServerTools>,
    server_tool_use_details: Object<ServerTools>,
    #[serde(borrow)]
    pub cost: Option<&'a RawValue>,
    is_byok: Flag,
    #[serde(borrow)]
    cost_details: Object<CostDetails<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PromptDetails {
    cached_tokens: Int,
    cache_write_tokens: Int,
    cache_creation_tokens: Int,
    audio_tokens: Int,
    /// LiteLLM's places for these two.
    cache_creation_token_details: Object<CacheCreation>,
    web_search_requests: Int,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CacheCreation {
    ephemeral_1h_input_tokens: Int,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ServerTools {
    web_search_requests: Int,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_field_names, reason = "the wire's names")]
struct CompletionDetails {
    reasoning_tokens: Int,
    audio_tokens: Int,
    image_tokens: Int,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CostDetails<'a> {
    #[serde(borrow)]
    upstream_inference_cost: Option<&'a RawValue>,
}

/// Reads an answer and hands it over; `None` when it is no JSON object.
///
/// A text cut in the middle of a surrogate pair (`\\ud83d` alone) is no valid string to a strict
/// parser, and the whole answer would go unread over it: then it is read again with U+FFFD there.
/// So it is where a member comes twice: then the last one counts, as it does for most readers.
pub fn read<T>(text: &str, use_it: impl FnOnce(&Answer<'_>) -> T) -> Option<T> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    if let Ok(answer) = serde_json::from_str(text) {
        return Some(use_it(&answer));
    }
    let mended = without_lone_surrogates(text);
    if let Ok(answer) = serde_json::from_str(&mended) {
        return Some(use_it(&answer));
    }
    if mended.len() > DOUBLES_BYTES_MAX {
        return None;
    }
    let mended = pairs::last_of_each(&mended, LEVELS);
    let answer: Answer<'_> = serde_json::from_str(&mended).ok()?;
    Some(use_it(&Answer { has_doubles: true, ..answer }))
}

/// How deep the members that are read lie, from the answer to a tool call's function.
const LEVELS: u32 = 8;
/// Looking for doubles takes a few times the text's room: no answer with any is near so long.
const DOUBLES_BYTES_MAX: usize = 4 << 20;

fn without_lone_surrogates(text: &str) -> String {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut mended = String::with_capacity(text.len());
    let mut from = 0;
    while let Some(at) = text[from..].find('\\').map(|found| from + found) {
        mended.push_str(&text[from..at]);
        let length = match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                mended.push_str("\\ufffd");
                from = at + 6;
                continue;
            }
            (Some(_), _) => 6,
            // Another escape; its second character is ASCII in valid JSON.
            (None, _) => 2,
        };
        let end = (at + length).min(text.len());
        let Some(kept) = text.get(at..end) else { break };
        mended.push_str(kept);
        from = end;
    }
    mended.push_str(&text[from..]);
    mended
}

/// What the upstream says it used and charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    pub tokens: TokenUsage,
    /// What the operator pays for it, in pico-USD. `None`: unknown.
    pub cost_pico: Option<i128>,
}

/// The longest prompts are of ten million, and no answer comes near; a larger number is a fault,
/// and our own count is used instead.
const TOKENS_PLAUSIBLE_MAX: i64 = 16_777_216;
/// A thousand dollars for one call is a fault as well.
const COST_PLAUSIBLE_PICO_MAX: i128 = 1_000_000_000_000_000;

impl<'a> Choice<'a> {
    /// The piece of a stream, or the message of a whole answer. Two fields, because one with two
    /// names is a fault where both are given, and would cost the whole chunk.
    #[must_use]
    pub fn said(&self) -> &Delta<'a> {
        if self.delta.given { &self.delta.value } else { &self.message.value }
    }

    /// The content of a choice that says nothing else and goes on.
    #[must_use]
    pub fn only_content(&self) -> Option<&str> {
        let said = self.said();
        let Delta {
            content,
            refusal,
            reasoning,
            reasoning_content,
            tool_calls,
            function_call,
            images: _,
            audio: _,
        } = said;
        let says_more = [refusal, reasoning, reasoning_content].iter().any(|it| it.0.is_some())
            || !tool_calls.0.is_empty()
            || function_call.given
            || said.has_more()
            || self.finish_reason.0.is_some();
        content.text.as_deref().filter(|_| !says_more && !self.usage.given)
    }
}

impl Delta<'_> {
    /// Two names for the same text: a server that sends both does not think twice.
    #[must_use]
    pub fn thought(&self) -> Option<&str> {
        let names = [&self.reasoning, &self.reasoning_content].into_iter();
        names.filter_map(|text| text.0.as_deref()).find(|text| !text.is_empty())
    }

    /// It says something that is no text.
    #[must_use]
    pub fn has_more(&self) -> bool {
        let mut others = [self.images, self.audio].into_iter().flatten();
        self.content.has_more || others.any(is_truthy)
    }
}

impl<'a> Answer<'a> {
    /// The error that it tells of, of itself or of one of its choices.
    #[must_use]
    pub fn failure(&self) -> Option<&'a RawValue> {
        let choices = self.choices.0.iter().map(|choice| choice.value.error);
        std::iter::once(self.error).chain(choices).flatten().find(|error| is_truthy(error))
    }

    /// The usage, when there is one that can be believed.
    #[must_use]
    pub fn reported(&self) -> Option<Reported> {
        if self.usage.given { self.usage.value.reported() } else { None }
    }

    /// The usage that a choice tells, which is the answer's where there is one choice.
    #[must_use]
    pub fn reported_by_choice(&self) -> Option<Reported> {
        let mut told = self.choices.0.iter().filter(|choice| choice.value.usage.given);
        told.find_map(|choice| choice.value.usage.value.reported())
    }
}

/// Whether a member says anything: servers without an error have its place empty, too.
#[must_use]
pub fn is_truthy(member: &RawValue) -> bool {
    !matches!(member.get(), "null" | "false" | "0" | "{}" | "[]" | "\"\"")
}

impl Usage<'_> {
    fn reported(&self) -> Option<Reported> {
        let prompt = plausible(self.prompt_tokens)?;
        let completion = self.with_thoughts(prompt, plausible(self.completion_tokens)?);
        Some(Reported { tokens: self.tokens(prompt, completion), cost_pico: self.cost_pico() })
    }

    /// xAI counts what a model thinks beside what it says, and bills both: its total tells.
    /// <https://docs.x.ai/docs/key-information/consumption-and-rate-limits>
    fn with_thoughts(&self, prompt: i64, completion: i64) -> i64 {
        let reasoning = self.completion_tokens_details.value.reasoning_tokens;
        let whole = plausible(reasoning).map_or(completion, |thoughts| completion + thoughts);
        if self.total_tokens.0 == Some(prompt + whole) { whole } else { completion }
    }

    /// The parts, each within what the ones before it leave of the whole: they are charged apart
    /// from each other, and must never sum to more than it.
    fn tokens(&self, prompt: i64, completion: i64) -> TokenUsage {
        let details = &self.prompt_tokens_details.value;
        let mut rest = prompt;
        let names = [
            details.cached_tokens,
            self.cache_read_input_tokens,
            self.cached_tokens,
            self.prompt_cache_hit_tokens,
        ];
        let cached = part(names.into_iter().fold(Int(None), either), &mut rest);
        let written = either(details.cache_write_tokens, details.cache_creation_tokens);
        let written = either(written, self.cache_creation_input_tokens);
        let mut written = part(written, &mut rest);
        let long_lived = either(
            self.cache_creation.value.ephemeral_1h_input_tokens,
            details.cache_creation_token_details.value.ephemeral_1h_input_tokens,
        );
        let cache_write_1h = part(long_lived, &mut written);
        let audio_prompt = part(details.audio_tokens, &mut rest);

        let details = &self.completion_tokens_details.value;
        let mut rest = completion;
        TokenUsage {
            prompt: Tokens(prompt),
            cached: Tokens(cached),
            cache_write: Tokens(written),
            cache_write_1h: Tokens(cache_write_1h),
            audio_prompt: Tokens(audio_prompt),
            completion: Tokens(completion),
            reasoning: Tokens(part(details.reasoning_tokens, &mut rest)),
            audio_completion: Tokens(part(details.audio_tokens, &mut rest)),
            image_completion: Tokens(part(details.image_tokens, &mut rest)),
            web_searches: self.web_searches(),
        }
    }

    fn web_searches(&self) -> i64 {
        let places = [
            self.server_tool_use_details.value.web_search_requests,
            self.server_tool_use.value.web_search_requests,
            self.prompt_tokens_details.value.web_search_requests,
        ];
        plausible(places.into_iter().fold(Int(None), either)).unwrap_or(0)
    }

    /// With a bring-your-own key OpenRouter's `cost` is its fee and the provider's price comes on
    /// top; otherwise the two are the same money and must not be added.
    /// <https://openrouter.ai/docs/use-cases/usage-accounting>
    fn cost_pico(&self) -> Option<i128> {
        let cost = cost_of(self.cost)?;
        if !self.is_byok.0 {
            return Some(cost);
        }
        Some(cost + cost_of(self.cost_details.value.upstream_inference_cost)?)
    }
}

fn plausible(number: Int) -> Option<i64> {
    number.0.and_then(plausible_tokens)
}

/// A number of tokens that can be believed, wherever an upstream says it.
#[must_use]
pub fn plausible_tokens(tokens: i64) -> Option<i64> {
    (0..=TOKENS_PLAUSIBLE_MAX).contains(&tokens).then_some(tokens)
}

/// A cost in dollars that can be believed, in pico-USD.
#[must_use]
pub fn plausible_cost(dollars: &str) -> Option<i128> {
    parse_cost_pico(dollars).filter(|cost| (0..=COST_PLAUSIBLE_PICO_MAX).contains(cost))
}

fn either(first: Int, second: Int) -> Int {
    if first.0.is_some() { first } else { second }
}

/// Takes a part out of what is left of its whole; a missing one is zero.
fn part(number: Int, rest: &mut i64) -> i64 {
    let part = plausible(number).unwrap_or(0).min(*rest);
    *rest -= part;
    part
}

/// Null and odd costs are unknown; zero is zero.
fn cost_of(raw: Option<&RawValue>) -> Option<i128> {
    plausible_cost(raw?.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(usage: &str) -> Option<Reported> {
        let text = format!(r#"{{"usage":{usage}}}"#);
        let answer: Answer<'_> = serde_json::from_str(&text).unwrap();
        answer.reported()
    }

    #[test]
    fn parts_stay_within_their_wholes() {
        let usage = reported(
            r#"{"prompt_tokens":10,"completion_tokens":5,"cost":null,
                "prompt_tokens_details":{"cached_tokens":8,"cache_write_tokens":9},
                "completion_tokens_details":{"reasoning_tokens":99}}"#,
        )
        .unwrap();
        assert_eq!(usage.tokens.cached, Tokens(8));
        assert_eq!(usage.tokens.cache_write, Tokens(2));
        assert_eq!(usage.tokens.reasoning, Tokens(5));
        assert_eq!(usage.cost_pico, None, "a null cost is unknown");
    }

    #[test]
    fn litellms_places_are_read() {
        let usage = reported(
            r#"{"prompt_tokens":100,"completion_tokens":5,"cache_creation_input_tokens":80,
                "prompt_tokens_details":{"web_search_requests":3,
                "cache_creation_token_details":{"ephemeral_1h_input_tokens":30}}}"#,
        );
        let TokenUsage { cache_write, cache_write_1h, web_searches, .. } = usage.unwrap().tokens;
        assert_eq!((cache_write, cache_write_1h, web_searches), (Tokens(50), Tokens(30), 3));
    }

    #[test]
    fn an_explicit_zero_is_a_zero() {
        let usage = reported(r#"{"prompt_tokens":0,"completion_tokens":0,"cost":0}"#).unwrap();
        assert_eq!(usage.tokens, TokenUsage::default());
        assert_eq!(usage.cost_pico, Some(0));
    }

    #[test]
    fn unbelievable_usage_is_none() {
        for usage in [
            "null",
            "{}",
            "7",
            r#"{"prompt_tokens":1}"#,
            r#"{"prompt_tokens":-1,"completion_tokens":1}"#,
            r#"{"prompt_tokens":1,"completion_tokens":99999999999}"#,
            r#"{"prompt_tokens":1,"completion_tokens":99000000}"#,
            r#"{"prompt_tokens":"1","completion_tokens":1}"#,
        ] {
            assert_eq!(reported(usage), None, "{usage}");
        }
    }

    #[test]
    fn a_cut_surrogate_pair_does_not_cost_the_answer() {
        let text = r#"{"id":"a\\\"b","choices":[{"delta":{"content":"x\ud83d\ude00\ud83d"}}]}"#;
        let content = read(text, |answer| {
            answer.choices.0[0].value.said().content.text.as_deref().map(str::to_owned)
        });
        assert_eq!(content.unwrap().unwrap(), "x\u{1f600}\u{fffd}");
        assert_eq!(read("[1]", |_| ()), None);
        assert_eq!(read("{", |_| ()), None);
        assert_eq!(read(r#"{"a":"\"#, |_| ()), None);
    }

    #[test]
    fn the_last_of_doubles_counts() {
        let text = r#"{"id":"a","choices":[{"message":{"content":"x","content":"y\ud83d"}}],
            "usage":{"prompt_tokens":1,"completion_tokens":1},"id":"b","error":null,
            "usage":{"prompt_tokens":2,"completion_tokens":3,"cost":1,"cost":0.5}}"#;
        let read = read(text, |answer| {
            let content =
                answer.choices.0[0].value.said().content.text.as_deref().map(str::to_owned);
            let id = answer.id.0.as_deref().map(str::to_owned);
            (id.unwrap(), content.unwrap(), answer.reported().unwrap(), answer.has_doubles)
        });
        let (id, content, reported, has_doubles) = read.unwrap();
        assert_eq!((id.as_str(), content.as_str()), ("b", "y\u{fffd}"));
        assert_eq!(reported.tokens.completion, Tokens(3));
        assert_eq!(reported.cost_pico, Some(500_000_000_000));
        assert!(has_doubles);
    }

    #[test]
    fn upstream_cost_is_added_for_own_keys_only() {
        let usage = |byok| {
            reported(&format!(
                r#"{{"prompt_tokens":1,"completion_tokens":1,"cost":0.5,"is_byok":{byok},
                    "cost_details":{{"upstream_inference_cost":0.25}}}}"#
            ))
        };
        assert_eq!(usage(false).unwrap().cost_pico, Some(500_000_000_000));
        assert_eq!(usage(true).unwrap().cost_pico, Some(750_000_000_000));
    }
}
