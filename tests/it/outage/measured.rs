//! What metrics say of an outage: what all processes have counted is what the books have, each
//! record once, whoever put it there and whenever a process died.

use std::time::Duration;

use super::{PLENTY, exposed, journals, more_calls, replayed, replayed_by_its_heir};
use crate::app::books::UsageRecord;
use crate::app::cluster::Cluster;
use crate::app::proxy::Proxy;
use crate::app::{Setup, Store, TestApp, eventually, question, streamed};
use crate::commit_lost::{Load, check, goes_on, loaded, manner};
use crate::metrics::scrape::{Scrape, scrape, watched};
use crate::random::Random;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use crate::upstream::model::Model;

/// What is counted of the books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub requests: i64,
    prompt: i64,
    completion: i64,
    cost_pusd: i64,
    charge_nusd: i64,
    shortfall_nusd: i64,
}

impl Sums {
    pub fn told(told: &Scrape) -> Self {
        let sum = |name: &str| told.sum(&format!("tollgate_{name}_total"), &[]);
        let tokens = |kind| told.sum("tollgate_tokens_total", &[("kind", kind)]);
        Self {
            requests: sum("requests"),
            prompt: tokens("prompt"),
            completion: tokens("completion"),
            cost_pusd: sum("upstream_cost_pusd"),
            charge_nusd: sum("charges_nusd"),
            shortfall_nusd: sum("shortfall_nusd"),
        }
    }

    pub fn recorded(records: &[UsageRecord]) -> Self {
        let sum = |of: &dyn Fn(&UsageRecord) -> i64| records.iter().map(of).sum();
        Self {
            requests: sum(&|_| 1),
            prompt: sum(&|record| record.prompt_tokens),
            completion: sum(&|record| record.completion_tokens),
            cost_pusd: sum(&|record| record.upstream_cost_pusd.unwrap_or_default()),
            charge_nusd: sum(&|record| record.charge_nusd),
            shortfall_nusd: sum(&|record| record.shortfall_nusd),
        }
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            prompt: self.prompt + other.prompt,
            completion: self.completion + other.completion,
            cost_pusd: self.cost_pusd + other.cost_pusd,
            charge_nusd: self.charge_nusd + other.charge_nusd,
            shortfall_nusd: self.shortfall_nusd + other.shortfall_nusd,
        }
    }
}

pub fn wire(app: &TestApp) -> &Proxy {
    app.proxy.as_ref().expect("it was asked for")
}

pub fn holds(told: &Scrape, state: &str) -> i64 {
    told.sum("tollgate_holds_total", &[("state", state)])
}

/// All is settled, and this process has counted what was not counted before it.
async fn assert_counted(app: &TestApp, before: Sums) -> Scrape {
    app.settled().await;
    let recorded = Sums::recorded(&app.books.records().await);
    eventually("all records are counted", async || {
        let told = before.plus(Sums::told(&scrape(app).await));
        (told.requests >= recorded.requests).then_some(())
    })
    .await;
    let told = scrape(app).await;
    assert_eq!(before.plus(Sums::told(&told)), recorded);
    told
}

/// The journal, and commits of which nobody heard: of those the database has what is journalled.
#[tokio::test]
async fn an_outage_is_counted_once() {
    let random = Random::from_environment();
    let (mut cluster, model) = (Cluster::start().await, Model::start(manner()).await);
    let setup = watched(exposed(&cluster, PLENTY).proxied());
    let app = loaded(setup.env("TOLLGATE_DATABASE_SECONDS", "4"), &model).await;
    let proxy = wire(&app);
    let load = Load::start(&app);
    for lost in 1..=4 {
        goes_on(&app).await;
        proxy.lose(1);
        eventually("an answer is lost", async || (proxy.lost() == lost).then_some(())).await;
    }
    proxy.lose(1);
    eventually("the last one is lost", async || (proxy.lost() == 5).then_some(())).await;
    proxy.cut();
    eventually("the journal is written", async || {
        app.process.stderr().contains("going on with the journal").then_some(())
    })
    .await;
    cluster.kill9().await;
    more_calls(&model, 60).await;
    // So that a slow machine has nothing to do but to replay.
    let answers = load.end().await;
    cluster.start_again().await;
    // A commit of the replay is not heard of, either.
    proxy.lose(1);
    proxy.mend();
    replayed(&app).await;
    let told = assert_counted(&app, Sums::default()).await;
    check(&app.books.records().await, &answers, &model.generations(), &random);
    let closed = ["settled", "voided", "taken_over", "lost"].map(|state| holds(&told, state));
    assert_eq!(holds(&told, "placed"), closed.iter().sum::<i64>(), "{random}: {closed:?}");
    assert_eq!(told.sum("tollgate_books_differences", &[]), 0, "{random}");
    app.finish().await;
}

/// What it was counting when it was killed: nothing, because the database was away.
#[tokio::test]
async fn what_is_replayed_for_a_killed_process_is_counted_once() {
    let random = Random::from_environment();
    let (mut cluster, model) = (Cluster::start().await, Model::start(manner()).await);
    let mut app = loaded(watched(exposed(&cluster, PLENTY)), &model).await;
    let load = crate::kill_matrix::until_killed(&app, 16);
    goes_on(&app).await;
    cluster.kill9().await;
    more_calls(&model, 60).await;
    let before = Sums::told(&scrape(&app).await);
    assert!(before.requests > 0, "{random}: nothing was counted before the outage");
    app.kill9();
    let answers = load.await.expect("no client panics").into_iter().flatten().collect::<Vec<_>>();
    cluster.start_again().await;
    app.restart().await;
    replayed_by_its_heir(&app).await;
    let told = assert_counted(&app, before).await;
    assert!(holds(&told, "recovered") > 60, "{random}: a journal was replayed");
    check(&app.books.records().await, &answers, &model.generations(), &random);
    app.finish().await;
}

/// What it had put into the books and counted is not counted by its heir, who finds it there.
#[tokio::test]
async fn a_replay_that_is_killed_half_way_is_counted_once() {
    let random = Random::from_environment();
    let (cluster, model) = (Cluster::start().await, Model::start(manner()).await);
    let mut app = loaded(watched(exposed(&cluster, PLENTY).proxied()), &model).await;
    let load = Load::start(&app);
    goes_on(&app).await;
    wire(&app).cut();
    // Pages of a replay have 256 operations, and each call is two of them and more.
    more_calls(&model, 500).await;
    let answers = load.end().await;
    let quiet = Sums::told(&scrape(&app).await);
    // Some seconds for each page, so that this process is killed in the middle of one.
    wire(&app).slow(Duration::from_millis(300));
    wire(&app).mend();
    eventually("the first page is replayed and counted", async || {
        (Sums::told(&scrape(&app).await).requests > quiet.requests).then_some(())
    })
    .await;
    wire(&app).cut();
    // What it hears nothing of it does not count; and it is at the next page.
    let retries = |told: &Scrape| told.sum("tollgate_ledger_retries_total", &[]);
    let cut = retries(&scrape(&app).await);
    eventually("the next page is tried in vain", async || {
        (retries(&scrape(&app).await) > cut).then_some(())
    })
    .await;
    let before = Sums::told(&scrape(&app).await);
    app.kill9();
    wire(&app).slow(Duration::ZERO);
    wire(&app).mend();
    assert_eq!(journals(&app).len(), 1, "{random}: it was replayed at once");
    app.restart().await;
    replayed_by_its_heir(&app).await;
    let told = assert_counted(&app, before).await;
    assert!(holds(&told, "recovered") > 0, "{random}: the rest was replayed");
    check(&app.books.records().await, &answers, &model.generations(), &random);
    app.finish().await;
}

/// What the database refuses in its plainest form too: its settlement is lost, and its hold is left
/// to whoever finds it when the cause is gone.
pub(super) async fn a_settlement_that_is_refused_is_counted_as_lost(store: Store) {
    let app = watched(Setup::new(store)).env("TOLLGATE_LEASE_SECONDS", "1").start().await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    app.settled().await;
    let refuse = match store {
        Store::Postgres => {
            "ALTER TABLE usage_records ADD CONSTRAINT odd CHECK (completion_tokens <> 77) NOT VALID"
        }
        Store::Sqlite => {
            "CREATE TRIGGER odd BEFORE INSERT ON usage_records WHEN NEW.completion_tokens = 77 \
             BEGIN SELECT RAISE(ABORT, 'odd'); END"
        }
    };
    app.books.tamper(refuse).await;
    app.upstream.script(Answer::openrouter().tokens(12, 77).stream());
    let got = app.chat(&streamed(MODEL)).await;
    got.ok();
    eventually("it is lost", async || (holds(&scrape(&app).await, "lost") == 1).then_some(()))
        .await;
    let record = app.record_of(&got).await;
    assert_eq!(record.ending, "killed", "recovery has found it");
    let told = assert_counted(&app, Sums::default()).await;
    let states = ["placed", "settled", "lost", "recovered", "taken_over"];
    assert_eq!(states.map(|state| holds(&told, state)), [2, 1, 1, 1, 0]);
    assert_eq!(told.sum("tollgate_books_differences", &[]), 0);
    let undo = match store {
        Store::Postgres => "ALTER TABLE usage_records DROP CONSTRAINT odd",
        Store::Sqlite => "DROP TRIGGER odd",
    };
    app.books.tamper(undo).await;
    assert_eq!(app.books.records().await.len(), 2);
    app.finish().await;
}
