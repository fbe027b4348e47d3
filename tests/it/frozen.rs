//! A process that is frozen, as by a machine that swaps or is moved, keeps its connections open:
//! what it had locked must not be kept from the others.
//!
//! PostgreSQL only: SQLite has one process.

use std::time::Duration;

use crate::app::process::Process;
use crate::app::{Setup, Store, TestApp, address_of, eventually, in_its_time, streamed};
use crate::client::Exchange;
use crate::upstream::catalog::OLD_MODEL;
use crate::upstream::model::{Manner, Model};

/// A call of a program that is frozen while it has locked the account: not every time is it so in
/// time.
async fn frozen_in_a_transaction(app: &TestApp) -> Exchange {
    // A statement that is only parsed locks its table; with a row locked there is a transaction id.
    let locked = "SELECT a.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
                  WHERE l.relation = 'accounts'::regclass AND l.mode = 'RowShareLock' \
                  AND a.backend_xid IS NOT NULL AND a.state = 'idle in transaction'";
    for _ in 0..5 {
        let call = app.begin_chat(&streamed(OLD_MODEL)).await;
        eventually("the account is locked", async || app.books.rows(locked).await.pop()).await;
        app.process.freeze();
        if app.books.rows(locked).await.len() == 1 {
            return call;
        }
        app.process.thaw();
        assert!([200, 503].contains(&call.finish().await.status));
        app.settled().await;
    }
    panic!("it was frozen too late each time");
}

#[tokio::test]
async fn a_replica_frozen_in_a_transaction_keeps_no_account_from_the_others() {
    let model = Model::start(Manner::obedient()).await;
    let setup = Setup::new(Store::Postgres).proxied().env("UPSTREAM_BASE_URL", &model.url());
    // So little that no call may overlap with its hold.
    let setup = setup.credit("0.02").env("TOLLGATE_DATABASE_SECONDS", "2");
    let app = setup.start().await;
    let mut environment = app.environment.clone();
    environment.insert("DATABASE_URL".to_owned(), app.database_url());
    let mut replica = Process::serve(&environment, app.folder());
    let address = address_of(&replica.base_url().await);
    let bytes = app.chat_ask(&streamed(OLD_MODEL)).bytes();
    let proxy = app.proxy.as_ref().expect("it was asked for");
    proxy.slow(Duration::from_millis(300));
    let first = frozen_in_a_transaction(&app).await;
    eventually("the other serves the account", async || {
        let got = Exchange::open(address, &bytes).await.finish().await;
        (got.status == 200).then_some(())
    })
    .await;
    proxy.slow(Duration::ZERO);
    app.process.thaw();
    let first = first.finish().await;
    assert!([200, 503].contains(&first.status), "{}", first.text());
    in_its_time("the frozen one serves again", async || {
        (app.chat(&streamed(OLD_MODEL)).await.status == 200).then_some(())
    })
    .await;
    app.settled().await;
    let (truths, mut records) = (model.generations(), app.books.records().await);
    records.retain(|record| record.generation_id.is_some());
    assert_eq!(records.len(), truths.len(), "each call is recorded once: {records:#?}");
    for record in &records {
        let truth = record.generation_id.as_ref().and_then(|id| truths.get(id));
        assert!(truth.is_some_and(|truth| truth.is_told_by(record)), "{record:#?}");
    }
    replica.kill();
    app.finish().await;
}
