//! What events say.

use super::*;
use serde_json::{Value, json};

const ACCOUNT: &str = "01930000-0000-7000-8000-000000000001";

fn told(kind: &str, object: &Value) -> Result<Told, Error> {
    let body = json!({"id": "evt_1", "object": "event", "type": kind, "created": 1_790_000_000,
        "livemode": false, "data": {"object": object}});
    Event::read(body.to_string().as_bytes())?.told()
}

fn session(changes: &Value) -> Result<Told, Error> {
    let mut object = json!({"id": "cs_1", "object": "checkout.session", "mode": "payment",
        "payment_status": "paid", "currency": "usd", "amount_subtotal": 1_000,
        "amount_total": 1_190, "total_details": {"amount_tax": 190, "amount_shipping": null},
        "payment_intent": "pi_1", "client_reference_id": ACCOUNT,
        "metadata": {ACCOUNT_KEY: ACCOUNT, CREDIT_KEY: "10000000000"}});
    for (name, value) in changes.as_object().unwrap() {
        object[name] = value.clone();
    }
    told("checkout.session.completed", &object)
}

fn paid(changes: &Value) -> Paid {
    match session(changes).unwrap() {
        Told::Paid(paid) => paid,
        other => panic!("{changes}: {other:?}"),
    }
}

#[test]
fn a_session_credits_what_was_bought() {
    let usual = paid(&json!({}));
    assert_eq!(usual.account_id, ACCOUNT.parse().ok());
    assert_eq!((usual.cents, usual.credit), (1_190, Some(NanoUsd(10_000_000_000))));
    assert_eq!(usual.payment_intent, "pi_1");
    let expanded = paid(&json!({"payment_intent": {"id": "pi_2", "object": "payment_intent"}}));
    assert_eq!(expanded.payment_intent, "pi_2");
    let included = paid(&json!({"amount_total": 1_000}));
    assert_eq!(included.credit, Some(NanoUsd(10_000_000_000)), "taxes within the price");

    let by_link = json!({"metadata": {TOPUP_KEY: "yes"}, "client_reference_id": ACCOUNT});
    assert_eq!(paid(&by_link).credit, Some(NanoUsd(10_000_000_000)), "without taxes");
    assert!(paid(&by_link).is_marked);
    let of_nobody = json!({"metadata": {TOPUP_KEY: "yes"}, "client_reference_id": null});
    assert_eq!(paid(&of_nobody).account_id, None, "not passed over");
    let shirt = json!({"metadata": {}, "client_reference_id": ACCOUNT});
    assert!(!paid(&shirt).is_marked, "by whoever opened the link");
    let plain = json!({"metadata": null, "total_details": null, "client_reference_id": ACCOUNT});
    assert_eq!(paid(&plain).credit, Some(NanoUsd(11_900_000_000)));

    for amount in ["11900000001", "0", "-1", "1e10", ""] {
        let odd = json!({"metadata": {ACCOUNT_KEY: ACCOUNT, CREDIT_KEY: amount}});
        assert_eq!(paid(&odd).credit, None, "{amount}");
    }
    assert_eq!(paid(&json!({"metadata": {ACCOUNT_KEY: "me"}})).account_id, None);
}

#[test]
fn what_is_not_paid_or_not_ours_says_nothing() {
    for other in [
        json!({"payment_status": "unpaid"}),
        json!({"payment_status": "no_payment_required", "amount_total": 0}),
        json!({"mode": "subscription"}),
        json!({"mode": "setup", "amount_total": null, "currency": null}),
        json!({"amount_total": 0}),
        json!({"metadata": {}, "client_reference_id": null}),
    ] {
        assert_eq!(session(&other).unwrap(), Told::Nothing, "{other}");
    }
    assert_eq!(told("invoice.paid", &json!({"id": 7})).unwrap(), Told::Nothing);
}

#[test]
fn what_does_not_read_is_an_error() {
    for odd in [
        json!({"amount_total": "1190"}),
        json!({"amount_total": -1}),
        json!({"amount_total": 11.9}),
        json!({"id": ""}),
        json!({"id": "cs\u{0}"}),
        json!({"payment_intent": 7}),
        json!({"mode": null}),
        json!({"metadata": {ACCOUNT_KEY: 7}}),
    ] {
        assert!(session(&odd).is_err(), "{odd}");
    }
    for body in ["", "{}", "[]", "null", "{\"id\":\"evt_1\"}", "{\"id\":\"evt_1\",\"type\":\"x\"}"]
    {
        assert!(Event::read(body.as_bytes()).is_err(), "{body}");
    }
    let event = br#"{"id":"evt_1","type":"charge.refunded","created":1,"data":null}"#;
    assert!(Event::read(event).unwrap().told().is_err(), "no object");
    assert!(Event::read(b"{\"id\":\"\xff\",\"type\":\"x\",\"created\":1}").is_err());
}

fn state(kind: &str, object: &Value) -> (ReversalKind, i64, ReversalState) {
    match told(kind, object).unwrap() {
        Told::Reversed { reversal, .. } => (reversal.kind, reversal.amount_cents, reversal.state),
        other => panic!("{kind} {object}: {other:?}"),
    }
}

#[test]
fn refunds_and_disputes_take_and_return() {
    use ReversalKind as Is;
    use ReversalState::{Returned, Taken};
    let charge = json!({"id": "ch_1", "amount": 1_000, "amount_refunded": 300, "currency": "usd",
        "payment_intent": "pi_1", "refunded": false});
    assert_eq!(state("charge.refunded", &charge), (Is::Charge, 300, Taken));
    for (status, expected) in [
        (json!("succeeded"), Taken),
        (json!("pending"), Taken),
        (Value::Null, Taken),
        (json!("failed"), Returned),
        (json!("canceled"), Returned),
    ] {
        let refund = json!({"id": "re_1", "amount": 300, "currency": "usd", "charge": "ch_1",
            "payment_intent": "pi_1", "status": status});
        for kind in ["refund.created", "refund.updated", "refund.failed", "charge.refund.updated"] {
            assert_eq!(state(kind, &refund), (Is::Refund, 300, expected), "{kind} {status}");
        }
    }
    for (kind, status, expected) in [
        ("created", "needs_response", Taken),
        ("created", "warning_needs_response", Returned),
        ("updated", "under_review", Taken),
        ("funds_withdrawn", "needs_response", Taken),
        ("funds_reinstated", "under_review", Returned),
        ("closed", "won", Returned),
        ("closed", "lost", Taken),
        ("closed", "warning_closed", Returned),
        ("closed", "prevented", Returned),
    ] {
        let dispute = json!({"id": "dp_1", "amount": 1_000, "currency": "usd",
            "payment_intent": "pi_1", "status": status});
        let kind = format!("charge.dispute.{kind}");
        assert_eq!(state(&kind, &dispute), (Is::Dispute, 1_000, expected), "{kind} {status}");
    }
    let foreign = json!({"id": "re_1", "amount": 1, "currency": "usd", "payment_intent": null});
    assert_eq!(told("refund.created", &foreign).unwrap(), Told::Nothing);
}

#[test]
fn a_subscription_names_plans() {
    let object = json!({"id": "sub_1", "customer": {"id": "cus_1"}, "status": "active",
        "metadata": {PLAN_KEY: "gold"}, "items": {"data": [
            {"price": {"lookup_key": "team_monthly", "metadata": {PLAN_KEY: "team"}}},
            {"price": {"lookup_key": null, "metadata": {}}}]}});
    let Told::Subscribed(seen) = told("customer.subscription.updated", &object).unwrap() else {
        panic!("not a subscription")
    };
    assert_eq!(seen.named_plans, ["gold", "team"]);
    assert_eq!(seen.lookup_keys, ["team_monthly"]);
    assert_eq!((seen.customer.as_str(), seen.account), ("cus_1", None));
}

#[test]
fn a_thin_event_has_a_time_in_words_and_may_have_its_data() {
    let thin = json!({"id": "evt_1", "object": "v2.core.event", "created": "2026-11-24T12:00:00Z",
        "type": "v1.billing.meter.error_report_triggered", "livemode": true,
        "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"}});
    let text = thin.to_string();
    let event = Event::read(text.as_bytes()).unwrap();
    assert_eq!(event.created, Timestamp::parse("2026-11-24T12:00:00Z").unwrap());
    assert_eq!(event.told().unwrap(), Told::Rejected(None));
    let mut whole = thin;
    whole["data"] = json!({"developer_message_summary": "There is 1 error", "reason": {
        "error_count": 1, "error_types": [{"code": "meter_event_customer_not_found",
        "error_count": 1, "sample_errors": [{"error_message": "no customer",
        "request": {"identifier": "tollgate-1"}}]}]}});
    let text = whole.to_string();
    let Told::Rejected(Some(report)) = Event::read(text.as_bytes()).unwrap().told().unwrap() else {
        panic!("no report")
    };
    assert_eq!(report.reason.error_types[0].sample_errors[0].request.identifier, "tollgate-1");
}
