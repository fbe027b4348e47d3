//! Status 200 with a body that is no completion, or one with an error in it.

use super::case::{Fault, Form, WORDS, both, formed_secrets, one, secrets};
use crate::upstream::answer::Answer;
use crate::upstream::script::Script;

const CHAPTER: &str = "Status 200 with a whole body";
pub const CODES: [u16; 14] = [400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503, 524, 529];

pub fn all() -> Vec<Fault> {
    let mut faults = Vec::new();
    for code in CODES {
        for (form, text) in [("number", code.to_string()), ("text", format!("\"{code}\""))] {
            let body = format!(r#"{{"error":{},"user_id":"{}"}}"#, error(Some(&text)), secrets());
            let (what, variant) = (format!("an error of code {code}"), format!("as a {form}"));
            faults.extend(both(CHAPTER, &what, &variant, move |_| Script::json(200, &body)));
        }
    }
    for (variant, text) in odd_errors() {
        let body = format!(r#"{{"error":{text},"choices":[]}}"#);
        let play = move |_: &Answer| Script::json(200, &body);
        faults.extend(both(CHAPTER, "an error of an odd form", variant, play));
    }
    for (variant, body) in not_completions() {
        let play = move |_: &Answer| Script::json(200, &body);
        faults.extend(both(CHAPTER, "no completion", variant, play));
    }
    for (variant, body) in bare_errors() {
        let play = move |_: &Answer| Script::json(200, &body);
        faults.extend(both(CHAPTER, "an error without an envelope", variant, play));
    }
    faults.extend(with_text());
    faults
}

/// An error object; `code` is JSON text.
pub fn error(code: Option<&str>) -> String {
    let code = code.map(|code| format!(r#""code":{code},"#)).unwrap_or_default();
    let (secrets, formed) = (secrets(), formed_secrets());
    format!(
        r#"{{{code}"message":"{WORDS} {formed}","metadata":{{"provider_name":"{secrets}","raw":"{secrets}"}}}}"#
    )
}

pub fn odd_errors() -> [(&'static str, String); 5] {
    [
        ("no code", error(None)),
        ("a word as code", error(Some(r#""server_error""#))),
        ("null as code", error(Some("null"))),
        ("a text", format!(r#""{WORDS} {}""#, secrets())),
        ("an array", format!(r#"["{}"]"#, secrets())),
    ]
}

/// As servers word them that do not speak OpenAI's protocol when they fail.
pub fn bare_errors() -> [(&'static str, String); 7] {
    let (secrets, formed) = (secrets(), formed_secrets());
    let vllm = |code: u16| {
        format!(
            r#"{{"object":"error","message":"{WORDS} {formed}","type":"X","param":null,"code":{code}}}"#
        )
    };
    [
        ("vLLM's, of code 400", vllm(400)),
        ("vLLM's, of code 401", vllm(401)),
        ("vLLM's, of code 500", vllm(500)),
        ("FastChat's", format!(r#"{{"text":"{WORDS} {secrets}","error_code":50001}}"#)),
        ("FastAPI's `detail`", format!(r#"{{"detail":"{WORDS} {secrets}"}}"#)),
        ("a `message`", format!(r#"{{"Message":"{WORDS} {secrets}","request_id":"{secrets}"}}"#)),
        ("a list of `errors`", format!(r#"{{"errors":[{{"message":"{WORDS} {secrets}"}}]}}"#)),
    ]
}

fn not_completions() -> [(&'static str, String); 10] {
    [
        ("an empty object", "{}".to_string()),
        ("an object about other things", format!(r#"{{"status":"ok","host":"{}"}}"#, secrets())),
        ("no choices", format!(r#"{{"id":"gen-1","choices":[],"x":"{}"}}"#, secrets())),
        ("null as choices", r#"{"id":"gen-1","choices":null,"usage":{}}"#.to_string()),
        ("HTML", format!("<html>{}</html>", secrets())),
        ("nothing", String::new()),
        ("null", "null".to_string()),
        ("an array", format!(r#"["{}"]"#, secrets())),
        ("half of JSON", r#"{"id":"gen-1","choices":[{"mess"#.to_string()),
        ("blanks", " \n ".to_string()),
    ]
}

/// Text that the provider was paid for, and an error beside it.
fn with_text() -> Vec<Fault> {
    let beside = |member: String| {
        move |answer: &Answer| {
            let body = answer.plain_body().replacen('{', &format!("{{{member},"), 1);
            changed(answer, &body)
        }
    };
    let inside = |answer: &Answer| {
        let member = format!(r#""finish_reason":"error","error":{}"#, error(Some("502")));
        changed(answer, &answer.plain_body().replace(r#""finish_reason":"stop""#, &member))
    };
    let stopped = |answer: &Answer| {
        changed(answer, &answer.plain_body().replace(r#"on":"stop""#, r#"on":"error""#))
    };
    let error_502 = format!(r#""error":{},"user_id":"{}""#, error(Some("502")), secrets());
    let plain = |variant: &str, play: Box<dyn Fn(&Answer) -> Script + Send + Sync>| {
        one(Form::Plain, CHAPTER, "text and an error", variant, play)
    };
    vec![
        plain("beside the choices", Box::new(beside(error_502))),
        plain("within a choice", Box::new(inside)),
        plain("only finish_reason", Box::new(stopped)),
        plain("null", Box::new(beside(r#""error":null"#.to_string()))),
    ]
}

/// The answer with another text, and the same truth.
pub fn changed(answer: &Answer, body: &str) -> Script {
    let mut script = Script::json(200, body);
    script.truth = answer.plain().truth;
    script
}
