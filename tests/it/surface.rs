//! The surface: the paths, their answers, and what leaves for the upstream because of them.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::{
    Kind, Setup, Store, TestApp, UPSTREAM_KEY, both_stores, eventually, question, streamed, uncap,
};
use crate::client::Ask;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{FREE_MODEL, MODEL, openrouter_models};
use crate::upstream::script::Gate;
use crate::upstream::{Call, Listing, Upstream};

both_stores!(a_plain_answer, a_streamed_answer, health_and_readiness, the_request_is_forwarded);

async fn a_plain_answer(store: Store) {
    let app = TestApp::start(store).await;
    let answer = Answer::openrouter().no_cost();
    app.upstream.script(answer.plain());
    let got = app.chat(&question(MODEL)).await;
    assert_eq!(got.ok(), answer.plain_body(), "without a cost there is nothing to rewrite");
    assert_eq!(got.header("content-type"), Some("application/json"));
    let record = app.record().await;
    assert_eq!(got.request_id(), record.id, "the request id names the usage record");
    assert!(!record.streamed);
    app.finish().await;
}

async fn a_streamed_answer(store: Store) {
    let app = TestApp::start(store).await;
    let answer = Answer::openrouter();
    app.upstream.script(answer.stream());
    let got = app.chat(&streamed(MODEL)).await;
    assert_eq!(got.ok(), answer.events_without_usage());
    let kind = got.header("content-type").expect("a content type");
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    let record = app.record().await;
    assert_eq!(got.request_id(), record.id);
    assert!(record.streamed);
    app.finish().await;
}

async fn health_and_readiness(store: Store) {
    let app = TestApp::start(store).await;
    let mut ids = Vec::new();
    for path in ["/healthz", "/readyz", "/healthz"] {
        let got = app.ask(&Ask::get(path)).await;
        assert_eq!(got.status, 200, "{path} needs no key: {}", got.text());
        let id = Uuid::parse_str(&got.request_id()).expect("the request id is a UUID");
        assert_eq!(id.get_version_num(), 7);
        ids.push(id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "every answer has a request id of its own");
    app.finish().await;
}

async fn the_request_is_forwarded(store: Store) {
    let app = TestApp::start(store).await;
    app.upstream.script(Answer::openrouter().plain());
    // Odd spacing, number forms and escapes: what Tollgate does not own must arrive as it left.
    let body = format!(
        "{{ \"model\" : \"{MODEL}\",\t\"temperature\":0.70, \"seed\":1e2,\r\n \"messages\": \
         [{{\"role\":\"user\",\"content\":\"\\u0041\\/\\ud83d\\ude00 \u{e9}\"}}], \"max_tokens\":200,\
         \"provider\":{{\"sort\":\"price\",\"unknown\":[1,{{}}, null]}} }}"
    );
    let ask = Ask::post_json("/v1/chat/completions", &body).bearer(&app.key);
    app.ask(&ask).await.ok();
    let call = app.upstream.last_chat();
    let user = format!(r#""user":"{}""#, app.account);
    assert_eq!(without_member(&call.text(), &user), body);
    assert_eq!(call.request.header("authorization"), Some(&*format!("Bearer {UPSTREAM_KEY}")));
    let headers = format!("{:?}", call.request.headers);
    assert!(!headers.contains(&app.key), "the client's key went upstream: {headers}");
    app.finish().await;
}

#[tokio::test]
async fn a_stream_asks_the_upstream_for_usage() {
    let app = TestApp::start(Store::Sqlite).await;
    let options = [
        json!(null),
        json!({"include_usage": false, "include_obfuscation": false}),
        json!({"include_usage": true}),
        json!({}),
    ];
    for given in options {
        let mut body = streamed(MODEL);
        if !given.is_null() {
            body["stream_options"] = given.clone();
        }
        app.upstream.script(Answer::openrouter().stream());
        app.chat(&body).await.ok();
        let mut expected = given.as_object().cloned().unwrap_or_default();
        expected.insert("include_usage".to_string(), json!(true));
        let sent = app.upstream.last_chat().json();
        assert_eq!(sent["stream_options"], Value::Object(expected), "asked with {given}");
    }
    app.finish().await;
}

/// DeepSeek and Ollama pass over the newer name, and answer at any length.
#[tokio::test]
async fn the_cap_has_the_name_that_the_upstream_reads() {
    let setup = Setup::new(Store::Sqlite).kind(Kind::OpenAi);
    let app = setup.env("TOLLGATE_CAP_MEMBER", "max_tokens").start().await;
    for (given, limit) in [(json!({"max_completion_tokens": 5}), 5), (json!({}), 16_384)] {
        let mut body = question("gpt-4o-mini");
        let members = body.as_object_mut().expect("an object");
        members.remove("max_tokens");
        members.extend(given.as_object().expect("one").clone());
        app.upstream.script(Answer::openai().plain());
        app.chat(&body).await.ok();
        let sent = app.upstream.last_chat().json();
        assert_eq!(sent["max_tokens"], json!(limit), "{sent}");
        assert_eq!(sent.get("max_completion_tokens"), None, "Mistral would refuse it");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_plain_answers_cap_is_within_the_limit_in_the_table() {
    let setup = Setup::new(Store::Sqlite).kind(Kind::OpenAi).prices(
        "[[price]]\nmodel = \"gpt-4\"\nprompt_usd_per_mtok = \"30\"\n\
         completion_usd_per_mtok = \"60\"\ncompletion_tokens_max = 4096\n",
    );
    let app = setup.start().await;
    let mut body = question("gpt-4");
    uncap(&mut body);
    app.upstream.script(Answer::openai().plain());
    app.chat(&body).await.ok();
    assert_eq!(app.upstream.last_chat().json()["max_completion_tokens"], json!(4_096));
    app.finish().await;
}

#[tokio::test]
async fn a_plain_request_gets_no_stream_options() {
    let app = TestApp::start(Store::Sqlite).await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    let sent = app.upstream.last_chat().json();
    assert_eq!(sent.get("stream_options"), None, "OpenAI refuses them without stream");
    app.finish().await;
}

#[tokio::test]
async fn the_user_is_the_account_whatever_the_client_claims() {
    let app = TestApp::start(Store::Sqlite).await;
    let claims = [r#""user":"somebody""#, r#""us\u0065r":"somebody""#, r#""user":null"#];
    for claim in claims {
        let body = format!(
            r#"{{{claim},"model":"{MODEL}","max_tokens":200,"messages":[{{"role":"user","content":"x"}}]}}"#
        );
        app.upstream.script(Answer::openrouter().plain());
        app.ask(&Ask::post_json("/v1/chat/completions", body).bearer(&app.key)).await.ok();
        let call = app.upstream.last_chat();
        assert_eq!(call.json()["user"], json!(app.account), "claimed {claim}");
        assert!(!call.text().contains("somebody"), "two users went upstream: {}", call.text());
    }
    app.finish().await;
}

#[tokio::test]
async fn tiers_of_service_that_have_a_price_pass() {
    let app = TestApp::start(Store::Sqlite).await;
    let tiers = ["auto", "default", "flex", "on_demand", "standard", "standard_only"];
    for tier in tiers.into_iter().map(Some).chain([None]) {
        let tier = json!(tier);
        let mut body = question(MODEL);
        body["service_tier"] = tier.clone();
        app.upstream.script(Answer::openrouter().plain());
        app.chat(&body).await.ok();
        assert_eq!(app.upstream.last_chat().json()["service_tier"], tier);
    }
    app.finish().await;
}

#[tokio::test]
async fn the_upstream_is_asked_not_to_compress() {
    let app = TestApp::start(Store::Sqlite).await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    for path in ["/v1/chat/completions", "/v1/models"] {
        let call = app.upstream.calls(path).pop().expect("a call");
        assert_eq!(call.request.header("accept-encoding"), Some("identity"), "{path}");
    }
    app.finish().await;
}

#[tokio::test]
async fn an_answer_without_length_ends_with_its_connection() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = Answer::openrouter().no_cost();
    let mut script = answer.plain();
    script.steps.clear();
    let script = script.head(200, &[("Content-Type", "application/json")]);
    app.upstream.script(script.write(answer.plain_body()).close());
    assert_eq!(app.chat(&question(MODEL)).await.ok(), answer.plain_body());
    app.finish().await;
}

#[tokio::test]
async fn upstream_headers_pass_by_an_allow_list() {
    let app = TestApp::start(Store::Sqlite).await;
    let answer = Answer::openrouter();
    let mut script = answer.plain();
    let crate::upstream::script::Step::Head(_, headers) = &mut script.steps[0] else {
        panic!("a script starts with its head");
    };
    let secrets = ["Set-Cookie", "X-Upstream-Secret", "x-litellm-key-spend", "Server"];
    headers.extend(secrets.map(|name| (name.to_string(), "do-not-show".to_string())));
    headers.push(("x-request-id".to_string(), "do-not-show".to_string()));
    app.upstream.script(script);
    let got = app.chat(&question(MODEL)).await;
    got.ok();
    assert!(!format!("{:?}", got.headers).contains("do-not-show"), "{:?}", got.headers);
    app.finish().await;
}

#[tokio::test]
async fn models_are_listed_in_openai_form() {
    let app = TestApp::start(Store::Sqlite).await;
    let got = app.get("/v1/models").await;
    got.ok();
    let list = got.json();
    assert_eq!(list["object"], json!("list"));
    let models = list["data"].as_array().expect("a list of models");
    for model in models {
        assert_eq!(model["object"], json!("model"));
        let typed = (model["id"].as_str(), model["created"].as_i64(), model["owned_by"].as_str());
        assert!(matches!(typed, (Some(_), Some(_), Some(_))), "{model}");
    }
    for id in [MODEL, FREE_MODEL] {
        assert!(models.iter().any(|model| model["id"] == json!(id)), "{id} is missing");
    }
    app.finish().await;
}

#[tokio::test]
async fn one_model_is_found_by_an_id_with_slashes() {
    let app = TestApp::start(Store::Sqlite).await;
    let encoded = FREE_MODEL.replace('/', "%2F").replace(':', "%3A");
    for (path, id) in [(MODEL, MODEL), (FREE_MODEL, FREE_MODEL), (&encoded, FREE_MODEL)] {
        let got = app.get(&format!("/v1/models/{path}")).await;
        got.ok();
        assert_eq!(got.json()["id"], json!(id), "{path}");
        assert_eq!(got.json()["object"], json!("model"));
    }
    for path in ["nobody/knows-it", "vendor/family", "openai/gpt-4o-mini/"] {
        let got = app.get(&format!("/v1/models/{path}")).await;
        assert_eq!(got.status, 404, "{path}: {}", got.text());
        assert_eq!(got.json()["error"]["code"], json!("model_not_found"), "{path}");
    }
    app.finish().await;
}

#[tokio::test]
async fn models_need_a_key() {
    let app = TestApp::start(Store::Sqlite).await;
    for path in ["/v1/models", "/v1/models/openai/gpt-4o-mini"] {
        assert_eq!(app.ask(&Ask::get(path)).await.status, 401, "{path}");
        assert_eq!(app.ask(&Ask::get(path).bearer("sk-tg-wrong")).await.status, 401, "{path}");
    }
    app.finish().await;
}

#[tokio::test]
async fn the_list_of_models_is_cached_and_served_stale() {
    let app = TestApp::start(Store::Sqlite).await;
    let first = app.get("/v1/models").await;
    first.ok();
    for _ in 0..5 {
        app.get("/v1/models").await.ok();
    }
    let fetched = app.upstream.calls("/v1/models").len();
    assert!(fetched <= 2, "six lists took {fetched} fetches from the upstream");
    for listing in [Listing::Fails(500), Listing::Hangs(Gate::new())] {
        app.upstream.set_models(listing);
        let stale = app.get("/v1/models").await;
        assert_eq!(stale.ok(), first.text(), "an upstream that fails does not empty the list");
    }
    app.finish().await;
}

#[tokio::test]
async fn it_starts_while_the_upstream_is_down_and_recovers() {
    let upstream = Upstream::start(openrouter_models()).await;
    upstream.set_models(Listing::Fails(503));
    let app = Setup::new(Store::Sqlite).start_with(upstream).await;
    let got = app.chat(&question(MODEL)).await;
    assert!(got.status >= 500, "without any list no model is known to be missing: {}", got.text());
    assert!(got.json()["error"]["message"].is_string());
    app.assert_untouched().await;
    app.upstream.set_models(Listing::Json(openrouter_models()));
    eventually("the list of models is fetched again", async || {
        let got = app.get("/v1/models").await;
        (got.status == 200 && got.text().contains(MODEL)).then_some(())
    })
    .await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    app.finish().await;
}

#[tokio::test]
async fn a_litellm_proxy_gives_models_and_prices() {
    let app = Setup::new(Store::Sqlite).kind(Kind::LiteLlm).start().await;
    let got = app.get("/v1/models/gpt-4o-mini").await;
    assert_eq!(got.ok(), got.text());
    app.upstream.script(Answer::openai().tokens(100, 10).plain());
    app.chat(&question("gpt-4o-mini")).await.ok();
    // 150 and 600 nano-USD a token, marked up by a fifth.
    assert_eq!(app.record().await.charge_nusd, (100 * 150 + 10 * 600) * 12 / 10);
    let refused = app.chat(&question("unpriced-model")).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert_eq!(refused.json()["error"]["code"], json!("model_not_priced"));
    app.finish().await;
}

/// The JSON text with one member taken out again, wherever it was put in.
fn without_member(text: &str, member: &str) -> String {
    assert_eq!(text.matches(member).count(), 1, "{member} once in {text}");
    let after = format!("{member},");
    let before = format!(",{member}");
    let found = if text.contains(&after) { after } else { before };
    text.replacen(&found, "", 1)
}

#[test]
fn a_member_is_taken_out_of_json_text() {
    assert_eq!(without_member(r#"{"user":"x","a":1}"#, r#""user":"x""#), r#"{"a":1}"#);
    assert_eq!(without_member(r#"{"a":1,"user":"x"}"#, r#""user":"x""#), r#"{"a":1}"#);
}

/// Everything that a call carried, for the tests that look for what must not be in it.
#[tokio::test]
async fn no_secret_of_the_client_goes_upstream() {
    let app = TestApp::start(Store::Sqlite).await;
    app.upstream.script(Answer::openrouter().plain());
    let ask = app.chat_ask(&question(MODEL)).header("Cookie", "session=client-secret");
    app.ask(&ask.header("X-Forwarded-For", "10.1.2.3")).await.ok();
    let Call { request, .. } = app.upstream.last_chat();
    let sent = format!("{:?}", request.headers).to_lowercase();
    assert!(!sent.contains("client-secret") && !sent.contains(&app.key), "{sent}");
    app.finish().await;
}
