//! The pages at Stripe where people pay: who may ask for one, what it sells, and where it leads
//! back to.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use super::events::{deliver, event, now, session};
use super::{balance, setup};
use crate::app::{Setup, Store, TestApp, both_stores, eventually};
use crate::bad_input::assert_refused;
use crate::billing::{one, patient, with_stripe};
use crate::client::{Answered, Ask};
use crate::sinks::server::Fault;
use crate::sinks::stripe::Stripe;
use crate::supabase::server::AuthServer;
use crate::supabase::sign::{Key, claims};

both_stores!(
    a_member_tops_up,
    only_owners_are_sent_to_pay,
    stripe_in_trouble_is_a_502,
    slow_steps_of_stripe_are_a_502_together,
    a_key_of_another_request_is_a_409,
    whoever_asks_without_end_takes_no_turn_of_others,
);

pub const CHECKOUT: &str = "/v1/billing/checkout";
const PORTAL: &str = "/v1/billing/portal";
const BACK: &str = "https://app.example/billing";

pub fn with_pages(setup: Setup, stripe: &Stripe) -> Setup {
    let urls = format!("{BACK}, http://localhost:3000");
    with_stripe(setup, stripe).env("TOLLGATE_BILLING_RETURN_URL", &urls)
}

async fn ask(app: &TestApp, key: &str, path: &str, body: Value) -> Answered {
    app.ask(&Ask::post_json(path, body.to_string()).bearer(key)).await
}

/// A key of whoever runs the service, for the first account.
pub async fn owner(app: &TestApp) -> String {
    app.create_key("test", &["--role", "service"]).await
}

async fn a_member_tops_up(store: Store) {
    let stripe = Stripe::start(&[]).await;
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let setup = with_pages(setup(store), &stripe).env("SUPABASE_URL", server.url());
    // Paid in advance only: usage is nothing to Stripe.
    let app = setup.env("STRIPE_METERING", "off").start().await;
    let user = Uuid::new_v4();
    app.cli(&["member", "add", "--account", "test", "--user", &user.to_string()]).await;
    let token = key.token(&claims(&server.issuer(), user));

    let got = ask(&app, &token, CHECKOUT, json!({"amount_cents": 2_500})).await;
    let page = serde_json::from_str::<Value>(&got.ok()).expect("JSON");
    assert_eq!(page["url"], "https://checkout.stripe.com/c/pay/cs_test_0002");
    let customers = stripe.made("cus_");
    assert_eq!(customers.len(), 1);
    assert_eq!(customers[0].1["name"], "test");
    let sessions = stripe.made("cs_");
    let form = &sessions[0].1;
    let of = |name: &str| form[name].as_str();
    assert_eq!(of("customer"), customers[0].0);
    assert_eq!(of("line_items[0][price_data][unit_amount]"), "2500");
    assert_eq!((of("success_url"), of("cancel_url")), (BACK, BACK));
    assert_eq!(of("client_reference_id"), app.account);
    assert_eq!(of("metadata[tollgate_account_id]"), app.account);
    assert_eq!(of("metadata[tollgate_credit_nusd]"), "25000000000");

    // Paid, as Stripe says it of a session like this.
    let before = balance(&app).await;
    let mut paid = session("x", &app.account, 2_500);
    paid["id"] = page["id"].clone();
    paid["metadata"]["tollgate_credit_nusd"] = json!(of("metadata[tollgate_credit_nusd]"));
    deliver(&app, &event("checkout.session.completed", now(), &paid)).await;
    assert_eq!(balance(&app).await - before, 25_000_000_000);

    // The same customer is sent to the portal, and back to where it wants among what is named.
    let back = json!({"return_url": "http://localhost:3000/account?from=stripe"});
    let got = ask(&app, &token, PORTAL, back).await;
    assert!(got.ok().contains("https://billing.stripe.com/p/session/bps_"));
    let portals = stripe.made("bps_");
    assert_eq!(portals[0].1["customer"], customers[0].0);
    assert_eq!(portals[0].1["return_url"], "http://localhost:3000/account?from=stripe");
    ask(&app, &token, PORTAL, json!({})).await.ok();
    assert_eq!(stripe.made("bps_")[1].1["return_url"], BACK);

    // One page for each key of a client.
    let twice = Ask::post_json(CHECKOUT, json!({"amount_cents": 700}).to_string());
    let twice = twice.bearer(&token).header("Idempotency-Key", "click-1");
    let first = app.ask(&twice).await.ok();
    assert_eq!(app.ask(&twice).await.ok(), first);
    assert_eq!((stripe.made("cs_").len(), stripe.made("cus_").len()), (2, 1));
    one(&app, 10).await;
    app.records(1).await;
    assert_eq!(app.books.events().await.len(), 0);
    app.finish().await;
}

/// Calls of Stripe take turns: at five a second, sixty at once would be twelve seconds of them.
async fn whoever_asks_without_end_takes_no_turn_of_others(store: Store) {
    let stripe = Stripe::start(&[]).await;
    let setup = patient(with_pages(setup(store), &stripe)).env("STRIPE_CALLS_PER_SECOND", "5");
    let app = setup.env("STRIPE_METERING", "off").start().await;
    let greedy = owner(&app).await;
    app.create_account("other", &[]).await;
    let other = app.create_key("other", &["--role", "service"]).await;
    let amount = json!({"amount_cents": 500});
    let asked = (0..60).map(|_| ask(&app, &greedy, CHECKOUT, amount.clone()));
    let asked = join_all(asked);
    let others = ask(&app, &other, CHECKOUT, amount.clone());
    let (asked, others) = tokio::join!(asked, others);
    others.ok();
    let served = asked.iter().filter(|got| got.status == 200).count();
    assert!((1..30).contains(&served), "{served} of 60");
    for got in asked.iter().filter(|got| got.status != 200) {
        assert_refused(got, "again at once", 503, "overloaded", "");
    }
    app.finish().await;
}

async fn only_owners_are_sent_to_pay(store: Store) {
    let stripe = Stripe::start(&[]).await;
    let app = with_pages(setup(store), &stripe).start().await;
    let owner = owner(&app).await;
    let amount = json!({"amount_cents": 500});
    for path in [CHECKOUT, PORTAL] {
        let body = if path == CHECKOUT { amount.clone() } else { json!({}) };
        let got = ask(&app, &app.key, path, body.clone()).await;
        assert_refused(&got, "a plain key", 403, "insufficient_permissions", "");
        let got = app.ask(&Ask::post_json(path, body.to_string())).await;
        assert_refused(&got, "no key", 401, "", "");
    }
    let refusals = [
        (json!({}), ""),
        (json!({"amount_cents": 499}), "amount_cents"),
        (json!({"amount_cents": 100_001}), "amount_cents"),
        (json!({"amount_cents": -500}), "amount_cents"),
        (json!({"amount_cents": i64::MAX}), "amount_cents"),
        (json!({"amount_cents": 5.5}), "amount_cents"),
        (json!({"amount_cents": "500"}), "amount_cents"),
        (json!({"amount_cents": 500, "success_url": "https://evil.example/"}), "success_url"),
        (json!({"amount_cents": 500, "success_url": "http://app.example/"}), "success_url"),
        (json!({"amount_cents": 500, "cancel_url": "https://app.example@evil.x/"}), "cancel_url"),
        (json!({"amount_cents": 500, "cancel_url": "javascript:alert(1)"}), "cancel_url"),
        (json!({"amount_cents": 500, "account_id": "x"}), "account_id"),
    ];
    for (body, param) in refusals {
        let got = ask(&app, &owner, CHECKOUT, body.clone()).await;
        assert_refused(&got, &body.to_string(), 400, "", param);
    }
    let got = ask(&app, &owner, PORTAL, json!({"return_url": "//app.example/"})).await;
    assert_refused(&got, "another scheme", 400, "", "return_url");
    assert_eq!(stripe.calls(), 0, "Stripe was not bothered");

    let placed = json!({"amount_cents": 500,
        "success_url": "https://app.example/done?id={CHECKOUT_SESSION_ID}"});
    ask(&app, &owner, CHECKOUT, placed).await.ok();
    let sessions = stripe.made("cs_");
    assert!(sessions[0].1["success_url"].ends_with("?id={CHECKOUT_SESSION_ID}"));

    app.create_account("later", &["--postpaid"]).await;
    let later = app.create_key("later", &["--role", "service"]).await;
    let got = ask(&app, &later, CHECKOUT, amount).await;
    assert_refused(&got, "a postpaid account", 400, "", "");
    ask(&app, &later, PORTAL, json!({})).await.ok();
    app.finish().await;
}

/// Neither step takes too long, and both take longer than whoever asks is kept waiting.
async fn slow_steps_of_stripe_are_a_502_together(store: Store) {
    let stripe = Stripe::start(&[]).await;
    let setup = with_pages(setup(store), &stripe).env("STRIPE_CREATE_CUSTOMERS", "off");
    let setup = setup.env("TOLLGATE_EXPORT_LEASE_SECONDS", "60");
    let app = setup.env("TOLLGATE_EXPORT_SECONDS", "20").start().await;
    let owner = owner(&app).await;
    for (path, body) in [(CHECKOUT, json!({"amount_cents": 500})), (PORTAL, json!({}))] {
        let slow = [7, 10].map(|seconds| Fault::Paced(Duration::from_secs(seconds)));
        stripe.faults.queue([Fault::None].into_iter().chain(slow));
        app.books.tamper("UPDATE accounts SET stripe_customer_id = NULL").await;
        let got = ask(&app, &owner, path, body).await;
        assert_refused(&got, path, 502, "payment_provider_unavailable", "");
    }
    app.finish().await;
}

/// Stripe says 400, and would say so again.
async fn a_key_of_another_request_is_a_409(store: Store) {
    let stripe = Stripe::start(&[]).await;
    let app = with_pages(setup(store), &stripe).start().await;
    let owner = owner(&app).await;
    let click = |cents: i64| {
        let ask = Ask::post_json(CHECKOUT, json!({"amount_cents": cents}).to_string());
        ask.bearer(&owner).header("Idempotency-Key", "click-1")
    };
    let first = app.ask(&click(500)).await.ok();
    for _ in 0..2 {
        let got = app.ask(&click(700)).await;
        assert_refused(&got, "another amount", 409, "idempotency_key_reused", "");
        assert_eq!(got.header("x-should-retry"), Some("false"));
    }
    assert_eq!(app.ask(&click(500)).await.ok(), first);
    app.finish().await;
}

async fn stripe_in_trouble_is_a_502(store: Store) {
    let stripe = Stripe::start(&[]).await;
    let app = with_pages(setup(store), &stripe).start().await;
    let owner = owner(&app).await;
    let amount = json!({"amount_cents": 500});
    for fault in [Fault::CutBefore, Fault::Status(503, None), Fault::Status(429, Some(1))] {
        stripe.faults.queue([fault]);
        let got = ask(&app, &owner, CHECKOUT, amount.clone()).await;
        assert_refused(&got, "trouble", 502, "payment_provider_unavailable", "");
        assert!(!got.text().contains("127.0.0.1"), "{}", got.text());
    }
    // The customer was made, and nobody was told: it is the same one.
    stripe.faults.queue([Fault::None, Fault::CutAfter]);
    assert_eq!(ask(&app, &owner, CHECKOUT, amount.clone()).await.status, 502);
    ask(&app, &owner, CHECKOUT, amount.clone()).await.ok();
    assert_eq!(stripe.made("cus_").len(), 1);
    // One who was deleted at Stripe.
    app.cli(&["account", "update", "--account", "test", "--stripe-customer", "cus_gone"]).await;
    let got = ask(&app, &owner, PORTAL, json!({})).await;
    assert_refused(&got, "an unknown customer", 502, "payment_refused", "");
    let why = "No such customer: 'cus_gone'";
    eventually("the log says why", async || app.process.stderr().contains(why).then_some(())).await;
    app.finish().await;
}

#[tokio::test]
async fn without_stripe_there_are_no_pages() {
    let app = setup(Store::Sqlite).start().await;
    let owner = owner(&app).await;
    for (path, body) in [(CHECKOUT, json!({"amount_cents": 500})), (PORTAL, json!({}))] {
        let got = ask(&app, &owner, path, body).await;
        assert_refused(&got, path, 404, "not_configured", "");
    }
    for (name, bad) in [
        ("TOLLGATE_BILLING_RETURN_URL", "http://app.example"),
        ("TOLLGATE_BILLING_RETURN_URL", "app.example"),
        ("TOLLGATE_TOPUP_MIN_USD", "0.1"),
        ("TOLLGATE_TOPUP_MAX_USD", "1"),
        ("STRIPE_CREATE_CUSTOMERS", "maybe"),
    ] {
        let ended = app.try_cli_with(&["config"], name, bad).await;
        assert!(!ended.status.success() && ended.stderr.contains(name), "{name}={bad}: {ended:?}");
    }
    app.finish().await;
}
