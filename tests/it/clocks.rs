//! Replicas whose clocks are wrong: who lives keeps its holds, and who has died leaves none, for
//! leases go by the database's clock; and what is spent is dated in the windows that count it.
//!
//! PostgreSQL only: a SQLite file has one server.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::app::clock::Clock;
use crate::app::process::Process;
use crate::app::{Setup, Store, TestApp, address_of, eventually, streamed};
use crate::client::Exchange;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{MODEL, OLD_MODEL};
use crate::upstream::model::{Manner, Model, Stall};
use crate::upstream::script::Gate;

/// Longer than any lease here, and than a test waits for anything.
const WRONG_SECONDS: i64 = 45;
/// Rounds of recovery; the first ones do not take over anything.
const ROUNDS: usize = 8;

#[tokio::test]
async fn a_clock_that_is_ahead_takes_no_hold_that_lives() {
    beside(WRONG_SECONDS).await;
}

#[tokio::test]
async fn a_clock_that_is_behind_loses_no_hold_that_lives() {
    beside(-WRONG_SECONDS).await;
}

/// Spending is counted in the windows that the other has begun, and dated within them: the books
/// agree with their entries.
#[tokio::test]
async fn a_day_that_began_elsewhere_counts_what_is_spent_here() {
    in_another_month(async |app, [own, other]| {
        let account = app.create_account("ahead", &["--credit", "5"]).await;
        let key = app.create_key(&account, &["--budget", "1"]).await;
        for address in [other, own] {
            ask_of(app, &key, address).await;
        }
    })
    .await;
}

/// The account's month has begun, for another key was used there: this key's has as well.
#[tokio::test]
async fn a_month_that_began_for_another_key_counts_what_this_one_spends() {
    in_another_month(async |app, [own, other]| {
        let account = app.create_account("ahead", &["--credit", "5"]).await;
        let first = app.create_key(&account, &["--budget", "1"]).await;
        let second = app.create_key(&account, &["--budget", "1"]).await;
        for (key, address) in [(&first, other), (&second, own), (&second, other)] {
            ask_of(app, key, address).await;
        }
    })
    .await;
}

/// Beside one whose clock is in another month, so that day, week and account have begun anew there.
async fn in_another_month(asks: impl AsyncFnOnce(&TestApp, [SocketAddr; 2])) {
    let app = TestApp::start(Store::Postgres).await;
    let clock = Clock::default();
    clock.set(32 * 24 * 3_600);
    let mut other = Process::serve(&clock.of(&app.environment), app.folder());
    let other_url = other.base_url().await;
    asks(&app, [app.address(), address_of(&other_url)]).await;
    other.kill();
    let said = app.try_cli(&["verify"]).await;
    assert!(said.status.success(), "{}\n{}", said.stdout, said.stderr);
    app.finish().await;
}

async fn ask_of(app: &TestApp, key: &str, address: SocketAddr) {
    app.upstream.script(Answer::openrouter().stream());
    let ask = app.chat_ask(&streamed(MODEL)).bearer(key);
    let got = Exchange::open(address, &ask.bytes()).await.finish().await;
    got.ok();
    app.record_of(&got).await;
}

async fn beside(seconds: i64) {
    let gate = Gate::new();
    let stall = Some((Stall::Tokens(3), gate.clone()));
    let model = Model::start(Manner { tokens: 20, stall, ..Manner::obedient() }).await;
    let setup = Setup::new(Store::Postgres).env("TOLLGATE_LEASE_SECONDS", "2");
    let app = setup.env("UPSTREAM_BASE_URL", &model.url()).start().await;
    let clock = Clock::default();
    clock.set(seconds);
    let mut other = Process::serve(&clock.of(&app.environment), app.folder());
    let other_url = other.base_url().await;
    let mut own = app.begin_chat(&streamed(OLD_MODEL)).await;
    own.until("data: ").await;
    let bytes = app.chat_ask(&streamed(OLD_MODEL)).bytes();
    let mut theirs = Exchange::open(address_of(&other_url), &bytes).await;
    theirs.until("data: ").await;

    renewed(&app).await;
    let records = app.books.records().await;
    assert!(records.is_empty(), "a hold that lives was taken for a dead one's: {records:#?}");
    // And when it has died, its hold is found within a lease.
    other.kill();
    let record =
        eventually("the hold of the dead one is settled", async || app.books.records().await.pop())
            .await;
    assert_eq!(
        (record.ending.as_str(), &record.id),
        ("killed", &theirs.finish().await.request_id())
    );
    gate.open();
    let got = own.finish().await;
    got.ok();
    assert_eq!(app.record_of(&got).await.ending, "completed");
    app.finish().await;
}

/// Every process has been at the holds so often that it would have taken over what it takes for
/// dead: a lease is renewed, and then others' are looked at.
async fn renewed(app: &TestApp) {
    let mut leases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    eventually("leases are renewed", async || {
        for row in app.books.rows("SELECT request_id, lease_expires_at FROM holds").await {
            let text = |name: &str| row[name].as_str().expect("a text").to_owned();
            let seen = leases.entry(text("request_id")).or_default();
            if seen.last() != Some(&text("lease_expires_at")) {
                seen.push(text("lease_expires_at"));
            }
        }
        let is_done = leases.len() == 2 && leases.values().all(|seen| seen.len() > ROUNDS);
        // A hold that was taken over is renewed no more.
        (is_done || !app.books.records().await.is_empty()).then_some(())
    })
    .await;
}
