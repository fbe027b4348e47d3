//! Subscriptions whose events come in the wrong order, whose plan or customer is gone by the time
//! they end, or that were another account's.

use serde_json::{Value, json};

use super::events::{deliver, now, subscription};
use super::{PLANS, refused, setup};
use crate::app::{Store, TestApp, both_stores};

both_stores!(
    an_end_that_overtakes_a_change_takes_the_plan,
    the_end_of_one_that_is_known_counts,
    one_that_was_another_accounts_takes_its_plan_along,
    a_suspension_ends_where_its_subscription_was_another_accounts,
    one_that_never_began_takes_nothing,
);

async fn row_of(app: &TestApp, account: &str) -> Value {
    let query = format!("SELECT status, plan FROM accounts WHERE id = '{account}'");
    app.books.rows(&query).await.remove(0)
}

fn is(status: &str, plan: &str) -> Value {
    json!({"status": status, "plan": plan})
}

/// Of this account, by its metadata.
fn of(account: &str, status: &str, plan: &str, created: i64) -> Value {
    let mut event = subscription("updated", "1", status, plan, created);
    event["data"]["object"]["metadata"]["tollgate_account_id"] = json!(account);
    event
}

async fn an_end_that_overtakes_a_change_takes_the_plan(store: Store) {
    let setup = setup(store).prices(PLANS).env("TOLLGATE_SIGNUP_PLAN", "basic");
    let app = setup.start().await;
    app.cli(&["account", "update", "--account", "test", "--stripe-customer", "cus_test"]).await;
    let at = now();
    deliver(&app, &subscription("created", "1", "active", "team", at)).await;
    assert_eq!(row_of(&app, &app.account).await, is("active", "team"));
    deliver(&app, &subscription("deleted", "1", "canceled", "pro", at + 5)).await;
    deliver(&app, &subscription("updated", "1", "active", "pro", at + 3)).await;
    assert_eq!(row_of(&app, &app.account).await, is("active", "basic"), "what nobody pays for");
    app.finish().await;
}

async fn the_end_of_one_that_is_known_counts(store: Store) {
    let app = setup(store).prices(PLANS).start().await;
    let with_customer = ["--postpaid", "--stripe-customer", "cus_test"];
    let later = app.create_account("later", &with_customer).await;
    let at = now();
    let named = |id: &str, status: &str, plan: &str, created: i64| {
        let mut event = subscription("updated", id, status, "x", created);
        event["data"]["object"]["metadata"]["tollgate_plan"] = json!(plan);
        event
    };
    deliver(&app, &named("1", "active", "team", at)).await;
    assert_eq!(row_of(&app, &later).await, is("active", "team"));
    deliver(&app, &named("1", "active", "gone", at + 1)).await;
    let unknown = ("sub_1".to_string(), "unknown_plan".to_string());
    assert_eq!(refused(&app).await, std::slice::from_ref(&unknown), "for a person to look at");
    deliver(&app, &named("1", "canceled", "gone", at + 2)).await;
    assert_eq!(row_of(&app, &later).await, is("suspended", "team"), "its plan is gone");

    deliver(&app, &named("2", "active", "pro", at + 3)).await;
    assert_eq!(row_of(&app, &later).await, is("active", "pro"));
    app.cli(&["account", "update", "--account", "later", "--stripe-customer", "cus_new"]).await;
    deliver(&app, &named("2", "unpaid", "pro", at + 4)).await;
    assert_eq!(row_of(&app, &later).await, is("suspended", "pro"), "its customer is another");
    // It lives, and what it names may be there tomorrow: for a person, and not half of it.
    let mut elsewhere = named("2", "active", "pro", at + 5);
    elsewhere["data"]["object"]["metadata"]["tollgate_account_id"] = json!("nobody");
    for waiting in [elsewhere, named("2", "active", "gone", at + 5)] {
        deliver(&app, &waiting).await;
        assert_eq!(row_of(&app, &later).await, is("suspended", "pro"));
    }
    let of_second = |why: &str| ("sub_2".to_string(), why.to_string());
    let mut told = refused(&app).await;
    told.sort();
    let all = [unknown, of_second("unknown_account"), of_second("unknown_plan")];
    assert_eq!(told, all);

    deliver(&app, &named("2", "active", "pro", at + 5)).await;
    assert_eq!(row_of(&app, &later).await, is("active", "pro"));
    app.create_account("first", &with_customer).await;
    app.create_account("second", &with_customer).await;
    deliver(&app, &named("2", "canceled", "pro", at + 6)).await;
    assert_eq!(row_of(&app, &later).await, is("suspended", "pro"), "its customer is several");
    assert_eq!(refused(&app).await.len(), all.len());
    app.finish().await;
}

async fn one_that_was_another_accounts_takes_its_plan_along(store: Store) {
    let setup = setup(store).prices(PLANS).env("TOLLGATE_SIGNUP_PLAN", "basic");
    let app = setup.start().await;
    let other = app.create_account("other", &[]).await;
    let at = now();
    // Wrong, and put right; back and forth, for either may have the smaller id.
    for (step, (right, wrong)) in
        [(&other, &app.account), (&app.account, &other)].iter().enumerate()
    {
        let at = at + 10 * i64::try_from(step).expect("a small number");
        deliver(&app, &of(wrong, "active", "team", at)).await;
        assert_eq!(row_of(&app, wrong).await, is("active", "team"));
        deliver(&app, &of(right, "active", "pro", at + 1)).await;
        assert_eq!(row_of(&app, right).await, is("active", "pro"));
        assert_eq!(row_of(&app, wrong).await, is("active", "basic"), "step {step}");
    }
    let audit = app.list(&["audit", "list"]).await;
    let by_stripe = audit.iter().filter(|row| row["actor"] == "stripe").count();
    assert!(by_stripe >= 6, "each change of either account: {audit:?}");
    app.finish().await;
}

async fn a_suspension_ends_where_its_subscription_was_another_accounts(store: Store) {
    let app = setup(store).prices(PLANS).start().await;
    let first = app.create_account("first", &["--postpaid"]).await;
    let second = app.create_account("second", &["--postpaid"]).await;
    let at = now();
    deliver(&app, &of(&first, "unpaid", "team", at)).await;
    let status = async |account: &str| row_of(&app, account).await["status"].clone();
    assert_eq!(status(&first).await, "suspended");
    deliver(&app, &of(&second, "unpaid", "team", at + 1)).await;
    assert_eq!(
        (status(&first).await, status(&second).await),
        (json!("active"), json!("suspended"))
    );
    // What an operator has stopped goes on being so.
    app.cli(&["account", "update", "--account", "second", "--suspend"]).await;
    deliver(&app, &of(&first, "unpaid", "team", at + 2)).await;
    assert_eq!(
        (status(&first).await, status(&second).await),
        (json!("suspended"), json!("suspended"))
    );
    app.finish().await;
}

/// Somebody who leaves the page where the first payment is confirmed, also who had another
/// subscription, whose end the operator has made good by hand.
async fn one_that_never_began_takes_nothing(store: Store) {
    let app = setup(store).prices(PLANS).env("TOLLGATE_SIGNUP_PLAN", "basic").start().await;
    let postpaid = app.create_account("later", &["--postpaid"]).await;
    app.cli(&["account", "update", "--account", "later", "--plan", "team"]).await;
    let prepaid = app.create_account("now", &["--plan", "team"]).await;
    let (before, at) = (now() - 100, now());
    let tell = async |account: &str, id: &str, status: &str, plan: &str, created: i64| {
        let mut event = subscription("updated", id, status, plan, created);
        event["data"]["object"]["metadata"]["tollgate_account_id"] = json!(account);
        deliver(&app, &event).await;
    };
    let leave = async |account: &str, id: &str| {
        for (status, after) in [("incomplete", 0), ("incomplete_expired", 82_800)] {
            tell(account, id, status, "team", at + after).await;
            assert_eq!(row_of(&app, account).await, is("active", "team"), "{status}");
        }
    };
    leave(&postpaid, "1").await;
    leave(&prepaid, "2").await;
    for (account, name, id) in [(&postpaid, "later", "3"), (&prepaid, "now", "4")] {
        tell(account, id, "active", "pro", before).await;
        tell(account, id, "canceled", "pro", before + 1).await;
        let made_good = ["account", "update", "--account", name, "--plan", "team"];
        app.cli(&made_good).await;
    }
    app.cli(&["account", "update", "--account", "later", "--resume"]).await;
    leave(&postpaid, "5").await;
    leave(&prepaid, "6").await;
    app.finish().await;
}
