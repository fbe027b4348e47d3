//! Only Stripe is believed, and only for a short time.

use serde_json::json;

use super::events::{OLD_SECRET, PATH, SECRET, completed, deliver, header, now, signed, tag};
use super::{entered, setup};
use crate::app::{Store, TestApp, both_stores};
use crate::bad_input::assert_refused;
use crate::client::Ask;

both_stores!(a_forged_event_changes_nothing, a_replay_is_handled_once);

async fn a_forged_event_changes_nothing(store: Store) {
    let app = setup(store).start().await;
    let body = completed("a", &app.account, 1_000).to_string();
    let bytes = body.as_bytes();
    let (at, right) = (now(), tag(SECRET, now(), bytes));
    let good = header(SECRET, at, bytes);
    let zeros = "0".repeat(64);
    let altered = body.replace("\"cs_a\"", "\"cs_z\"");
    let padded = format!("{body} ");
    let cases: Vec<(&str, &[u8], String)> = vec![
        ("another secret", bytes, header("whsec_of_somebody_else_0451", at, bytes)),
        ("no secret", bytes, header("", at, bytes)),
        ("the secret without its prefix", bytes, header(&SECRET[6..], at, bytes)),
        ("too old", bytes, header(SECRET, at - 330, bytes)),
        ("from the future", bytes, header(SECRET, at + 330, bytes)),
        ("another time than signed", bytes, format!("t={},v1={right}", at - 1)),
        ("no time", bytes, format!("v1={right}")),
        ("a time in words", bytes, format!("t=now,v1={right}")),
        ("a time with a sign", bytes, format!("t=+{at},v1={right}")),
        ("two times", bytes, format!("t={at},t={},v1={right}", at - 1)),
        ("no signature", bytes, format!("t={at}")),
        ("only v0", bytes, format!("t={at},v0={right}")),
        ("a scheme of its own", bytes, format!("t={at},v1x={right}")),
        ("zeros", bytes, format!("t={at},v1={zeros}")),
        ("half a signature", bytes, format!("t={at},v1={}", &right[..32])),
        ("more than a signature", bytes, format!("t={at},v1={right}00")),
        ("no hexadecimal", bytes, format!("t={at},v1={}", "zz".repeat(32))),
        ("empty", bytes, String::new()),
        ("nonsense", bytes, "Bearer x".to_string()),
        ("an altered body", altered.as_bytes(), good.clone()),
        ("one byte more", padded.as_bytes(), good.clone()),
        ("a truncated body", &bytes[..bytes.len() - 1], good.clone()),
        ("no body", b"", good.clone()),
        ("a long header", bytes, format!("{good},{}", "v0=0,".repeat(1_000))),
        ("too many signatures", bytes, format!("t={at}{},v1={right}", ",v1=00".repeat(9))),
    ];
    assert!(cases.len() >= 15);
    for (what, body, signature) in &cases {
        let got = app.ask(&signed(body, signature)).await;
        if *what == "too many signatures" {
            // Those that cannot be signatures do not count.
            assert_eq!(got.status, 200, "{what}: {}", got.text());
            continue;
        }
        assert_refused(&got, what, 400, "invalid_signature", "");
        assert!(!got.text().contains(SECRET), "{what}");
    }
    let without = app.ask(&signed(bytes, "x").without("stripe-signature")).await;
    assert_refused(&without, "no header", 400, "invalid_signature", "");
    let twice = app.ask(&signed(bytes, &good).header("Stripe-Signature", &good)).await;
    assert_refused(&twice, "two headers", 400, "invalid_signature", "");
    bad_bodies(&app).await;
    assert_eq!(entered(&app, &app.account).await, [1_000], "the one that was right");
    app.finish().await;
}

/// Signed well, and no event all the same.
async fn bad_bodies(app: &TestApp) {
    let deep = "[".repeat(100_000);
    for (what, body) in [
        ("not UTF-8", &b"{\"id\":\"\xff\xfe\",\"type\":\"x\",\"created\":1}"[..]),
        ("not JSON", b"id=evt_1"),
        ("nothing", b""),
        ("an array", b"[]"),
        ("null", b"null"),
        ("no id", b"{\"type\":\"charge.refunded\",\"created\":1}"),
        ("a NUL in its id", b"{\"id\":\"evt\\u0000\",\"type\":\"x\",\"created\":1}"),
        ("no object", b"{\"id\":\"evt_1\",\"type\":\"charge.refunded\",\"created\":1}"),
        ("deep", deep.as_bytes()),
    ] {
        let got = app.ask(&signed(body, &header(SECRET, now(), body))).await;
        assert_eq!(got.status, 400, "{what}: {}", got.text());
        assert!(got.json()["error"]["message"].is_string(), "{what}");
    }
    let huge = format!("{{\"id\":\"{}\"}}", "x".repeat(1 << 20));
    let huge = signed(huge.as_bytes(), &header(SECRET, now(), huge.as_bytes()));
    let got = app.ask(&huge).await;
    assert_refused(&got, "huge", 413, "request_too_large", "");
    let get = app.ask(&Ask::get(PATH)).await;
    assert_refused(&get, "a GET", 405, "method_not_allowed", "");
}

async fn a_replay_is_handled_once(store: Store) {
    let app = setup(store).start().await;
    let event = completed("a", &app.account, 1_000);
    let body = event.to_string();
    let bytes = body.as_bytes();
    let (at, zeros) = (now(), "0".repeat(64));
    // Of each secret, among others, and a little late.
    for signature in [
        header(OLD_SECRET, at, bytes),
        format!("t={at},v1={zeros},v1={},v0={zeros}", tag(SECRET, at, bytes)),
        format!("v1={}, t={at}", tag(SECRET, at, bytes).to_uppercase()),
        header(SECRET, at - 200, bytes),
        header(SECRET, at, bytes),
        header(SECRET, at, bytes),
    ] {
        let got = app.ask(&signed(bytes, &signature)).await;
        assert_eq!((got.status, got.json()), (200, json!({"received": true})), "{signature}");
    }
    assert_eq!(entered(&app, &app.account).await, [1_000]);
    deliver(&app, &event).await;
    assert_eq!(entered(&app, &app.account).await, [1_000]);
    app.finish().await;
}

#[tokio::test]
async fn without_a_secret_nothing_is_taken() {
    let app = TestApp::start(Store::Sqlite).await;
    let got = super::send(&app, &completed("a", &app.account, 1_000)).await;
    assert_refused(&got, "no secret", 404, "not_configured", "");
    let forged = completed("a", &app.account, 1_000).to_string();
    let forged = signed(forged.as_bytes(), &header("", now(), forged.as_bytes()));
    assert_eq!(app.ask(&forged).await.status, 404);
    for bad in ["sk_test_1", "whsec_1,x", "x"] {
        let ended = app.try_cli_with(&["config"], "STRIPE_WEBHOOK_SECRET", bad).await;
        assert!(!ended.status.success() && ended.stderr.contains("STRIPE_WEBHOOK_SECRET"));
    }
    let shown = app.try_cli_with(&["config"], "STRIPE_WEBHOOK_SECRET", SECRET).await;
    assert!(shown.status.success() && !shown.stdout.contains(SECRET), "{shown:?}");
    app.finish().await;
}
