//! Merged events over HTTP: found, and corrected by who has looked at the sink.

use serde_json::json;

use super::{Admin, text};
use crate::app::{Setup, Store, TestApp, both_stores};
use crate::bad_input::assert_refused;
use crate::billing::{all, assert_stripe_agrees, known_to_stripe, one, with_stripe};
use crate::sinks::stripe::{CHARGE_METER, Stripe};

both_stores!(exports_are_found_and_corrected, exports_that_are_none);

async fn exports_are_found_and_corrected(store: Store) {
    let stripe = Stripe::start(&[]).await;
    stripe.add_meter("llm_input");
    let setup = with_stripe(Setup::new(store), &stripe);
    let app = setup.env("STRIPE_METERS", "uncached_prompt_tokens=llm_input").start().await;
    let admin = Admin::of(&app).await;
    known_to_stripe(&app).await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "parked").await;

    let listed = admin.all("/exports", 1).await;
    assert_eq!(json!(app.list(&["exports", "list"]).await), json!(listed));
    assert_eq!(listed.len(), 2, "one for each meter: {listed:?}");
    let [charge] = &found(&admin, &format!("meter={CHARGE_METER}")).await[..] else { panic!() };
    assert_eq!((&charge["state"], &charge["customer"]), (&json!("parked"), &json!("cus_test")));
    for (query, count) in [
        ("customer=cus_test", 2),
        ("customer=cus_other", 0),
        ("state=parked", 2),
        ("state=exported", 0),
        ("start_time=1", 2),
        ("start_time=1&end_time=2", 0),
        ("end_time=253402300799", 2),
    ] {
        assert_eq!(found(&admin, query).await.len(), count, "{query}");
    }

    // It was refused, so that it cannot be missing; but somebody may have billed it by hand.
    let path = format!("/exports/{}", text(&charge["id"]));
    let refused = admin.send("POST", &format!("{path}/missing"), None).await;
    assert_refused(&refused, "it was refused", 400, "", "id");
    let counted = admin.done(200, "POST", &format!("{path}/counted"), None).await;
    assert_eq!((&counted["state"], &counted["reason"]), (&json!("exported"), &json!(null)));
    let again = admin.send("POST", &format!("{path}/counted"), None).await;
    assert_refused(&again, "it is exported", 400, "", "id");
    all(&app, "parked").await;

    // That was an error. The other meter's waits for its retry, as a member of the same group.
    stripe.add_customer("cus_test");
    let missing = admin.done(200, "POST", &format!("{path}/missing"), None).await;
    assert_eq!(missing["state"], json!("void"));
    all(&app, "parked").await;
    app.cli(&["events", "retry", "--parked"]).await;
    all(&app, "exported").await;
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    assert_eq!(stripe.sums("llm_input")["cus_test"], 12);
    let audit = admin.audit().await.into_iter();
    let said: Vec<String> = audit.map(|entry| text(&entry["action"])).collect();
    let said: Vec<&String> = said.iter().filter(|action| action.starts_with("export.")).collect();
    assert_eq!(said, ["export.counted", "export.missing"]);
    app.finish().await;
}

async fn found(admin: &Admin, query: &str) -> Vec<serde_json::Value> {
    let page = admin.get(&format!("/exports?limit=100&{query}")).await;
    page["data"].as_array().expect("a list").clone()
}

async fn exports_that_are_none(store: Store) {
    let app = TestApp::start(store).await;
    let admin = Admin::of(&app).await;
    for (query, param) in [
        ("customer=a%00", "customer"),
        ("meter=%0a", "meter"),
        ("state=held", "state"),
        ("start_time=yesterday", "start_time"),
        ("end_time=-1", "end_time"),
        ("after=no-export", "after"),
        ("limit=0", "limit"),
        ("state=parked&state=void", "state"),
        ("costumer=7", ""),
    ] {
        let got = admin.send("GET", &format!("/exports?{query}"), None).await;
        assert_refused(&got, query, 400, "", param);
    }
    let nobody = format!("tollgate-{}", "0".repeat(64));
    for id in [nobody.as_str(), "x", "tollgate-", "%00", "%ff"] {
        for word in ["missing", "counted"] {
            let got = admin.send("POST", &format!("/exports/{id}/{word}"), None).await;
            assert_refused(&got, id, 404, "not_found", "");
        }
    }
    app.finish().await;
}
