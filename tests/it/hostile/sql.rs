//! Texts that would be SQL where somebody pastes them into a statement: keys, names, cursors and
//! filters are data, wherever they stand.

use serde_json::json;

use crate::app::{Store, TestApp, both_stores, question};
use crate::client::{Answered, Ask};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

both_stores!(texts_are_data);

const TEXTS: [&str; 6] = [
    "' OR '1'='1",
    "'; DROP TABLE api_keys; --",
    "') OR 1=1 --",
    "\\'; DELETE FROM accounts; --",
    "$1 UNION SELECT hash FROM api_keys",
    "%' OR id LIKE '%",
];

fn percent(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// A clear no: the text is nobody's key, name or id.
fn assert_no(got: &Answered, what: &str) {
    assert!((400..500).contains(&got.status), "{what}: {} {}", got.status, got.text());
    assert!(got.json()["error"]["message"].is_string(), "{what}: {}", got.text());
}

async fn texts_are_data(store: Store) {
    let app = TestApp::start(store).await;
    let service = app.create_key("test", &["--role", "service"]).await;
    for text in TEXTS {
        for key in [text.to_string(), format!("sk-tg-{text}")] {
            let got = app.ask(&Ask::get("/v1/models").bearer(&key)).await;
            assert_eq!(got.status, 401, "{key}: {}", got.text());
        }
        let got = app.chat(&question(text)).await;
        assert_eq!(
            (got.status, got.json()["error"]["code"].as_str()),
            (404, Some("model_not_found"))
        );
        let encoded = percent(text);
        for path in [
            format!("/v1/models/{encoded}"),
            format!("/v1/organization/costs?start_time={encoded}"),
            format!("/v1/organization/usage/completions?start_time=1&page={encoded}"),
            format!("/admin/v1/accounts/{encoded}"),
            format!("/admin/v1/accounts?after={encoded}"),
            format!("/admin/v1/keys/{encoded}"),
        ] {
            let got = app.ask(&Ask::get(&path).bearer(&service)).await;
            assert_no(&got, &path);
        }
        // Where any text may stand, it is kept as it is.
        let body = json!({"name": text}).to_string();
        let create = Ask::post_json("/admin/v1/accounts", &body).bearer(&service);
        let got = app.ask(&create).await;
        assert_eq!((got.status, got.json()["name"].as_str()), (201, Some(text)), "{}", got.text());
        assert_eq!(app.ask(&create).await.status, 409, "{text}: it is one name");
        let ask = app.chat_ask(&question(MODEL)).header("Idempotency-Key", text);
        app.upstream.script(Answer::openrouter().plain());
        app.ask(&ask).await.ok();
        assert_eq!(app.ask(&ask).await.status, 409, "{text}: it is one key");
    }
    assert_eq!(app.records(TEXTS.len()).await.len(), TEXTS.len());
    for (table, rows) in [("accounts", 1 + TEXTS.len()), ("api_keys", 2)] {
        assert_eq!(app.books.rows(&format!("SELECT id FROM {table}")).await.len(), rows, "{table}");
    }
    app.finish().await;
}
