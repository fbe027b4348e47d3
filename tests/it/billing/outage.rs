//! An outage of thirty hours, whole: calls to the sinks fail in every way, for hours nobody is
//! there at all, processes are killed, and usage goes on. The clock of all but the upstream is
//! moved. In the end every sink has what the ledger says. `TEST_SEED` gives the run again.
//!
//! On PostgreSQL three processes share the work; on SQLite there is one, killed all the same.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::app::books::BillingEvent;
use crate::app::clock::Clock;
use crate::app::process::Process;
use crate::app::wait::in_its_time;
use crate::app::{Setup, Store, TestApp, address_of, both_stores};
use crate::payments::events::{SECRET, header, signed};
use crate::payments::rejected::{report, thin};
use crate::random::Random;
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::server::{Fault, faults};
use crate::sinks::stripe::{CHARGE_METER, Stripe};
use crate::sinks::webhook::Webhook;

use super::traffic::{Caller, callers, load, waiting};
use super::{ledger, with_openmeter, with_stream, with_stripe, with_webhook};

both_stores!(
    after_thirty_hours_the_sinks_have_what_the_ledger_says,
    after_thirty_hours_a_stream_has_what_the_ledger_says,
);

/// In hours. From here on Stripe's answers are lost or bad, all of them, …
const LOST: i64 = 3;
/// … nobody is there, …
const DARK: i64 = 12;
/// … they are back, no better than before, …
const DAWN: i64 = 18;
/// … and now most calls go well. What was in doubt first is so for more than a day.
const BETTER: i64 = 28;
const OVER: i64 = 30;

/// One customer has two accounts. The last is out of luck: of its calls that go wrong, Stripe takes
/// nothing, so that its doubts are unfounded.
const CUSTOMERS: [&str; 4] = ["cus_one", "cus_two", "cus_two", LUCKLESS];
const LUCKLESS: &str = "cus_three";
const CALLS: usize = 8;
/// By class, as `STRIPE_METERS` has it.
const METERS: &str = "uncached_prompt_tokens=llm_input,text_completion_tokens=llm_output";

const HOUR: i64 = 3_600;
/// Less than what is kept back of Stripe's day, so that no call is asked for before and taken after
/// it: before the clock goes on by more, calls that were under way have had time to arrive.
const STEP: i64 = 50 * 60;
const CALL: Duration = Duration::from_millis(400);
/// How long Stripe's identifiers are relied on.
const RELIED_ON: time::Duration = time::Duration::hours(23);

struct World {
    app: TestApp,
    replicas: Vec<(Process, SocketAddr)>,
    clock: Clock,
    stripe: Stripe,
    openmeter: OpenMeter,
    webhook: Webhook,
    callers: Vec<Caller>,
    random: Random,
    /// When a process is killed, in hours.
    kills: Vec<i64>,
    /// By how many seconds waits have put the hours off.
    late: Cell<i64>,
}

async fn after_thirty_hours_the_sinks_have_what_the_ledger_says(store: Store) {
    outage(store, with_stripe).await;
}

async fn after_thirty_hours_a_stream_has_what_the_ledger_says(store: Store) {
    outage(store, with_stream).await;
}

async fn outage(store: Store, with_stripe: fn(Setup, &Stripe) -> Setup) {
    let mut world = World::start(store, with_stripe).await;
    world.calls_go_wrong(3, 3);
    world.pass(0..LOST).await;
    world.stripe_rejects_what_it_has_taken().await;
    world.everything_is_killed_over_a_call_in_doubt().await;
    world.calls_go_wrong(1, 2);
    world.pass(LOST + 1..DARK).await;
    world.nobody_is_there().await;
    world.pass(DARK..DAWN).await;
    world.they_are_back().await;
    world.pass(DAWN..BETTER).await;
    world.calls_go_wrong(3, 3);
    world.pass(BETTER..OVER).await;
    world.all_is_well().await;
    world.drained().await;
    world.assert_doubts_were_settled_by_summaries().await;
    world.assert_stripe_agrees().await;
    world.assert_the_others_agree().await;
    world.assert_reconciled().await;
    world.finish().await;
}

impl World {
    async fn start(store: Store, with_stripe: fn(Setup, &Stripe) -> Setup) -> Self {
        let (random, clock) = (Random::from_environment(), Clock::default());
        let stripe = Stripe::start_by(&clock, &CUSTOMERS).await;
        stripe.add_meter("llm_input");
        stripe.add_meter("llm_output");
        stripe.lose(LUCKLESS);
        let (openmeter, webhook) = (OpenMeter::start().await, Webhook::start_by(&clock).await);
        let setup = with_openmeter(with_stripe(Setup::new(store), &stripe), &openmeter);
        let setup = with_webhook(setup, &webhook)
            .env("STRIPE_METERS", METERS)
            .env("STRIPE_WEBHOOK_SECRET", SECRET)
            // A disk that is slow for a while is not what is tested.
            .env("TOLLGATE_DATABASE_SECONDS", "20");
        let app = setup.clock(&clock).start().await;
        let callers = callers(&app, &CUSTOMERS).await;
        let mut replicas = Vec::new();
        if store == Store::Postgres {
            for _ in 0..2 {
                replicas.push(replica(&app).await);
            }
        }
        let hour = || LOST + 1 + i64::try_from(random.below(24)).expect("few");
        let (kills, late) = (vec![hour(), hour()], Cell::new(0));
        Self { app, replicas, clock, stripe, openmeter, webhook, callers, random, kills, late }
    }

    /// One call in so many, to Stripe and to the others.
    fn calls_go_wrong(&self, stripe: usize, others: usize) {
        let of = |number| Random::new(self.random.seed() + number);
        let mut ways = faults(1_800, 600);
        ways.push(Fault::Status(429, Some(2)));
        // A stream whose sessions all fail sends nothing.
        self.stripe.always_opens(stripe == 1);
        self.stripe.faults.random(of(2), stripe, ways.clone());
        self.openmeter.faults.random(of(4), others, ways.clone());
        self.webhook.faults.random(of(6), others, ways);
    }

    /// Lets these hours go by, in steps, with usage and with the kills that are due.
    async fn pass(&mut self, hours: Range<i64>) {
        let mut hour = hours.start;
        while hour < hours.end {
            self.it_is(hour).await;
            self.load().await;
            // Any moment of what the workers then do.
            let pause = u64::try_from(self.random.below(900)).expect("few");
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let due = self.kills.extract_if(.., |kill| *kill <= hour).count();
            for _ in 0..due {
                self.kill_one().await;
            }
            hour += 1 + i64::try_from(self.random.below(2)).expect("few");
        }
    }

    /// More than the quarter of an hour of a session passes from one hour to the next.
    async fn it_is(&self, hour: i64) {
        let seconds = i64::try_from(self.random.below(1_800)).expect("few");
        let due = hour * HOUR + seconds + self.late.get();
        let due = due.max(self.clock.ahead() + HOUR / 2);
        while self.clock.ahead() < due {
            self.clock.set(due.min(self.clock.ahead() + STEP));
            tokio::time::sleep(CALL).await;
        }
    }

    /// Waits for what comes by itself, in time: nobody is asked before a pause is over.
    async fn comes(&self, what: &str, check: impl AsyncFn() -> bool) {
        let mut moved = Instant::now();
        in_its_time(&format!("{what} ({})", self.random), async || {
            if moved.elapsed() > Duration::from_secs(3) {
                self.clock.advance(HOUR / 2);
                self.late.set(self.late.get() + HOUR / 2);
                moved = Instant::now();
            }
            check().await.then_some(())
        })
        .await;
    }

    async fn load(&self) {
        let replicas = self.replicas.iter().map(|(_, address)| *address);
        let processes: Vec<_> = [self.app.address()].into_iter().chain(replicas).collect();
        load(&self.app, &processes, &self.callers, CALLS, &self.random).await;
    }

    async fn kill_one(&mut self) {
        let number = self.random.below(self.replicas.len() + 1);
        if let Some(killed) = self.replicas.get_mut(number) {
            killed.0.kill();
            *killed = replica(&self.app).await;
        } else {
            self.app.kill9();
            self.app.restart().await;
        }
    }

    /// Whoever has the call at Stripe that hangs: all of them are killed.
    async fn everything_is_killed_over_a_call_in_doubt(&mut self) {
        self.it_is(LOST).await;
        self.stripe.always_opens(true);
        self.stripe.faults.always(Some(Fault::HangAfter));
        let before = self.stripe.usage_calls();
        self.load().await;
        self.comes("Stripe hangs, and has what nobody was told of", async || {
            if self.stripe.usage_calls() == before {
                return false;
            }
            let taken = self.stripe.taken();
            let waiting = self.app.books.rows("SELECT id FROM exports WHERE state = 'waiting'");
            waiting.await.iter().any(|row| taken.iter().any(|taken| row["id"] == taken.identifier))
        })
        .await;
        self.app.kill9();
        for (process, _) in &mut self.replicas {
            process.kill();
        }
        self.stripe.faults.always(None);
        self.calls_go_wrong(1, 2);
        self.app.restart().await;
        for killed in &mut self.replicas {
            *killed = replica(&self.app).await;
        }
    }

    /// Stripe tells of it, and an operator sends it again.
    async fn stripe_rejects_what_it_has_taken(&self) {
        self.comes("Stripe has something", async || {
            let mut taken = self.stripe.taken().into_iter();
            let Some(first) = taken.find(|taken| taken.customer == "cus_one") else { return false };
            let sql = format!("SELECT state FROM exports WHERE id = '{}'", first.identifier);
            self.app.books.rows(&sql).await.iter().all(|row| row["state"] == "exported")
        })
        .await;
        let mut event = thin("evt_rejected");
        event["data"] = report(&self.stripe.reject("cus_one"));
        let body = event.to_string();
        let signature = header(SECRET, self.clock.seconds(), body.as_bytes());
        let got = self.app.ask(&signed(body.as_bytes(), &signature)).await;
        assert_eq!(got.status, 200, "{}", got.text());
        let parked = self.app.list(&["events", "list", "--parked"]).await;
        assert!(!parked.is_empty(), "{}: it was not parked", self.random);
        self.app.cli(&["events", "retry", "--parked"]).await;
        let is_sent = |event: &BillingEvent| {
            event.state == "exported" || !parked.iter().any(|parked| parked["id"] == event.id)
        };
        let sent = async || self.app.books.events().await.iter().all(is_sent);
        self.comes("it is sent again", sent).await;
    }

    async fn nobody_is_there(&self) {
        self.stripe.server.go().await;
        self.openmeter.server.go().await;
        self.webhook.server.go().await;
    }

    async fn they_are_back(&self) {
        self.stripe.server.come().await;
        self.openmeter.server.come().await;
        self.webhook.server.come().await;
    }

    async fn all_is_well(&self) {
        self.stripe.faults.calm();
        self.openmeter.faults.calm();
        self.webhook.faults.calm();
        // Whatever was put off is due.
        self.it_is(OVER + 1).await;
    }

    /// Waits as long as ever fewer events wait.
    async fn drained(&self) {
        let mut before = waiting(&self.app).await;
        while before > 0 {
            let fewer = async || waiting(&self.app).await < before;
            self.comes(&format!("fewer than {before} wait"), fewer).await;
            before = waiting(&self.app).await;
        }
    }

    /// What was in doubt for a day was looked for: some of it was there, and some was not.
    async fn assert_doubts_were_settled_by_summaries(&self) {
        let rows = self.app.books.rows("SELECT * FROM exports WHERE value <> 0").await;
        let late = |row: &&Value, from: &str, to: &str| at(row, to) - at(row, from) > RELIED_ON;
        let counted = rows.iter().filter(|row| late(row, "first_sent_at", "next_attempt_at"));
        let lost = rows.iter().filter(|row| row["customer"] == LUCKLESS);
        let missing = lost.filter(|row| late(row, "created_at", "first_sent_at"));
        let (counted, missing) = (counted.count(), missing.count());
        let read = self.stripe.summaries_read();
        assert!(counted > 0 && missing > 0 && read > 0, "{}: {counted} {missing}", self.random);
        println!("{}: {counted} were there, {missing} were not, {read} questions", self.random);
    }

    /// Whole units of what the ledger took of each customer, and every token.
    async fn assert_stripe_agrees(&self) {
        let charged = ledger(&self.app).await;
        let mut tokens: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
        let records = self.app.books.records().await;
        let mut owed: BTreeMap<String, i64> = BTreeMap::new();
        for caller in &self.callers {
            *owed.entry(caller.customer.to_string()).or_default() += charged[&caller.account];
            let sums = tokens.entry(caller.customer).or_default();
            for record in records.iter().filter(|record| record.account_id == caller.account) {
                sums.0 += record.prompt_tokens - record.cached_tokens - record.cache_write_tokens;
                sums.1 += record.completion_tokens - record.reasoning_tokens;
            }
        }
        let whole = owed.into_iter().map(|(customer, sum)| (customer, sum.div_euclid(1_000)));
        let whole: BTreeMap<String, i64> = whole.collect();
        assert_eq!(self.stripe.wrong(), Vec::<String>::new(), "{}", self.random);
        assert_eq!(self.stripe.sums(CHARGE_METER), whole, "{}", self.random);
        let (sent_in, sent_out) = (self.stripe.sums("llm_input"), self.stripe.sums("llm_output"));
        for (customer, sums) in tokens {
            assert_eq!((sent_in[customer], sent_out[customer]), sums, "{}", self.random);
        }
    }

    /// OpenMeter has each nano-USD, and the webhook each record once for who knows repetitions.
    async fn assert_the_others_agree(&self) {
        let records = self.app.books.records().await;
        assert_eq!(self.openmeter.sums("charge_nusd"), ledger(&self.app).await, "{}", self.random);
        assert_eq!(self.openmeter.events().len(), records.len(), "{}", self.random);
        assert_eq!(self.openmeter.wrong(), Vec::<String>::new(), "{}", self.random);
        let told = self.webhook.events();
        let told = told.values().filter(|event| event["type"] == "usage.recorded");
        let told: Vec<(&str, i64)> = told
            .map(|event| {
                let charge = event["data"]["charge_nusd"].as_i64().expect("an amount");
                (event["data"]["request_id"].as_str().expect("an id"), charge)
            })
            .collect();
        let used = records.iter().map(|record| (record.id.as_str(), record.charge_nusd));
        let used: BTreeSet<(&str, i64)> = used.collect();
        assert_eq!(told.len(), records.len(), "{}", self.random);
        assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), used, "{}", self.random);
        assert_eq!(self.webhook.forged(), 0, "{}", self.random);
        let (calls, deliveries) = (self.stripe.calls(), self.webhook.deliveries());
        let (random, stale) = (&self.random, self.webhook.stale());
        let records = records.len();
        println!("{random}: {records} records, {calls} calls to Stripe, {deliveries} ({stale})");
    }

    /// Each day, once it is over.
    async fn assert_reconciled(&self) {
        self.clock.advance(24 * HOUR);
        let records = self.app.books.records().await;
        let days: BTreeSet<&str> = records.iter().map(|record| &record.ended_at[..10]).collect();
        assert!(days.len() > 1, "{days:?}");
        for day in days {
            let arguments = ["reconcile", "--json", "--samples", "0", "--day", day];
            let said = self.app.cli(&arguments).await;
            assert!(said.contains("\"stripe\"") && said.contains("\"openmeter\""), "{said}");
            for kind in ["difference", "waiting", "unread"] {
                let found = format!("\"kind\":\"{kind}\"");
                assert!(!said.contains(&found), "{}: {said}", self.random);
            }
        }
    }

    async fn finish(self) {
        drop(self.replicas);
        self.app.finish().await;
    }
}

async fn replica(app: &TestApp) -> (Process, SocketAddr) {
    let (process, base_url) = app.replica().await;
    (process, address_of(&base_url))
}

/// The time in a column of a row of either store.
fn at(row: &Value, column: &str) -> OffsetDateTime {
    let text = row[column].as_str().expect("a time");
    OffsetDateTime::parse(text, &Rfc3339).expect("a time")
}
