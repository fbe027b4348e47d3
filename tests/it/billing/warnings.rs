//! The webhook is warned: of a balance that runs low, of budgets that are used up; once for each
//! crossing.

use serde_json::{Value, json};

use super::{all, with_webhook};
use crate::app::{Setup, Store, TestApp, both_stores, streamed};
use crate::sinks::webhook::Webhook;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

both_stores!(a_balance_is_told_of_when_it_runs_low, budgets_are_told_of_at_their_thresholds);

/// One request by this key of so many completion tokens, at 720 nano-USD each and 2,160 for the
/// prompt; its id.
async fn spend(app: &TestApp, key: &str, tokens: i64) -> String {
    app.upstream.script(Answer::openrouter().no_cost().tokens(12, tokens).stream());
    let got = app.ask(&app.chat_ask(&streamed(MODEL)).bearer(key)).await;
    got.ok();
    app.record_of(&got).await.id
}

/// What the webhook was told of one type, in the order of requests.
async fn told(app: &TestApp, webhook: &Webhook, kind: &str) -> Vec<(String, Value)> {
    all(app, "exported").await;
    assert_eq!(webhook.forged(), 0);
    let events = webhook.events().into_iter().filter(|(_, event)| event["type"] == kind);
    events.map(|(id, event)| (id, event["data"].clone())).collect()
}

async fn a_balance_is_told_of_when_it_runs_low(store: Store) {
    let webhook = Webhook::start().await;
    let setup = with_webhook(Setup::new(store), &webhook).env("TOLLGATE_LOW_BALANCE_USD", "0.9999");
    let app = setup.start().await;
    let account = app.create_account("acme", &["--credit", "1"]).await;
    let key = app.create_key("acme", &[]).await;
    // 38,160 and 74,160: the second goes below 999,900,000.
    spend(&app, &key, 50).await;
    assert!(told(&app, &webhook, "balance.low").await.is_empty());
    let second = spend(&app, &key, 100).await;
    spend(&app, &key, 10).await;
    let warned = |request: &str, balance: i64| {
        let data = json!({
            "account_id": account, "request_id": request, "balance_nusd": balance,
            "threshold_nusd": 999_900_000,
        });
        (format!("{request}:webhook:balance_low"), data)
    };
    let without_key = |told: Vec<(String, Value)>| -> Vec<(String, Value)> {
        let stripped = told.into_iter().map(|(id, mut data)| {
            let key = data.as_object_mut().expect("an object").remove("api_key_id");
            assert!(key.is_some_and(|key| key.is_string()));
            (id, data)
        });
        stripped.collect()
    };
    let first = warned(&second, 999_887_680);
    let once = without_key(told(&app, &webhook, "balance.low").await);
    assert_eq!(once, vec![first.clone()]);
    // Above again, and below again.
    app.cli(&["credit", "grant", "--account", "acme", "--usd", "0.0001", "--reason", "more"]).await;
    let fourth = spend(&app, &key, 120).await;
    let balance = 999_887_680 - 9_360 + 100_000 - 88_560;
    let both = [first, warned(&fourth, balance)];
    assert_eq!(without_key(told(&app, &webhook, "balance.low").await), both);
    assert!(told(&app, &webhook, "budget.threshold").await.is_empty(), "there are no budgets");
    app.cli(&["verify"]).await;
    app.finish().await;
}

async fn budgets_are_told_of_at_their_thresholds(store: Store) {
    let webhook = Webhook::start().await;
    let app = with_webhook(Setup::new(store), &webhook).start().await;
    let key = app.create_key("test", &["--budget-day", "0.0001", "--budget", "1"]).await;
    let later = app.create_account("later", &["--postpaid", "--limit", "0.0001"]).await;
    let of_later = app.create_key("later", &[]).await;
    // 74,160 of 100,000, and then 105,120: more than was set aside was used, and it is counted.
    // The postpaid account is charged up to its limit.
    for key in [&key, &of_later] {
        spend(&app, key, 100).await;
    }
    assert!(told(&app, &webhook, "budget.threshold").await.is_empty());
    let over = spend(&app, &key, 40).await;
    let full = spend(&app, &of_later, 40).await;
    let told = told(&app, &webhook, "budget.threshold").await;
    let figures = told.iter().map(|(id, data)| {
        let members = ["of", "window", "percent", "limit_nusd", "spent_nusd"];
        (id.clone(), json!(members.map(|member| data[member].clone())))
    });
    let name = |request: &str, what: &str| format!("{request}:webhook:budget_threshold:{what}");
    let mut expected = vec![
        (name(&over, "key:day:100"), json!(["key", "day", 100, 100_000, 105_120])),
        (name(&over, "key:day:80"), json!(["key", "day", 80, 100_000, 105_120])),
        (name(&full, "account:month:100"), json!(["account", "month", 100, 100_000, 100_000])),
        (name(&full, "account:month:80"), json!(["account", "month", 80, 100_000, 100_000])),
    ];
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(figures.collect::<Vec<_>>(), expected);
    let accounts = told.iter().map(|(_, data)| &data["account_id"]);
    assert_eq!(accounts.filter(|account| **account == json!(later)).count(), 2);
    // Kept where they were written, also for who looks there.
    let listed = app.list(&["events", "list", "--sink", "webhook"]).await;
    let detail = listed.iter().find(|event| event["id"] == json!(expected[0].0));
    assert!(detail.is_some_and(|event| event["kind"] == "budget_threshold"), "{listed:?}");
    app.cli(&["verify"]).await;
    app.finish().await;
}
