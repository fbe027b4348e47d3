//! What Stripe says, and what becomes of it: each payment is credited once, whatever is sent, how
//! often and in which order; what is taken back is taken once; and people are sent to Stripe.

use serde_json::{Value, json};

use crate::app::{Setup, Store, TestApp, both_stores, question, streamed};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use events::{
    OLD_SECRET, SECRET, charge_refunded, completed, deliver, dispute, event, now, refund, send,
    session, subscription,
};

mod customers;
pub mod events;
mod failures;
mod pages;
pub mod rejected;
mod signatures;
mod subscriptions;

both_stores!(
    a_payment_is_credited_once,
    refunds_are_taken_once_each,
    a_refund_may_come_before_its_payment,
    a_dispute_takes_and_gives_back,
    a_debt_stops_spending_until_it_is_paid,
    what_cannot_be_credited_is_kept_for_a_person,
    a_subscription_gives_and_takes_a_plan,
    a_postpaid_account_stops_with_its_subscription,
    a_subscription_that_has_begun_is_not_incomplete_again,
    a_link_credits_where_the_operator_says_so,
    a_link_for_no_account_is_kept_for_a_person,
    events_of_no_interest_are_taken_and_forgotten,
);

pub fn setup(store: Store) -> Setup {
    Setup::new(store).env("STRIPE_WEBHOOK_SECRET", &format!("{SECRET}, {OLD_SECRET}"))
}

const CENT: i64 = 10_000_000;
/// Every test account starts with this.
const OPENING: i64 = 1_000 * CENT;

/// What Stripe's events have made of an account's ledger: amounts in cents, oldest first.
async fn entered(app: &TestApp, account: &str) -> Vec<i64> {
    let query = format!(
        "SELECT amount_nusd FROM ledger_entries WHERE account_id = '{account}' \
         AND reference LIKE 'stripe:%' ORDER BY seq"
    );
    let rows = app.books.rows(&query).await;
    rows.iter().map(|row| row["amount_nusd"].as_i64().expect("an amount") / CENT).collect()
}

async fn balance(app: &TestApp) -> i64 {
    let accounts = app.books.accounts().await;
    let own = accounts.iter().find(|account| account.id == app.account);
    own.expect("the first account").balance_nusd
}

async fn account_row(app: &TestApp) -> Value {
    let query = format!("SELECT status, plan FROM accounts WHERE id = '{}'", app.account);
    app.books.rows(&query).await.remove(0)
}

/// Why events were not handled, by their objects.
async fn refused(app: &TestApp) -> Vec<(String, String)> {
    let query = "SELECT object, reason FROM payment_events WHERE state = 'refused' ORDER BY object";
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let rows = app.books.rows(query).await;
    rows.iter().map(|row| (text(&row["object"]), text(&row["reason"]))).collect()
}

async fn a_payment_is_credited_once(store: Store) {
    let app = setup(store).start().await;
    let account = app.account.clone();
    let mut waiting = session("a", &account, 2_500);
    waiting["payment_status"] = json!("unpaid");
    deliver(&app, &event("checkout.session.completed", now(), &waiting)).await;
    assert_eq!(entered(&app, &account).await, [0_i64; 0], "the money is on its way");

    let paid = session("a", &account, 2_500);
    let first = event("checkout.session.async_payment_succeeded", now(), &paid);
    for _ in 0..3 {
        deliver(&app, &first).await;
    }
    // Another event of the same session.
    deliver(&app, &event("checkout.session.completed", now(), &paid)).await;
    assert_eq!(entered(&app, &account).await, [2_500]);
    deliver(&app, &completed("b", &account, 999)).await;
    assert_eq!(entered(&app, &account).await, [2_500, 999]);
    assert_eq!(balance(&app).await, OPENING + 3_499 * CENT);
    let credits = app.get("/v1/credits").await.json();
    assert_eq!(credits["data"], json!({"total_credits": 44.99, "total_usage": 0}));
    let audit = app.list(&["audit", "list"]).await;
    let by_stripe = audit.iter().filter(|row| row["actor"] == "stripe").count();
    assert_eq!(by_stripe, 2, "{audit:?}");
    app.finish().await;
}

async fn refunds_are_taken_once_each(store: Store) {
    let app = setup(store).start().await;
    let (account, at) = (app.account.clone(), now());
    deliver(&app, &completed("a", &account, 2_000)).await;
    // One refund, told of in every way that Stripe has.
    deliver(&app, &refund("refund.created", "1", "a", 300, "pending", at)).await;
    deliver(&app, &charge_refunded("a", 300, at)).await;
    deliver(&app, &refund("refund.updated", "1", "a", 300, "succeeded", at + 1)).await;
    deliver(&app, &refund("charge.refund.updated", "1", "a", 300, "succeeded", at + 1)).await;
    assert_eq!(entered(&app, &account).await, [2_000, -300]);
    // The second one; then news of the first, late.
    deliver(&app, &charge_refunded("a", 1_000, at + 2)).await;
    deliver(&app, &charge_refunded("a", 300, at)).await;
    deliver(&app, &refund("refund.created", "2", "a", 700, "succeeded", at + 2)).await;
    assert_eq!(entered(&app, &account).await, [2_000, -300, -700]);
    // It fails days later, and is tried again.
    deliver(&app, &refund("refund.failed", "2", "a", 700, "failed", at + 9)).await;
    deliver(&app, &refund("refund.updated", "2", "a", 700, "succeeded", at + 3)).await;
    assert_eq!(entered(&app, &account).await, [2_000, -300, -700, 700]);
    deliver(&app, &charge_refunded("a", 2_000, at + 10)).await;
    assert_eq!(entered(&app, &account).await, [2_000, -300, -700, 700, -1_700]);
    assert_eq!(balance(&app).await, OPENING);
    // What was given back was not used.
    let credits = app.get("/v1/credits").await.json();
    assert_eq!(credits["data"], json!({"total_credits": 10, "total_usage": 0}));
    let costs = app.get(&format!("/v1/organization/costs?start_time={}", at - 3_600)).await.ok();
    assert!(!costs.contains("ledger correction"), "{costs}");
    let verified = app.cli(&["verify"]).await;
    app.books.tamper("UPDATE payments SET kept_nusd = kept_nusd + 1").await;
    let found = app.try_cli(&["verify"]).await;
    assert!(!found.status.success(), "{verified} {found:?}");
    assert!(format!("{found:?}").contains("payment cs_a: keeps"), "{found:?}");
    app.books.tamper("UPDATE payments SET kept_nusd = kept_nusd - 1").await;
    app.finish().await;
}

async fn a_refund_may_come_before_its_payment(store: Store) {
    let app = setup(store).start().await;
    let account = app.account.clone();
    deliver(&app, &charge_refunded("a", 400, now())).await;
    deliver(&app, &dispute("created", "b", 1_000, "needs_response", now())).await;
    assert_eq!(entered(&app, &account).await, [0_i64; 0]);
    // With a tax of 19 %, of which a part goes back too.
    let mut taxed = session("a", &account, 1_000);
    taxed["amount_total"] = json!(1_190);
    taxed["total_details"]["amount_tax"] = json!(190);
    deliver(&app, &event("checkout.session.completed", now(), &taxed)).await;
    let kept = 10_000_000_000_i64 * 790 / 1_190;
    assert_eq!(balance(&app).await, OPENING + kept);
    deliver(&app, &completed("b", &account, 1_000)).await;
    assert_eq!(balance(&app).await, OPENING + kept, "disputed before it was credited");
    deliver(&app, &charge_refunded("a", 1_190, now() + 1)).await;
    assert_eq!(balance(&app).await, OPENING);
    app.finish().await;
}

async fn a_dispute_takes_and_gives_back(store: Store) {
    let app = setup(store).start().await;
    let (account, at) = (app.account.clone(), now());
    deliver(&app, &completed("a", &account, 2_000)).await;
    deliver(&app, &dispute("created", "a", 2_000, "warning_needs_response", at)).await;
    assert_eq!(entered(&app, &account).await, [2_000], "an inquiry takes nothing");
    deliver(&app, &dispute("created", "a", 2_000, "needs_response", at + 1)).await;
    deliver(&app, &dispute("funds_withdrawn", "a", 2_000, "needs_response", at + 1)).await;
    deliver(&app, &dispute("updated", "a", 2_000, "under_review", at + 2)).await;
    assert_eq!(entered(&app, &account).await, [2_000, -2_000]);
    // Won: in the wrong order, and an old state comes again.
    deliver(&app, &dispute("closed", "a", 2_000, "won", at + 9)).await;
    deliver(&app, &dispute("funds_reinstated", "a", 2_000, "won", at + 8)).await;
    deliver(&app, &dispute("updated", "a", 2_000, "under_review", at + 3)).await;
    assert_eq!(entered(&app, &account).await, [2_000, -2_000, 2_000]);
    // Another one is lost.
    deliver(&app, &completed("b", &account, 500)).await;
    deliver(&app, &dispute("funds_withdrawn", "b", 500, "needs_response", at)).await;
    deliver(&app, &dispute("closed", "b", 500, "lost", at + 5)).await;
    assert_eq!(entered(&app, &account).await, [2_000, -2_000, 2_000, 500, -500]);
    app.finish().await;
}

async fn a_debt_stops_spending_until_it_is_paid(store: Store) {
    let mut app = setup(store).credit("0").start().await;
    // The account looked rich a moment ago: a call may leave before its hold is refused.
    app.drops_calls = true;
    let account = app.account.clone();
    deliver(&app, &completed("a", &account, 500)).await;
    app.upstream.script(Answer::openrouter().no_cost().tokens(12, 100).stream());
    app.chat(&streamed(MODEL)).await.ok();
    let spent = app.record().await.charge_nusd;
    assert!(spent > 0);
    deliver(&app, &charge_refunded("a", 500, now())).await;
    assert_eq!(balance(&app).await, -spent, "spent, and given back all the same");
    let got = app.chat(&question(MODEL)).await;
    assert_eq!((got.status, &got.json()["error"]["code"]), (429, &json!("insufficient_quota")));
    deliver(&app, &completed("b", &account, 500)).await;
    app.upstream.script(Answer::openrouter().no_cost().tokens(12, 100).plain());
    app.chat(&question(MODEL)).await.ok();
    app.finish().await;
}

async fn what_cannot_be_credited_is_kept_for_a_person(store: Store) {
    let app = setup(store).start().await;
    let account = app.account.clone();
    let changed = |id: &str, changes: &Value| {
        let mut object = session(id, &account, 1_000);
        for (name, value) in changes.as_object().expect("changes") {
            object[name] = value.clone();
        }
        event("checkout.session.completed", now(), &object)
    };
    let nobody = "01930000-0000-7000-8000-000000000001";
    let stranger = changed("d", &json!({"metadata": {"tollgate_account_id": nobody}}));
    for odd in [
        // 1,000 yen are no 10 dollars.
        changed("a", &json!({"currency": "jpy"})),
        changed("b", &json!({"currency": "eur"})),
        changed("c", &json!({"amount_total": 999})),
        stranger.clone(),
        changed("e", &json!({"metadata": {"tollgate_account_id": "me"}})),
    ] {
        deliver(&app, &odd).await;
        deliver(&app, &odd).await;
    }
    let expected = [
        ("cs_a", "currency_jpy"),
        ("cs_b", "currency_eur"),
        ("cs_c", "amount_mismatch"),
        ("cs_d", "unknown_account"),
        ("cs_e", "unknown_account"),
    ];
    let expected = expected.map(|(object, why)| (object.to_string(), why.to_string()));
    assert_eq!(refused(&app).await, expected);
    assert_eq!(balance(&app).await, OPENING);
    let listed = app.list(&["payments", "events", "--refused"]).await;
    assert_eq!(listed.len(), 5, "{listed:?}");
    // Sent again when its cause is gone.
    let other = app.create_account("other", &[]).await;
    let found = stranger.to_string().replace(nobody, &other);
    deliver(&app, &serde_json::from_str(&found).expect("JSON")).await;
    assert_eq!(entered(&app, &other).await, [1_000]);
    assert_eq!(refused(&app).await.len(), 4);
    let paid = app.list(&["payments", "list"]).await;
    assert_eq!((paid.len(), &paid[0]["id"]), (1, &json!("cs_d")));

    // Refunds in another currency concern us only where the payment is ours.
    for (of, count) in [("elsewhere", 4), ("d", 5)] {
        let mut odd = charge_refunded(of, 100, now());
        odd["data"]["object"]["currency"] = json!("eur");
        deliver(&app, &odd).await;
        assert_eq!(refused(&app).await.len(), count, "{of}");
    }
    app.finish().await;
}

const PLANS: &str = "[[plan]]\nname = \"team\"\n\n[[plan]]\nname = \"pro\"\n\n\
    [[plan]]\nname = \"basic\"\n";

async fn a_subscription_gives_and_takes_a_plan(store: Store) {
    let setup = setup(store).prices(PLANS).env("TOLLGATE_SIGNUP_PLAN", "basic");
    let app = setup.start().await;
    app.cli(&["account", "update", "--account", "test", "--stripe-customer", "cus_test"]).await;
    let at = now();
    let is = |plan: Value| json!({"status": "active", "plan": plan});
    deliver(&app, &subscription("created", "1", "incomplete", "team", at)).await;
    assert_eq!(account_row(&app).await, is(Value::Null), "not paid for yet");
    deliver(&app, &subscription("updated", "1", "active", "team", at + 1)).await;
    assert_eq!(account_row(&app).await, is(json!("team")));
    deliver(&app, &subscription("updated", "1", "past_due", "pro", at + 3)).await;
    assert_eq!(account_row(&app).await, is(json!("pro")), "Stripe still tries to collect");
    deliver(&app, &subscription("updated", "1", "active", "team", at + 2)).await;
    assert_eq!(account_row(&app).await, is(json!("pro")), "an older state");
    // Another one begins before the first has ended.
    deliver(&app, &subscription("created", "2", "trialing", "team", at + 4)).await;
    deliver(&app, &subscription("deleted", "1", "canceled", "pro", at + 5)).await;
    assert_eq!(account_row(&app).await, is(json!("team")));
    deliver(&app, &subscription("updated", "1", "active", "pro", at + 6)).await;
    assert_eq!(account_row(&app).await, is(json!("team")), "an end is final");
    deliver(&app, &subscription("updated", "2", "unpaid", "team", at + 7)).await;
    assert_eq!(account_row(&app).await, is(json!("basic")), "the plan of new accounts");

    // Prices of another trade say nothing, and a plan by its name has to be there.
    deliver(&app, &subscription("created", "3", "active", "newsletter", at + 8)).await;
    assert_eq!(refused(&app).await, []);
    let mut named = subscription("created", "4", "active", "x", at + 8);
    named["data"]["object"]["metadata"]["tollgate_plan"] = json!("gone");
    deliver(&app, &named).await;
    assert_eq!(refused(&app).await, [("sub_4".to_string(), "unknown_plan".to_string())]);
    assert_eq!(account_row(&app).await, is(json!("basic")));
    app.finish().await;
}

async fn a_postpaid_account_stops_with_its_subscription(store: Store) {
    let app = setup(store).prices(PLANS).start().await;
    let later = app.create_account("later", &["--postpaid", "--stripe-customer", "cus_test"]).await;
    let query = format!("SELECT status, plan FROM accounts WHERE id = '{later}'");
    let is = async |status: &str| {
        let row = app.books.rows(&query).await.remove(0);
        assert_eq!(row, json!({"status": status, "plan": "team"}));
    };
    let at = now();
    deliver(&app, &subscription("created", "1", "active", "team", at)).await;
    is("active").await;
    deliver(&app, &subscription("updated", "1", "unpaid", "team", at + 1)).await;
    is("suspended").await;
    deliver(&app, &subscription("updated", "1", "active", "team", at + 2)).await;
    is("active").await;
    // What an operator has stopped is not Stripe's to begin again.
    app.cli(&["account", "update", "--account", "later", "--suspend"]).await;
    deliver(&app, &subscription("updated", "1", "past_due", "team", at + 3)).await;
    deliver(&app, &subscription("updated", "1", "active", "team", at + 4)).await;
    is("suspended").await;
    // Nor what both have stopped.
    app.cli(&["account", "update", "--account", "later", "--resume"]).await;
    deliver(&app, &subscription("updated", "1", "unpaid", "team", at + 5)).await;
    is("suspended").await;
    app.cli(&["account", "update", "--account", "later", "--suspend"]).await;
    deliver(&app, &subscription("updated", "1", "active", "team", at + 6)).await;
    is("suspended").await;
    // Nor does it go on when its price no longer names the plan.
    app.cli(&["account", "update", "--account", "later", "--resume"]).await;
    deliver(&app, &subscription("updated", "1", "unpaid", "newsletter", at + 7)).await;
    is("suspended").await;
    let audit = app.list(&["audit", "list"]).await;
    let by_stripe = audit.iter().filter(|row| row["actor"] == "stripe").count();
    assert_eq!(by_stripe, 5, "the plan, three suspensions and an end: {audit:?}");
    app.finish().await;
}

/// Within one second events come in any order.
async fn a_subscription_that_has_begun_is_not_incomplete_again(store: Store) {
    let app = setup(store).prices(PLANS).start().await;
    let later = app.create_account("later", &["--postpaid", "--stripe-customer", "cus_test"]).await;
    let query = format!("SELECT status FROM accounts WHERE id = '{later}'");
    let at = now();
    for (kind, id, status, created, expected) in [
        ("created", "1", "active", at, "active"),
        ("deleted", "1", "canceled", at + 1, "suspended"),
        ("updated", "2", "active", at + 5, "active"),
        ("created", "2", "incomplete", at + 5, "active"),
    ] {
        deliver(&app, &subscription(kind, id, status, "team", created)).await;
        let row = app.books.rows(&query).await.remove(0);
        assert_eq!(row, json!({"status": expected}), "{kind} {id}");
    }
    app.finish().await;
}

/// A payment link has its reference from whoever opens it: it may be that of a shirt.
async fn a_link_credits_where_the_operator_says_so(store: Store) {
    let app = setup(store).start().await;
    let paid = |id: &str, metadata: Value| {
        let mut paid = session(id, &app.account, 1_000);
        paid["metadata"] = metadata;
        event("checkout.session.completed", now(), &paid)
    };
    deliver(&app, &paid("shirt", json!({}))).await;
    assert_eq!(balance(&app).await, OPENING);
    assert_eq!(refused(&app).await, [("cs_shirt".to_string(), "unmarked_link".to_string())]);
    deliver(&app, &paid("link", json!({"tollgate_topup": "yes"}))).await;
    assert_eq!(balance(&app).await - OPENING, 10_000_000_000);
    app.finish().await;
}

async fn a_link_for_no_account_is_kept_for_a_person(store: Store) {
    let app = setup(store).start().await;
    let nobody = json!("01930000-0000-7000-8000-000000000001");
    for (id, reference) in [("a", Value::Null), ("b", json!("me")), ("c", nobody)] {
        let mut paid = session(id, &app.account, 1_000);
        paid["metadata"] = json!({"tollgate_topup": "yes"});
        paid["client_reference_id"] = reference;
        deliver(&app, &event("checkout.session.completed", now(), &paid)).await;
    }
    let expected =
        ["cs_a", "cs_b", "cs_c"].map(|id| (id.to_string(), "unknown_account".to_string()));
    assert_eq!(refused(&app).await, expected);
    assert_eq!(balance(&app).await, OPENING);
    app.finish().await;
}

async fn events_of_no_interest_are_taken_and_forgotten(store: Store) {
    let app = setup(store).start().await;
    let foreign = json!({"id": "cs_x", "mode": "payment", "payment_status": "paid",
        "currency": "usd", "amount_total": 5_000, "client_reference_id": "shirt-17"});
    for other in [
        event("invoice.paid", now(), &json!({"id": "in_1", "amount_paid": 1_000})),
        event("customer.created", now(), &json!({"id": "cus_1"})),
        event("checkout.session.expired", now(), &session("x", &app.account, 1_000)),
        event("checkout.session.async_payment_failed", now(), &session("x", &app.account, 1)),
        event("checkout.session.completed", now(), &foreign),
        event("something.new", now(), &json!({})),
    ] {
        deliver(&app, &other).await;
    }
    assert_eq!(app.books.rows("SELECT id FROM payment_events").await.len(), 0);
    assert_eq!(balance(&app).await, OPENING);
    let got = send(&app, &event("charge.refunded", now(), &json!({"id": "ch_1"}))).await;
    assert_eq!(got.status, 400, "one that matters and cannot be read: {}", got.text());
    app.finish().await;
}

/// A card for tests buys nothing where the key is for real money.
#[tokio::test]
async fn a_test_event_is_nothing_to_a_live_key() {
    let live = setup(Store::Sqlite)
        .env("STRIPE_SECRET_KEY", "rk_live_tollgate_0451")
        .env("STRIPE_API_BASE", "http://127.0.0.1:9")
        .env("STRIPE_CREATE_CUSTOMERS", "off")
        .env("STRIPE_METERING", "off");
    let app = live.start().await;
    let mut paid = completed("a", &app.account, 1_000);
    deliver(&app, &paid).await;
    assert_eq!(refused(&app).await, [("cs_a".to_string(), "test_mode".to_string())]);
    assert_eq!(balance(&app).await, OPENING);
    paid["livemode"] = json!(true);
    deliver(&app, &paid).await;
    assert_eq!(entered(&app, &app.account).await, [1_000]);
    app.finish().await;
}
