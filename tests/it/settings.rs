//! Settings that say by what names, and with which key, somebody else is spoken to.

use crate::app::{Kind, Setup, Store, TestApp, question};
use crate::billing::{all, known_to_stripe, ledger, one, with_openmeter, with_stream, with_stripe};
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::stripe::{CHARGE_METER, Stripe};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

const OPENROUTER_KEY: &str = "sk-or-v1-tollgate-0451";

/// What the upstream got as authorization, of a call and of a list of models.
async fn authorizations(kind: Kind, has_its_own: bool) -> [Option<String>; 2] {
    let setup = Setup::new(Store::Sqlite).kind(kind).env("OPENROUTER_API_KEY", OPENROUTER_KEY);
    let mut app = setup.start().await;
    if !has_its_own {
        app.kill9();
        app.environment.remove("UPSTREAM_API_KEY");
        app.restart().await;
    }
    let (answer, model) = match kind {
        Kind::OpenRouter => (Answer::openrouter(), MODEL),
        Kind::OpenAi | Kind::LiteLlm => (Answer::openai(), "gpt-4o-mini"),
    };
    app.upstream.script(answer.plain());
    app.chat(&question(model)).await.ok();
    app.record().await;
    let list = app.upstream.calls("/v1/models").pop().expect("a list of models");
    let said = [app.upstream.last_chat(), list]
        .map(|call| call.request.header("authorization").map(str::to_string));
    app.finish().await;
    said
}

#[tokio::test]
async fn the_key_of_openrouter_is_for_openrouter_without_another() {
    let own = format!("Bearer {}", crate::app::UPSTREAM_KEY);
    let openrouters = format!("Bearer {OPENROUTER_KEY}");
    for (kind, has_its_own, expected) in [
        (Kind::OpenRouter, true, Some(own.clone())),
        (Kind::OpenRouter, false, Some(openrouters)),
        (Kind::OpenAi, true, Some(own.clone())),
        (Kind::OpenAi, false, None),
        (Kind::LiteLlm, true, Some(own)),
        (Kind::LiteLlm, false, None),
    ] {
        let said = authorizations(kind, has_its_own).await;
        let what = format!("{}, with its own: {has_its_own}", kind.name());
        assert_eq!(said, [expected.clone(), expected], "{what}");
    }
}

async fn assert_told_by_other_names(with: fn(Setup, &Stripe) -> Setup) {
    let stripe = Stripe::start(&["cus_test"]).await;
    stripe.add_meter("gate_fee");
    stripe.name_payload("client", "micros");
    let app = with(Setup::new(Store::Sqlite), &stripe)
        .env("STRIPE_CHARGE_METER", "gate_fee")
        .env("STRIPE_CUSTOMER_KEY", "client")
        .env("STRIPE_VALUE_KEY", "micros")
        .start()
        .await;
    known_to_stripe(&app).await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "exported").await;
    let charged = ledger(&app).await[&app.account] / 1_000;
    assert_eq!(stripe.sums("gate_fee"), [("cus_test".to_string(), charged)].into());
    assert!(stripe.sums(CHARGE_METER).is_empty(), "{:?}", stripe.taken());
    assert_eq!(stripe.wrong(), Vec::<String>::new());
    app.finish().await;
}

#[tokio::test]
async fn stripe_is_told_by_other_names() {
    assert_told_by_other_names(with_stripe).await;
}

#[tokio::test]
async fn stripes_stream_is_told_by_other_names() {
    assert_told_by_other_names(with_stream).await;
}

#[tokio::test]
async fn openmeter_is_told_another_source() {
    let openmeter = OpenMeter::start().await;
    let setup = with_openmeter(Setup::new(Store::Sqlite), &openmeter);
    let app: TestApp = setup.env("OPENMETER_SOURCE", "gate-of-the-north").start().await;
    one(&app, 100).await;
    app.records(1).await;
    all(&app, "exported").await;
    let events = openmeter.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["source"], "gate-of-the-north", "{events:?}");
    app.finish().await;
}
