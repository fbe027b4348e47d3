//! What is no form: a refusal that names the member at fault, and nothing changed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Admin, text};
use crate::app::{Setup, Store, TestApp, both_stores};
use crate::bad_input::assert_refused;
use crate::client::Ask;
use crate::source::read;

both_stores!(forms_that_do_not_fit_are_refused, what_is_no_object_is_refused);

/// The forms, and where they are sent.
const FORMS: [(&str, &str, &str); 8] = [
    ("NewAccount", "POST", "/accounts"),
    ("AccountPatch", "PATCH", "/accounts/A"),
    ("NewMember", "POST", "/accounts/A/members"),
    ("NewKey", "POST", "/accounts/A/keys"),
    ("KeyPatch", "PATCH", "/keys/K"),
    ("Rotation", "POST", "/keys/K/rotate"),
    ("NewCredit", "POST", "/accounts/A/credits"),
    ("NewPriceTable", "PUT", "/price-table"),
];

/// The path, the body, and the member that the refusal names.
type Case = (&'static str, Value, &'static str);

const DAYS_90_AND_A_SECOND: u64 = 90 * 86_400 + 1;

fn new_accounts() -> Vec<Case> {
    let path = "POST /accounts";
    vec![
        (path, json!({"name": ""}), "name"),
        (path, json!({"name": " a"}), "name"),
        (path, json!({"name": "a\u{0}b"}), "name"),
        (path, json!({"name": "x".repeat(201)}), "name"),
        (path, json!({"name": 5}), "name"),
        (path, json!({"name": "a", "kind": "free"}), "kind"),
        (path, json!({"name": "a", "plan": "nowhere"}), "plan"),
        (path, json!({"name": "a", "credit_nusd": -1}), "credit_nusd"),
        (path, json!({"name": "a", "credit_nusd": 1.5}), "credit_nusd"),
        (path, json!({"name": "a", "credit_nusd": i64::MAX}), "credit_nusd"),
        (path, json!({"name": "a", "credit_nusd": 1e300}), "credit_nusd"),
        (path, json!({"name": "a", "credit_nusd": "5"}), "credit_nusd"),
        (path, json!({"name": "a", "kind": "postpaid", "limit_nusd": -1}), "limit_nusd"),
        // It would bind nobody.
        (path, json!({"name": "a", "kind": "prepaid", "limit_nusd": 5}), "limit_nusd"),
        (path, json!({"name": "a", "stripe_customer_id": "a\u{0}"}), "stripe_customer_id"),
    ]
}

fn changed_accounts() -> Vec<Case> {
    let path = "PATCH /accounts/A";
    vec![
        (path, json!({"name": null}), "name"),
        (path, json!({"kind": null}), "kind"),
        (path, json!({"status": null}), "status"),
        (path, json!({"status": "gone"}), "status"),
        (path, json!({"plan": "nowhere"}), "plan"),
        (path, json!({"limit_nusd": 5}), "limit_nusd"),
        (path, json!({"kind": "postpaid", "limit_nusd": i64::MAX}), "limit_nusd"),
        (path, json!({"requests_per_minute": 0}), "requests_per_minute"),
        (path, json!({"tokens_per_minute": -5}), "tokens_per_minute"),
        (path, json!({"concurrent_requests": "many"}), "concurrent_requests"),
        (path, json!({"stripe_customer_id": ""}), "stripe_customer_id"),
    ]
}

fn keys() -> Vec<Case> {
    let (new, change) = ("POST /accounts/A/keys", "PATCH /keys/K");
    vec![
        (new, json!({"name": "a\nb"}), "name"),
        (new, json!({"name": "k", "role": "king"}), "role"),
        (new, json!({"name": "k", "models": ""}), "models"),
        (new, json!({"name": "k", "models": "a,,b"}), "models"),
        (new, json!({"name": "k", "models": "a*b"}), "models"),
        (new, json!({"name": "k", "models": "a\u{0}"}), "models"),
        (new, json!({"name": "k", "models": "x".repeat(5_000)}), "models"),
        (new, json!({"name": "k", "models": ["a"]}), "models"),
        (new, json!({"name": "k", "expires_at": "tomorrow"}), "expires_at"),
        (new, json!({"name": "k", "expires_at": "2020-01-01T00:00:00Z"}), "expires_at"),
        // Their texts in UTC would have no year, or five digits of one.
        (new, json!({"name": "k", "expires_at": "0000-01-01T00:00:00Z"}), "expires_at"),
        (new, json!({"name": "k", "expires_at": "9999-12-31T23:59:59-23:59"}), "expires_at"),
        (new, json!({"name": "k", "day_limit_nusd": -1}), "day_limit_nusd"),
        (new, json!({"name": "k", "total_limit_nusd": i64::MAX}), "total_limit_nusd"),
        (change, json!({"name": null}), "name"),
        (change, json!({"week_limit_nusd": -1}), "week_limit_nusd"),
        (change, json!({"month_limit_nusd": 0.5}), "month_limit_nusd"),
        (change, json!({"expires_at": "0001-01-01T00:00:00+01:00"}), "expires_at"),
        (change, json!({"concurrent_requests": 0}), "concurrent_requests"),
        ("POST /keys/K/rotate", json!({"overlap_seconds": -1}), "overlap_seconds"),
        (
            "POST /keys/K/rotate",
            json!({"overlap_seconds": DAYS_90_AND_A_SECOND}),
            "overlap_seconds",
        ),
        ("POST /keys/K/rotate", json!({"overlap_seconds": u64::MAX}), "overlap_seconds"),
    ]
}

fn the_rest() -> Vec<Case> {
    let credits = "POST /accounts/A/credits";
    let credit = |member: &str, value: Value| {
        let mut body = json!({"amount_nusd": 5, "reason": "r"});
        body[member] = value;
        body
    };
    vec![
        (credits, credit("amount_nusd", json!(0)), "amount_nusd"),
        (credits, credit("amount_nusd", json!(-5)), "amount_nusd"),
        (credits, credit("amount_nusd", json!(i64::MAX)), "amount_nusd"),
        (credits, json!({"amount_nusd": 0, "is_correction": true, "reason": "r"}), "amount_nusd"),
        (
            credits,
            json!({"amount_nusd": i64::MIN, "is_correction": true, "reason": "r"}),
            "amount_nusd",
        ),
        (credits, credit("reason", json!(" ")), "reason"),
        (credits, credit("reason", json!("a\u{0}")), "reason"),
        (credits, credit("reason", json!("x".repeat(501))), "reason"),
        (credits, credit("reference", json!("")), "reference"),
        (credits, credit("reference", json!("a\u{0}")), "reference"),
        (credits, credit("reference", json!("x".repeat(256))), "reference"),
        (credits, credit("is_correction", json!("yes")), "is_correction"),
        ("POST /accounts/A/members", json!({"user_id": "me"}), "user_id"),
        ("POST /accounts/A/members", json!({"user_id": null}), "user_id"),
        ("PUT /price-table", json!({"text": 5}), "text"),
        ("PUT /price-table", json!({"text": "[[price]]"}), "text"),
    ]
}

/// Members that are unknown, and those that are missing, which the message alone names.
fn members() -> Vec<Case> {
    vec![
        ("POST /accounts", json!({"name": "a", "balance_nusd": 5}), "balance_nusd"),
        ("PATCH /accounts/A", json!({"balance_nusd": 5}), "balance_nusd"),
        ("POST /accounts/A/keys", json!({"name": "k", "secret_hash": "x"}), "secret_hash"),
        ("PATCH /keys/K", json!({"role": "service"}), "role"),
        ("PATCH /keys/K", json!({"revoked_at": null}), "revoked_at"),
        ("PATCH /keys/K", json!({"account_id": "x"}), "account_id"),
        ("POST /keys/K/rotate", json!({"overlap": 5}), "overlap"),
        ("POST /accounts", json!({}), "name"),
        ("POST /accounts/A/credits", json!({"amount_nusd": 5}), "reason"),
        ("POST /accounts/A/members", json!({}), "user_id"),
        ("PUT /price-table", json!({}), "text"),
    ]
}

async fn forms_that_do_not_fit_are_refused(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    let (key, _) = admin.create_key(&app.account, json!({"name": "k"})).await;
    let before = admin.audit().await;
    let send = async |case: &str, body: &Value| {
        let (method, path) = case.split_once(' ').expect("a method and a path");
        let path = path.replace("/A", &format!("/{}", app.account));
        let path = path.replace("/K", &format!("/{}", text(&key["id"])));
        admin.send(method, &path, Some(body)).await
    };
    for (case, body, param) in [new_accounts(), changed_accounts(), keys(), the_rest()].concat() {
        let got = send(case, &body).await;
        let start: String = body.to_string().chars().take(80).collect();
        assert_refused(&got, &format!("{case} {start}"), 400, "", param);
        let message = text(&got.json()["error"]["message"]);
        assert!(message.contains(param), "{case} {start}: {message}");
    }
    for (case, body, named) in members() {
        let got = send(case, &body).await;
        let message = text(&got.json()["error"]["message"]);
        let param = if message.contains("missing") { "" } else { named };
        assert_refused(&got, &format!("{case} {body}"), 400, "", param);
        assert!(message.contains(&format!("`{named}`")), "{case} {body}: {message}");
    }
    assert_eq!(admin.audit().await, before, "what is refused changes nothing");
    app.assert_untouched().await;
    app.finish().await;
}

async fn what_is_no_object_is_refused(store: Store) {
    let app = Setup::new(store).env("TOLLGATE_BODY_BYTES_MAX", "100000").start().await;
    let admin = Admin::of(&app).await;
    let before = admin.audit().await;
    let path = format!("/admin/v1/accounts/{}", app.account);
    let patch = |body: &str| {
        let ask = Ask::new("PATCH", &path).bearer(&admin.key);
        ask.header("Content-Type", "application/json").body(body)
    };
    let deep = "[".repeat(90_000);
    let doubled = r#"{"name":"a","name":"b"}"#;
    for body in ["", "null", "5", "\"name\"", r#"["renamed"]"#, "{", "{}x", &deep, doubled] {
        let got = app.ask(&patch(body)).await;
        let start: String = body.chars().take(40).collect();
        assert_eq!(got.status, 400, "{start}: {}", got.text());
        assert_eq!(got.json()["error"]["code"], json!(null), "{start}");
    }
    let long = json!({"name": "x".repeat(100_001)}).to_string();
    assert_refused(&app.ask(&patch(&long)).await, "long", 413, "request_too_large", "");
    let plain = patch("{}").without("content-type").header("Content-Type", "text/plain");
    assert_refused(&app.ask(&plain).await, "plain", 415, "unsupported_media_type", "");
    for (method, path, allow) in [
        ("DELETE", "/admin/v1/accounts", "GET,HEAD,POST"),
        ("POST", path.as_str(), "GET,HEAD,PATCH"),
        ("GET", "/admin/v1/keys/x/rotate", "POST"),
        ("PATCH", "/admin/v1/audit", "GET,HEAD"),
        ("DELETE", "/admin/v1/price-table", "GET,HEAD,PUT"),
    ] {
        let got = app.ask(&Ask::new(method, path).bearer(&admin.key)).await;
        assert_refused(&got, path, 405, "method_not_allowed", "");
        assert_eq!(got.header("allow"), Some(allow), "{method} {path}");
    }
    let unknown = app.ask(&Ask::get("/admin/v1/nothing").bearer(&admin.key)).await;
    assert_refused(&unknown, "no such path", 404, "unknown_url", "");
    assert_eq!(admin.audit().await, before, "what is refused changes nothing");
    app.finish().await;
}

/// The server names the members that it takes, and those are the document's; null is one of their
/// values where the document says so, and nowhere else.
#[tokio::test]
async fn the_forms_are_those_of_the_document() {
    let app = TestApp::start(Store::Sqlite).await;
    let admin = Admin::of(&app).await;
    let before = admin.audit().await;
    let document: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(&read("openapi.yaml")).expect("openapi.yaml is YAML");
    for (form, method, path) in FORMS {
        let path = path.replace("/A", &format!("/{}", app.account)).replace("/K", "/no-key");
        let members = &document["components"]["schemas"][form]["properties"];
        let members = members.as_mapping().expect("a form has members");
        let documented: BTreeSet<&str> =
            members.keys().map(|name| name.as_str().expect("a name")).collect();
        let got = admin.send(method, &path, Some(&json!({"zz_none": 1}))).await;
        let message = text(&got.json()["error"]["message"]);
        let known = message.split_once("expected ").expect("the members that there are").1;
        let taken: BTreeSet<&str> = known.split('`').skip(1).step_by(2).collect();
        assert_eq!(documented, taken, "{form}");
        for (name, schema) in members {
            let name = name.as_str().expect("a name");
            let types = schema["type"].as_sequence();
            let has_null = types.is_some_and(|types| types.iter().any(|it| it == "null"));
            let got = admin.send(method, &path, Some(&json!({name: null, "zz_none": 1}))).await;
            // One fault is told, the first.
            let param = if has_null { "zz_none" } else { name };
            assert_refused(&got, &format!("{form}: {name} is null"), 400, "", param);
        }
    }
    assert_eq!(admin.audit().await, before, "what is refused changes nothing");
    app.finish().await;
}
