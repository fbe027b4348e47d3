//! What is read of a request, and what is sent on.

use super::*;

const MESSAGES: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

const EITHER: Dialect = Dialect { cap: OLDER, is_sole: false, takes_user: true };

#[test]
fn a_cap_has_the_name_that_is_read() {
    let sole = Dialect { is_sole: true, ..EITHER };
    let sent = |cap: Option<i64>, members: &str| {
        let body = format!(r#"{{{members}"user":"u","model":"m","messages":[{{}}]}}"#);
        ChatRequest::parse(body.as_bytes()).unwrap().forwarded("u", cap.map(Tokens), sole, None)
    };
    let rest = r#""user":"u","model":"m","messages":[{}]}"#;
    let newer = r#""max_completion_tokens":9,"#;
    for (cap, given, want) in [
        (None, "", ""),
        (None, r#""max_tokens":9,"#, r#""max_tokens":9,"#),
        (None, newer, r#""max_tokens":9,"#),
        (
            None,
            r#""max_tokens":null,"max_completion_tokens":9,"#,
            r#""max_tokens":9,"max_completion_tokens":9,"#,
        ),
        (
            None,
            r#""max_tokens":3,"max_completion_tokens":9,"#,
            r#""max_tokens":3,"max_completion_tokens":9,"#,
        ),
        (Some(7), newer, r#""max_tokens":7,"#),
        (Some(7), "", r#""max_tokens":7,"#),
    ] {
        assert_eq!(sent(cap, given), format!("{{{want}{rest}"), "{cap:?} {given}");
    }
}

fn forwarded(body: &str) -> String {
    ChatRequest::parse(body.as_bytes()).unwrap().forwarded("u", None, EITHER, None)
}

#[test]
fn usage_is_asked_for_and_every_other_byte_stays() {
    let plain = format!(r#"{{ "model":"m", {MESSAGES} , "zzz": 1.50 }}"#);
    assert_eq!(forwarded(&plain), plain.replacen('{', r#"{"user":"u","#, 1));

    for (given, sent) in [
        ("", r#""stream_options":{"include_usage":true},"#),
        (r#""stream_options":null,"#, r#""stream_options":{"include_usage":true},"#),
        (r#""stream_options":{},"#, r#""stream_options":{"include_usage":true},"#),
        (
            r#""stream_options":{"include_usage":false},"#,
            r#""stream_options":{"include_usage":true},"#,
        ),
        (r#""stream_options":{"x":1},"#, r#""stream_options":{"include_usage":true,"x":1},"#),
    ] {
        let body = format!(r#"{{{given}"stream":true,"user":null,"model":"m",{MESSAGES}}}"#);
        let want = body.replace(r#""user":null"#, r#""user":"u""#);
        let want = match given {
            "" => want.replacen('{', &format!("{{{sent}"), 1),
            _ => want.replace(given, sent),
        };
        assert_eq!(forwarded(&body), want);
    }
}

#[test]
fn tools_that_the_upstream_runs_are_looked_at() {
    let parse = |more: &str| {
        let body = format!(r#"{{"model":"m",{MESSAGES},{more}}}"#);
        ChatRequest::parse(body.as_bytes()).map(|request| request.has_fees)
    };
    assert_eq!(parse(r#""tools":[{"type":"function"}]"#), Ok(false));
    assert_eq!(parse(r#""tools":[{"googleSearch":{}}]"#), Ok(true));
    assert_eq!(parse(r#""plugins":[{"id":"web"}]"#), Ok(true));
    assert_eq!(parse(r#""plugins":[{"id":"file-parser"}]"#), Ok(false));
    for refused in [r#""tools":[{"type":"openrouter:fusion"}]"#, r#""plugins":[{"id":"fusion"}]"#] {
        let told = parse(refused).unwrap_err().message;
        assert!(told.contains("fusion") && told.contains("not supported"), "{told}");
    }
}

#[test]
fn the_cap_is_lowered_where_it_stands() {
    let capped = |members: &str| {
        let body = format!(r#"{{{members}"model":"m","user":"","messages":[{{}}]}}"#);
        let request = ChatRequest::parse(body.as_bytes()).unwrap();
        request.forwarded("u", Some(Tokens(7)), EITHER, None)
    };
    let rest = r#""model":"m","user":"u","messages":[{}]}"#;
    assert_eq!(capped(""), format!(r#"{{"max_tokens":7,{rest}"#));
    assert_eq!(capped(r#""max_tokens":99,"#), format!(r#"{{"max_tokens":7,{rest}"#));
    assert_eq!(
        capped(r#""max_completion_tokens":99,"max_tokens":null,"#),
        format!(r#"{{"max_completion_tokens":7,"max_tokens":7,{rest}"#)
    );
}

#[test]
fn a_tier_that_has_a_price_passes_as_it_came() {
    for tier in ["null", r#""auto""#, r#""default""#, r#""flex""#, r#""fl\u0065x""#] {
        let body = format!(r#"{{"user":"u","service_tier":{tier},"model":"m",{MESSAGES}}}"#);
        assert_eq!(forwarded(&body), body);
    }
}

#[test]
fn a_member_at_fault_is_named() {
    for (body, param) in [
        (r#"{"messages":[{}]}"#, Some("model")),
        (r#"{"model":1,"messages":[{}]}"#, Some("model")),
        (r#"{"model":"","messages":[{}]}"#, Some("model")),
        (r#"{"model":"a\nb","messages":[{}]}"#, Some("model")),
        (r#"{"model":"m"}"#, Some("messages")),
        (r#"{"model":"m","messages":[]}"#, Some("messages")),
        (r#"{"model":"m","messages":"hi"}"#, Some("messages")),
        (r#"{"model":"m","messages":[{}],"stream":"yes"}"#, Some("stream")),
        (r#"{"model":"m","messages":[{}],"stream_options":[]}"#, Some("stream_options")),
        (r#"{"model":"m","messages":[{}],"n":0}"#, Some("n")),
        (r#"{"model":"m","messages":[{}],"n":1e3}"#, Some("n")),
        (r#"{"model":"m","messages":[{}],"max_tokens":-1}"#, Some("max_tokens")),
        (r#"{"model":"m","model":"n","messages":[{}]}"#, Some("model")),
        (r#"{"model":"m","Model":"n","messages":[{}]}"#, Some("model")),
        (r#"{"model":"m","messages":[{}],"MAX_TOKENS":9}"#, Some("max_tokens")),
        (r#"{"model":"m","messages":[{}],"models":["x"]}"#, None),
        (r#"{"model":"m","messages":[{}],"Api_Base":"x"}"#, None),
        (r#"{"model":"m","messages":[{}],"api_ba\u017fe":"x"}"#, None),
        (r#"{"model":"m","messages":[{}],"input_cost_per_token":0}"#, None),
        (r#"{"model":"m","messages":[{}],"maxOutputTokens":9}"#, None),
        (r#"{"model":"m","messages":[{}],"service_tier":"priority"}"#, Some("service_tier")),
        (r#"{"model":"m","messages":[{}],"service_tier":7}"#, Some("service_tier")),
        (r#"{"model":"m","messages":[{}],"Service_Tier":"flex"}"#, Some("service_tier")),
        (r#"{"model":"m","messages":[{}],"max_to\u212aens":9}"#, Some("max_tokens")),
        (r#"{"model":"m","messages":[{}],"u\u017fer":"x"}"#, Some("user")),
        ("[]", None),
        (r#"{"model":"#, None),
        ("", None),
    ] {
        let refusal = ChatRequest::parse(body.as_bytes()).expect_err(body);
        assert_eq!(refusal.param.as_deref(), param, "{body}: {}", refusal.message);
    }
}
