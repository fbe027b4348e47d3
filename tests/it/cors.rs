//! Pages of any origin: what a preflight asks for is granted without a key, and a page can read
//! refusals too.

use crate::app::{Setup, Store, TestApp, question};
use crate::client::Ask;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

const ORIGIN: &str = "https://chat.example";
/// What OpenAI's SDK for JavaScript sends from a page.
const HEADERS: [&str; 13] = [
    "authorization",
    "content-type",
    "idempotency-key",
    "openai-organization",
    "x-stainless-arch",
    "x-stainless-helper-method",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-retry-count",
    "x-stainless-runtime",
    "x-stainless-runtime-version",
    "x-stainless-timeout",
];

#[tokio::test]
async fn a_preflight_needs_no_key_and_gets_what_it_asks_for() {
    let app = TestApp::start(Store::Sqlite).await;
    for (method, path) in [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/vendor/own-tokens"),
        ("GET", "/v1/organization/costs"),
        ("DELETE", "/admin/v1/keys/any"),
        ("GET", "/nothing/here"),
    ] {
        let ask = Ask::new("OPTIONS", path)
            .header("Origin", ORIGIN)
            .header("Access-Control-Request-Method", method)
            .header("Access-Control-Request-Headers", &HEADERS.join(","));
        let got = app.ask(&ask).await;
        assert_eq!(got.status, 200, "{path}: {}", got.text());
        let granted = |name: &str| got.header(name).unwrap_or_default().to_lowercase();
        assert_eq!(granted("access-control-allow-origin"), "*", "{path}");
        assert_eq!(granted("access-control-allow-methods"), method.to_lowercase(), "{path}");
        let headers = granted("access-control-allow-headers");
        let headers: Vec<&str> = headers.split(',').map(str::trim).collect();
        assert_eq!(headers, HEADERS, "{path}");
        // The key is in a header: a page of another origin has no cookie to use.
        assert_eq!(got.header("access-control-allow-credentials"), None, "{path}");
    }
    app.assert_untouched().await;
    app.finish().await;
}

#[tokio::test]
async fn a_page_can_read_every_refusal_and_its_headers() {
    let app = Setup::new(Store::Sqlite).env("TOLLGATE_BODY_BYTES_MAX", "10000").start().await;
    let asks = [
        (app.chat_ask(&question("no/such")), 404),
        (app.chat_ask(&question(MODEL)).bearer("sk-tg-wrong"), 401),
        (app.chat_ask(&question(MODEL)).without("authorization"), 401),
        (app.chat_ask(&question(MODEL)).body("{"), 400),
        (app.chat_ask(&question(MODEL)).body("x".repeat(10_001)), 413),
        (app.chat_ask(&question(MODEL)).without("content-type"), 415),
        (Ask::get("/nothing/here"), 404),
        (Ask::get("/v1/chat/completions").bearer(&app.key), 405),
    ];
    for (ask, status) in asks {
        let got = app.ask(&ask.header("Origin", ORIGIN)).await;
        assert_eq!(got.status, status, "{}", got.text());
        assert_eq!(got.header("access-control-allow-origin"), Some("*"), "{status}");
        let exposed = got.header("access-control-expose-headers").unwrap_or_default();
        for name in ["x-request-id", "retry-after", "retry-after-ms", "x-should-retry"] {
            assert!(exposed.to_lowercase().split(',').any(|it| it.trim() == name), "{exposed}");
        }
    }
    app.upstream.script(Answer::openrouter().plain());
    let got = app.ask(&app.chat_ask(&question(MODEL)).header("Origin", ORIGIN)).await;
    assert_eq!((got.status, got.header("access-control-allow-origin")), (200, Some("*")));
    app.record().await;
    app.finish().await;
}
