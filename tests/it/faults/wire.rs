//! Below the answers: framing, encodings, silence, no end.

use super::case::{Fault, Form, WORDS, both, one, secrets};
use crate::upstream::answer::Answer;
use crate::upstream::script::{Gate, Script, Step};

const CHAPTER: &str = "On the wire";

pub fn all() -> Vec<Fault> {
    [heads(), framings(), waits()].into_iter().flatten().collect()
}

fn heads() -> Vec<Fault> {
    let raw = |what: &str, bytes: &'static str| {
        both(CHAPTER, what, "", move |_| Script::new().write(bytes).close())
    };
    let gzip = |it: &Answer| {
        let headers = [("Content-Type", "application/json"), ("Content-Encoding", "gzip")];
        let mut script = Script::json_with(200, &headers[1..], it.plain_body());
        script.truth = None;
        script
    };
    let gzip_stream = |it: &Answer| {
        let head = [("Content-Type", "text/event-stream"), ("Content-Encoding", "gzip")];
        let head = [&head[..], &[("Transfer-Encoding", "chunked")]].concat();
        Script::new().head(200, &head).chunks(it.events()).end()
    };
    let hint = |it: &Answer| {
        let mut script = Script::new().write("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
        let plain = it.plain();
        script.steps.extend(plain.steps);
        script.truth = plain.truth;
        script
    };
    let mut faults = vec![
        one(Form::Plain, CHAPTER, "headers that tell", "", |it| telling(it.plain())),
        one(Form::Stream, CHAPTER, "headers that tell", "", |it| telling(it.stream())),
        one(Form::Plain, CHAPTER, "gzip though not asked for", "", gzip),
        one(Form::Stream, CHAPTER, "gzip though not asked for", "", gzip_stream),
        one(Form::Plain, CHAPTER, "103 first", "", hint),
        one(Form::Stream, CHAPTER, "a media type in capitals", "", |it| {
            let head = [("Content-Type", "Text/Event-Stream"), ("Transfer-Encoding", "chunked")];
            let mut script = Script::new().head(200, &head).chunks(it.events()).end();
            script.truth = it.stream().truth;
            script
        }),
    ];
    faults.extend(codings());
    faults.extend(raw("closed at once", ""));
    faults.extend(raw("not HTTP", "gopher, if anything\r\n\r\n"));
    faults.extend(raw("HTTP/0.9", "{\"choices\":[]}"));
    faults.extend(raw("half a head", "HTTP/1.1 200 OK\r\nContent-Ty"));
    faults.extend(raw("an odd status", "HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"));
    faults.extend(raw(
        "101 Switching Protocols",
        "HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ));
    faults.extend(raw(
        "two lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    ));
    let endless = || {
        let header = format!("X-{}: x\r\n", "y".repeat(1_000)).repeat(2_000);
        Script::new().write("HTTP/1.1 200 OK\r\n").write(header).close()
    };
    faults.extend(both(CHAPTER, "2 MB of headers", "", move |_| endless()));
    faults.extend(both(CHAPTER, "reset at once", "", |_| Script::new().rst()));
    faults
}

/// What is said to be compressed: a refusal keeps its meaning, an answer without a coding passes.
fn codings() -> Vec<Fault> {
    let mut faults = Vec::new();
    for status in [400, 401, 404, 429, 500, 503] {
        let play = move |_: &Answer| {
            let headers = [("Content-Encoding", "gzip"), ("Retry-After", "7")];
            Script::json_with(status, &headers, b"\x1f\x8b\x08\x00\x00")
        };
        faults.extend(both(CHAPTER, &format!("gzip with status {status}"), "", play));
    }
    for coding in ["identity", "Identity", "", " , identity"] {
        faults.push(one(Form::Plain, CHAPTER, "a coding that is none", "", move |it| {
            let mut script = it.plain();
            if let Some(Step::Head(_, headers)) = script.steps.first_mut() {
                headers.push(("Content-Encoding".to_string(), coding.to_string()));
            }
            script
        }));
    }
    faults.push(one(Form::Plain, CHAPTER, "GZIP though not asked for", "", |it| {
        let mut script = Script::json_with(200, &[("Content-Encoding", "GZIP")], it.plain_body());
        script.truth = None;
        script
    }));
    faults
}

/// What OpenRouter, LiteLLM and the servers before them put into their heads.
fn telling(mut script: Script) -> Script {
    let names = [
        "Set-Cookie",
        "Server",
        "Via",
        "x-request-id",
        "openai-organization",
        "x-litellm-model-api-base",
        "x-litellm-key-spend",
        "llm_provider-x-secret",
        "x-ratelimit-limit-requests",
        "cf-ray",
        "access-control-allow-origin",
    ];
    if let Some(Step::Head(_, headers)) = script.steps.first_mut() {
        headers.extend(names.map(|name| (name.to_string(), secrets())));
    }
    script
}

fn framings() -> Vec<Fault> {
    let stream = |what: &str, play: Box<dyn Fn(&Answer) -> Script + Send + Sync>| {
        one(Form::Stream, CHAPTER, what, "", play)
    };
    let cut = |it: &Answer, steps: Vec<Step>| {
        let mut script = it.head().chunks(it.content_events());
        script.truth = None;
        script.steps.extend(steps);
        script
    };
    let plain_length = |length: usize| {
        move |it: &Answer| {
            let length = length.to_string();
            let headers = [("Content-Type", "application/json"), ("Content-Length", &length)];
            Script::new().head(200, &headers).write(it.plain_body()).close()
        }
    };
    vec![
        stream(
            "a chunk size that is no number",
            Box::new(move |it| cut(it, vec![Step::Write(b"zzz\r\n".to_vec()), Step::Close])),
        ),
        stream(
            "an endless chunk size",
            Box::new(move |it| {
                cut(it, vec![Step::Write(b"fffffffffffffffff\r\n".to_vec()), Step::Close])
            }),
        ),
        stream(
            "trailers",
            Box::new(|it| {
                let script = it.head().chunks(it.events());
                script.write(format!("0\r\nX-Trailer: {WORDS}\r\n\r\n"))
            }),
        ),
        stream("a whole JSON answer to a stream", Box::new(Answer::plain)),
        stream(
            "events called JSON",
            Box::new(|it| {
                let headers =
                    [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")];
                Script::new().head(200, &headers).chunks(it.events()).end()
            }),
        ),
        one(Form::Plain, CHAPTER, "events to a plain request", "", |it| {
            let mut script = it.stream();
            script.truth = None;
            script
        }),
        one(Form::Plain, CHAPTER, "a length that is too long", "", plain_length(9_999)),
        one(Form::Plain, CHAPTER, "a length that is too short", "", plain_length(40)),
        one(Form::Plain, CHAPTER, "no length and no chunks", "", |it| {
            let script = Script::new().head(200, &[("Content-Type", "application/json")]);
            let mut script = script.write(it.plain_body()).close();
            script.truth = it.plain().truth;
            script
        }),
    ]
}

/// With three seconds of patience for a head and between two frames, and ten for a stream.
fn waits() -> Vec<Fault> {
    let silent = |_: &Answer| Script::new().wait(&Gate::new());
    let slow = |it: &Answer| {
        let mut script = it.head();
        for _ in 0..12 {
            script = script.chunk(": OPENROUTER PROCESSING\n\n").sleep(300);
        }
        script.chunks(it.events()).end()
    };
    let stall = |it: &Answer| {
        let mut script = it.head().chunks(it.content_events()).wait(&Gate::new());
        script.truth = None;
        script
    };
    let half = |it: &Answer| {
        let length = it.plain_body().len().to_string();
        let headers = [("Content-Type", "application/json"), ("Content-Length", &*length)];
        Script::new().head(200, &headers).write("{").wait(&Gate::new())
    };
    let endless = |it: &Answer| {
        let mut script = it.head().chunks(it.content_events());
        for _ in 0..200 {
            script = script.chunk(": still there\n\n").sleep(100);
        }
        script.truth = None;
        script
    };
    let mut faults: Vec<Fault> = both(CHAPTER, "no head in time", "", silent).into();
    faults.extend([
        one(Form::Stream, CHAPTER, "a slow first token, with comments", "", slow),
        one(Form::Stream, CHAPTER, "silence in a stream", "", stall),
        one(Form::Plain, CHAPTER, "silence in a plain body", "", half),
        one(Form::Stream, CHAPTER, "a stream without end", "", endless),
    ]);
    faults.into_iter().map(Fault::waiting).collect()
}
