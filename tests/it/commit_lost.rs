//! The database goes away: killed, paused, or with the answer to a COMMIT lost on the way. Nothing
//! is doubled, nothing is lost, and every answer that a client got whole is charged once.
//!
//! PostgreSQL only: SQLite is in the process, and `kill_matrix` kills that. `TEST_SEED` gives the
//! instants, `TOLLGATE_TEST_COMMIT_ROUNDS` their number.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;

use crate::app::books::UsageRecord;
use crate::app::cluster::Cluster;
use crate::app::{
    Kind, Setup, Store, TestApp, address_of, both_stores, eventually, question, streamed,
};
use crate::client::{Answered, Exchange};
use crate::overspend::number_of;
use crate::random::Random;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{MODEL, OLD_MODEL};
use crate::upstream::model::{Generation, Manner, Model, generation_of};
use crate::upstream::script::{Gate, Script};

both_stores!(odd_answers_do_not_harm_the_others, what_the_database_refuses_fails_alone);

fn milliseconds(number: usize) -> Duration {
    Duration::from_millis(u64::try_from(number).expect("few"))
}

fn rounds() -> usize {
    number_of("TOLLGATE_TEST_COMMIT_ROUNDS", 4)
}

/// Clients that call again and again until they are told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: tokio::task::JoinHandle<Vec<Vec<Answered>>>,
}

impl Load {
    pub fn start(app: &TestApp) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let bodies = [streamed(OLD_MODEL), question(OLD_MODEL)];
        let clients: Vec<_> = (0..24)
            .map(|number| {
                let body = &bodies[usize::from(number % 6 == 0)];
                call_until(stop.clone(), app.address(), app.chat_ask(body).bytes())
            })
            .collect();
        Self { stop, clients: tokio::spawn(join_all(clients)) }
    }

    pub async fn end(self) -> Vec<Answered> {
        self.stop.store(true, Ordering::SeqCst);
        let answers = self.clients.await.expect("no client panics");
        answers.into_iter().flatten().collect()
    }
}

async fn call_until(
    stop: Arc<AtomicBool>,
    address: std::net::SocketAddr,
    request: Vec<u8>,
) -> Vec<Answered> {
    let mut answers = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let got = Exchange::open(address, &request).await.finish().await;
        // A request that cannot wait for the database says so; it is nobody's fault.
        assert!([200, 503].contains(&got.status), "{}: {}", got.status, got.text());
        answers.push(got);
    }
    answers
}

/// Every whole answer is recorded once, at the upstream's numbers, and nothing else is charged
/// without the upstream having made it.
pub fn check(
    records: &[UsageRecord],
    answers: &[Answered],
    truths: &BTreeMap<String, Generation>,
    seed: &Random,
) {
    let (mut of, mut times) = (HashMap::new(), HashMap::new());
    for record in records {
        of.entry(record.id.clone()).or_insert_with(Vec::new).push(record);
        *times.entry(record.generation_id.as_deref()).or_insert(0) += 1;
    }
    let mut wrong = Vec::new();
    let seen = answers.iter().filter(|got| got.status == 200 && !got.body.is_empty());
    let mut whole = 0;
    for got in seen {
        whole += usize::from(got.complete);
        let request = got.request_id();
        let own = of.get(&request).map_or(&[][..], Vec::as_slice);
        let [record] = own else {
            wrong.push(format!("{} records of {request}", own.len()));
            continue;
        };
        let truth = generation_of(&got.text()).and_then(|id| truths.get(&id));
        if !truth.is_some_and(|truth| truth.is_told_by(record)) {
            wrong.push(format!("{truth:?}\n{record:#?}\n{}", got.text()));
        }
    }
    for id in truths.keys() {
        let count = times.get(&Some(id.as_str())).copied().unwrap_or(0);
        if count > 1 {
            wrong.push(format!("{id} is recorded {count} times"));
        }
    }
    // Who is refused pays nothing, and nobody pays for what neither a client nor an upstream knows,
    // but for the prompt of a call that was under way when its program was killed.
    let refused: HashSet<String> = answers
        .iter()
        .filter(|got| got.status == 503 && got.header("x-request-id").is_some())
        .map(Answered::request_id)
        .collect();
    let answered: HashSet<String> =
        answers.iter().filter(|got| got.status == 200).map(Answered::request_id).collect();
    for record in records.iter().filter(|record| record.charge_nusd > 0) {
        let id = record.generation_id.as_ref();
        let is_known =
            answered.contains(&record.id) || id.is_some_and(|id| truths.contains_key(id));
        let is_estimate =
            (record.ending.as_str(), record.source.as_str()) == ("killed", "estimated");
        if refused.contains(&record.id) || !(is_known || is_estimate) {
            wrong.push(format!("charged for nothing: {record:#?}"));
        }
    }
    let refused = answers.iter().filter(|got| got.status == 503).count();
    println!("{seed}: {whole} whole, {refused} refused, {} generated", truths.len());
    assert!(wrong.is_empty(), "{seed}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(whole > 0, "{seed}: nobody got an answer, so that nothing was shown");
}

pub fn manner() -> Manner {
    Manner { tokens: 1, spread: 30, pause: Duration::from_millis(2), ..Manner::obedient() }
}

pub async fn loaded(setup: Setup, model: &Model) -> TestApp {
    let setup = setup.credit("100000").env("UPSTREAM_BASE_URL", &model.url());
    setup.env("TOLLGATE_LEASE_SECONDS", "1").env("TOLLGATE_LOOKUP_SECONDS", "5").start().await
}

/// Calls are settled again: the next fault meets a program at work.
pub async fn goes_on(app: &TestApp) {
    let before = app.books.records().await.len();
    eventually("the ledger goes on", async || {
        (app.books.records().await.len() > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_killed_database_loses_and_doubles_nothing() {
    let random = Random::from_environment();
    let (mut cluster, model) = (Cluster::start().await, Model::start(manner()).await);
    let setup = Setup::new(Store::Postgres).cluster(&cluster);
    let app = loaded(setup.env("TOLLGATE_DATABASE_SECONDS", "5"), &model).await;
    let load = Load::start(&app);
    for _ in 0..rounds() {
        tokio::time::sleep(milliseconds(100 + random.below(400))).await;
        cluster.kill9().await;
        tokio::time::sleep(milliseconds(random.below(1_000))).await;
        cluster.start_again().await;
        goes_on(&app).await;
    }
    let answers = load.end().await;
    app.settled().await;
    check(&app.books.records().await, &answers, &model.generations(), &random);
    app.finish().await;
}

#[tokio::test]
async fn a_paused_database_loses_and_doubles_nothing() {
    let random = Random::from_environment();
    let (cluster, model) = (Cluster::start().await, Model::start(manner()).await);
    let setup = Setup::new(Store::Postgres).cluster(&cluster);
    let app = loaded(setup.env("TOLLGATE_DATABASE_SECONDS", "1"), &model).await;
    let load = Load::start(&app);
    for _ in 0..rounds() {
        tokio::time::sleep(milliseconds(100 + random.below(400))).await;
        cluster.pause();
        tokio::time::sleep(milliseconds(500 + random.below(1_500))).await;
        cluster.resume();
        goes_on(&app).await;
    }
    let answers = load.end().await;
    app.settled().await;
    check(&app.books.records().await, &answers, &model.generations(), &random);
    app.finish().await;
}

/// The worst instant, met every time: committed, and nobody was told.
#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_not_done_twice() {
    let random = Random::from_environment();
    let model = Model::start(manner()).await;
    let app = loaded(Setup::new(Store::Postgres).proxied(), &model).await;
    let proxy = app.proxy.as_ref().expect("it was asked for");
    let load = Load::start(&app);
    for round in 1..=5 * rounds() {
        tokio::time::sleep(milliseconds(random.below(150))).await;
        proxy.lose(1);
        eventually("a commit's answer is lost", async || (proxy.lost() == round).then_some(()))
            .await;
        goes_on(&app).await;
    }
    let answers = load.end().await;
    app.settled().await;
    println!("{} answers to COMMIT were lost", proxy.lost());
    check(&app.books.records().await, &answers, &model.generations(), &random);
    app.finish().await;
}

/// An orphan's estimate is committed and nobody is told: that is no news of it, and the truth that
/// the upstream tells later still counts.
#[tokio::test]
async fn an_estimate_whose_answer_is_lost_is_not_the_truth() {
    let setup = Setup::new(Store::Postgres).proxied().env("TOLLGATE_LEASE_SECONDS", "1");
    // Between the claim and the estimate there is time to ask the proxy for the loss.
    let setup = setup.env("TOLLGATE_LOOKUP_SECONDS", "3");
    let mut app = setup.env("TOLLGATE_SLOW_LOOKUP_EVERY_SECONDS", "1").start().await;
    let answer = Answer::openrouter();
    let [first, rest @ ..] = &answer.events()[..] else { panic!("events") };
    let script = answer.head().chunk(first).wait(&Gate::new()).chunks(rest).end();
    app.upstream.script(script);
    let mut exchange = app.begin_chat(&streamed(MODEL)).await;
    exchange.until("data: ").await;
    app.kill9();
    let request = exchange.finish().await.request_id();
    let owner_of = async |app: &TestApp| {
        let holds = app.books.rows("SELECT owner FROM holds").await;
        holds.first().map(|hold| hold["owner"].to_string())
    };
    let dead = owner_of(&app).await.expect("the hold outlives the program");
    app.restart().await;
    let claimed = async || owner_of(&app).await.filter(|owner| *owner != dead);
    eventually("the orphan is claimed", claimed).await;
    let proxy = app.proxy.as_ref().expect("it was asked for");
    proxy.lose(1);
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("killed", "estimated"));
    assert_eq!(record.id, request);
    // The record may be seen before the answer to its commit has come as far as the proxy.
    eventually("the answer is lost", async || (proxy.lost() == 1).then_some(())).await;
    // Later than any second decision of the same settlement.
    app.upstream.generation(2, answer.generation(12, 5, 0.0001));
    let correction = eventually("the truth corrects it", async || {
        app.books.rows("SELECT * FROM usage_corrections").await.pop()
    })
    .await;
    assert_eq!(correction["completion_tokens"], 5, "{correction}");
    assert_eq!(correction["charge_nusd"], 120_000, "{correction}");
    app.finish().await;
}

#[tokio::test]
async fn a_silence_longer_than_a_lease_orphans_nothing_that_lives() {
    outlast(async |cluster| {
        cluster.pause();
        tokio::time::sleep(Duration::from_secs(11)).await;
        cluster.resume();
    })
    .await;
}

#[tokio::test]
async fn an_outage_longer_than_a_lease_orphans_nothing_that_lives() {
    outlast(async |cluster| {
        cluster.kill9().await;
        tokio::time::sleep(Duration::from_secs(11)).await;
        cluster.start_again().await;
    })
    .await;
}

/// A replica may not take the other's holds for orphans only because the database was away for
/// longer than a lease. There is no look-up here that would put it right.
async fn outlast(outage: impl AsyncFnOnce(&mut Cluster)) {
    // They go on for longer than the outage, and that for longer than two leases.
    let pace = Duration::from_millis(150);
    let model = Model::start(Manner { tokens: 120, pause: pace, ..Manner::obedient() }).await;
    let mut cluster = Cluster::start().await;
    let setup = Setup::new(Store::Postgres).cluster(&cluster).kind(Kind::OpenAi).prices(
        "[[price]]\nmodel = \"openai/*\"\nprompt_usd_per_mtok = \"30\"\n\
         completion_usd_per_mtok = \"60\"\n",
    );
    let setup = setup.env("UPSTREAM_BASE_URL", &model.url());
    let app = setup.env("TOLLGATE_LEASE_SECONDS", "5").start().await;
    let (mut replica, base_url) = app.replica().await;
    let addresses = [app.address(), address_of(&base_url)];
    let calls = (0..10).map(|number| {
        let request = app.chat_ask(&streamed(OLD_MODEL)).bytes();
        async move { Exchange::open(addresses[number % 2], &request).await.finish().await }
    });
    let interrupted = async {
        eventually("ten holds", async || (app.books.holds().await.len() == 10).then_some(())).await;
        outage(&mut cluster).await;
    };
    let (answers, ()) = tokio::join!(join_all(calls), interrupted);
    app.settled().await;
    let records = app.books.records().await;
    for got in &answers {
        assert!(got.ok().ends_with("data: [DONE]\n\n"), "{}", got.text());
        let record = records.iter().find(|record| record.id == got.request_id());
        let record = record.expect("a record of each");
        assert_eq!((record.ending.as_str(), record.source.as_str()), ("completed", "upstream"));
        assert_eq!(record.completion_tokens, 120, "{record:#?}");
    }
    replica.kill();
    app.finish().await;
}

/// Names and numbers that an upstream should not send. Whatever is thought of them, they are
/// settled, and so are the ordinary calls that are settled with them.
async fn odd_answers_do_not_harm_the_others(store: Store) {
    let app = Setup::new(store).credit("1000").start().await;
    let usage = |prompt: &str, completion: &str, cost: &str| {
        format!(
            r#"{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":1,"cost":{cost}}}"#
        )
    };
    let ordinary = usage("12", "7", "0.000123");
    let odd: Vec<(&str, String, String)> = vec![
        ("provider", r#""\u0000""#.to_string(), ordinary.clone()),
        ("provider", r#""a\u0000b""#.to_string(), ordinary.clone()),
        ("model", r#""\ud800""#.to_string(), ordinary.clone()),
        ("model", r#""\udc00 tail""#.to_string(), ordinary.clone()),
        ("id", r#""gen\u0000""#.to_string(), ordinary.clone()),
        ("id", format!(r#""{}""#, "x".repeat(100_000)), ordinary.clone()),
        ("provider", format!(r#""{}""#, "\u{ffff}\u{10ffff}".repeat(50_000)), ordinary),
        ("provider", r#""max""#.to_string(), usage("9223372036854775807", "7", "0.0001")),
        (
            "provider",
            r#""max""#.to_string(),
            usage("9223372036854775807", "9223372036854775807", "null"),
        ),
        (
            "provider",
            r#""sum""#.to_string(),
            usage("5000000000000000000", "5000000000000000000", "null"),
        ),
        ("provider", r#""huge""#.to_string(), usage("12", "7", "1e300")),
        ("provider", r#""dear""#.to_string(), usage("12", "7", "0.5e1")),
        ("provider", r#""negative""#.to_string(), usage("-12", "-7", "-1")),
        ("provider", r#""fraction""#.to_string(), usage("12.5", "7.0", "\"0.1\"")),
    ];
    let gate = Gate::new();
    let count = odd.len();
    for (member, value, usage) in odd {
        let answer = Answer::openrouter();
        let finish = answer.finish_event_with(&usage);
        let text = match member {
            "id" => finish.replace(&format!("\"{}\"", answer.id), &value),
            "model" => finish.replace(r#""openai/gpt-4o-mini""#, &value),
            _ => finish.replace(r#""provider":"OpenAI""#, &format!(r#""provider":{value}"#)),
        };
        assert!(text.contains(&value), "{member}");
        let script = Script::stream().chunk(&text[..10]).wait(&gate);
        app.upstream.script(script.chunk(&text[10..]).chunk("data: [DONE]\n\n").end());
    }
    for _ in 0..30 {
        let answer = Answer::openrouter();
        let mut events = answer.events();
        let first = events.remove(0);
        app.upstream.script(answer.head().chunk(first).wait(&gate).chunks(events).end());
    }
    let body = streamed(MODEL);
    let calls = join_all((0..30 + count).map(|_| app.chat(&body)));
    let opened = async {
        app.upstream.wait_for_chats(30 + count).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(calls, opened);
    let records = app.records(30 + count).await;
    assert!(answers.iter().all(|got| got.status == 200));
    let ordinary = records.iter().filter(|record| {
        (record.source.as_str(), record.charge_nusd) == ("upstream", 147_600)
            && record.provider.as_deref() == Some("OpenAI")
    });
    assert!(ordinary.count() >= 30, "{records:#?}");
    app.finish().await;
}

/// A row that the database itself refuses, among thirty that it takes.
async fn what_the_database_refuses_fails_alone(store: Store) {
    let app = Setup::new(store).start().await;
    let refuse = match store {
        Store::Postgres => {
            "ALTER TABLE usage_records ADD CONSTRAINT odd CHECK (provider <> 'Odd') NOT VALID"
        }
        Store::Sqlite => {
            "CREATE TRIGGER odd BEFORE INSERT ON usage_records WHEN NEW.provider = 'Odd' \
             BEGIN SELECT RAISE(ABORT, 'odd'); END"
        }
    };
    app.books.tamper(refuse).await;
    let gate = Gate::new();
    for number in 0..31 {
        let answer = Answer::openrouter();
        let provider = if number == 7 { "Odd" } else { "OpenAI" };
        let events: Vec<String> =
            answer.events().iter().map(|text| text.replace("OpenAI", provider)).collect();
        let (first, rest) = events.split_first().expect("events");
        app.upstream.script(answer.head().chunk(first).wait(&gate).chunks(rest).end());
    }
    let body = streamed(MODEL);
    let calls = join_all((0..31).map(|_| app.chat(&body)));
    let opened = async {
        app.upstream.wait_for_chats(31).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(calls, opened);
    assert!(answers.iter().all(|got| got.ok().ends_with("data: [DONE]\n\n")));
    let records = app.records(31).await;
    for record in &records {
        assert_eq!((record.source.as_str(), record.charge_nusd), ("upstream", 147_600));
    }
    let nameless: Vec<&UsageRecord> =
        records.iter().filter(|record| record.provider.is_none()).collect();
    assert_eq!(nameless.len(), 1, "the odd one is written without the upstream's words");
    let undo = match store {
        Store::Postgres => "ALTER TABLE usage_records DROP CONSTRAINT odd",
        Store::Sqlite => "DROP TRIGGER odd",
    };
    app.books.tamper(undo).await;
    app.finish().await;
}
