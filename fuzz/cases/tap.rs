//! The tap: any bytes, cut anywhere. It must not panic; how the bytes were cut must not matter; an
//! answer ends with `[DONE]` or with an error.

use bytes::Bytes;
use std::sync::{Arc, LazyLock};
use tollgate::models::money::Markup;
use tollgate::models::price::{Price, Rates, Rule, Terms};
use tollgate::models::timestamp::Timestamp;
use tollgate::services::reading::Reading;
use tollgate::services::sse::Outgoing;
use tollgate::services::tap::{Asked, Finish, Operator, Tap};
use tollgate::services::tokens::{Tokenizer, Vocabularies};

static TOKENIZER: LazyLock<Tokenizer> =
    LazyLock::new(|| Vocabularies::load().expect("vocabularies").for_model("gpt-4o-mini"));

fn price() -> Arc<Price> {
    let terms = Terms {
        upstream: String::new(),
        model: "m".to_owned(),
        plan: String::new(),
        rule: Rule::CostPlus,
        markup_ppm: Markup::NONE,
        rates: Rates::default(),
        overrides: Vec::new(),
    };
    Arc::new(Price { id: String::new(), terms })
}

/// What leaves for these frames, and what was read of them.
fn run(frames: &[&[u8]], shows_usage: bool) -> (Vec<String>, String) {
    let reading = Reading::new(TOKENIZER.clone());
    let asked = Asked { placed_at: Timestamp::now(), images: 0, shows_usage };
    let mut tap = Tap::new(reading, price(), Arc::new(Operator::default()), asked);
    let mut out = Outgoing::default();
    for frame in frames {
        if tap.frame(&Bytes::copy_from_slice(frame), &mut out).is_err() {
            return Default::default();
        }
    }
    let finish = tap.end(&mut out);
    let out: Vec<u8> = std::iter::from_fn(|| out.take()).flatten().collect();
    let text = String::from_utf8_lossy(&out);
    match finish {
        Finish::Complete => assert!(text.contains("[DONE]"), "a silent end: {text}"),
        Finish::Failed(_) => assert!(text.contains("error"), "a silent failure: {text}"),
    }
    let reading = tap.judge.reading;
    let read = format!("{:?} {:?}", reading.reported, reading.counter.finish().tokens);
    (events(&text), read)
}

/// The events as they are read. Where a CRLF is cut in two, its LF goes with what follows: it is lost
/// with that, or stays when its own event is left out. To a reader of events that is the same.
fn events(text: &str) -> Vec<String> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let events = text.split("\n\n").map(|event| event.trim_matches('\n').to_owned());
    events.filter(|event| !event.is_empty()).collect()
}

/// One input: its first byte says where the rest is cut, and whether the client asks for usage.
pub fn case(input: &[u8]) {
    let [how, body @ ..] = input else { return };
    let frames: Vec<&[u8]> = body.chunks(usize::from(how >> 1) + 1).collect();
    let shows_usage = how & 1 == 1;
    assert_eq!(run(&frames, shows_usage), run(&[body], shows_usage));
}
