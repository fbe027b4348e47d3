//! Accounts and keys in an outage: what is remembered of one is its own.

use serde_json::json;

use super::{PLENTY, exposed, recorded};
use crate::app::cluster::Cluster;
use crate::app::streamed;
use crate::upstream::catalog::OLD_MODEL;
use crate::upstream::model::{Manner, Model};

/// A call of 300 tokens costs 22 thousandths of a dollar.
#[tokio::test]
async fn a_keys_budget_is_not_spent_again() {
    let (cluster, manner) = (Cluster::start().await, Manner { tokens: 300, ..Manner::obedient() });
    let model = Model::start(manner).await;
    let app = exposed(&cluster, PLENTY).env("UPSTREAM_BASE_URL", &model.url()).start().await;
    let key = app.create_key("test", &["--budget", "0.03"]).await;
    let mut body = streamed(OLD_MODEL);
    body["max_tokens"] = json!(300);
    let ask = app.chat_ask(&body).bearer(&key);
    app.ask(&ask).await.ok();
    app.settled().await;
    cluster.pause();
    let second = app.ask(&ask).await;
    assert!([200, 429].contains(&second.status), "{}", second.text());
    cluster.resume();
    let records = recorded(&app, model.chats().len()).await;
    let charged: i64 = records.iter().map(|record| record.charge_nusd).sum();
    assert!(charged <= 30_000_000, "more than the key's budget: {charged}");
    app.finish().await;
}

/// What it has is known since its caller was told, though it has made no call before.
#[tokio::test]
async fn a_stream_of_a_new_account_is_extended() {
    let cluster = Cluster::start().await;
    // It is told how much it may say, for what there is in an outage.
    let model = Model::start(Manner { tokens: 200, obeys: false, ..Manner::obedient() }).await;
    let setup = exposed(&cluster, PLENTY).env("UPSTREAM_BASE_URL", &model.url());
    let app = setup.env("TOLLGATE_COMPLETION_TOKENS_MAX", "50").start().await;
    app.get("/v1/models").await.ok();
    cluster.pause();
    let got = app.chat(&streamed(OLD_MODEL)).await;
    assert_eq!(got.content(), " the".repeat(200), "{}", got.text());
    cluster.resume();
    let records = recorded(&app, 1).await;
    assert_eq!(records[0].completion_tokens, 200);
    app.finish().await;
}

#[tokio::test]
async fn an_empty_budget_of_one_key_refuses_no_other() {
    let cluster = Cluster::start().await;
    let model = Model::start(Manner::obedient()).await;
    let app = exposed(&cluster, PLENTY).env("UPSTREAM_BASE_URL", &model.url()).start().await;
    let spent = app.create_key("test", &["--budget", "0.0001"]).await;
    let body = streamed(OLD_MODEL);
    app.chat(&body).await.ok();
    app.settled().await;
    let refused = app.ask(&app.chat_ask(&body).bearer(&spent)).await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(refused.json()["error"]["code"], json!("key_budget_exceeded"));
    cluster.pause();
    app.chat(&body).await.ok();
    cluster.resume();
    recorded(&app, 2).await;
    app.finish().await;
}
