//! The stream: the client's bytes are the upstream's bytes, but for the rewrites of design §6.
//!
//! Where frames begin and end is decided by the script: one chunk is one frame.

use std::fmt::Write;

use crate::app::{Kind, Setup, Store, TestApp, both_stores, streamed, streamed_with_usage};
use crate::client::{Ask, Exchange};
use crate::random::Random;
use crate::upstream::answer::{Answer, DONE, event};
use crate::upstream::catalog::MODEL;
use crate::upstream::script::{Gate, Script};

both_stores!(every_chunking_gives_the_same_bytes, ten_thousand_tiny_events, a_line_of_a_megabyte);

/// Streams the chunks as they are and asserts that the client got them as they are.
pub async fn assert_passes<T: AsRef<[u8]>>(app: &TestApp, what: &str, chunks: &[T]) {
    let expected: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.as_ref().to_vec()).collect();
    app.upstream.script(Script::stream().chunks(chunks).end());
    let got = app.chat(&streamed_with_usage(MODEL)).await;
    got.ok();
    if got.body != expected {
        let at = got.body.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        let (from, to) = (at.saturating_sub(60), at + 60);
        let got_part = String::from_utf8_lossy(&got.body[from..to.min(got.body.len())]);
        let sent_part = String::from_utf8_lossy(&expected[from..to.min(expected.len())]);
        panic!("{what}: differs at byte {at}\n sent {sent_part:?}\n got  {got_part:?}");
    }
}

/// Usage without a cost, so that a client that asked gets it as it came.
fn answer() -> Answer {
    Answer::openrouter().no_cost()
}

fn whole(events: &[String]) -> Vec<u8> {
    events.concat().into_bytes()
}

async fn every_chunking_gives_the_same_bytes(store: Store) {
    let app = TestApp::start(store).await;
    let pieces = ["Grüße, ", "世界 ", "👩‍👩‍👧 ", "e\u{301} ", "\u{2028}", "end"];
    let bytes = whole(&answer().pieces(pieces).events());
    assert_passes(&app, "one chunk", &[&bytes]).await;
    assert_passes(&app, "a byte a chunk", &bytes.chunks(1).collect::<Vec<_>>()).await;
    let random = Random::from_environment();
    for case in 0..20 {
        let chunks = random.chunks(&bytes, 40);
        assert_passes(&app, &format!("case {case} of {random}"), &chunks).await;
    }
    app.finish().await;
}

async fn ten_thousand_tiny_events(store: Store) {
    let app = TestApp::start(store).await;
    let answer = answer();
    let mut events: Vec<String> =
        (0..10_000).map(|number| answer.content_event(&format!(" {number}"))).collect();
    events.extend([answer.finish_event(), answer.usage_event(), DONE.to_string()]);
    assert_passes(&app, "an event a chunk", &events).await;
    let many: Vec<String> = events.chunks(500).map(<[String]>::concat).collect();
    assert_passes(&app, "five hundred events a chunk", &many).await;
    app.finish().await;
}

async fn a_line_of_a_megabyte(store: Store) {
    let app = TestApp::start(store).await;
    let mut text = String::new();
    for number in 0.. {
        if text.len() > 1 << 20 {
            break;
        }
        write!(text, "word{number} ").expect("a string takes all");
    }
    let bytes = whole(&answer().pieces([text]).events());
    assert_passes(&app, "one chunk", &[&bytes]).await;
    assert_passes(&app, "kilobytes", &bytes.chunks(1000).collect::<Vec<_>>()).await;
    app.finish().await;
}

#[tokio::test]
async fn one_event_split_at_every_byte() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = answer();
    let one = answer.content_event("né 世").into_bytes();
    // The same event over and over, each time split at the next position.
    let mut chunks = Vec::new();
    for split in 0..one.len() {
        chunks.extend([one[..split].to_vec(), one[split..].to_vec()]);
    }
    // A chunk of no bytes would end the body.
    chunks.retain(|chunk| !chunk.is_empty());
    chunks.push((answer.finish_event() + &answer.usage_event() + DONE).into_bytes());
    assert_passes(&app, "every split", &chunks).await;
    app.finish().await;
}

#[tokio::test]
async fn the_usage_chunk_is_found_however_it_is_split() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = answer();
    let (before, usage) = (answer.content_events().concat(), answer.usage_event());
    let finish = answer.finish_event();
    let expected = before.clone() + &finish + DONE;
    for split in 1..usage.len() {
        let (left, right) = usage.split_at(split);
        let first = before.clone() + &finish + left;
        app.upstream.script(answer.head().chunk(first).chunk(right.to_string() + DONE).end());
    }
    // All scripts give the client the same, so it does not matter which request gets which.
    let body = streamed(MODEL);
    let answers = futures::future::join_all((1..usage.len()).map(|_| app.chat(&body)));
    for got in answers.await {
        assert_eq!(got.ok(), expected);
    }
    app.finish().await;
}

#[tokio::test]
async fn every_form_of_server_sent_events_passes() {
    let app = TestApp::start(Store::Sqlite).await;
    let plain = answer().events().concat();
    let data = answer().chunk_json(r#"[{"index":0,"delta":{"content":"a"}}]"#, None);
    let split_data = data.replacen(',', ",\ndata: ", 1);
    let tail = answer().finish_event() + &answer().usage_event() + DONE;
    let forms = [
        ("comments", format!(": OPENROUTER PROCESSING\n\n:\n\n{}", commented(&plain))),
        ("CRLF", plain.replace('\n', "\r\n")),
        ("CR", plain.replace('\n', "\r")),
        ("a byte order mark", format!("\u{feff}{plain}")),
        ("a byte order mark before a comment", format!("\u{feff}: hello\n\n{plain}")),
        ("no space", plain.replace("data: ", "data:")),
        ("other fields", format!("retry: 10\nid: 7\nevent: message\ndata: {data}\n\n{tail}")),
        ("data in two lines", format!("data: {split_data}\n\n{tail}")),
        ("empty events", format!("\n\n\n{plain}")),
        ("an event without data", format!("event: ping\n\n{plain}")),
        ("data that is not JSON", format!("data: hello\n\ndata: {{\n\n{plain}")),
        ("JSON of another kind", format!("data: [1,2]\n\ndata: null\n\ndata: 7\n\n{plain}")),
    ];
    for (what, text) in &forms {
        let bytes = text.as_bytes();
        assert_passes(&app, what, &[bytes]).await;
        assert_passes(&app, what, &bytes.chunks(1).collect::<Vec<_>>()).await;
        assert_passes(&app, what, &bytes.chunks(7).collect::<Vec<_>>()).await;
    }
    app.finish().await;
}

/// A comment before every event, as keep-alives come.
fn commented(events: &str) -> String {
    events.replace("data: ", ": x\n\ndata: ")
}

#[tokio::test]
async fn bytes_after_done_pass() {
    let app = TestApp::start(Store::Sqlite).await;
    let events = answer().events();
    for after in [": bye\n\n", "\n\n", "data: {\"late\":true}\n\n"] {
        let whole = events.concat();
        assert_passes(&app, "in one chunk", &[whole.clone() + after]).await;
        assert_passes(&app, "in a chunk of its own", &[whole.as_str(), after]).await;
    }
    app.finish().await;
}

#[tokio::test]
async fn invalid_utf8_passes() {
    let app = TestApp::start(Store::Sqlite).await;
    let mut bytes = answer().content_event("before").into_bytes();
    bytes.extend_from_slice(b"data: {\"choices\":[{\"delta\":{\"content\":\"\xff\xc3\"}}]}\n\n");
    bytes.extend(whole(&answer().events()));
    assert_passes(&app, "one chunk", &[&bytes]).await;
    assert_passes(&app, "a byte a chunk", &bytes.chunks(1).collect::<Vec<_>>()).await;
    app.finish().await;
}

#[tokio::test]
async fn usage_is_shown_to_those_who_asked() {
    let app = TestApp::start(Store::Sqlite).await;
    let null_usage = Answer::openai().null_usage();
    for answer in [answer(), null_usage] {
        let mut asked_false = streamed(MODEL);
        asked_false["stream_options"] = serde_json::json!({"include_usage": false});
        for body in [streamed(MODEL), asked_false] {
            app.upstream.script(answer.stream());
            assert_eq!(app.chat(&body).await.ok(), answer.events_without_usage());
            let other_ends = answer.events().concat().replace('\n', "\r\n");
            app.upstream.script(answer.head().chunk(other_ends).end());
            let expected = answer.events_without_usage().replace('\n', "\r\n");
            assert_eq!(app.chat(&body).await.ok(), expected);
        }
        app.upstream.script(answer.stream());
        let got = app.chat(&streamed_with_usage(MODEL)).await;
        assert_eq!(got.ok(), answer.events().concat());
    }
    app.finish().await;
}

#[tokio::test]
async fn usage_on_a_chunk_with_content_is_taken_off_it() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = answer();
    let contents = answer.content_events().concat();
    let sent = [contents.clone(), answer.finish_event_with_usage(), DONE.to_string()];
    let bare = contents + &answer.finish_event_with("null");

    app.upstream.script(answer.head().chunks(&sent).end());
    assert_eq!(app.chat(&streamed(MODEL)).await.ok(), bare.clone() + DONE);
    let record = app.record().await;
    assert_eq!((record.source.as_str(), record.completion_tokens), ("upstream", 7));

    app.upstream.script(answer.head().chunks(&sent).end());
    let got = app.chat(&streamed_with_usage(MODEL)).await;
    let text = got.ok();
    assert!(text.starts_with(&bare), "the chunk passes, its usage does not: {text}");
    assert!(text.ends_with(DONE));
    let last = got.events().pop().expect("events");
    assert_eq!(last["choices"], serde_json::json!([]), "usage comes in OpenAI's form");
    assert_eq!(last["usage"]["completion_tokens"], serde_json::json!(7));
    assert_eq!(last["id"], serde_json::json!(answer.id));
    assert_eq!(last["object"], serde_json::json!("chat.completion.chunk"));
    app.finish().await;
}

#[tokio::test]
async fn the_last_usage_wins() {
    let app = TestApp::start(Store::Sqlite).await;
    let first = answer().tokens(1, 1);
    let mut last = answer().tokens(12, 7);
    last.id = first.id.clone();
    let sent = [
        first.content_event("a"),
        first.finish_event_with_usage(),
        last.usage_event(),
        DONE.to_string(),
    ];
    app.upstream.script(last.head().chunks(sent).end());
    let got = app.chat(&streamed_with_usage(MODEL)).await;
    got.ok();
    let shown: Vec<_> =
        got.events().into_iter().filter(|event| event["usage"].is_object()).collect();
    assert_eq!(shown.len(), 1, "one usage chunk, whatever the upstream sent: {shown:?}");
    assert_eq!(shown[0]["usage"]["prompt_tokens"], serde_json::json!(12));
    assert_eq!(app.record().await.completion_tokens, 7);
    app.finish().await;
}

#[tokio::test]
async fn a_missing_done_is_added_after_a_good_end() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = answer();
    let sent = answer.content_events().concat() + &answer.finish_event() + &answer.usage_event();
    app.upstream.script(answer.head().chunk(&sent).end());
    assert_eq!(app.chat(&streamed_with_usage(MODEL)).await.ok(), sent + DONE);
    let sent = answer.content_events().concat() + &answer.finish_event();
    app.upstream.script(answer.head().chunk(&sent).end());
    assert_eq!(app.chat(&streamed(MODEL)).await.ok(), sent + DONE);
    let records = app.records(2).await;
    assert!(records.iter().all(|record| record.ending == "completed"), "{records:#?}");
    app.finish().await;
}

/// Some servers begin with a usage of nothing; without an end there is none that counts.
#[tokio::test]
async fn a_usage_of_the_beginning_is_not_that_of_an_answer_without_an_end() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    let answer = Answer::openai();
    let begun = answer.clone().tokens(0, 0).finish_event_with_usage().replace("\"stop\"", "null");
    let sent = begun + &answer.content_events().concat() + &answer.finish_event();
    app.upstream.script(answer.head().chunk(&sent).end());
    let got = app.chat(&streamed_with_usage("gpt-4o-mini")).await;
    got.ok();
    let shown = got.events().into_iter().filter(|event| event["usage"].is_object()).count();
    assert_eq!(shown, 0, "nobody is told of what is not charged: {}", got.text());
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("completed", "counted"));
    assert!(record.charge_nusd > 0, "{record:#?}");
    app.finish().await;
}

#[tokio::test]
async fn a_last_event_without_a_blank_line_is_not_lost() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = answer();
    let sent = answer.events().concat();
    let sent = sent.strip_suffix("\n\n").expect("the last blank line");
    for end in ["", "\n"] {
        app.upstream.script(answer.head().chunk(format!("{sent}{end}")).end());
        let got = app.chat(&streamed_with_usage(MODEL)).await.ok();
        assert!(got.starts_with(sent), "{got}");
        assert_eq!(got.matches("[DONE]").count(), 1, "{got}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_complete_event_is_never_delayed_and_a_partial_one_waits() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = answer();
    let (first, second) = (answer.content_event("one"), answer.content_event("two"));
    let rest = answer.finish_event() + DONE;
    // The last cut is before the very last line break: the event is not complete until then.
    for cut in [1, 6, second.len() / 2, second.len() - 2, second.len() - 1] {
        let gate = Gate::new();
        let (left, right) = second.split_at(cut);
        let held = answer.head().chunk(first.clone() + left).wait(&gate);
        app.upstream.script(held.chunk(right.to_string() + &rest).end());
        let mut exchange = app.begin_chat(&streamed(MODEL)).await;
        exchange.until("one").await.until("\n\n").await;
        let so_far = exchange.linger(30).await;
        assert_eq!(String::from_utf8_lossy(so_far), first, "cut at {cut}");
        gate.open();
        let got = exchange.finish().await;
        assert_eq!(got.ok(), first.clone() + &second + &rest, "cut at {cut}");
    }
    app.finish().await;
}

#[tokio::test]
async fn events_arrive_as_they_are_sent() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = answer().pieces((0..10).map(|number| format!("piece{number}.")));
    let gates: Vec<Gate> = (0..10).map(|_| Gate::new()).collect();
    let mut script = answer.head();
    for (gate, text) in gates.iter().zip(answer.content_events()) {
        script = script.wait(gate).chunk(text);
    }
    app.upstream.script(script.chunk(answer.finish_event() + DONE).end());
    let mut exchange = app.begin_chat(&streamed(MODEL)).await;
    // Each gate opens only when the client has the piece before: any event held back is a deadlock.
    for (number, gate) in gates.iter().enumerate() {
        gate.open();
        exchange.until(&format!("piece{number}.")).await;
    }
    let got = exchange.finish().await;
    assert!(got.ok().ends_with(DONE));
    assert!(got.arrivals.len() >= 10, "ten gates, {} arrivals", got.arrivals.len());
    app.finish().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stalls_the_upstream() {
    let app = Setup::new(Store::Sqlite).start().await;
    let answer = answer();
    // Comments cost nothing to tap, so that the sockets are the only thing that can slow them.
    let comment = format!(": {}\n\n", "x".repeat(16 * 1024));
    let offered = 6000;
    let script = answer.head().chunks(vec![&comment; offered]);
    app.upstream.script(script.chunks(answer.events()).end());
    let bytes = app.chat_ask(&streamed(MODEL)).bytes();
    let mut exchange = Exchange::open_narrow(app.address(), &bytes).await;
    assert!(exchange.head().await);
    let stalled = stalled_at(&app).await;
    // The kernel's own buffers of two connections, generously; the whole answer is 96 MB.
    assert!(stalled < 32 << 20, "the gateway took in {stalled} bytes that nobody reads");
    let got = exchange.finish().await;
    let expected = comment.len() * offered + answer.events_without_usage().len();
    assert_eq!(got.body.len(), expected, "and loses nothing when the client reads on");
    assert!(got.complete);
    app.finish().await;
}

/// How many bytes the upstream could write before it got no further.
async fn stalled_at(app: &TestApp) -> usize {
    let mut last = 0;
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        let written = app.upstream.last_chat().written;
        if written == last {
            return written;
        }
        last = written;
    }
}

#[tokio::test]
async fn an_http_1_0_client_gets_its_stream() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = answer();
    app.upstream.script(answer.stream());
    let ask = app.chat_ask(&streamed(MODEL));
    let text = String::from_utf8(ask.bytes()).expect("ASCII").replace("HTTP/1.1", "HTTP/1.0");
    let got = app.raw(text.as_bytes()).await;
    assert_eq!(got.ok(), answer.events_without_usage());
    app.finish().await;
}

#[tokio::test]
async fn an_error_event_keeps_its_place_and_tells_in_our_words() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = answer().no_usage();
    let id = &answer.id;
    let rest = r#""choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]"#;
    let failure = event(&format!(
        r#"{{"id":"{id}","error":{{"code":502,"message":"Provider gone"}},{rest},"user_id":"org_1"}}"#
    ));
    let told = r#"{"message":"The model's provider failed.","type":"upstream_error","param":null,"code":"upstream_error"}"#;
    let shown = event(&format!(r#"{{"id":"{id}","error":{told},{rest},"user_id":null}}"#));
    let text = answer.content_event("a");
    app.upstream.script(answer.head().chunk(text.clone() + &failure).end());
    assert_eq!(app.chat(&streamed(MODEL)).await.ok(), text + &shown, "and no `[DONE]`");
    assert_eq!(app.record().await.ending, "upstream_failed");
    app.finish().await;
}

#[tokio::test]
async fn requests_on_one_connection_follow_each_other() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = answer();
    let mut wire = Vec::new();
    for _ in 0..3 {
        app.upstream.script(answer.stream());
        wire.extend(app.chat_ask(&streamed(MODEL)).bytes());
    }
    wire.extend(Ask::get("/healthz").header("Connection", "close").bytes());
    let mut exchange = Exchange::open(app.address(), &wire).await;
    for _ in 0..3 {
        let got = exchange.next().await;
        assert_eq!(got.ok(), answer.events_without_usage());
    }
    assert_eq!(exchange.next().await.status, 200);
    app.finish().await;
}
