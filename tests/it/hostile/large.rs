//! Plain answers that may be large: they are in memory until their clients have them.

use serde_json::{Value, json};

use crate::app::{Setup, Store, TestApp, both_stores, eventually, question};
use crate::client::Exchange;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use crate::upstream::script::{Gate, Script};

both_stores!(large_answers_of_an_account_are_bounded_together);

/// With each of 16,384 tokens twenty others come.
fn large() -> Value {
    let mut body = question(MODEL);
    body["max_tokens"] = json!(16_384);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(20);
    body
}

async fn begun(app: &TestApp, gate: &Gate) -> Exchange {
    let calls = app.upstream.chats().len();
    app.upstream.script(Script::new().wait(gate).then(Answer::openrouter().plain()));
    let exchange = app.begin_chat(&large()).await;
    app.upstream.wait_for_chats(calls + 1).await;
    exchange
}

async fn large_answers_of_an_account_are_bounded_together(store: Store) {
    let app = Setup::new(store).policy("drain").start().await;
    let [first, second, rest] = [(); 3].map(|()| Gate::new());
    let (one, other) = (begun(&app, &first).await, begun(&app, &second).await);
    let last = begun(&app, &rest).await;
    let calls = app.upstream.chats().len();
    let got = app.chat(&large()).await;
    assert_eq!((got.status, &got.json()["error"]["code"]), (503, &json!("overloaded")));
    assert!(got.header("retry-after").is_some());
    assert_eq!(app.upstream.chats().len(), calls, "it was not called for nothing");

    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    first.open();
    one.finish().await.ok();
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&large()).await.ok();

    // A client that leaves has its answer read to its end, and that is in memory as well.
    let third = Gate::new();
    begun(&app, &third).await.hang_up();
    assert_eq!(app.chat(&large()).await.status, 503);
    third.open();
    eventually("it is settled", async || (app.books.records().await.len() == 4).then_some(()))
        .await;
    second.open();
    other.finish().await.ok();
    rest.open();
    last.finish().await.ok();
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&large()).await.ok();
    app.records(7).await;
    app.finish().await;
}
