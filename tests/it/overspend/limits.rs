//! Limits that are no balance: a key's budget, and what a postpaid account may spend in a month.

use futures::future::join_all;

use super::{FLOOR_TOKENS, Site, Spender, body, retail};
use crate::app::{Store, both_stores};
use crate::client::Answered;
use crate::upstream::model::{COMPLETION_NUSD, Manner};

both_stores!(
    a_keys_budget_holds_under_load,
    a_keys_budget_holds_whatever_the_upstream_says,
    a_postpaid_limit_holds_under_load,
    a_postpaid_limit_holds_whatever_the_upstream_says,
);

/// In nano-USD: 0.1 USD.
const LIMIT: i64 = 100_000_000;

fn obedient() -> Manner {
    Manner { tokens: 40, spread: 50, ..Manner::obedient() }
}

fn disobedient() -> Manner {
    Manner { obeys: false, tokens: 150, excess: 100, ..Manner::obedient() }
}

async fn a_keys_budget_holds_under_load(store: Store) {
    a_budget_holds(store, obedient()).await;
}

async fn a_keys_budget_holds_whatever_the_upstream_says(store: Store) {
    a_budget_holds(store, disobedient()).await;
}

async fn a_postpaid_limit_holds_under_load(store: Store) {
    a_postpaid_limit_holds(store, obedient()).await;
}

async fn a_postpaid_limit_holds_whatever_the_upstream_says(store: Store) {
    a_postpaid_limit_holds(store, disobedient()).await;
}

async fn a_budget_holds(store: Store, manner: Manner) {
    let site = Site::open(store, manner).await;
    // The account itself has plenty.
    let account = site.app.create_account("keyed", &["--credit", "1000"]).await;
    let key = site.app.create_key("keyed", &["--budget", "0.1"]).await;
    assert_limited(site, Spender { account, key }, "key_budget_exceeded").await;
}

async fn a_postpaid_limit_holds(store: Store, manner: Manner) {
    let site = Site::open(store, manner).await;
    let account = site.app.create_account("later", &["--postpaid", "--limit", "0.1"]).await;
    let key = site.app.create_key("later", &[]).await;
    assert_limited(site, Spender { account, key }, "insufficient_quota").await;
}

/// Many at once by every process, and then one after the other until one is refused.
async fn assert_limited(site: Site, spender: Spender, code: &str) {
    let body = body(Some(100));
    let mut answers = join_all((0..60).map(|number| site.call(number, &spender, &body))).await;
    for number in 0.. {
        assert!(number < 200, "a limit never ends");
        site.app.settled().await;
        let got = site.call(number, &spender, &body).await;
        let is_last = got.status == 429;
        answers.push(got);
        if is_last {
            break;
        }
    }
    let refused: Vec<&Answered> = answers.iter().filter(|got| got.status == 429).collect();
    for got in &refused {
        assert_eq!(got.json()["error"]["code"], code, "{}", got.text());
    }
    for got in answers.iter().filter(|got| got.status != 429) {
        got.ok();
    }
    let records = site.records_of(&spender).await;
    let spent: i64 = records.iter().map(|record| record.charge_nusd).sum();
    let lost: i64 = records.iter().map(|record| record.shortfall_nusd).sum();
    println!("{spent} of {LIMIT} nano-USD, {} of {} refused", refused.len(), answers.len());
    assert!(spent <= LIMIT, "{spent} of {LIMIT} nano-USD");
    assert_eq!(lost, 0, "streams are ended in time");
    assert!(refused.len() > 1, "all of them went in at once, so that nothing was shown");
    // A prompt is dearer than it is in the end, as its hold has it.
    let floor = FLOOR_TOKENS * retail(COMPLETION_NUSD) + LIMIT / 50;
    assert!(spent > LIMIT - floor, "refused with {spent} spent of {LIMIT}");
    site.close().await;
}
