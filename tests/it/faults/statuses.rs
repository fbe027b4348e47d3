//! Every status that OpenRouter and LiteLLM document, with every body that may come with it.

use super::case::{Fault, SECRETS, WORDS, both, formed_secrets, secrets};
use crate::upstream::script::Script;

/// OpenRouter's <https://openrouter.ai/docs/api-reference/errors-and-debugging>, LiteLLM's
/// <https://docs.litellm.ai/docs/exception_mapping>, and some that only proxies between say.
const STATUSES: [u16; 22] = [
    400, 401, 402, 403, 404, 405, 408, 409, 413, 418, 422, 429, 451, 499, 500, 501, 502, 503, 504,
    520, 524, 529,
];
const REDIRECTS: [u16; 6] = [300, 301, 302, 303, 307, 308];

pub fn all() -> Vec<Fault> {
    let mut faults = Vec::new();
    for status in STATUSES {
        for (variant, kind, body) in bodies(status) {
            let headers = [("Content-Type", kind), ("X-Secret", SECRETS[0])];
            let script = answered(status, &headers, &body);
            let what = format!("status {status}");
            faults.extend(both("Statuses", &what, variant, move |_| script.clone()));
        }
    }
    faults.extend(budgets());
    for status in REDIRECTS {
        for target in ["/v1/elsewhere", "http://127.0.0.1:9/v1/elsewhere"] {
            let script = answered(status, &[("Location", target)], "");
            let variant = status.to_string();
            faults.extend(both("Statuses", "a redirect", &variant, move |_| script.clone()));
        }
    }
    for status in [204, 205, 304] {
        let script =
            Script::new().head(status, &[("X-Secret", SECRETS[0]), ("Content-Length", "0")]);
        let what = format!("status {status}, which has no body");
        faults.extend(both("Statuses", &what, "", move |_| script.clone()));
    }
    faults
}

/// Name, content type and text.
fn bodies(status: u16) -> Vec<(&'static str, &'static str, String)> {
    let (json, secrets, formed) = ("application/json", secrets(), formed_secrets());
    let openrouter = format!(
        r#"{{"error":{{"code":{status},"message":"{WORDS}","metadata":{{"provider_name":"{secrets}","raw":"{secrets}"}}}},"user_id":"{secrets}"}}"#
    );
    let litellm = format!(
        r#"{{"error":{{"message":"litellm.BadRequestError: {WORDS} {formed}\nReceived Model Group={secrets}","type":null,"param":null,"code":"{status}"}}}}"#
    );
    let no_code = format!(r#"{{"error":{{"message":"{WORDS} at {formed}"}}}}"#);
    let key = format!(r#"{{"error":{{"message":"Wrong API key {secrets}","code":"{status}"}}}}"#);
    let text = format!(r#"{{"error":"{WORDS}: {formed}"}}"#);
    let detail = format!(r#"{{"detail":"Not Found {secrets}"}}"#);
    let bare = format!(
        r#"{{"object":"error","message":"{WORDS} {formed}","type":"X","param":null,"code":{status}}}"#
    );
    let html = format!("<html><title>{status}</title>{secrets}</html>");
    vec![
        ("OpenRouter's JSON", json, openrouter),
        ("LiteLLM's JSON", json, litellm),
        ("JSON without a code", json, no_code),
        ("JSON about a key", json, key),
        ("JSON with a text as error", json, text),
        ("JSON of another form", json, detail),
        ("JSON without an envelope", json, bare),
        ("half of JSON", json, r#"{"error":{"mess"#.to_string()),
        ("HTML", "text/html", html),
        ("nothing", json, String::new()),
    ]
}

/// LiteLLM's key has spent its budget: under three statuses, by version.
fn budgets() -> Vec<Fault> {
    let body = format!(
        r#"{{"error":{{"message":"Budget has been exceeded! {}","type":"budget_exceeded","param":null,"code":"400"}}}}"#,
        secrets()
    );
    let faults = [400, 422, 429].map(|status| {
        let script = answered(status, &[("Content-Type", "application/json")], &body);
        let variant = status.to_string();
        both("Statuses", "LiteLLM's budget_exceeded", &variant, move |_| script.clone())
    });
    faults.into_iter().flatten().collect()
}

fn answered(status: u16, headers: &[(&str, &str)], body: &str) -> Script {
    let length = body.len().to_string();
    let mut headers = headers.to_vec();
    headers.extend([("Content-Length", length.as_str()), ("Retry-After", "7")]);
    Script::new().head(status, &headers).write(body)
}
