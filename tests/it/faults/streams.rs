//! A stream with a fault in it: errors, other things than events, no end.

use super::bodies::{CODES, bare_errors, error, odd_errors};
use super::case::{Fault, Form, SECRETS, WORDS, one, secrets, streamed};
use crate::upstream::answer::{Answer, DONE, event};
use crate::upstream::script::Script;

const CHAPTER: &str = "In a stream";

pub fn all() -> Vec<Fault> {
    let mut faults = Vec::new();
    for code in CODES {
        for (form, text) in [("number", code.to_string()), ("text", format!("\"{code}\""))] {
            let error = error(Some(&text));
            let (what, variant) = (format!("an error of code {code}"), format!("as a {form}"));
            faults
                .push(stream(&what, &variant, move |it| after_text(it, &error_event(it, &error))));
        }
    }
    for (variant, error) in odd_errors() {
        let play = move |it: &Answer| after_text(it, &error_event(it, &error));
        faults.push(stream("an error of an odd form", variant, play));
    }
    for (variant, error) in bare_errors() {
        let play = move |it: &Answer| after_text(it, &(event(&error) + DONE));
        faults.push(stream("an error without an envelope, then `[DONE]`", variant, play));
    }
    faults.extend(errors());
    faults.extend(ends());
    faults.extend(strangers());
    faults
}

pub fn stream(
    what: &str,
    variant: &str,
    play: impl Fn(&Answer) -> Script + Send + Sync + 'static,
) -> Fault {
    one(Form::Stream, CHAPTER, what, variant, play)
}

/// All of the text, then this, then the body's clean end.
fn after_text(answer: &Answer, rest: &str) -> Script {
    let mut events = answer.content_events();
    events.push(rest.to_string());
    let mut script = streamed(answer, &events);
    script.truth = None;
    script
}

/// As OpenRouter sends them: beside a choice that stops for the reason "error".
fn error_event(answer: &Answer, error: &str) -> String {
    let chunk = answer.choice_event(0, r#"{"content":""}"#, r#""error""#);
    let members = format!(r#"{{"error":{error},"user_id":"{}","#, secrets());
    chunk.replacen('{', &members, 1)
}

fn errors() -> Vec<Fault> {
    let bare = || event(&format!(r#"{{"error":{}}}"#, error(Some("502"))));
    let named = || format!("event: error\ndata: {{\"error\":{}}}\n\n", error(Some("502")));
    let typed = |data: &str| format!("event: error\ndata: {data}\n\n");
    let flat = move || typed(&format!(r#"{{"reason":"{WORDS} {}"}}"#, secrets()));
    let text = move || typed(&format!("{WORDS} {}", secrets()));
    let inside = |it: &Answer| {
        let choice = format!(
            r#"[{{"index":0,"delta":{{}},"finish_reason":"error","error":{}}}]"#,
            error(None)
        );
        event(&it.chunk_json(&choice, None))
    };
    let usage = |it: &Answer| {
        error_event(it, &error(Some("502"))).replacen(
        '{',
        r#"{"usage":{"prompt_tokens":12,"completion_tokens":4,"total_tokens":16,"cost":0.00007,"estimated_cost":0.00009},"#,
        1,
    )
    };
    let reason = |it: &Answer| it.choice_event(0, "{}", r#""error""#);
    vec![
        stream("an error", "without choices", move |it| after_text(it, &bare())),
        stream("an error", "as LiteLLM ends: then `[DONE]`", move |it| {
            after_text(it, &(bare() + DONE))
        }),
        stream("an error", "of another event type", move |it| after_text(it, &named())),
        stream("an error", "an object of that event type", move |it| after_text(it, &flat())),
        stream("an error", "a text of that event type", move |it| after_text(it, &text())),
        stream("an error", "within a choice", move |it| after_text(it, &inside(it))),
        stream("an error", "twice", move |it| after_text(it, &(bare() + &bare()))),
        stream("an error with usage on it", "", move |it| after_text(it, &usage(it))),
        stream("finish_reason 'error' and no error", "", move |it| after_text(it, &reason(it))),
        stream("finish_reason 'error', no error, then `[DONE]`", "", move |it| {
            after_text(it, &(reason(it) + DONE))
        }),
        stream("an error as first event", "", move |it| {
            it.head().chunk(error_event(it, &error(Some("502")))).end()
        }),
        stream("an error as first event", "FastChat's", |it| {
            it.head().chunk(event(&bare_errors()[3].1) + DONE).end()
        }),
    ]
}

fn ends() -> Vec<Fault> {
    let usual = |it: &Answer| it.content_events().concat() + &it.finish_event();
    vec![
        stream("no `[DONE]`", "", move |it| it.head().chunk(usual(it) + &it.usage_event()).end()),
        stream("no finish, no usage, no `[DONE]`", "", |it| after_text(it, "")),
        stream("no finish, but `[DONE]`", "", |it| after_text(it, DONE)),
        stream("finish_reason repeated", "", move |it| {
            it.head().chunk(usual(it) + &it.finish_event() + &it.usage_event() + DONE).end()
        }),
        stream("no event", "nothing", |it| without_truth(it.head().end())),
        stream("no event", "comments only", |it| without_truth(it.head().chunk(": x\n\n").end())),
        stream("no event", "empty ones", |it| without_truth(it.head().chunk("data:\n\n").end())),
        stream("only `[DONE]`", "", |it| without_truth(it.head().chunk(DONE).end())),
        stream("half an event, then the end", "", |it| after_text(it, "data: {\"id\":\"x")),
        stream("two `[DONE]`", "", |it| it.head().chunk(it.events().concat() + DONE).end()),
        stream("text after the usage", "", move |it| {
            let more = it.content_event(" four");
            it.head().chunk(usual(it) + &it.usage_event() + &more + DONE).end()
        }),
    ]
}

fn without_truth(mut script: Script) -> Script {
    script.truth = None;
    script
}

/// What is no chunk; the answer around it is whole.
fn strangers() -> Vec<Fault> {
    let log = format!("data: Traceback: POST {} failed\n\n", SECRETS[5]);
    let broken = format!("data: {{\"key\":\"{}\n\n", SECRETS[0]);
    let strangers: Vec<(&str, Vec<u8>)> = vec![
        ("HTML", format!("data: <html>{}</html>\n\n", secrets()).into()),
        ("a line of a log", log.into()),
        ("a comment that tells", format!(": at {}\n\n", SECRETS[4]).into()),
        ("half of JSON that tells", broken.into()),
        ("an array", b"data: [1,{}]\n\n".to_vec()),
        ("invalid UTF-8", b"data: {\"x\":\"\xff\xfe\"}\n\n".to_vec()),
        ("100,000 brackets", format!("data: {{\"x\":{}\n\n", "[".repeat(100_000)).into()),
        ("choices of odd types", b"data: {\"choices\":{\"0\":null},\"id\":7}\n\n".to_vec()),
    ];
    let faults = strangers.into_iter().map(|(variant, bytes)| {
        stream("something that is no chunk", variant, move |it| {
            let (first, rest) = (it.content_events(), it.finish_event() + &it.usage_event() + DONE);
            it.head().chunks(first).chunk(&bytes).chunk(rest).end()
        })
    });
    let long = || {
        stream("an event that does not end", "17 MiB", |it| {
            let mut script = it.head().chunks(it.content_events());
            script.truth = None;
            script.chunks(vec![vec![b'x'; 1 << 20]; 17]).close()
        })
    };
    faults.chain([long()]).collect()
}
