//! Chaos: three replicas on one PostgreSQL with a standby, under load, while one thing after the
//! other breaks. In the end the books are the upstream's truth call by call, the sinks have each
//! event once, and whoever was known was served.
//!
//! `TOLLGATE_TEST_CHAOS_SECONDS` says for how long (75 here; an hour is 3600), `TEST_SEED` gives
//! the order and the instants again. What failed is printed with its second, fault and reason.

mod faults;
mod load;
mod replicas;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::app::clock::Clock;
use crate::app::cluster::Cluster;
use crate::app::proxy::Proxy;
use crate::app::store::server_of;
use crate::app::{Setup, Store, TestApp, question, streamed};
use crate::billing::{ledger, with_openmeter, with_webhook};
use crate::random::Random;
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::webhook::Webhook;
use crate::upstream::catalog::OLD_MODEL;
use crate::upstream::model::{Manner, Model};
use faults::{ALL, World};
use load::{Failure, Load, Tally};
use replicas::Replica;

const ACCOUNTS: usize = 4;
const KEYS_EACH: usize = 3;
const CLIENTS: u64 = 8;

fn manner() -> Manner {
    Manner { tokens: 2, spread: 40, pause: Duration::from_millis(3), ..Manner::obedient() }
}

fn seconds() -> u64 {
    let given = std::env::var("TOLLGATE_TEST_CHAOS_SECONDS").ok();
    given.map_or(75, |text| text.parse().expect("TOLLGATE_TEST_CHAOS_SECONDS is a number"))
}

async fn world() -> (TestApp, World) {
    let (model, openmeter, webhook) =
        (Model::start(manner()).await, OpenMeter::start().await, Webhook::start().await);
    let primary = Cluster::start().await;
    let proxy = Proxy::start(server_of(&primary.url())).await;
    let url = primary.url().replace(server_of(&primary.url()), &proxy.address().to_string());
    let setup = with_webhook(with_openmeter(Setup::new(Store::Postgres), &openmeter), &webhook);
    let setup = setup.server(url).credit("1000000").env("UPSTREAM_BASE_URL", &model.url());
    let mut app = setup
        .env("TOLLGATE_OUTAGE_EXPOSURE", "100000")
        .env("TOLLGATE_DATABASE_SECONDS", "3")
        .env("TOLLGATE_LEASE_SECONDS", "5")
        .env("TOLLGATE_LOOKUP_SECONDS", "20")
        .env("TOLLGATE_UPSTREAM_RETRIES", "3")
        .env("TOLLGATE_LOG", "tollgate=warn")
        .start()
        .await;
    let standby = Cluster::standby_of(&primary).await;
    app.kill9();
    let clock = Clock::default();
    let mut replicas = Vec::new();
    for clock in [None, None, Some(&clock)] {
        replicas.push(Replica::start(&app.environment, app.folder(), clock).await);
    }
    let world = World { primary, standby, proxy, replicas, model, openmeter, webhook, clock };
    world.all_ready().await;
    (app, world)
}

async fn keys(app: &TestApp) -> Vec<String> {
    let mut keys = Vec::new();
    for number in 0..ACCOUNTS {
        let name = format!("account-{number}");
        app.create_account(&name, &["--credit", "100000"]).await;
        for _ in 0..KEYS_EACH {
            keys.push(app.create_key(&name, &[]).await);
        }
    }
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_the_books_are_right_and_callers_are_served() {
    let random = Random::from_environment();
    let (app, mut world) = world().await;
    let keys = keys(&app).await;
    println!("chaos for {} s, {random}", seconds());
    let addresses = world.replicas.iter().map(|replica| replica.address).collect();
    let bodies = vec![streamed(OLD_MODEL), streamed(OLD_MODEL), question(OLD_MODEL)];
    let load = Load::start(addresses, keys, bodies, CLIENTS, random.seed());
    let suffered = suffer(&mut world, &load, &random).await;
    let tally = load.end().await;
    world.all_ready().await;
    settle(&app, &world).await;
    report(&tally, &suffered);
    let wrong = differences(&app, &world, &tally).await;
    assert!(wrong.is_empty(), "{random}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
    let all = tally.served.len() + tally.failed.len();
    // Of fewer than a thousand one is too few to be a rate.
    let failed = tally.failed.len();
    assert!(failed <= (all / 1_000).max(1), "{random}: {failed} of {all} failed");
    for replica in &world.replicas {
        replica.stop().await;
    }
    app.finish().await;
}

/// One fault after the other, all of them before any comes again; gives when each began.
async fn suffer(world: &mut World, load: &Load, random: &Random) -> Vec<(u64, &'static str)> {
    let whole = Duration::from_secs(seconds());
    // All of them fit in once; in a long run each lasts longer.
    let turn = (whole / 11).clamp(Duration::from_secs(4), Duration::from_secs(40));
    let began = tokio::time::Instant::now();
    let (mut suffered, mut left) = (Vec::new(), Vec::new());
    world.goes_on(load, Duration::from_secs(2)).await;
    // Each of them at least once, however slow the machine: they end by themselves, or fail.
    while began.elapsed() < whole || suffered.len() < ALL.len() {
        if left.is_empty() {
            left = ALL.to_vec();
        }
        let fault = left.swap_remove(random.below(left.len()));
        suffered.push((load.second(), fault));
        load.fault(fault);
        world.suffer(fault, turn / 2, random).await;
        world.goes_on(load, turn / 4).await;
        load.fault("none");
    }
    suffered
}

/// The longest that nothing may become less: a clock that was ahead by minutes has put off what it
/// was to do by as much, and what its owner died over is leased for two more.
const CATCHING_UP: Duration = Duration::from_secs(480);

/// Nothing is under way any more, and the sinks have all.
async fn settle(app: &TestApp, world: &World) {
    let (mut fewest, mut since) = (usize::MAX, Instant::now());
    loop {
        let holds = app.books.holds().await.len();
        let events = app.books.events().await;
        let waiting = events.iter().filter(|event| event.state != "exported").count();
        if holds + waiting == 0 {
            break;
        }
        let parked = events.iter().filter(|event| event.state == "parked").count();
        if parked > 0 {
            // An operator's work: what a sink refused is sent again.
            app.cli(&["events", "retry", "--parked"]).await;
        }
        if holds + waiting < fewest {
            (fewest, since) = (holds + waiting, Instant::now());
        }
        assert!(since.elapsed() < CATCHING_UP, "{holds} holds and {waiting} events stay");
        world.pass(Duration::from_millis(300)).await;
    }
}

fn report(tally: &Tally, suffered: &[(u64, &'static str)]) {
    for (second, fault) in suffered {
        println!("second {second}: {fault}");
    }
    let mut by_reason: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for Failure { fault, reason, .. } in &tally.attempts_failed {
        *by_reason.entry((fault, reason)).or_default() += 1;
    }
    for ((fault, reason), count) in by_reason {
        println!("attempts that went on to another replica: {count}, {fault}: {reason}");
    }
    for Failure { second, fault, reason } in &tally.failed {
        println!("FAILED at second {second}, {fault}: {reason}");
    }
    let (served, failed) = (tally.served.len(), tally.failed.len());
    let permyriad = served * 10_000 / (served + failed).max(1);
    println!(
        "{served} served, {failed} failed, success {}.{:02} %, {} attempts failed, slowest {:?}",
        permyriad / 100,
        permyriad % 100,
        tally.attempts_failed.len(),
        tally.slowest
    );
}

/// Every call that the upstream has made is charged once, at its cost and a fifth, corrections
/// included; but for calls of which nobody saw a byte.
async fn differences(app: &TestApp, world: &World, tally: &Tally) -> Vec<String> {
    let (mut wrong, truths) = (Vec::new(), world.model.generations());
    let records = app.books.records().await;
    let mut corrected = BTreeMap::new();
    for row in app.books.rows("SELECT * FROM usage_corrections").await {
        let text = |member: &str| row[member].as_str().expect("a text").to_owned();
        let given_back = row["difference_nusd"].as_i64().expect("an amount");
        corrected.insert(text("request_id"), (text("generation_id"), given_back));
    }
    let mut charged: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for record in &records {
        // What was settled before anybody knew its generation has it from its correction.
        let correction = corrected.get(&record.id);
        let net = record.charge_nusd - correction.map_or(0, |(_, given_back)| *given_back);
        let id = record.generation_id.as_deref();
        if let Some(id) = id.or(correction.map(|(id, _)| id.as_str())) {
            charged.entry(id).or_default().push(net);
        }
    }
    let by_request: BTreeMap<_, _> = records.iter().map(|record| (&record.id, record)).collect();
    for served in &tally.served {
        if !by_request.contains_key(&served.request) {
            wrong.push(format!("{} was served and is not recorded", served.request));
        }
    }
    let seen: BTreeSet<&String> =
        tally.served.iter().map(|it| &it.generation).chain(&tally.glimpsed).collect();
    let voided = records.iter().filter(|record| record.source == "none");
    let voided: BTreeSet<&String> =
        voided.filter_map(|record| record.generation_id.as_ref()).collect();
    let mut unseen = 0;
    for (id, truth) in &truths {
        match charged.get(id.as_str()).map(Vec::as_slice) {
            Some([net]) if *net == truth.cost_nusd() * 12 / 10 => {}
            None if !seen.contains(id) => unseen += 1,
            // Its caller was refused: the hold could not be committed in time.
            Some([0]) if !seen.contains(id) && voided.contains(id) => unseen += 1,
            other => wrong.push(format!("{truth:?} is charged {other:?}")),
        }
    }
    let lost: i64 = records.iter().map(|record| record.shortfall_nusd).sum();
    println!(
        "{} calls made, {} records, {} corrected, {unseen} never seen and not charged, lost {lost}",
        truths.len(),
        records.len(),
        corrected.len()
    );
    if world.openmeter.sums("charge_nusd") != ledger(app).await {
        wrong.push("OpenMeter's sums are not the ledger's".to_owned());
    }
    wrong.extend(world.openmeter.wrong());
    let events = app.books.events().await;
    let told = events.iter().filter(|event| event.sink == "webhook").count();
    if world.webhook.events().len() != told {
        wrong.push(format!("{told} events for the webhook: {}", world.webhook.events().len()));
    }
    wrong
}
