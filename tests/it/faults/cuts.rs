//! The connection ends at any byte: reset, closed, or closed in one direction.
//!
//! Every 29th byte in the test command, each way of ending from another byte on; all of them
//! with `FAULT_CUT_STEP=1`.

use super::case::{Fault, Form, one};
use crate::upstream::answer::{Answer, DONE};
use crate::upstream::script::{Gate, Script, Step};

const CHAPTER: &str = "Cut at any byte";

#[derive(Clone, Copy, PartialEq)]
enum Cut {
    Reset,
    Close,
    HalfClose,
}

impl Cut {
    fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Close => "closed",
            Self::HalfClose => "half-closed",
        }
    }

    /// A connection that is half closed stays open in the other direction.
    fn steps(self) -> Vec<Step> {
        match self {
            Self::Reset => vec![Step::Rst],
            Self::Close => vec![Step::Close],
            Self::HalfClose => vec![Step::HalfClose, Step::Wait(Gate::new())],
        }
    }
}

/// A part of the answer: where it is, and what the client has for certain once the part before it
/// has arrived.
struct Part {
    name: &'static str,
    has: &'static str,
    bytes: Vec<u8>,
}

pub fn all() -> Vec<Fault> {
    let step = std::env::var("FAULT_CUT_STEP").ok().and_then(|step| step.parse().ok());
    let step = step.unwrap_or(29);
    let cuts = [(Cut::Close, 0), (Cut::HalfClose, step / 3), (Cut::Reset, step * 2 / 3)];
    let forms = [Form::Plain, Form::Stream];
    let all = forms.into_iter().flat_map(|form| cuts.map(|(cut, first)| (form, cut, first)));
    all.flat_map(|(form, cut, first)| faults(form, cut, first, step)).collect()
}

fn faults(form: Form, cut: Cut, first: usize, step: usize) -> Vec<Fault> {
    let parts = parts(form, &sample());
    let lengths: Vec<usize> = parts.iter().map(|part| part.bytes.len()).collect();
    let mut faults = Vec::new();
    for at in (first..lengths.iter().sum()).step_by(step) {
        let (number, offset) = place(&lengths, at);
        // What a reset finds unread is lost; whether a last line has come is then a matter of luck.
        let is_luck = offset + 8 > lengths[number] && number > 0;
        if cut == Cut::Reset && is_luck {
            continue;
        }
        // Without an event before it there is nothing to wait for.
        let waits = cut == Cut::Reset && !parts[number].has.is_empty();
        let gate = waits.then(Gate::new);
        let has = gate.clone().map(|gate| (gate, parts[number].has));
        let length = lengths[number];
        let mut fault = one(form, CHAPTER, cut.name(), parts[number].name, move |answer| {
            script(form, cut, answer, number, (offset, length), gate.as_ref())
        });
        fault.gate = has;
        faults.push(fault);
    }
    faults
}

/// The part that a byte of the whole lies in, and where there.
fn place(lengths: &[usize], at: usize) -> (usize, usize) {
    let mut before = 0;
    for (number, length) in lengths.iter().enumerate() {
        if at < before + length {
            return (number, at - before);
        }
        before += length;
    }
    panic!("no byte {at} in {before}");
}

/// The byte of another answer's part that does the same there: ids and models differ in length, and
/// the last bytes are those that matter.
fn same_offset(offset: usize, length: usize, other: usize) -> usize {
    const LAST: usize = 16;
    if offset + LAST > length { other - (length - offset) } else { offset.min(other - LAST) }
}

/// What positions are chosen on.
fn sample() -> Answer {
    super::observe::answer(crate::app::Kind::LiteLlm)
}

fn script(
    form: Form,
    cut: Cut,
    answer: &Answer,
    number: usize,
    (offset, length): (usize, usize),
    gate: Option<&Gate>,
) -> Script {
    let parts = parts(form, answer);
    let before: Vec<u8> = parts[..number].iter().flat_map(|part| part.bytes.clone()).collect();
    let offset = same_offset(offset, length, parts[number].bytes.len());
    let mut script = Script::new().write(before);
    if let Some(gate) = gate {
        script = script.wait(gate);
    }
    script = script.write(&parts[number].bytes[..offset]);
    script.steps.extend(cut.steps());
    let tells = parts[..number].iter().any(|part| part.name == "in the usage");
    script.truth = answer.truth().filter(|_| tells).map(|truth| (answer.id.clone(), truth));
    script
}

fn parts(form: Form, answer: &Answer) -> Vec<Part> {
    match form {
        Form::Plain => plain_parts(answer),
        Form::Stream => stream_parts(answer),
    }
}

fn plain_parts(answer: &Answer) -> Vec<Part> {
    let body = answer.plain_body();
    let head =
        head(answer, &format!("Content-Type: application/json\r\nContent-Length: {}", body.len()));
    vec![
        Part { name: "in the head", has: "", bytes: head },
        Part { name: "in the body", has: "", bytes: body.into() },
    ]
}

fn stream_parts(answer: &Answer) -> Vec<Part> {
    let head = head(answer, "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked");
    let texts = answer.content_events();
    let part = |name, has, event: &str| Part {
        name,
        has,
        bytes: format!("{:x}\r\n{event}\r\n", event.len()).into(),
    };
    vec![
        Part { name: "in the head", has: "", bytes: head },
        part("in the first text", "", &texts[0]),
        part("in the second text", "one two", &texts[1]),
        part("in the finish", "three four", &answer.finish_event()),
        part("in the usage", "\"stop\"", &answer.usage_event()),
        part("in `[DONE]`", "total_tokens", DONE),
        Part { name: "in the last chunk", has: "[DONE]", bytes: b"0\r\n\r\n".to_vec() },
    ]
}

fn head(answer: &Answer, headers: &str) -> Vec<u8> {
    // A connection that breaks right after its answer must not be taken for the next request.
    let id = &answer.id;
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nX-Generation-Id: {id}\r\n{headers}\r\n\r\n")
        .into()
}
