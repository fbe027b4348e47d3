//! The console's files: what comes with them, and that they can be switched off. What they do in a
//! browser is tested with one (`tests/sdk/test_console.py`).

use crate::app::{Setup, Store, TestApp};
use crate::client::Ask;
use crate::source::{read, root};
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt::Write;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self' data:; form-action 'none'; frame-ancestors 'none'; \
    base-uri 'none'";

/// Every file of the folder, as the browser asks for it.
fn files() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["src/console", "src/console/vendor"] {
        let entries = std::fs::read_dir(root().join(folder)).expect("the console's folder");
        for entry in entries.map(|entry| entry.expect("an entry")) {
            if entry.file_type().expect("a type").is_file() {
                found.insert(entry.file_name().into_string().expect("a name"));
            }
        }
    }
    assert!(found.remove("index.html"), "{found:?}");
    found
}

#[tokio::test]
async fn the_files_come_with_a_strict_policy_and_are_cached() {
    let app = TestApp::start(Store::Sqlite).await;
    let paths = files().into_iter().map(|name| format!("/console/{name}"));
    for path in paths.chain(["/console".to_string()]) {
        let got = app.ask(&Ask::get(&path)).await;
        assert_eq!(got.status, 200, "{path} needs no key: {}", got.text());
        assert_eq!(got.header("content-security-policy"), Some(POLICY), "{path}");
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(got.header("referrer-policy"), Some("no-referrer"), "{path}");
        assert_eq!(got.header("cache-control"), Some("no-cache"), "{path}");
        assert_eq!(got.header("set-cookie"), None, "{path}");
        let kind = got.header("content-type").expect("a type");
        assert!(kind.ends_with("; charset=utf-8"), "{path}: {kind}");
        let etag = got.header("etag").expect("an etag").to_string();
        let again = app.ask(&Ask::get(&path).header("If-None-Match", &format!("W/{etag}"))).await;
        assert_eq!((again.status, again.text().as_str()), (304, ""), "{path}");
        assert_eq!(again.header("etag"), Some(etag.as_str()));
        let other = app.ask(&Ask::get(&path).header("If-None-Match", "\"old\"")).await;
        assert_eq!(other.status, 200, "{path}");
    }
    let config = app.ask(&Ask::get("/console/config.json")).await;
    assert_eq!(config.json(), json!({"supabase": null, "topup_cents": null}));
    for path in ["/console/nothing.js", "/console/..%2fcontrollers.rs", "/console/", "/console/a/b"]
    {
        let got = app.ask(&Ask::get(path)).await;
        assert_eq!((got.status, &got.json()["error"]["code"]), (404, &json!("unknown_url")));
    }
    assert_eq!(app.ask(&Ask::post_json("/console", "{}")).await.status, 405);
    app.finish().await;
}

#[tokio::test]
async fn only_the_auth_server_may_be_called_beside_this_one() {
    let setup = Setup::new(Store::Sqlite).env("SUPABASE_URL", "http://127.0.0.1:9/below");
    let app = setup.env("SUPABASE_ANON_KEY", "public").start().await;
    let got = app.ask(&Ask::get("/console")).await;
    let expected = POLICY.replace("connect-src 'self'", "connect-src 'self' http://127.0.0.1:9");
    assert_eq!(got.header("content-security-policy"), Some(expected.as_str()));
    let config = app.ask(&Ask::get("/console/config.json")).await.json();
    let url = "http://127.0.0.1:9/below/auth/v1";
    assert_eq!(config["supabase"], json!({"url": url, "anon_key": "public"}));
    app.finish().await;
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let app = Setup::new(Store::Sqlite).env("TOLLGATE_CONSOLE", "off").start().await;
    for path in ["/console", "/console/app.js", "/console/config.json"] {
        let got = app.ask(&Ask::get(path)).await;
        assert_eq!((got.status, &got.json()["error"]["code"]), (404, &json!("unknown_url")));
    }
    app.finish().await;
}

/// Nothing that the policy would refuse: found here, before a browser is needed.
#[test]
fn the_page_has_no_script_or_style_of_its_own() {
    let page = read("src/console/index.html");
    for inline in [" style=", " onclick=", "<style", "javascript:", "http://", "https://"] {
        assert!(!page.contains(inline), "{inline}");
    }
    for script in page.split("<script").skip(1) {
        assert!(script.contains("src=\"/console/"), "{script}");
    }
    let is_ours = |name: &&String| name.split_once('.').is_some_and(|(_, kind)| kind == "js");
    for name in files().iter().filter(is_ours) {
        let text = read(&format!("src/console/{name}"));
        for unsafe_way in ["innerHTML", "outerHTML", "insertAdjacent", "eval(", "localStorage"] {
            assert!(!text.contains(unsafe_way), "{name}: {unsafe_way}");
        }
        assert!(text.starts_with("// "), "{name} opens with its purpose");
        assert!(text.lines().count() < 500, "{name} is long");
        let wide = text.lines().find(|line| line.chars().count() > 100);
        assert_eq!(wide, None, "{name}");
    }
}

/// What was published, byte for byte.
#[test]
fn the_chart_library_is_the_one_that_is_noted() {
    let note = read("src/console/vendor/LICENSE.txt");
    let text = read("src/console/vendor/chart.umd.min.js");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let mut hex = String::new();
    for byte in digest.as_ref() {
        write!(hex, "{byte:02x}").expect("a text takes all");
    }
    assert!(note.contains(&hex), "{hex}");
}
