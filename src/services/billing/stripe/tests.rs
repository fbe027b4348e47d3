//! What each answer of Stripe means.

use super::*;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

const ID: &str = "tollgate-1";

fn judged(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Verdict {
    let named = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let answer = Answer {
        status: StatusCode::from_u16(status).unwrap(),
        headers: named.collect::<HeaderMap>(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    };
    verdict(&answer, ID, SystemTime::UNIX_EPOCH)
}

fn trouble(verdict: Verdict) -> Trouble {
    match verdict {
        Verdict::Later(trouble) => trouble,
        other => panic!("{other:?}"),
    }
}

fn error(kind: &str, code: &str, message: &str) -> String {
    format!(r#"{{"error":{{"type":"{kind}","code":"{code}","message":"{message}"}}}}"#)
}

#[test]
fn a_duplicate_is_a_delivery() {
    let body =
        error("invalid_request_error", "", "An event already exists with identifier tollgate-1.");
    assert_eq!(judged(400, &[("stripe-should-retry", "false")], &body), Verdict::Delivered);
    assert_eq!(judged(200, &[], "{}"), Verdict::Delivered);
    let other = error("invalid_request_error", "", "A meter already exists.");
    assert!(matches!(judged(400, &[], &other), Verdict::Rejected(_)));
}

#[test]
fn a_key_that_is_refused_parks_nothing() {
    for status in [401, 403] {
        assert!(trouble(judged(status, &[], "")).is_sinks, "{status}");
    }
}

#[test]
fn limits_are_waited_for() {
    let rate = trouble(judged(429, &[("retry-after", "3")], &error("", "rate_limit", "slow")));
    assert_eq!((rate.is_sinks, rate.after), (true, Some(Duration::from_secs(3))));
    assert!(!rate.is_answer, "the idempotency key stays good");
    let lock = trouble(judged(429, &[], &error("", "lock_timeout", "busy")));
    assert!(!lock.is_sinks && !lock.is_answer);
}

#[test]
fn a_failure_that_stripe_would_repeat_needs_another_key() {
    assert!(trouble(judged(500, &[], "")).is_answer);
    assert!(trouble(judged(400, &[], &error("idempotency_error", "", "differs"))).is_answer);
    assert!(!trouble(judged(409, &[], &error("", "idempotency_key_in_use", ""))).is_answer);
}

#[test]
fn what_stripe_has_not_said_parks_nothing() {
    for status in [302, 404, 405, 408, 424] {
        assert!(trouble(judged(status, &[], "<html>")).is_sinks, "{status}");
    }
    assert!(trouble(judged(400, &[], "a proxy's page")).is_sinks);
}

#[test]
fn what_stripe_never_takes_is_for_a_person() {
    let body = error("invalid_request_error", "resource_missing", "No such customer: 'cus_1'");
    let Verdict::Rejected(reason) = judged(400, &[], &body) else { panic!("not rejected") };
    assert_eq!(reason, "400 resource_missing No such customer: 'cus_1'");
    assert!(matches!(judged(400, &[("stripe-should-retry", "true")], &body), Verdict::Later(_)));
}
