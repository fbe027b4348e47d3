//! What the log says of single requests: their id on every line, where a slow one spent its time,
//! and nothing of what was asked or answered.

use serde_json::Value;

use crate::app::{Setup, Store, TestApp, UPSTREAM_KEY, both_stores, eventually, streamed};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

both_stores!(a_slow_request_is_told_of, a_quick_request_is_not);

fn lines(app: &TestApp) -> Vec<Value> {
    app.process.stderr().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

async fn a_slow_request_is_told_of(store: Store) {
    let setup = Setup::new(store).env("TOLLGATE_LOG_FORMAT", "json");
    let app = setup.env("TOLLGATE_SLOW_REQUEST_MS", "50").start().await;
    let answer = Answer::openrouter();
    let [first, rest @ ..] = &answer.events()[..] else { panic!("no events") };
    let script = answer.head().chunk(first).sleep(80).chunks(rest).end();
    app.upstream.script(script);
    let got = app.chat(&streamed(MODEL)).await;
    got.ok();
    let line = eventually("the slow request is in the log", async || {
        lines(&app).into_iter().find(|line| line["fields"]["message"] == "a slow request")
    })
    .await;
    let fields = &line["fields"];
    assert_eq!(line["span"]["id"], got.request_id().as_str(), "{line}");
    assert_eq!(fields["model"], MODEL);
    assert_eq!(fields["upstream"], "openrouter");
    assert_eq!(fields["account.id"], app.account.as_str());
    assert_eq!(fields["attempts"], 1);
    assert_eq!(fields["streamed"], true);
    let number = |name: &str| fields[name].as_i64().unwrap_or_else(|| panic!("{name}: {line}"));
    assert!(number("total_ms") >= 80, "{line}");
    assert!(number("first_byte_ms") <= number("total_ms"), "{line}");
    assert!(number("upstream_ms") <= number("total_ms"), "{line}");
    let log = app.process.stderr();
    let said = answer.text();
    for secret in [&app.key, UPSTREAM_KEY, "Is the tollgate open?", &said, &app.upstream.url()] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
    app.finish().await;
}

async fn a_quick_request_is_not(store: Store) {
    let setup = Setup::new(store).env("TOLLGATE_LOG_FORMAT", "json");
    let app = setup.env("TOLLGATE_SLOW_REQUEST_MS", "0").start().await;
    app.upstream.script(Answer::openrouter().stream());
    app.chat(&streamed(MODEL)).await.ok();
    app.records(1).await;
    assert!(!app.process.stderr().contains("a slow request"));
    app.finish().await;
}
