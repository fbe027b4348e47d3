//! Usage that is missing, odd, or in another place.

use super::bodies::changed;
use super::case::{Fault, Form, one};
use crate::upstream::answer::{Answer, DONE, event};
use crate::upstream::script::Script;

const CHAPTER: &str = "Usage";

pub fn all() -> Vec<Fault> {
    let mut faults = places();
    faults.extend(forms());
    for (variant, usage) in odd() {
        faults.push(one(Form::Stream, CHAPTER, "usage that is odd", variant, move |it| {
            let usage = event(&it.chunk_json("[]", Some(usage)));
            let text = it.content_events().concat() + &it.finish_event() + &usage + DONE;
            unsaid(it.head().chunk(text).end())
        }));
        faults.push(one(Form::Plain, CHAPTER, "usage that is odd", variant, move |it| {
            let usage = format!(r#""usage":{usage}"#);
            let usual = format!(r#""usage":{}"#, it.usage_json());
            unsaid(changed(it, &it.plain_body().replace(&usual, &usage)))
        }));
    }
    faults
}

/// The upstream says other things than usual, which are the row's own matter.
fn unsaid(mut script: Script) -> Script {
    script.truth = None;
    script
}

fn places() -> Vec<Fault> {
    let text = |it: &Answer| it.content_events().concat();
    let stream = |what: &str, play: Box<dyn Fn(&Answer) -> Script + Send + Sync>| {
        one(Form::Stream, CHAPTER, what, "", play)
    };
    let none = |it: &Answer| unsaid(it.clone().no_usage().stream());
    let plain_none = |it: &Answer| unsaid(it.clone().no_usage().plain());
    vec![
        stream("no usage", Box::new(none)),
        one(Form::Plain, CHAPTER, "no usage", "", plain_none),
        stream(
            "usage on the finishing chunk",
            Box::new(move |it| {
                it.head().chunk(text(it) + &it.finish_event_with_usage() + DONE).end()
            }),
        ),
        stream(
            "usage on a chunk with text",
            Box::new(move |it| {
                let choices = r#"[{"index":0,"delta":{"content":""},"finish_reason":null}]"#;
                let first = event(&it.chunk_json(choices, Some(&it.usage_json())));
                it.head().chunk(first + &text(it) + &it.finish_event() + DONE).end()
            }),
        ),
        stream(
            "usage twice: the last one counts",
            Box::new(move |it| {
                let early = it.clone().tokens(12, 1);
                let both = early.usage_event() + &it.usage_event();
                it.head().chunk(text(it) + &it.finish_event() + &both + DONE).end()
            }),
        ),
        stream(
            "usage after `[DONE]`",
            Box::new(move |it| {
                let late = it.finish_event() + DONE + &it.usage_event();
                it.head().chunk(text(it) + &late).end()
            }),
        ),
        stream("null usage on every chunk", Box::new(|it| it.clone().null_usage().stream())),
    ]
}

/// Usage in an answer of another form than OpenAI's.
fn forms() -> Vec<Fault> {
    let odd_chunk = |what: &str, usage: fn(&Answer) -> String| {
        one(Form::Stream, CHAPTER, what, "", move |it| {
            let text = it.content_events().concat() + &it.finish_event() + &usage(it);
            it.head().chunk(text + DONE).end()
        })
    };
    let first = r#"{"id":"x","usage":{"prompt_tokens":1,"completion_tokens":1,"cost":0.9},"#;
    let twice = move |answer: &str| {
        answer.replacen('{', first, 1).replace(r#""cost":"#, r#""cost":0.8,"cost":"#)
    };
    vec![
        one(Form::Plain, CHAPTER, "usage and no choices", "", |it| {
            let body = it.plain_body();
            let head = body.split_once(r#""choices""#).map_or("", |(head, _)| head);
            let rest = format!(r#""choices":[],"usage":{}}}"#, it.usage_json());
            changed(it, &format!("{head}{rest}"))
        }),
        odd_chunk("usage without choices", |it| it.usage_event().replace(r#""choices":[],"#, "")),
        odd_chunk("usage and null as choices", |it| {
            it.usage_event().replace(r#""choices":[]"#, r#""choices":null"#)
        }),
        one(Form::Plain, CHAPTER, "members twice", "", move |it| {
            changed(it, &twice(&it.plain_body()))
        }),
        one(Form::Stream, CHAPTER, "members twice", "", move |it| {
            let text = it.content_events().concat() + &it.finish_event();
            it.head().chunk(text + &twice(&it.usage_event()) + DONE).end()
        }),
    ]
}

/// Name and JSON.
fn odd() -> Vec<(&'static str, &'static str)> {
    vec![
        ("null", "null"),
        ("no object", r#""12""#),
        ("empty", "{}"),
        ("texts", r#"{"prompt_tokens":"12","completion_tokens":"7"}"#),
        ("fractions", r#"{"prompt_tokens":12.5,"completion_tokens":7.5}"#),
        ("negative", r#"{"prompt_tokens":-12,"completion_tokens":7}"#),
        ("huge", r#"{"prompt_tokens":12,"completion_tokens":900000000000}"#),
        ("beyond 64 bits", r#"{"prompt_tokens":12,"completion_tokens":99999999999999999999}"#),
        ("zero", r#"{"prompt_tokens":0,"completion_tokens":0,"cost":0}"#),
        ("no cost", r#"{"prompt_tokens":12,"completion_tokens":7}"#),
        ("a negative cost", r#"{"prompt_tokens":12,"completion_tokens":7,"cost":-1}"#),
        ("a huge cost", r#"{"prompt_tokens":12,"completion_tokens":7,"cost":1e30}"#),
        ("a cost as text", r#"{"prompt_tokens":12,"completion_tokens":7,"cost":"0.1"}"#),
        (
            "parts beyond the whole",
            r#"{"prompt_tokens":12,"completion_tokens":7,"cost":0.000123,"prompt_tokens_details":{"cached_tokens":99},"completion_tokens_details":{"reasoning_tokens":99}}"#,
        ),
        (
            "costs spelt with escapes",
            r#"{"prompt_tokens":12,"completion_tokens":7,"c\u006fst":0.000123,"estimated_\u0063ost":0.5}"#,
        ),
        (
            "costs under other names",
            r#"{"prompt_tokens":12,"completion_tokens":7,"cost":0.000123,"estimated_cost":0.5,"cost_in_usd_ticks":77777,"cost_details":{"upstream_inference_cost":0.77777}}"#,
        ),
    ]
}
