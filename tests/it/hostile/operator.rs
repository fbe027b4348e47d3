//! An upstream that tells a client of the operator: its own key and its own host, which look like
//! nothing in particular.

use crate::app::{Setup, Store, TestApp, both_stores, question, streamed};
use crate::upstream::Upstream;
use crate::upstream::answer::{Answer, DONE, event};
use crate::upstream::catalog::{MODEL, openrouter_models};
use crate::upstream::script::Script;

both_stores!(the_upstreams_own_key_and_host_are_never_told);

const KEY: &str = "operatorkey-of-no-form";

/// At `localhost`, which is a host without dots and digits.
async fn app(store: Store, key: &str) -> TestApp {
    let upstream = Upstream::start(openrouter_models()).await;
    let url = upstream.url().replace("127.0.0.1", "localhost");
    let setup = Setup::new(store).env("UPSTREAM_BASE_URL", &url).env("UPSTREAM_API_KEY", key);
    setup.start_with(upstream).await
}

fn refusal(message: &str) -> Script {
    Script::json(400, format!(r#"{{"error":{{"message":"{message}","code":400}}}}"#))
}

async fn the_upstreams_own_key_and_host_are_never_told(store: Store) {
    let app = app(store, KEY).await;
    for (said, shown) in [
        (
            format!("Token {KEY} may not use this model"),
            "The model's provider rejected the request.",
        ),
        (format!("no tool {KEY}x"), "The model's provider rejected the request."),
        ("not on localhost, says localhost:1".to_string(), "not on *** says ***"),
        ("'top_k' must be at least 1, not 0.5".to_string(), "'top_k' must be at least 1, not 0.5"),
    ] {
        app.upstream.script(refusal(&said));
        let got = app.chat(&question(MODEL)).await;
        assert_eq!(got.status, 400, "{}", got.text());
        assert_eq!(got.json()["error"]["message"], shown, "{said}");
    }
    let answer = Answer::openrouter().no_cost();
    let text = answer.content_events().concat();
    for told in [
        event(&format!(r#"{{"error":{{"message":"{KEY} on localhost","code":400}}}}"#)),
        event(&format!(r#"{{"detail":"{KEY} on localhost"}}"#)),
        event(&format!(r#"{{"used":"{KEY}"}}"#)),
        format!(": on localhost\n\n: {KEY}\n\n"),
        event(&format!("line {KEY} of a log")),
    ] {
        let rest = answer.finish_event() + DONE;
        app.upstream.script(answer.head().chunk(text.clone() + &told + &rest).end());
        let got = app.chat(&streamed(MODEL)).await;
        got.ok();
        assert!(got.text().starts_with(&text), "{}", got.text());
        let is_told = got.text().contains(KEY) || got.text().contains("localhost");
        assert!(!is_told, "{told}: {}", got.text());
    }
    app.finish().await;
}

/// A placeholder for a key is a word of many messages.
#[tokio::test]
async fn a_placeholder_for_a_key_does_not_hide_messages() {
    let app = app(Store::Sqlite, "x").await;
    app.upstream.script(refusal("no such tool: x, of 3 tools"));
    let got = app.chat(&question(MODEL)).await;
    assert_eq!(got.json()["error"]["message"], "no such tool: x, of 3 tools");
    app.finish().await;
}
