//! Chunks of an odd form: no pieces of an answer, usage in a form of its own, members that come
//! twice.

use crate::app::{Store, TestApp, question, streamed, streamed_with_usage};
use crate::stream::assert_passes;
use crate::upstream::answer::{Answer, DONE, event};
use crate::upstream::catalog::MODEL;
use crate::upstream::script::Script;

/// Usage without a cost, so that a client that asked gets it as it came.
fn answer() -> Answer {
    Answer::openrouter().no_cost()
}

/// What is no piece of an answer and says nothing of a failure: Azure's first chunk, and events of
/// some vendor's own.
#[tokio::test]
async fn objects_that_are_no_chunks_pass() {
    let app = TestApp::start(Store::Sqlite).await;
    let filter = r#"{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}"#;
    let plain = answer().events().concat();
    for stranger in [
        filter,
        "{}",
        r#"{"type":"ping"}"#,
        r#"{"object":"status","state":"searching","error_code":0,"errors":[]}"#,
        r#"{"citations":["https://example.com/a"]}"#,
        r#"{"type":"message_start","message":{"role":"assistant"}}"#,
        r#"{"choices":[],"message":"queued","position":3}"#,
        r#"{"id":"x","choices":null,"usage":null,"error":null}"#,
        r#" {"usage":[],"choices":{}}"#,
    ] {
        assert_passes(&app, stranger, &[format!("data: {stranger}\n\n{plain}")]).await;
    }
    let typed = format!("event: status\ndata: {{\"state\":\"queued\"}}\n\n{plain}");
    assert_passes(&app, "of a type of its own", &[typed]).await;
    let records = app.records(10).await;
    assert!(records.iter().all(|record| record.ending == "completed"), "{records:#?}");
    app.finish().await;
}

/// SDKs go through the choices of every chunk.
#[tokio::test]
async fn a_usage_chunk_without_choices_gets_an_empty_list() {
    let app = TestApp::start(Store::Sqlite).await;
    for (sent, shown) in [
        (r#"{"id":"x","usage":U}"#, r#"{"choices":[],"id":"x","usage":U}"#),
        (r#"{"id":"x","choices":null,"usage":U}"#, r#"{"id":"x","choices":[],"usage":U}"#),
        (r#"{"choices" : {} , "usage":U}"#, r#"{"choices" : [] , "usage":U}"#),
        (r#"{"choices": [],"usage":U}"#, r#"{"choices": [],"usage":U}"#),
    ] {
        let answer = answer();
        let events = |usage: &str| {
            let usage = event(&usage.replace('U', &answer.usage_json()));
            answer.content_events().concat() + &answer.finish_event() + &usage + DONE
        };
        app.upstream.script(answer.head().chunk(events(sent)).end());
        let got = app.chat(&streamed_with_usage(MODEL)).await;
        assert_eq!(got.ok(), events(shown), "{sent}");
        app.upstream.script(answer.head().chunk(events(sent)).end());
        assert_eq!(app.chat(&streamed(MODEL)).await.ok(), answer.events_without_usage());
    }
    app.finish().await;
}

/// The last one counts, as for most readers, and the operator's cost is shown of none.
#[tokio::test]
async fn members_that_come_twice_do_not_show_the_operators_cost() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = Answer::openrouter();
    let text = answer.content_events().concat() + &answer.finish_event();
    let usage = |members: &str| format!("data: {{\"id\":\"x\",{members}}}\n\n");
    let one = r#""usage":{"prompt_tokens":9,"completion_tokens":9,"cost":0.777}"#;
    let last = format!(r#""usage":{}"#, answer.usage_json());
    let (tokens, odd) = (r#"{"prompt_tokens":9,"cost":0.777}"#, r"\u0075sage");
    for (what, chunk, is_believed) in [
        ("usage", usage(&format!("{one},{last}")), true),
        ("an escaped name", usage(&format!("{one},{}", last.replace("usage", odd))), true),
        ("the cost", usage(&last.replace(r#""cost":"#, r#""cost":0.777,"cost":"#)), true),
        ("null as the last", usage(&format!("{one},\"usage\":null")), false),
        ("what cannot be read", usage(&format!(r#""x":,"usage":{tokens}"#)), false),
    ] {
        for body in [streamed(MODEL), streamed_with_usage(MODEL)] {
            app.upstream.script(answer.head().chunk(text.clone() + &chunk + DONE).end());
            let got = app.chat(&body).await;
            assert!(got.ok().starts_with(&text), "{what}: {}", got.text());
            for cost in ["0.777", "0.000123"] {
                assert!(!got.text().contains(cost), "{what}: {}", got.text());
            }
            let record = app.record_of(&got).await;
            assert_eq!(record.source == "upstream", is_believed, "{what}: {record:?}");
            assert!(!is_believed || record.completion_tokens == 7, "{what}: {record:?}");
        }
    }
    // Beside a piece of text.
    let piece = answer.content_event("more").replacen('{', &format!("{{{one},"), 1);
    let piece = piece.replacen("\"created\"", &format!("{last},\"created\""), 1);
    app.upstream.script(answer.head().chunk(piece + &text + DONE).end());
    let got = app.chat(&streamed_with_usage(MODEL)).await;
    assert!(got.ok().contains("more") && !got.text().contains("0.777"), "{}", got.text());
    assert_eq!(app.record_of(&got).await.completion_tokens, 7);
    app.finish().await;
}

#[tokio::test]
async fn a_plain_answer_with_members_twice_is_an_answer() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = answer();
    let body = answer.plain_body();
    for twice in [
        body.replacen('{', r#"{"id":"other","#, 1),
        body.replace(r#""refusal":null"#, r#""content":"last","refusal":null"#),
        body.replacen('{', r#"{"usage":{"prompt_tokens":1,"completion_tokens":1},"#, 1),
    ] {
        app.upstream.script(Script::json(200, &twice));
        let got = app.chat(&question(MODEL)).await;
        assert_eq!(got.ok(), twice, "byte for byte");
        let record = app.record_of(&got).await;
        assert_eq!((record.source.as_str(), record.completion_tokens), ("upstream", 7));
    }
    app.finish().await;
}
