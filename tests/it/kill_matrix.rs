//! The kill matrix: SIGKILL at a random instant under load, start again, recover. Then the books
//! say of every call of which a client saw a byte what its upstream says: once, and to the token.
//!
//! The upstream keeps the truth. Each seed is one kill; `TEST_SEED` gives the first of them and
//! `TOLLGATE_TEST_KILL_SEEDS` their number. Calls whose hold died with the process before it was
//! committed are known to the upstream only: nobody saw a byte of them, they are counted apart, and
//! `reconcile` names every one of them where the upstream has a list of its calls.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::app::books::{Hold, UsageRecord};
use crate::app::{
    Kind, Setup, Store, TestApp, both_stores, eventually, in_its_time, question, streamed,
};
use crate::client::{Answered, Exchange};
use crate::overspend::number_of;
use crate::random::Random;
use crate::upstream::Upstream;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{self, OLD_MODEL};
use crate::upstream::model::{
    COMPLETION_NUSD, Generation, Manner, Model, PROMPT_NUSD, generation_of,
};
use crate::upstream::script::Gate;

both_stores!(
    a_killed_process_loses_and_doubles_nothing,
    nor_does_one_whose_calls_had_moved_on,
    a_hold_that_cannot_be_read_keeps_no_other_open,
    a_killed_stream_is_charged_what_was_noted_of_it,
);

const CLIENTS: usize = 24;

/// What one kill came to, in calls.
#[derive(Default)]
struct Tally {
    /// The upstream generated something for these …
    calls: usize,
    /// … a client saw a byte of these …
    seen: usize,
    /// … and these were under way and settled by a look-up.
    looked_up: usize,
    /// The hold was committed, but not yet which generation it was for.
    estimated: usize,
    /// In no record.
    unrecorded: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, seen, looked_up, estimated, unrecorded } = self;
        write!(
            formatter,
            "{calls} calls, {seen} seen, {looked_up} looked up; seen by nobody: {estimated} \
             estimated, {unrecorded} killed before their hold was committed"
        )
    }
}

async fn a_killed_process_loses_and_doubles_nothing(store: Store) {
    let model = Model::start(Manner::obedient()).await;
    let mut app = hasty(store).env("UPSTREAM_BASE_URL", &model.url()).start().await;
    kill_often(&mut app, &model, 20).await;
    assert_reconcile_names_the_unrecorded(&app, &model).await;
    app.finish().await;
}

/// In front of an upstream that fails each call, before the one that answers.
async fn nor_does_one_whose_calls_had_moved_on(store: Store) {
    let model = Model::start(Manner::obedient()).await;
    let fails = Upstream::start(catalog::openrouter_models()).await;
    let entry = |name, url: String, order| {
        format!(
            "[[upstream]]\nname = \"{name}\"\nkind = \"openrouter\"\nbase_url = \"{url}\"\n\
             order = {order}\n"
        )
    };
    let file = entry("fails", fails.url(), 1) + &entry("answers", model.url(), 2);
    let mut app = hasty(store).upstreams(file).start_with(fails).await;
    kill_often(&mut app, &model, 8).await;
    let records = app.books.records().await;
    let moved = records.iter().filter(|it| it.tried.is_some()).collect::<Vec<_>>();
    let recovered = moved.iter().filter(|it| it.ending == "killed" && it.upstream == "answers");
    println!("{} calls had moved on, {} of them recovered", moved.len(), recovered.count());
    assert!(!moved.is_empty(), "no call had to move on, so that nothing was shown");
    // The failing upstream was called for some whose hold died before it was committed.
    app.drops_calls = true;
    app.finish().await;
}

async fn a_hold_that_cannot_be_read_keeps_no_other_open(store: Store) {
    let setup = Setup::new(store).env("TOLLGATE_LEASE_SECONDS", "1");
    let mut app = setup.start().await;
    let mut exchanges = Vec::new();
    for _ in 0..3 {
        let answer = Answer::openrouter();
        app.upstream.script(answer.head().chunk(&answer.events()[0]).wait(&Gate::new()));
        let mut exchange = app.begin_chat(&streamed(OLD_MODEL)).await;
        exchange.until("data: ").await;
        exchanges.push(exchange);
    }
    let holds = eventually("three holds", async || {
        let holds = app.books.holds().await;
        (holds.len() == 3).then_some(holds)
    })
    .await;
    app.kill9();
    let odd = format!("WHERE request_id = '{}'", holds[0].request_id);
    app.books.tamper(&format!("UPDATE holds SET tried = 'x' {odd}")).await;
    app.restart().await;
    eventually("the others are settled", async || {
        (app.books.records().await.len() == 2).then_some(())
    })
    .await;
    app.books.tamper(&format!("UPDATE holds SET tried = NULL {odd}")).await;
    app.records(3).await;
    app.finish().await;
}

/// By an upstream that nobody can ask afterwards.
async fn a_killed_stream_is_charged_what_was_noted_of_it(store: Store) {
    let pace = Duration::from_millis(15);
    let model = Model::start(Manner { tokens: 2_000, pause: pace, ..Manner::obedient() }).await;
    let setup = Setup::new(store).kind(Kind::OpenAi).env("UPSTREAM_BASE_URL", &model.url());
    let setup = setup.prices(
        "[[price]]\nmodel = \"openai/*\"\nprompt_usd_per_mtok = \"30\"\n\
         completion_usd_per_mtok = \"60\"\n",
    );
    let mut app = setup.env("TOLLGATE_LEASE_SECONDS", "1").start().await;
    let mut body = streamed(OLD_MODEL);
    body["max_tokens"] = json!(2_000);
    let exchange = app.begin_chat(&body).await;
    // It is noted every five seconds.
    eventually("more than a hundred tokens are noted", async || {
        let holds = app.books.holds().await;
        holds.iter().any(|hold| hold.completion_tokens_seen > 100).then_some(())
    })
    .await;
    app.kill9();
    let left = app.books.left_holds().await;
    exchange.close();
    app.restart().await;
    let record = app.record().await;
    assert_eq!(record.id, left[0].request_id);
    let said = (record.ending.as_str(), record.source.as_str());
    assert_eq!(said, ("killed", "estimated"), "{record:#?}");
    let noted = left[0].completion_tokens_seen;
    let made = model.generations()["gen-000001"].completion_tokens;
    assert!((noted..=made).contains(&record.completion_tokens), "{left:?}\n{record:#?}");
    assert!(record.prompt_tokens > 0, "{record:#?}");
    // The operator's table is retail.
    let cost = record.prompt_tokens * PROMPT_NUSD + record.completion_tokens * COMPLETION_NUSD;
    assert_eq!((record.charge_nusd, record.shortfall_nusd), (cost, 0), "{record:#?}");
    app.finish().await;
}

fn hasty(store: Store) -> Setup {
    Setup::new(store)
        .credit("100000")
        .env("TOLLGATE_LEASE_SECONDS", "1")
        .env("TOLLGATE_LOOKUP_FIRST_MS", "20")
        .env("TOLLGATE_LOOKUP_SECONDS", "5")
}

async fn kill_often(app: &mut TestApp, model: &Model, usual: usize) {
    let kills = number_of("TOLLGATE_TEST_KILL_SEEDS", usual);
    let first = Random::from_environment();
    let mut recovered = 0;
    for number in 0..kills {
        let random = Random::new(first.seed().wrapping_add(u64::try_from(number).expect("few")));
        let tally = kill_once(app, model, &random).await;
        println!("{random}: {tally}");
        recovered += tally.looked_up + tally.estimated;
    }
    assert!(recovered > 0, "none of {kills} kills met a call under way: nothing was shown");
}

/// The upstream's list is that of LiteLLM, so the records are called LiteLLM's while it is read.
async fn assert_reconcile_names_the_unrecorded(app: &TestApp, model: &Model) {
    let records = app.books.records().await;
    let recorded: BTreeSet<String> =
        records.iter().filter_map(|record| record.generation_id.clone()).collect();
    let truths = model.generations();
    // One that was hung up on before its first token has cost its prompt all the same.
    let unrecorded: BTreeSet<String> =
        truths.into_keys().filter(|id| !recorded.contains(id)).collect();
    let days: BTreeSet<String> =
        records.iter().map(|record| record.started_at[..10].to_string()).collect();
    app.books.tamper("UPDATE usage_records SET upstream = 'litellm'").await;
    let mut named = BTreeSet::new();
    for day in &days {
        let arguments = ["reconcile", "--json", "--day", day];
        let ended = app.try_cli_with(&arguments, "UPSTREAM_KIND", "litellm").await;
        for line in ended.stdout.lines() {
            let found: Value = serde_json::from_str(line).expect("JSON");
            assert_ne!(found["kind"], "unread", "{found}");
            if found["kind"] == "difference" {
                let id = found["call"].as_str().expect("a call").to_string();
                assert!(named.insert(id), "named twice: {found}");
            }
        }
    }
    app.books.tamper("UPDATE usage_records SET upstream = 'openrouter'").await;
    assert_eq!(named, unrecorded, "what the upstream answered and no record has");
    println!("reconcile names {} calls of which there is no record", named.len());
}

fn manner(random: &Random) -> Manner {
    let milliseconds = |limit| Duration::from_millis(u64::try_from(limit).expect("few"));
    Manner {
        tokens: 1,
        spread: 30,
        head_after: milliseconds(random.below(15)),
        pause: milliseconds(random.below(6)),
        tells_usage: random.below(4) > 0,
        stops: random.below(2) > 0,
        not_found: u32::try_from(random.below(3)).expect("few"),
        ..Manner::obedient()
    }
}

async fn kill_once(app: &mut TestApp, model: &Model, random: &Random) -> Tally {
    let before: BTreeSet<String> = model.generations().into_keys().collect();
    let records = app.books.records().await;
    let recorded: BTreeSet<String> = records.into_iter().map(|record| record.id).collect();
    model.behave(manner(random));
    let instant = Duration::from_millis(u64::try_from(20 + random.below(600)).expect("few"));
    let clients = until_killed(app, CLIENTS);
    // Some kills may come before any call has got far, most must not, however slow the machine.
    if random.below(4) > 0 {
        eventually("a call is under way", async || {
            (model.generations().len() > before.len()).then_some(())
        })
        .await;
    }
    tokio::time::sleep(instant).await;
    app.kill9();
    let answers = clients.await.expect("no client panics");
    let answers: Vec<Answered> = answers.into_iter().flatten().collect();
    let left = app.books.left_holds().await;
    app.restart().await;
    in_its_time("every hold is settled", async || app.books.holds().await.is_empty().then_some(()))
        .await;
    let mut truths = model.generations();
    truths.retain(|id, _| !before.contains(id));
    let mut records = app.books.records().await;
    records.retain(|record| !recorded.contains(&record.id));
    assert_recovered(&left, &records, &format!("{random}"));
    check(&records, &answers, &truths, &format!("{random}"))
}

/// Each hold that was left has one record. What cannot be asked after is estimated from the hold:
/// its prompt has been sent, or may have been.
#[track_caller]
fn assert_recovered(left: &[Hold], records: &[UsageRecord], seed: &str) {
    for hold in left {
        let own: Vec<_> = records.iter().filter(|record| record.id == hold.request_id).collect();
        let [record] = own[..] else { panic!("{seed}: {} records of {hold:?}", own.len()) };
        assert_eq!(record.ending, "killed", "{seed}: {hold:?}\n{record:#?}");
        if hold.generation_id.is_none() {
            let said = (record.source.as_str(), record.generation_id.as_deref());
            assert_eq!(said, ("estimated", None), "{seed}: {hold:?}\n{record:#?}");
            let tokens = (hold.prompt_tokens_estimate, hold.completion_tokens_seen);
            assert_eq!((record.prompt_tokens, record.completion_tokens), tokens, "{seed}");
            let cost = tokens.0 * PROMPT_NUSD + tokens.1 * COMPLETION_NUSD;
            assert!(cost > 0, "{seed}: {hold:?}");
            assert_eq!(record.charge_nusd, cost * 12 / 10, "{seed}: {record:#?}");
        }
    }
}

/// So many clients, until the program is killed.
pub fn until_killed(app: &TestApp, clients: usize) -> JoinHandle<Vec<Vec<Answered>>> {
    let calls = (0..clients).map(|number| {
        let body = if number % 6 == 0 { question(OLD_MODEL) } else { streamed(OLD_MODEL) };
        call_until_killed(app.address(), app.chat_ask(&body).bytes())
    });
    tokio::spawn(join_all(calls))
}

/// Calls again and again, and keeps what it got of each.
async fn call_until_killed(address: std::net::SocketAddr, request: Vec<u8>) -> Vec<Answered> {
    let mut answers = Vec::new();
    while let Ok(exchange) = Exchange::try_open(address, &request).await {
        let got = exchange.finish().await;
        let is_whole = got.complete;
        assert!([0, 200].contains(&got.status), "{}", got.text());
        answers.push(got);
        if !is_whole {
            break;
        }
    }
    answers
}

fn check(
    records: &[UsageRecord],
    answers: &[Answered],
    truths: &BTreeMap<String, Generation>,
    seed: &str,
) -> Tally {
    let mut tally = Tally { calls: truths.len(), ..Tally::default() };
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for got in answers.iter().filter(|got| got.status == 200 && !got.body.is_empty()) {
        tally.seen += 1;
        let request = got.request_id();
        let own: Vec<_> = records.iter().filter(|record| record.id == request).collect();
        let [record] = own[..] else {
            wrong.push(format!("{} records of {request}: {}", own.len(), got.text()));
            continue;
        };
        // A byte may be the beginning of an event, without the id.
        let id = generation_of(&got.text()).or_else(|| record.generation_id.clone());
        let truth = id.as_ref().and_then(|id| truths.get(id));
        if !truth.is_some_and(|truth| truth.is_told_by(record)) {
            wrong.push(format!("the client saw {}\n{truth:?}\n{record:#?}", got.text()));
        }
        seen.extend(id);
    }
    for (id, truth) in truths {
        let own: Vec<_> =
            records.iter().filter(|record| record.generation_id.as_ref() == Some(id)).collect();
        match own[..] {
            [] if seen.contains(id) => wrong.push(format!("seen and lost: {truth:?}")),
            [] => tally.unrecorded += 1,
            [record] if truth.is_told_by(record) => {
                tally.looked_up += usize::from(record.ending == "killed");
            }
            [record] => wrong.push(format!("{truth:?}\n{record:#?}")),
            _ => wrong.push(format!("recorded {} times: {truth:?}", own.len())),
        }
    }
    // A hold that was committed before its generation had an id.
    let nameless = |record: &&UsageRecord| record.generation_id.is_none();
    tally.estimated = records.iter().filter(nameless).count();
    tally.unrecorded = tally.unrecorded.saturating_sub(tally.estimated);
    assert!(wrong.is_empty(), "{seed}: {} wrong; {tally}:\n{}", wrong.len(), wrong.join("\n"));
    tally
}
