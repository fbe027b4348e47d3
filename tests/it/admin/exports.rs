//! Merged events over HTTP: found, and corrected by who has looked at the sink.

use serde_json::{Value, json};

use super::{Admin, text};
use crate::app::{Setup, Store, TestApp, both_stores};
use crate::bad_input::assert_refused;
use crate::billing::doubt::{back, in_doubt_with};
use crate::billing::{all, assert_stripe_agrees, with_stripe};
use crate::sinks::server::Fault;
use crate::sinks::stripe::{CHARGE_METER, Stripe};

both_stores!(exports_are_found_and_corrected, exports_that_are_none);

async fn exports_are_found_and_corrected(store: Store) {
    let stripe = Stripe::start(&["cus_test"]).await;
    // It was lost, and somebody else wrote to this meter, so that its sum says nothing.
    let setup = with_stripe(Setup::new(store), &stripe);
    let mut app = in_doubt_with(setup, &stripe, Fault::CutBefore).await;
    stripe.add_foreign(&app.books.rows("SELECT * FROM exports").await[0], 17);
    app.restart().await;
    all(&app, "parked").await;
    let admin = Admin::of(&app).await;

    let listed = admin.all("/exports", 1).await;
    assert_eq!(json!(app.list(&["exports", "list"]).await), json!(listed));
    let [export] = &listed[..] else { panic!("one: {listed:?}") };
    assert_eq!((&export["state"], &export["customer"]), (&json!("parked"), &json!("cus_test")));
    for (query, count) in [
        ("customer=cus_test", 1),
        ("customer=cus_other", 0),
        (&format!("meter={CHARGE_METER}"), 1),
        ("meter=other", 0),
        ("state=parked", 1),
        ("state=exported", 0),
        ("start_time=1", 1),
        ("start_time=1&end_time=2", 0),
        ("end_time=253402300799", 1),
    ] {
        assert_eq!(found(&admin, query).await.len(), count, "{query}");
    }

    let path = format!("/exports/{}", text(&export["id"]));
    let early = admin.send("POST", &format!("{path}/missing"), None).await;
    assert_refused(&early, "it was asked after just now", 400, "", "id");
    let counted = admin.done(200, "POST", &format!("{path}/counted"), None).await;
    assert_eq!((&counted["state"], &counted["reason"]), (&json!("exported"), &json!(null)));
    let again = admin.send("POST", &format!("{path}/counted"), None).await;
    assert_refused(&again, "it is exported", 400, "", "id");
    all(&app, "exported").await;
    // That was an error.
    back(&app, "exports", "next_attempt_at", 2).await;
    let missing = admin.done(200, "POST", &format!("{path}/missing"), None).await;
    assert_eq!(missing["state"], json!("void"));
    all(&app, "exported").await;
    stripe.tamper(|taken| taken.retain(|one| one.identifier != "foreign"));
    assert_stripe_agrees(&app, &stripe, "cus_test").await;
    let audit = admin.audit().await.into_iter();
    let said: Vec<String> = audit.map(|entry| text(&entry["action"])).collect();
    let said: Vec<&String> = said.iter().filter(|action| action.starts_with("export.")).collect();
    assert_eq!(said, ["export.counted", "export.missing"]);
    app.finish().await;
}

async fn found(admin: &Admin, query: &str) -> Vec<Value> {
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
