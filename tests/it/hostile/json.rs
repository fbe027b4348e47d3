//! Bodies that two parsers may read differently: refused, or the same for both.

use serde_json::{Value, json};

use crate::app::{Store, TestApp, both_stores};
use crate::bad_input::assert_refused;
use crate::client::Ask;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{MODEL, OLD_MODEL};

both_stores!(members_given_twice_are_refused, deep_nesting_is_refused, odd_text_is_one_text);

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = r#""messages":[{"role":"user","content":"x"}]"#;

/// Each member that decides what is charged, with the value that a cheat would add.
const DECIDING: [(&str, &str, &str); 9] = [
    ("model", r#""openai/gpt-4o-mini""#, r#""openai/gpt-4""#),
    ("max_tokens", "5", "50000"),
    ("max_completion_tokens", "5", "50000"),
    ("n", "1", "100"),
    ("stream", "false", "true"),
    ("stream_options", "{}", r#"{"include_usage":true}"#),
    ("user", r#""a""#, r#""b""#),
    ("messages", "[{}]", r#"[{"role":"user","content":"a long one"}]"#),
    ("service_tier", r#""flex""#, r#""priority""#),
];

async fn members_given_twice_are_refused(store: Store) {
    let app = TestApp::start(store).await;
    for (name, cheap, dear) in DECIDING {
        let escaped = format!("\\u{:04x}{}", u32::from(name.as_bytes()[0]), &name[1..]);
        let upper = name.to_ascii_uppercase();
        // Go's JSON takes the sign for Kelvin for a k, and the long s for an s.
        let folded = name.replace('k', "\u{212a}").replace('s', "\u{17f}");
        let others: Vec<String> = DECIDING
            .iter()
            .filter(|(other, ..)| *other != name && ["model", "messages"].contains(other))
            .map(|(other, value, _)| format!(r#""{other}":{value},"#))
            .collect();
        for second in [name, &escaped, &upper, &folded] {
            for (first, last) in [(cheap, dear), (dear, cheap), (cheap, cheap)] {
                let body = format!(r#"{{{}"{name}":{first},"{second}":{last}}}"#, others.concat());
                let got = app.ask(&Ask::post_json(CHAT, &body).bearer(&app.key)).await;
                assert_refused(&got, &body, 400, "", name);
            }
        }
    }
    for other in ["include_usage", "Include_Usage", "include_u\u{17f}age", r"include_u\u017fage"] {
        let nested = format!(r#""stream_options":{{"include_usage":true,"{other}":false}}"#);
        let body = format!(r#"{{"model":"{MODEL}",{MESSAGES},"stream":true,{nested}}}"#);
        let got = app.ask(&Ask::post_json(CHAT, &body).bearer(&app.key)).await;
        assert_refused(&got, &body, 400, "", "stream_options");
    }
    app.assert_untouched().await;
    app.finish().await;
}

/// Where it stands alone, such a name is refused as well.
#[tokio::test]
async fn names_in_another_case_are_refused() {
    let app = TestApp::start(Store::Sqlite).await;
    for (name, param) in [
        ("Max_Tokens", "max_tokens"),
        ("max_to\u{212a}ens", "max_tokens"),
        ("u\u{17f}er", "user"),
        (r"u\u017fer", "user"),
        ("\u{17f}tream", "stream"),
        ("\u{17f}ervice_tier", "service_tier"),
        ("model\u{17f}", ""),
        ("api_ba\u{17f}e", ""),
    ] {
        let body = format!(r#"{{"model":"{MODEL}",{MESSAGES},"{name}":1}}"#);
        let got = app.ask(&Ask::post_json(CHAT, &body).bearer(&app.key)).await;
        assert_refused(&got, &body, 400, "", param);
    }
    app.assert_untouched().await;
    app.finish().await;
}

/// Members that another server would obey, behind the back of the price.
#[tokio::test]
async fn members_that_choose_another_model_are_refused() {
    let app = TestApp::start(Store::Sqlite).await;
    for (name, value) in [
        ("models", json!([OLD_MODEL])),
        ("MODELS", json!([OLD_MODEL])),
        ("preset", json!("x")),
        ("fallbacks", json!([{"model": OLD_MODEL}])),
        ("api_base", json!("http://elsewhere")),
        ("api_key", json!("sk-mine")),
        ("extra_body", json!({"model": OLD_MODEL})),
        ("speed", json!("fast")),
        ("base_model", json!(OLD_MODEL)),
        ("input_cost_per_token", json!(0)),
        ("output_cost_per_token", json!(0)),
        ("Input_Cost_Per_Second", json!(0)),
        ("output_cost_per_second", json!(0)),
        ("mock_response", json!("free")),
        ("max_output_tokens", json!(65_536)),
        ("maxOutputTokens", json!(65_536)),
        ("n_predict", json!(65_536)),
        ("router_settings_override", json!({"fallbacks": [{"model": OLD_MODEL}]})),
        ("additional_drop_params", json!(["max_tokens"])),
        ("_litellm_strip_stream_usage", json!(true)),
        ("litellm_credential_name", json!("another")),
        ("stream_timeout", json!(0.001)),
        ("cache_read_input_token_cost", json!(0)),
        ("tools", json!([{"type": "openrouter:web_fetch"}])),
        ("tools", json!([{"type": "function"}, {"type": "web_search_preview"}])),
        ("plugins", json!([{"id": "web", "max_uses": 30}])),
    ] {
        let body = format!(r#"{{"model":"{MODEL}",{MESSAGES},"{name}":{value}}}"#);
        let got = app.ask(&Ask::post_json(CHAT, &body).bearer(&app.key)).await;
        assert_refused(&got, &body, 400, "", "");
    }
    app.assert_untouched().await;
    app.finish().await;
}

/// Of a plain answer that is too long to be read nobody could say what it cost.
#[tokio::test]
async fn more_probabilities_than_can_be_read_are_refused() {
    let app = TestApp::start(Store::Sqlite).await;
    let body = |stream: bool, more: &str| {
        format!(r#"{{"model":"{MODEL}",{MESSAGES},"stream":{stream},"logprobs":true,{more}}}"#)
    };
    for more in [r#""top_logprobs":20,"n":8"#, r#""top_logprobs":20,"n":2,"max_tokens":16384"#] {
        let body = body(false, more);
        let got = app.ask(&Ask::post_json(CHAT, &body).bearer(&app.key)).await;
        assert_refused(&got, &body, 400, "", "top_logprobs");
    }
    app.assert_untouched().await;
    let taken = [
        // Together's, and what clients of LiteLLM say of their calls.
        body(false, r#""max_tokens":9"#).replace("true,", "5,"),
        body(false, r#""drop_params":true,"litellm_session_id":"cline-1""#),
        body(false, r#""top_logprobs":20"#),
        body(false, r#""top_logprobs":20,"n":8,"max_tokens":100"#),
        body(true, r#""top_logprobs":20,"n":8"#),
    ];
    for (body, streams) in taken.iter().zip([false, false, false, false, true]) {
        let answer = Answer::openrouter();
        app.upstream.script(if streams { answer.stream() } else { answer.plain() });
        app.ask(&Ask::post_json(CHAT, body).bearer(&app.key)).await.ok();
    }
    app.records(5).await;
    app.finish().await;
}

async fn deep_nesting_is_refused(store: Store) {
    let app = TestApp::start(store).await;
    for depth in [129, 100_000] {
        let arrays = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let objects = format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        for deep in [&arrays, &objects] {
            for member in ["metadata", "tools", "messages", "model", "stream_options", "n", "x"] {
                let body = format!(r#"{{"model":"{MODEL}",{MESSAGES},"{member}":{deep}}}"#);
                let got = app.ask(&Ask::post_json(CHAT, &body).bearer(&app.key)).await;
                assert_refused(&got, &format!("{member} {depth} deep"), 400, "", "");
            }
        }
        let got = app.ask(&Ask::post_json(CHAT, &arrays).bearer(&app.key)).await;
        assert_refused(&got, "nothing else", 400, "", "");
    }
    app.assert_untouched().await;
    // As deep as anybody goes, and brackets in a text are no depth.
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let text = "[{".repeat(5_000);
    let body = format!(
        r#"{{"model":"{MODEL}","max_tokens":9,"messages":[{{"role":"user","content":"{text}"}}],"x":{deep}}}"#
    );
    app.upstream.script(Answer::openrouter().plain());
    app.ask(&Ask::post_json(CHAT, &body).bearer(&app.key)).await.ok();
    app.record().await;
    app.finish().await;
}

/// NULs, halves of surrogate pairs, line breaks: text that some parsers take and some do not.
async fn odd_text_is_one_text(store: Store) {
    let app = TestApp::start(store).await;
    let odd =
        [r"\u0000", r"\ud800", r"\udfff\ud800", r"a\r\nX-Injected: yes\r\n\r\n", r"\u2028\ufeff"];
    let mut served = 0;
    for text in odd {
        for member in ["model", "user", "x", "messages"] {
            let body = match member {
                "model" => format!(r#"{{"model":"{MODEL}{text}",{MESSAGES},"max_tokens":9}}"#),
                "messages" => format!(
                    r#"{{"model":"{MODEL}","max_tokens":9,"messages":[{{"role":"user","content":"{text}"}}]}}"#
                ),
                other => {
                    format!(r#"{{"model":"{MODEL}",{MESSAGES},"max_tokens":9,"{other}":"{text}"}}"#)
                }
            };
            // No usage: the odd text has to be counted here.
            app.upstream.script(Answer::openrouter().no_usage().plain());
            let got = app.ask(&Ask::post_json(CHAT, &body).bearer(&app.key)).await;
            assert_eq!(got.header("x-injected"), None, "{body}");
            let is_served = got.status == 200;
            assert!(is_served || [400, 404].contains(&got.status), "{body}: {}", got.text());
            assert_eq!(is_served, member != "model", "{body}: {}", got.text());
            if is_served {
                served += 1;
                let record = app.record_of(&got).await;
                assert_eq!(record.model, MODEL, "{body}");
                let sent = app.upstream.last_chat().text();
                assert!(
                    sent.contains(text) || member == "user",
                    "it is forwarded as it came: {sent}"
                );
                assert!(sent.contains(&format!(r#""user":"{}""#, app.account)), "{sent}");
            } else {
                // The script is still there for the next one.
                let error: Value = got.json()["error"].clone();
                assert_eq!(error["param"], json!("model"), "{body}: {error}");
                app.upstream.forget_scripts();
            }
        }
    }
    assert_eq!(app.upstream.chats().len(), served);
    app.finish().await;
}
