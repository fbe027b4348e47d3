//! Stripe's side: events as it writes, signs and sends them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use serde_json::{Value, json};

use crate::app::{TestApp, address_of};
use crate::client::{Answered, Ask, Exchange};

pub const SECRET: &str = "whsec_tollgate_0451_of_this_endpoint";
pub const OLD_SECRET: &str = "whsec_tollgate_0451_that_is_rolled";
pub const PATH: &str = "/webhooks/stripe";

pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_secs()).expect("this century")
}

/// The hexadecimal of a `v1`, made from its parts one by one.
pub fn tag(secret: &str, at: i64, body: &[u8]) -> String {
    let mut context =
        hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()));
    context.update(at.to_string().as_bytes());
    context.update(b".");
    context.update(body);
    let hex = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16));
    context.sign().as_ref().iter().flat_map(hex).flatten().collect()
}

pub fn header(secret: &str, at: i64, body: &[u8]) -> String {
    format!("t={at},v1={}", tag(secret, at, body))
}

/// An event with an id of its own.
pub fn event(kind: &str, created: i64, object: &Value) -> Value {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = format!("evt_{:04}", NEXT.fetch_add(1, Ordering::SeqCst));
    json!({"id": id, "object": "event", "api_version": "2026-10-28.endive", "created": created,
        "type": kind, "livemode": false, "pending_webhooks": 1,
        "request": {"id": null, "idempotency_key": null}, "data": {"object": object}})
}

/// A top-up of an account, as our own sessions are when they are paid.
pub fn session(id: &str, account: &str, cents: i64) -> Value {
    json!({"id": format!("cs_{id}"), "object": "checkout.session", "mode": "payment",
        "status": "complete", "payment_status": "paid", "currency": "usd",
        "amount_subtotal": cents, "amount_total": cents, "total_details":
            {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "client_reference_id": account, "customer": "cus_test",
        "payment_intent": format!("pi_{id}"), "metadata": {"tollgate_account_id": account,
            "tollgate_credit_nusd": (cents * 10_000_000).to_string()}})
}

pub fn completed(id: &str, account: &str, cents: i64) -> Value {
    event("checkout.session.completed", now(), &session(id, account, cents))
}

pub fn refund(kind: &str, id: &str, of: &str, cents: i64, status: &str, created: i64) -> Value {
    let object = json!({"id": format!("re_{id}"), "object": "refund", "amount": cents,
        "currency": "usd", "charge": format!("ch_{of}"), "payment_intent": format!("pi_{of}"),
        "status": status, "metadata": {}});
    event(kind, created, &object)
}

/// A charge names the sum of its refunds.
pub fn charge_refunded(of: &str, cents: i64, created: i64) -> Value {
    let object = json!({"id": format!("ch_{of}"), "object": "charge", "amount_refunded": cents,
        "currency": "usd", "payment_intent": format!("pi_{of}"), "refunded": false});
    event("charge.refunded", created, &object)
}

pub fn dispute(kind: &str, of: &str, cents: i64, status: &str, created: i64) -> Value {
    let object = json!({"id": format!("dp_{of}"), "object": "dispute", "amount": cents,
        "currency": "usd", "charge": format!("ch_{of}"), "payment_intent": format!("pi_{of}"),
        "status": status, "reason": "fraudulent"});
    event(&format!("charge.dispute.{kind}"), created, &object)
}

pub fn subscription(kind: &str, id: &str, status: &str, lookup_key: &str, created: i64) -> Value {
    let object = json!({"id": format!("sub_{id}"), "object": "subscription",
        "customer": "cus_test", "status": status, "metadata": {}, "items": {"object": "list",
            "data": [{"id": "si_1", "price": {"id": "price_1", "lookup_key": lookup_key,
                "metadata": {}}}]}});
    event(&format!("customer.subscription.{kind}"), created, &object)
}

/// As Stripe posts it.
pub fn delivery(event: &Value) -> Ask {
    let body = event.to_string();
    signed(body.as_bytes(), &header(SECRET, now(), body.as_bytes()))
}

pub fn signed(body: &[u8], signature: &str) -> Ask {
    Ask::new("POST", PATH)
        .header("Content-Type", "application/json; charset=utf-8")
        .header("Stripe-Signature", signature)
        .header("User-Agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
        .body(body)
}

pub async fn send(app: &TestApp, event: &Value) -> Answered {
    app.ask(&delivery(event)).await
}

/// To another process.
pub async fn send_to(base_url: &str, event: &Value) -> Answered {
    Exchange::open(address_of(base_url), &delivery(event).bytes()).await.finish().await
}

/// Sends what has to be taken.
pub async fn deliver(app: &TestApp, event: &Value) {
    let got = send(app, event).await;
    assert_eq!((got.status, got.json()), (200, json!({"received": true})), "{event}");
}
