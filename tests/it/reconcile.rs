//! The books against what others say: of rows that are wrong there, each is found and nothing else.
//!
//! The books are filled by `seed`, with calls of many days; the sinks are told by the program
//! itself. Then rows are made wrong where the sinks and the upstream keep them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use time::{Duration, OffsetDateTime};
use tollgate::models::price::Price;
use tollgate::models::timestamp::Timestamp;

use crate::app::process::Ended;
use crate::app::{Kind, Setup, Store, TestApp, both_stores};
use crate::billing::{with_openmeter, with_stripe};
use crate::random::Random;
use crate::seed::{self, Call};
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::server::Fault;
use crate::sinks::stripe::{CHARGE_METER, Stripe};
use crate::upstream::catalog::{FOREIGN_MODEL, MODEL, OLD_MODEL};
use crate::upstream::listed::{Listed, MANAGEMENT_KEY};

mod several;
mod signs;
mod wrong;

use several::what_is_wrong_at_one_of_several_is_named_as_its_own;
use signs::{
    a_correction_in_doubt_is_no_difference, a_merged_correction_in_doubt_is_no_difference,
};

both_stores!(
    wrong_rows_are_found_and_nothing_else,
    what_waits_is_told_apart_from_what_is_wrong,
    a_source_that_does_not_answer_is_no_agreement,
    what_is_wrong_at_one_of_several_is_named_as_its_own,
    a_correction_in_doubt_is_no_difference,
    a_merged_correction_in_doubt_is_no_difference,
);

const MODELS: [&str; 3] = [MODEL, FOREIGN_MODEL, OLD_MODEL];
const ACCOUNTS: [&str; 5] = ["one", "two", "three", "four", "five"];
const DAYS: i64 = 20;
const OPENROUTER_CALLS: usize = 900;
const LITELLM_CALLS: usize = 300;
/// A day with few calls, each of which is asked about.
const SAMPLED_DAY: i64 = 25;
const SAMPLED_CALLS: usize = 12;
/// The midnight at the end of this day has a call that the upstream counts on the next.
const MIDNIGHT_DAY: i64 = 28;

/// What happened, as the upstream knows it.
struct World {
    app: TestApp,
    stripe: Stripe,
    openmeter: OpenMeter,
    /// Id and customer.
    accounts: Vec<(String, String)>,
    openrouter: Vec<Listed>,
    litellm: Vec<Listed>,
}

/// Midnight, so many days ago.
fn days_ago(days: i64) -> OffsetDateTime {
    (OffsetDateTime::now_utc() - Duration::days(days)).replace_time(time::Time::MIDNIGHT)
}

fn timestamp(at: OffsetDateTime) -> Timestamp {
    let micros = at.unix_timestamp_nanos() / 1_000;
    Timestamp::from_unix_micros(i64::try_from(micros).expect("this century"))
}

fn number(random: &Random, limit: usize) -> i64 {
    i64::try_from(random.below(limit)).expect("small")
}

/// A call as the upstream has it, with a cost that no table would give.
fn call(id: String, at: OffsetDateTime, user: &str, random: &Random) -> Listed {
    Listed {
        id,
        at,
        model: (*random.pick(&MODELS)).to_string(),
        user: user.to_string(),
        prompt: 1 + number(random, 3_000),
        completion: 1 + number(random, 2_000),
        cost_pico: 1 + number(random, 40_000_000_000),
    }
}

/// Calls of many days, none near a midnight.
fn calls(prefix: &str, count: usize, users: &[(String, String)], random: &Random) -> Vec<Listed> {
    let of_number = |index: usize| {
        let minute = 10 + number(random, 24 * 60 - 20);
        let second = number(random, 60_000_000);
        let at = days_ago(1 + number(random, usize::try_from(DAYS).expect("few")));
        let at = at + Duration::minutes(minute) + Duration::microseconds(second);
        call(format!("{prefix}-{index:06}"), at, &random.pick(users).0, random)
    };
    (0..count).map(of_number).collect()
}

/// The version that is in force of an offered model.
async fn price_of(app: &TestApp, store: &dyn tollgate::store::Store, model: &str) -> Price {
    let prices = app.books.rows(&format!("SELECT id FROM prices WHERE model = '{model}'")).await;
    let id = prices[0]["id"].as_str().expect("an id");
    store.price(id).await.expect("a store").expect("a price")
}

/// What was listed of one model, as it goes into the books.
fn calls_of(listed: &[Listed], model: &str, upstream: &'static str) -> Vec<Call> {
    let of_model = listed.iter().filter(|row| row.model == model);
    let call = |row: &Listed| Call {
        key: None,
        account: row.user.parse().expect("an id"),
        upstream,
        generation_id: row.id.clone(),
        prompt: row.prompt,
        completion: row.completion,
        cost_pico: row.cost_pico,
        at: timestamp(row.at),
        seconds: 4,
    };
    of_model.map(call).collect()
}

impl World {
    async fn start(store: Store, random: &Random) -> Self {
        let customers = ACCOUNTS.map(|name| format!("cus_{name}"));
        let stripe = Stripe::start(&customers.each_ref().map(String::as_str)).await;
        let openmeter = OpenMeter::start().await;
        let setup = with_openmeter(with_stripe(Setup::new(store), &stripe), &openmeter);
        let setup = setup.env("OPENROUTER_MANAGEMENT_KEY", MANAGEMENT_KEY);
        let app = setup.start().await;
        let mut accounts = Vec::new();
        for (name, customer) in ACCOUNTS.iter().zip(customers) {
            let more = ["--credit", "1000000", "--stripe-customer", &customer];
            accounts.push((app.create_account(name, &more).await, customer));
        }
        let mut openrouter = calls("gen", OPENROUTER_CALLS, &accounts, random);
        for index in 0..SAMPLED_CALLS {
            let at = days_ago(SAMPLED_DAY)
                + Duration::minutes(30 + 60 * i64::try_from(index).unwrap_or(0));
            openrouter.push(call(format!("gen-s{index}"), at, &accounts[0].0, random));
        }
        let litellm = calls("chatcmpl", LITELLM_CALLS, &accounts, random);
        let mut world = Self { app, stripe, openmeter, accounts, openrouter, litellm };
        world.record("openrouter", &world.openrouter, 1).await;
        world.record("litellm", &world.litellm, 1_000_000).await;
        world.record_at_midnight(random).await;
        world.app.upstream.list(world.openrouter.clone());
        world
    }

    /// Writes calls into the books, as they were.
    async fn record(&self, upstream: &'static str, listed: &[Listed], first: u64) {
        let store = seed::open(&self.app.database_url(), &["stripe", "openmeter"]).await;
        for (index, model) in (0_u64..).zip(MODELS) {
            let price = price_of(&self.app, store.as_ref(), model).await;
            let calls = calls_of(listed, model, upstream);
            seed::write(store.as_ref(), &price, &calls, first + index * 100_000).await;
        }
    }

    /// Began at 23:59:58 here, and three seconds later there.
    async fn record_at_midnight(&mut self, random: &Random) {
        let at = days_ago(MIDNIGHT_DAY) + Duration::DAY - Duration::seconds(2);
        let mut row = call("gen-midnight".to_string(), at, &self.accounts[0].0, random);
        self.record("openrouter", std::slice::from_ref(&row), 5_000_000).await;
        row.at += Duration::seconds(3);
        self.openrouter.push(row);
    }

    /// Waits until the sinks were told of everything.
    async fn exported(&self) {
        let waiting = async || {
            let sql = "SELECT COUNT(*) AS n FROM billing_events WHERE state <> 'exported'";
            self.app.books.rows(sql).await[0]["n"].as_i64().expect("a number")
        };
        loop {
            let before = waiting().await;
            if before == 0 {
                return;
            }
            crate::app::eventually("fewer events wait", async || {
                (waiting().await < before).then_some(())
            })
            .await;
        }
    }
}

/// What a run printed: its findings, and whether it was content.
struct Said {
    findings: Vec<Value>,
    is_content: bool,
}

impl Said {
    fn read(ended: &Ended) -> Self {
        let lines = ended.stdout.lines().map(serde_json::from_str::<Value>);
        let lines: Result<Vec<Value>, _> = lines.collect();
        let mut findings = lines.unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        let summary = findings.pop();
        assert!(summary.is_some_and(|line| line["kind"] == "summary"), "{ended:?}");
        Self { findings, is_content: ended.status.success() }
    }

    fn of(&self, kind: &str) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["kind"] == kind).collect()
    }

    /// The differences with a source, each by what names it.
    fn named(&self, against: &str, members: &[&str]) -> BTreeSet<String> {
        let found = self.of("difference").into_iter().filter(|row| row["against"] == against);
        let name = |row: &Value| {
            let text = |member: &&str| row[*member].as_str().unwrap_or("-").to_string();
            members.iter().map(text).collect::<Vec<_>>().join(" ")
        };
        found.map(name).collect()
    }
}

async fn reconcile(app: &TestApp, more: &[&str]) -> Said {
    let arguments = [&["reconcile", "--json", "--samples", "0"], more].concat();
    Said::read(&app.try_cli(&arguments).await)
}

/// As an operator of a LiteLLM proxy.
async fn reconcile_litellm(app: &TestApp, more: &[&str]) -> Said {
    let arguments = [&["reconcile", "--json"], more].concat();
    Said::read(&app.try_cli_with(&arguments, "UPSTREAM_KIND", Kind::LiteLlm.name()).await)
}

async fn assert_clean(world: &World) {
    let said = reconcile(&world.app, &[]).await;
    assert!(said.is_content && said.of("difference").is_empty(), "{:#?}", said.findings);
    assert!(said.of("waiting").is_empty() && said.of("unread").is_empty(), "{:#?}", said.findings);
    let notes: Vec<&str> =
        said.of("note").iter().map(|note| note["because"].as_str().unwrap_or("")).collect();
    assert!(notes.iter().all(|note| note.contains("at midnight")), "{notes:?}");
    assert_eq!(notes.len(), 2, "one on either day: {notes:?}");
    world.app.upstream.list(world.litellm.clone());
    let said = reconcile_litellm(&world.app, &[]).await;
    assert!(said.is_content && said.findings.is_empty(), "{:#?}", said.findings);
    world.app.upstream.list(world.openrouter.clone());
}

async fn wrong_rows_are_found_and_nothing_else(store: Store) {
    let random = Random::from_environment();
    let world = World::start(store, &random).await;
    world.exported().await;
    assert_eq!(world.stripe.wrong(), Vec::<String>::new());
    assert_clean(&world).await;
    // OpenRouter and both sinks at once.
    let expected = wrong::openrouter(&world, &random);
    let at_openmeter = wrong::openmeter(&world, &random);
    let at_stripe = wrong::stripe(&world, &random);
    let said = reconcile(&world.app, &[]).await;
    assert!(!said.is_content, "{random}");
    assert_eq!(said.named("openrouter", &["day", "model"]), expected, "{random}");
    let named = said.named("openmeter", &["day", "account", "model"]);
    assert_eq!(named, at_openmeter, "{random}");
    assert_eq!(said.named("stripe", &["day", "customer", "meter"]), at_stripe, "{random}");
    println!("{random}: {} differences named", said.of("difference").len());
    // One day of them alone.
    let day = expected.first().and_then(|name| name.split(' ').next()).expect("some are wrong");
    let said = reconcile(&world.app, &["--day", day]).await;
    let of_day = expected.iter().filter(|name| name.starts_with(day)).cloned().collect();
    assert_eq!(said.named("openrouter", &["day", "model"]), of_day, "{random}");
    // Single calls, all of a day.
    let (day, expected) = wrong::generations(&world, &random);
    let arguments = ["reconcile", "--json", "--samples", "1000", "--day", &day];
    let said = Said::read(&world.app.try_cli(&arguments).await);
    let mut named = said.named("openrouter", &["call"]);
    named.remove("-");
    assert_eq!(named, expected, "{random}");
    // A LiteLLM proxy names its calls.
    let expected = wrong::litellm(&world, &random);
    let said = reconcile_litellm(&world.app, &[]).await;
    assert!(!said.is_content, "{random}");
    assert_eq!(said.named("litellm", &["call"]), expected, "{random}");
    // The books themselves are as they were.
    let refused = world.app.try_cli(&["reconcile", "--day", "2999-01-01"]).await;
    assert!(!refused.status.success() && refused.stderr.contains("yet to come"), "{refused:?}");
    world.app.finish().await;
}

async fn what_waits_is_told_apart_from_what_is_wrong(store: Store) {
    let random = Random::from_environment();
    let stripe = Stripe::start(&["cus_test"]).await;
    let openmeter = OpenMeter::start().await;
    let app = with_openmeter(with_stripe(Setup::new(store), &stripe), &openmeter).start().await;
    openmeter.faults.always(Some(Fault::Status(503, None)));
    let accounts = [(app.account.clone(), String::new())];
    let mut world = World {
        openrouter: calls("gen", 3, &accounts, &random),
        litellm: vec![],
        accounts: accounts.to_vec(),
        app,
        stripe,
        openmeter,
    };
    world
        .app
        .cli(&["credit", "grant", "--account", "test", "--usd", "1000", "--reason", "x"])
        .await;
    world.record("openrouter", &world.openrouter, 1).await;
    crate::app::eventually("Stripe's are parked", async || {
        let sql = "SELECT * FROM billing_events WHERE sink = 'stripe' AND state = 'parked'";
        (world.app.books.rows(sql).await.len() == 3).then_some(())
    })
    .await;
    // The sink would not answer questions either, and what it then takes waits no longer.
    world.app.kill9();
    world.openmeter.faults.calm();
    let said = reconcile(&world.app, &[]).await;
    assert!(said.is_content, "{:#?}", said.findings);
    let by_source = said.of("waiting").into_iter().fold(BTreeMap::new(), |mut sums, finding| {
        *sums.entry(finding["against"].as_str().unwrap_or("")).or_insert(0) += 1;
        sums
    });
    assert!(by_source["stripe"] > 0 && by_source["openmeter"] > 0, "{:#?}", said.findings);
    // Told, and the answer was lost: it is there, and is still no difference.
    world.app.restart().await;
    world.openmeter.faults.always(Some(Fault::FailAfter(503)));
    crate::app::eventually("OpenMeter has them", async || {
        (world.openmeter.events().len() == 3).then_some(())
    })
    .await;
    world.app.kill9();
    world.openmeter.faults.calm();
    let said = reconcile(&world.app, &[]).await;
    assert!(said.of("difference").is_empty(), "{:#?}", said.findings);
    world.app.finish().await;
}

async fn a_source_that_does_not_answer_is_no_agreement(store: Store) {
    let stripe = Stripe::start(&[]).await;
    let openmeter = OpenMeter::start().await;
    let app = with_openmeter(with_stripe(Setup::new(store), &stripe), &openmeter);
    let app = app.env("OPENROUTER_MANAGEMENT_KEY", "sk-wrong").start().await;
    stripe.faults.always(Some(Fault::Status(500, None)));
    openmeter.faults.always(Some(Fault::HangAfter));
    // Nobody is at this address.
    let arguments = ["reconcile", "--json"];
    let nobody = "http://127.0.0.1:1/api/v1/events";
    let said = Said::read(&app.try_cli_with(&arguments, "OPENMETER_URL", nobody).await);
    assert!(!said.is_content);
    let sources: BTreeSet<&str> =
        said.of("unread").iter().map(|row| row["against"].as_str().unwrap_or("")).collect();
    assert_eq!(sources, ["openmeter", "openrouter", "stripe"].into(), "{:#?}", said.findings);
    let printed = app.try_cli(&["reconcile", "--day", "yesterday"]).await;
    assert!(!printed.status.success());
    let secrets = ["sk-wrong", crate::sinks::stripe::KEY, "127.0.0.1"];
    let text = format!("{:?}", said.findings);
    assert!(secrets.iter().all(|secret| !text.contains(secret)), "{text}");
    app.finish().await;
}
