//! PostgreSQL is away, and those who are known are served all the same: within the exposure, by a
//! journal that is replayed. In the end the books are the upstream's truth.
//!
//! `TEST_SEED` gives the instants, `TOLLGATE_TEST_OUTAGE_SECONDS` how long an outage is that nobody
//! is to notice. SQLite is never away; a disk that is full is another matter.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::app::books::UsageRecord;
use crate::app::cluster::Cluster;
use crate::app::process::Process;
use crate::app::{
    Kind, Setup, Store, TestApp, address_of, both_stores, eventually, in_its_time, mode, streamed,
};
use crate::client::{Answered, Exchange};
use crate::commit_lost::{Load, check, goes_on, loaded, manner};
use crate::kill_matrix::until_killed;
use crate::metrics::scrape::{Scrape, scrape, scrape_of, watched};
use crate::random::Random;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{MODEL, OLD_MODEL};
use crate::upstream::model::{Manner, Model, Stall};
use crate::upstream::script::Gate;

mod keys;
mod measured;

use measured::{Sums, a_settlement_that_is_refused_is_counted_as_lost, holds, wire};

both_stores!(a_settlement_that_is_refused_is_counted_as_lost);

/// More than any of these tests spends.
const PLENTY: &str = "1000";

fn exposed(cluster: &Cluster, exposure: &str) -> Setup {
    Setup::new(Store::Postgres)
        .cluster(cluster)
        .env("TOLLGATE_OUTAGE_EXPOSURE", exposure)
        .env("TOLLGATE_DATABASE_SECONDS", "6")
}

fn outage() -> Duration {
    let given = std::env::var("TOLLGATE_TEST_OUTAGE_SECONDS").ok();
    let seconds = given.map_or(5, |text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds)
}

async fn paused(cluster: &mut Cluster) {
    cluster.pause();
    tokio::time::sleep(outage()).await;
    cluster.resume();
}

async fn killed(cluster: &mut Cluster) {
    cluster.kill9().await;
    tokio::time::sleep(outage()).await;
    cluster.start_again().await;
}

/// Calls go on: so many more.
async fn more_calls(model: &Model, calls: usize) {
    let said = model.generations().len();
    let has_more = async || (model.generations().len() > said + calls).then_some(());
    eventually("calls of the outage", has_more).await;
}

fn journals(app: &TestApp) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(app.folder().join("tollgate-journal")).expect("a folder");
    folder.map(|entry| entry.expect("an entry").path()).collect()
}

/// That no hold is open says nothing of a journal: the database may have had none at the outage.
async fn replayed(app: &TestApp) {
    eventually("the journal is replayed", async || {
        app.process.stderr().contains("has what was journalled").then_some(())
    })
    .await;
}

/// The same of a process that has died, by the one that has come after it.
async fn replayed_by_its_heir(app: &TestApp) {
    eventually("the journal is replayed", async || (journals(app).len() == 1).then_some(())).await;
}

#[tokio::test]
async fn a_paused_database_is_not_noticed() {
    is_not_noticed(paused).await;
}

#[tokio::test]
async fn nor_is_a_killed_one() {
    is_not_noticed(killed).await;
}

async fn is_not_noticed(outage: impl AsyncFnOnce(&mut Cluster)) {
    let random = Random::from_environment();
    let (mut cluster, model) = (Cluster::start().await, Model::start(manner()).await);
    let mut app = loaded(exposed(&cluster, PLENTY), &model).await;
    let load = Load::start(&app);
    goes_on(&app).await;
    outage(&mut cluster).await;
    goes_on(&app).await;
    let answers = load.end().await;
    let refused: Vec<_> = answers.iter().filter(|got| got.status != 200).collect();
    assert!(refused.is_empty(), "{random}: {} refused: {:?}", refused.len(), refused[0]);
    replayed(&app).await;
    app.settled().await;
    check(&app.books.records().await, &answers, &model.generations(), &random);
    let said = app.process.stderr();
    assert!(said.contains("going on with the journal"), "{random}: there was no outage");
    app.sigterm();
    assert!(app.stopped().await.success());
    assert_eq!(journals(&app), Vec::<PathBuf>::new(), "an empty journal is taken away");
    app.finish().await;
}

/// The machine of the database is gone without a word and another is in its place: TCP would tell
/// so in a quarter of an hour. Whatever is asked then gets no answer.
#[tokio::test]
async fn nor_is_one_that_falls_silent_and_has_a_successor() {
    let random = Random::from_environment();
    let (cluster, model) = (Cluster::start().await, Model::start(manner()).await);
    let app = loaded(exposed(&cluster, PLENTY).proxied(), &model).await;
    let load = Load::start(&app);
    for _ in 0..3 {
        goes_on(&app).await;
        wire(&app).silence();
        let before = app.books.records().await.len();
        // A replay waits longer for a commit than a call does.
        let goes_on = async || (app.books.records().await.len() > before).then_some(());
        in_its_time("the ledger goes on", goes_on).await;
    }
    let answers = load.end().await;
    let refused: Vec<_> = answers.iter().filter(|got| got.status != 200).collect();
    assert!(refused.is_empty(), "{random}: {} refused: {:?}", refused.len(), refused[0]);
    app.settled().await;
    check(&app.books.records().await, &answers, &model.generations(), &random);
    app.books.is_listened_to().await;
    app.finish().await;
}

#[tokio::test]
async fn what_a_killed_process_journalled_is_replayed() {
    let random = Random::from_environment();
    let (mut cluster, model) = (Cluster::start().await, Model::start(manner()).await);
    let mut app = loaded(exposed(&cluster, PLENTY), &model).await;
    let mut answers = Vec::new();
    for round in 0..2 {
        let clients = until_killed(&app, 16);
        goes_on(&app).await;
        cluster.kill9().await;
        more_calls(&model, 60).await;
        app.kill9();
        answers.extend(clients.await.expect("no client panics").into_iter().flatten());
        let left = journals(&app);
        assert_eq!(left.len(), 1, "it is left behind");
        assert_eq!(mode(&left[0]), 0o600, "for its owner");
        if round == 1 {
            // Nor does a start without the database lose anything.
            let failed = app.try_cli(&["serve"]).await;
            assert!(!failed.status.success(), "{failed:?}");
        }
        cluster.start_again().await;
        app.restart().await;
        replayed_by_its_heir(&app).await;
        app.settled().await;
    }
    check(&app.books.records().await, &answers, &model.generations(), &random);
    app.finish().await;
}

fn assert_away(got: &Answered) {
    assert_eq!(got.status, 503, "{}", got.text());
    assert_eq!(got.json()["error"]["code"], json!("database_unavailable"), "{}", got.text());
    assert!(got.header("retry-after").is_some(), "{:?}", got.headers);
}

/// A hold of this question is more than a cent, so that three cents are two of them at most.
#[tokio::test]
async fn nothing_is_let_in_beyond_the_exposure() {
    let cluster = Cluster::start().await;
    let (gate, model) = (Gate::new(), Model::start(Manner::obedient()).await);
    let setup = exposed(&cluster, "0.03").env("UPSTREAM_BASE_URL", &model.url());
    let app = setup.start().await;
    app.create_account("poor", &["--credit", "0.00001"]).await;
    let poor = app.create_key("poor", &[]).await;
    let unknown = app.create_key("test", &[]).await;
    let body = streamed(OLD_MODEL);
    let ask = |key: &str| app.chat_ask(&body).bearer(key);
    app.chat(&body).await.ok();
    assert_eq!(app.ask(&ask(&poor)).await.status, 429);
    app.settled().await;
    cluster.pause();
    let stall = Some((Stall::Tokens(3), gate.clone()));
    model.behave(Manner { stall, ..Manner::obedient() });
    let mut first = app.begin_chat(&body).await;
    first.until("data: ").await;
    let mut others = Vec::new();
    // What is left may do for others, with shorter answers.
    let refused = loop {
        let mut got = app.begin_chat(&body).await;
        assert!(got.head().await, "no answer");
        if got.status() != 200 {
            break got.finish().await;
        }
        others.push(got);
        assert!(others.len() < 10, "the exposure has no end");
    };
    assert_away(&refused);
    assert_away(&app.ask(&ask(&unknown)).await);
    let repeated = ask(&app.key).header("Idempotency-Key", "once");
    assert_away(&app.ask(&repeated).await);
    let got = app.ask(&ask(&poor)).await;
    assert_eq!(got.json()["error"]["code"], json!("insufficient_quota"), "by what was last read");
    let ready = app.get_plain("/readyz").await;
    assert_eq!(ready.status, 503, "nobody else can be served: {}", ready.text());
    gate.open();
    first.finish().await.ok();
    for other in others {
        other.finish().await;
    }
    // What was set aside and not used can be used by others.
    eventually("somebody is served again", async || {
        (app.get_plain("/readyz").await.status == 200).then_some(())
    })
    .await;
    let called = model.chats().len();
    app.chat(&body).await.ok();
    assert_eq!(model.chats().len(), called + 1);
    cluster.resume();
    recorded(&app, model.chats().len()).await;
    app.finish().await;
}

/// The records of calls that the upstream has answered, once there are so many.
async fn recorded(app: &TestApp, count: usize) -> Vec<UsageRecord> {
    let records = eventually(&format!("{count} calls in the books"), async || {
        let mut records = app.books.records().await;
        records.retain(|record| record.generation_id.is_some());
        (records.len() >= count && app.books.holds().await.is_empty()).then_some(records)
    })
    .await;
    assert_eq!(records.len(), count, "more than were made");
    records
}

/// Each replica knows what it has read: two of them may spend the same dollar. What is charged
/// beyond it is the operator's, and on the record.
#[tokio::test]
async fn what_two_replicas_spend_twice_is_the_operators_loss() {
    let cluster = Cluster::start().await;
    let model = Model::start(Manner { tokens: 100, ..Manner::obedient() }).await;
    let setup = exposed(&cluster, PLENTY).credit("0.02");
    let app = setup.env("UPSTREAM_BASE_URL", &model.url()).start().await;
    let (mut replica, base_url) = app.replica().await;
    let bytes = app.chat_ask(&json!({
        "model": OLD_MODEL, "stream": true, "max_tokens": 16,
        "messages": [{"role": "user", "content": "Is the tollgate open?"}],
    }));
    let bytes = bytes.bytes();
    for address in [app.address(), address_of(&base_url)] {
        Exchange::open(address, &bytes).await.finish().await.ok();
    }
    app.settled().await;
    cluster.pause();
    let mut answers = Vec::new();
    for address in [app.address(), address_of(&base_url)] {
        for _ in 0..20 {
            answers.push(Exchange::open(address, &bytes).await.finish().await);
        }
    }
    cluster.resume();
    let served = answers.iter().filter(|got| got.status == 200).count();
    let records = recorded(&app, served + 2).await;
    let charged: i64 = records.iter().map(|record| record.charge_nusd).sum();
    let lost: i64 = records.iter().map(|record| record.shortfall_nusd).sum();
    let true_cost: i64 = model.generations().values().map(|it| it.cost_nusd() * 12 / 10).sum();
    assert_eq!(charged + lost, true_cost);
    assert!(charged <= 20_000_000, "no account is overdrawn: {charged}");
    assert!(lost > 0 && lost <= 20_000_000, "as much again at most: {lost}");
    replica.kill();
    app.finish().await;
}

/// The other replica takes the holds of one that is cut off for a dead one's: what its journal says
/// afterwards puts that right, once. There is no look-up here that would.
#[tokio::test]
async fn a_replica_that_was_cut_off_corrects_what_was_settled_for_it() {
    let cluster = Cluster::start().await;
    let gate = Gate::new();
    let stall = Some((Stall::Tokens(5), gate.clone()));
    let model = Model::start(Manner { tokens: 40, stall, ..Manner::obedient() }).await;
    let setup = exposed(&cluster, PLENTY).proxied().kind(Kind::OpenAi).prices(
        "[[price]]\nmodel = \"openai/*\"\nprompt_usd_per_mtok = \"30\"\n\
         completion_usd_per_mtok = \"60\"\n",
    );
    let setup = setup.env("UPSTREAM_BASE_URL", &model.url()).env("TOLLGATE_LEASE_SECONDS", "3");
    let app = watched(setup).start().await;
    let mut environment = app.environment.clone();
    environment.insert("DATABASE_URL".to_owned(), app.database_url());
    let mut replica = Process::serve(&environment, app.folder());
    replica.base_url().await;
    let mut running = app.begin_chat(&streamed(OLD_MODEL)).await;
    running.until("data: ").await;
    let proxy = app.proxy.as_ref().expect("a proxy");
    proxy.cut();
    let killed = eventually("the replica takes it over", async || {
        app.books.records().await.into_iter().find(|record| record.ending == "killed")
    })
    .await;
    gate.open();
    let got = running.finish().await;
    got.ok();
    // Begun and ended without the books.
    let other = app.chat(&streamed(OLD_MODEL)).await;
    other.ok();
    proxy.mend();
    let corrections = eventually("its correction", async || {
        let rows = app.books.rows("SELECT * FROM usage_corrections").await;
        (!rows.is_empty()).then_some(rows)
    })
    .await;
    assert_eq!(corrections.len(), 1);
    assert_eq!(corrections[0]["request_id"], json!(killed.id));
    assert_eq!(got.request_id(), killed.id);
    assert_eq!(corrections[0]["completion_tokens"], json!(40));
    let record = app.record_of(&other).await;
    assert_eq!((record.ending.as_str(), record.completion_tokens), ("completed", 40));
    let charges = app.books.entries().await;
    let spent: i64 = charges.iter().filter(|it| it.kind != "credit").map(|it| it.amount_nusd).sum();
    assert_eq!(-spent, 2 * (12 * 30_000 + 40 * 60_000));
    taken_over_and_corrected(&app, &replica).await;
    replica.kill();
    app.finish().await;
}

/// Its own count is no reason to ask no more: what the upstream says later is what is applied.
#[tokio::test]
async fn a_replica_that_was_cut_off_leaves_a_count_to_be_looked_up() {
    let (cluster, gate, answer) = (Cluster::start().await, Gate::new(), Answer::openrouter());
    let setup = exposed(&cluster, PLENTY).proxied().env("TOLLGATE_LEASE_SECONDS", "3");
    let app = watched(setup.env("TOLLGATE_SLOW_LOOKUP_EVERY_SECONDS", "1")).start().await;
    let mut environment = app.environment.clone();
    environment.insert("DATABASE_URL".to_owned(), app.database_url());
    let mut replica = Process::serve(&environment, app.folder());
    replica.base_url().await;
    let events = answer.clone().no_usage().events();
    let script = answer.head().chunk(&events[0]).wait(&gate).chunks(&events[1..]);
    app.upstream.script(script.end());
    let mut running = app.begin_chat(&streamed(MODEL)).await;
    running.until("data: ").await;
    wire(&app).cut();
    eventually("the replica takes it over", async || app.books.records().await.pop()).await;
    gate.open();
    running.finish().await.ok();
    wire(&app).mend();
    eventually("its own count comes late", async || {
        (holds(&scrape(&app).await, "taken_over") == 1).then_some(())
    })
    .await;
    app.upstream.generation(0, answer.generation(12, 40, 0.0001));
    let correction = eventually("a correction", async || {
        app.books.rows("SELECT * FROM usage_corrections").await.pop()
    })
    .await;
    assert_eq!(correction["completion_tokens"], json!(40), "{correction}");
    replica.kill();
    app.finish().await;
}

/// Each has counted what it has put into the books.
async fn taken_over_and_corrected(app: &TestApp, replica: &Process) {
    let recorded = Sums::recorded(&app.books.records().await);
    let corrections = |told: &Scrape| told.sum("tollgate_corrections_total", &[]);
    // The books have it before it is counted.
    let (told, other) = eventually("all is counted", async || {
        let (told, other) = (scrape(app).await, scrape_of(replica).await);
        let sums = Sums::told(&told).plus(Sums::told(&other));
        let is_all = sums.requests >= recorded.requests && corrections(&told) >= 1;
        is_all.then_some((told, other))
    })
    .await;
    let sums = Sums::told(&told).plus(Sums::told(&other));
    assert_eq!(sums, recorded);
    let states = ["placed", "settled", "taken_over", "recovered", "lost"];
    assert_eq!(states.map(|state| holds(&told, state)), [2, 1, 1, 0, 0]);
    assert_eq!(states.map(|state| holds(&other, state)), [0, 0, 0, 1, 0]);
    let of = |name: &str| told.sum(&format!("tollgate_corrections{name}_total"), &[]);
    let taken = of("_taken_nusd") - of("_given_back_nusd");
    let entries = app.books.entries().await;
    let entered = entries.iter().filter(|entry| entry.kind == "correction");
    assert_eq!(taken, -entered.map(|entry| entry.amount_nusd).sum::<i64>());
    assert_eq!((corrections(&told), corrections(&other)), (1, 0));
}

/// The first megabyte of a journal is there from the start; the disk ends behind it.
#[tokio::test]
async fn a_full_disk_serves_nobody_unrecorded() {
    let cluster = Cluster::start().await;
    let model = Model::start(Manner { tokens: 2, ..Manner::obedient() }).await;
    let setup = exposed(&cluster, PLENTY).credit("1000").env("UPSTREAM_BASE_URL", &model.url());
    let mut app = setup.start().await;
    app.kill9();
    app.restart_on_a_small_disk(2_050).await;
    app.chat(&streamed(OLD_MODEL)).await.ok();
    app.settled().await;
    cluster.pause();
    let mut served = 1;
    let refused = loop {
        let got = app.chat(&streamed(OLD_MODEL)).await;
        if got.status != 200 {
            break got;
        }
        served += 1;
        assert!(served < 2_000, "the disk has no end");
    };
    assert_away(&refused);
    assert_eq!(model.chats().len(), served, "who is refused is not forwarded");
    assert!(served > 50, "there was room for some: {served}");
    cluster.resume();
    let truths = model.generations();
    for record in recorded(&app, served).await {
        let truth = record.generation_id.as_ref().and_then(|id| truths.get(id));
        assert!(truth.is_some_and(|truth| truth.is_told_by(&record)), "{record:#?}");
    }
    eventually("it serves again", async || {
        (app.chat(&streamed(OLD_MODEL)).await.status == 200).then_some(())
    })
    .await;
    app.finish().await;
}

/// SQLite has no journal: what keeps its file from growing keeps a journal from it too. A request
/// waits, is refused, and costs nothing; what was under way is written down when there is room.
#[tokio::test]
async fn a_full_disk_under_sqlite_refuses_and_loses_nothing() {
    let setup = Setup::new(Store::Sqlite).env("TOLLGATE_DATABASE_SECONDS", "1");
    let mut app = setup.start().await;
    app.kill9();
    // Room for what is there, and for some requests in the write-ahead log.
    let size = std::fs::metadata(app.folder().join("books.db")).expect("a file").len();
    let blocks = u32::try_from(size.max(512 * 1024) / 512 + 64).expect("small");
    app.restart_on_a_small_disk(blocks).await;
    let mut served = Vec::new();
    let refused = loop {
        app.upstream.script(Answer::openrouter().stream());
        let got = app.chat(&streamed(MODEL)).await;
        if got.status != 200 {
            break got;
        }
        served.push(got.request_id());
        assert!(served.len() < 5_000, "the disk has no end");
    };
    assert_away(&refused);
    app.upstream.forget_scripts();
    app.process.give_room();
    app.settled().await;
    let records = app.books.records().await;
    for id in &served {
        let own = records.iter().filter(|record| record.id == *id).count();
        assert_eq!(own, 1, "{id}");
    }
    app.upstream.script(Answer::openrouter().stream());
    app.chat(&streamed(MODEL)).await.ok();
    app.drops_calls = true;
    app.finish().await;
}
