//! Ordinary answers of a model, in the two shapes that upstreams speak.
//!
//! JSON is written as text here, so that a test knows every byte that leaves the upstream, the
//! digits of a cost included.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::script::{Script, Truth};

pub const DONE: &str = "data: [DONE]\n\n";

#[derive(Clone, Copy, PartialEq)]
pub enum Shape {
    OpenRouter,
    OpenAi,
}

#[derive(Clone)]
pub struct Usage {
    pub prompt: i64,
    pub completion: i64,
    pub cached: i64,
    pub reasoning: i64,
    /// The JSON text of `cost`; `None`: the member is absent.
    pub cost: Option<String>,
}

#[derive(Clone)]
pub struct Answer {
    pub shape: Shape,
    pub id: String,
    /// As the upstream names the model that answered.
    pub model: String,
    pub pieces: Vec<String>,
    pub usage: Option<Usage>,
    /// OpenAI sends `"usage":null` on every chunk before the usage chunk.
    pub null_usage: bool,
    pub finish: &'static str,
}

impl Answer {
    pub fn openrouter() -> Self {
        let usage = Usage {
            prompt: 12,
            completion: 7,
            cached: 0,
            reasoning: 0,
            cost: Some("0.000123".to_string()),
        };
        Self::new(Shape::OpenRouter, "gen", "openai/gpt-4o-mini", usage)
    }

    pub fn openai() -> Self {
        let usage = Usage { prompt: 12, completion: 7, cached: 0, reasoning: 0, cost: None };
        Self::new(Shape::OpenAi, "chatcmpl", "gpt-4o-mini-2024-07-18", usage)
    }

    fn new(shape: Shape, prefix: &str, model: &str, usage: Usage) -> Self {
        static ISSUED: AtomicU64 = AtomicU64::new(1);
        let number = ISSUED.fetch_add(1, Ordering::Relaxed);
        Self {
            shape,
            id: format!("{prefix}-{number:06}"),
            model: model.to_string(),
            pieces: ["The ", "tollgate ", "is ", "open", "."].map(str::to_string).to_vec(),
            usage: Some(usage),
            null_usage: false,
            finish: "stop",
        }
    }

    pub fn pieces<T: ToString>(mut self, pieces: impl IntoIterator<Item = T>) -> Self {
        self.pieces = pieces.into_iter().map(|piece| piece.to_string()).collect();
        self
    }

    pub fn model(mut self, model: &str) -> Self {
        self.model = model.to_string();
        self
    }

    pub fn tokens(mut self, prompt: i64, completion: i64) -> Self {
        let usage = self.usage.as_mut().expect("an answer with usage");
        (usage.prompt, usage.completion) = (prompt, completion);
        self
    }

    pub fn parts(mut self, cached: i64, reasoning: i64) -> Self {
        let usage = self.usage.as_mut().expect("an answer with usage");
        (usage.cached, usage.reasoning) = (cached, reasoning);
        self
    }

    /// `text` is JSON: digits, or `null`.
    pub fn cost(mut self, text: &str) -> Self {
        self.usage.as_mut().expect("an answer with usage").cost = Some(text.to_string());
        self
    }

    pub fn no_cost(mut self) -> Self {
        self.usage.as_mut().expect("an answer with usage").cost = None;
        self
    }

    pub fn no_usage(mut self) -> Self {
        self.usage = None;
        self
    }

    pub fn null_usage(mut self) -> Self {
        self.null_usage = true;
        self
    }

    pub fn text(&self) -> String {
        self.pieces.concat()
    }

    /// What the upstream itself would say that this answer used.
    pub fn truth(&self) -> Option<Truth> {
        let usage = self.usage.as_ref()?;
        Some(Truth {
            prompt_tokens: usage.prompt,
            completion_tokens: usage.completion,
            cost_nusd: usage.cost.as_deref().and_then(nano_usd),
        })
    }

    pub fn usage_json(&self) -> String {
        let Some(usage) = &self.usage else {
            return "null".to_string();
        };
        let Usage { prompt, completion, cached, reasoning, cost } = usage;
        let total = prompt + completion;
        let totals = format!(
            r#""prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{total}"#
        );
        let parts = format!(
            r#""prompt_tokens_details":{{"cached_tokens":{cached}}},"completion_tokens_details":{{"reasoning_tokens":{reasoning}}}"#
        );
        match cost {
            None => format!("{{{totals},{parts}}}"),
            Some(cost) => format!(
                r#"{{{totals},"cost":{cost},"is_byok":false,{parts},"cost_details":{{"upstream_inference_cost":null}}}}"#
            ),
        }
    }

    /// One chunk with the given `choices` and `usage` members, both JSON text.
    pub fn chunk_json(&self, choices: &str, usage: Option<&str>) -> String {
        let Self { id, model, .. } = self;
        let provider = match self.shape {
            Shape::OpenRouter => r#""provider":"OpenAI","#,
            Shape::OpenAi => r#""system_fingerprint":"fp_1","#,
        };
        let usage = usage.map(|text| format!(r#","usage":{text}"#)).unwrap_or_default();
        format!(
            r#"{{"id":"{id}",{provider}"model":"{model}","object":"chat.completion.chunk","created":1764000000,"choices":{choices}{usage}}}"#
        )
    }

    /// An event of one choice; `delta` and `finish` are JSON text.
    pub fn choice_event(&self, index: u32, delta: &str, finish: &str) -> String {
        let usage = self.null_usage.then_some("null");
        event(&self.chunk_json(&choice_json(index, delta, finish), usage))
    }

    pub fn content_event(&self, piece: &str) -> String {
        let text = serde_json::to_string(piece).expect("a string");
        self.choice_event(0, &format!(r#"{{"role":"assistant","content":{text}}}"#), "null")
    }

    pub fn content_events(&self) -> Vec<String> {
        self.pieces.iter().map(|piece| self.content_event(piece)).collect()
    }

    pub fn finish_event(&self) -> String {
        self.choice_event(0, r#"{"content":""}"#, &format!(r#""{}""#, self.finish))
    }

    /// The additional chunk just before `[DONE]`, with no choices.
    pub fn usage_event(&self) -> String {
        event(&self.chunk_json("[]", Some(&self.usage_json())))
    }

    /// The finishing chunk with the usage on it, as older upstreams send it.
    pub fn finish_event_with_usage(&self) -> String {
        self.finish_event_with(&self.usage_json())
    }

    pub fn finish_event_with(&self, usage: &str) -> String {
        let finish = format!(r#""{}""#, self.finish);
        let choices = choice_json(0, r#"{"content":""}"#, &finish);
        event(&self.chunk_json(&choices, Some(usage)))
    }

    /// Every event of the streamed answer in order, `[DONE]` included.
    pub fn events(&self) -> Vec<String> {
        let mut events = self.content_events();
        events.push(self.finish_event());
        if self.usage.is_some() {
            events.push(self.usage_event());
        }
        events.push(DONE.to_string());
        events
    }

    /// The events a client gets that did not ask for usage.
    pub fn events_without_usage(&self) -> String {
        self.content_events().concat() + &self.finish_event() + DONE
    }

    /// Head of a streamed answer, with the generation id where the shape has one.
    pub fn head(&self) -> Script {
        let mut headers =
            vec![("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")];
        if self.shape == Shape::OpenRouter {
            headers.push(("X-Generation-Id", &self.id));
        }
        let mut script = Script::new().head(200, &headers);
        script.truth = self.truth().map(|truth| (self.id.clone(), truth));
        script
    }

    pub fn stream(&self) -> Script {
        self.head().chunks(self.events()).end()
    }

    pub fn plain_body(&self) -> String {
        let Self { id, model, finish, .. } = self;
        let text = serde_json::to_string(&self.text()).expect("a string");
        let usage = match &self.usage {
            Some(_) => format!(r#","usage":{}"#, self.usage_json()),
            None => String::new(),
        };
        format!(
            r#"{{"id":"{id}","object":"chat.completion","created":1764000000,"model":"{model}","choices":[{{"index":0,"message":{{"role":"assistant","content":{text},"refusal":null}},"logprobs":null,"finish_reason":"{finish}"}}]{usage}}}"#
        )
    }

    pub fn plain(&self) -> Script {
        let extra: &[(&str, &str)] = match self.shape {
            Shape::OpenRouter => &[("X-Generation-Id", &self.id)],
            Shape::OpenAi => &[],
        };
        let mut script = Script::json_with(200, extra, self.plain_body());
        script.truth = self.truth().map(|truth| (self.id.clone(), truth));
        script
    }

    /// What `GET /generation` says of this answer.
    pub fn generation(&self, prompt: i64, completion: i64, cost_usd: f64) -> Value {
        json!({
            "id": self.id,
            "model": self.model,
            "provider_name": "OpenAI",
            "total_cost": cost_usd,
            "usage": cost_usd,
            "is_byok": false,
            // The normalised counts differ from the native ones, and only those are billed.
            "tokens_prompt": prompt + 100,
            "tokens_completion": completion + 100,
            "native_tokens_prompt": prompt,
            "native_tokens_completion": completion,
            "native_tokens_reasoning": 0,
            "native_tokens_cached": 0,
            "cancelled": true,
            "streamed": true,
            "finish_reason": null,
        })
    }
}

pub fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

fn choice_json(index: u32, delta: &str, finish: &str) -> String {
    format!(r#"[{{"index":{index},"delta":{delta},"finish_reason":{finish},"logprobs":null}}]"#)
}

/// The JSON text of a cost as nano-USD, with what is smaller cut off; `None` for `null`.
pub fn nano_usd(text: &str) -> Option<i64> {
    let (number, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let exponent: i32 = exponent.parse().ok()?;
    let shift = 9 + exponent - i32::try_from(fraction.len()).ok()?;
    let power = 10_i128.checked_pow(shift.unsigned_abs())?;
    i64::try_from(if shift < 0 { digits / power } else { digits * power }).ok()
}

#[test]
fn costs_are_read_digit_by_digit() {
    let cases = [("0.000123", 123_000), ("1", 1_000_000_000), ("1.5e-7", 150), ("0.0", 0)];
    for (text, nusd) in cases {
        assert_eq!(nano_usd(text), Some(nusd), "{text}");
    }
    assert_eq!(nano_usd("0.00000012345"), Some(123));
    assert_eq!(nano_usd("null"), None);
}
