//! No overspend: whatever runs at the same time, in however many processes, and whether or not the
//! upstream keeps to its cap, nobody spends more than there was. And no false refusals: who is
//! refused when nothing else runs could not have paid for an answer of use.
//!
//! `TOLLGATE_TEST_OVERSPEND_RUNS` and `TOLLGATE_TEST_OVERSPEND_STREAMS` make it longer.

mod limits;

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, SqliteConnection};

use crate::app::books::UsageRecord;
use crate::app::process::Process;
use crate::app::{
    Kind, Setup, Store, TestApp, address_of, both_stores, eventually, question, streamed, uncap,
};
use crate::client::{Answered, Ask, Exchange};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{MODEL, OLD_MODEL};
use crate::upstream::model::{COMPLETION_NUSD, Manner, Model, PROMPT_NUSD, PROMPT_TOKENS, Stall};
use crate::upstream::script::Gate;

both_stores!(
    an_obedient_upstream_spends_a_dollar_to_its_end,
    a_disobedient_upstream_spends_no_more_than_a_dollar,
    plain_answers_of_a_disobedient_upstream_spend_no_more_than_there_is,
    a_stream_that_outgrows_its_hold_is_extended,
    a_stream_that_cannot_be_extended_is_cut_off,
    what_is_thought_unseen_costs_no_more_than_there_is,
    what_was_thought_a_moment_ago_is_not_spent_again,
    a_stream_is_told_no_cap_that_might_be_refused,
    a_stream_within_its_cap_takes_no_more_than_its_hold,
);

/// The default markup is a fifth.
const fn retail(nusd: i64) -> i64 {
    nusd * 12 / 10
}

const DOLLAR: i64 = 1_000_000_000;
/// Answers of fewer tokens are refused.
const FLOOR_TOKENS: i64 = 16;

/// How often something is done; none of it would show nothing.
pub fn number_of(variable: &str, default: usize) -> usize {
    let number = std::env::var(variable).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}"))
    });
    assert!(number >= 1, "{variable} must be at least 1");
    number
}

fn body(max_tokens: Option<i64>) -> Value {
    let mut body = streamed(OLD_MODEL);
    body["max_tokens"] = json!(max_tokens);
    if max_tokens.is_none() {
        uncap(&mut body);
    }
    body
}

/// How a call ended for its client.
#[derive(Debug, PartialEq)]
enum End {
    Whole,
    CutOff,
    Refused,
}

fn end_of(got: &Answered) -> End {
    let text = got.text();
    if got.status == 429 {
        assert_eq!(got.json()["error"]["code"], "insufficient_quota", "{text}");
        assert_eq!(got.header("x-should-retry"), Some("false"), "{:?}", got.headers);
        return End::Refused;
    }
    got.ok();
    if !text.starts_with("data: ") || text.ends_with("data: [DONE]\n\n") {
        return End::Whole;
    }
    let last = got.events().pop().expect("an event");
    assert_eq!(last["error"]["code"], "insufficient_quota", "it ends with its reason: {text}");
    assert_eq!(last["error"]["type"], "insufficient_quota", "{text}");
    End::CutOff
}

/// One or more processes on the same books, and the model behind them.
struct Site {
    app: TestApp,
    model: Model,
    replicas: Vec<Process>,
    addresses: Vec<SocketAddr>,
}

/// An account with a dollar.
struct Spender {
    account: String,
    key: String,
}

impl Site {
    async fn open(store: Store, manner: Manner) -> Self {
        let model = Model::start(manner).await;
        let setup = Setup::new(store).env("UPSTREAM_BASE_URL", &model.url());
        let app = setup.start().await;
        let mut site = Self { addresses: vec![app.address()], app, model, replicas: Vec::new() };
        let more = if store == Store::Postgres { 2 } else { 0 };
        for _ in 0..more {
            let (replica, base_url) = site.app.replica().await;
            site.replicas.push(replica);
            site.addresses.push(address_of(&base_url));
        }
        site
    }

    async fn spender(&self, name: &str) -> Spender {
        let account = self.app.create_account(name, &["--credit", "1"]).await;
        let key = self.app.create_key(name, &[]).await;
        Spender { account, key }
    }

    async fn call(&self, number: usize, spender: &Spender, body: &Value) -> Answered {
        let ask = Ask::post_json("/v1/chat/completions", body.to_string()).bearer(&spender.key);
        let address = self.addresses[number % self.addresses.len()];
        Exchange::open(address, &ask.bytes()).await.finish().await
    }

    /// `streams` at once, and then one after the other until one is refused.
    async fn spend(&self, spender: &Spender, streams: usize, body: &Value) -> Vec<Answered> {
        let calls = (0..streams).map(|number| self.call(number, spender, body));
        let mut answers = join_all(calls).await;
        for number in 0.. {
            assert!(number < 2_000, "a dollar never ends");
            self.app.settled().await;
            let got = self.call(number, spender, body).await;
            let is_last = end_of(&got) == End::Refused;
            answers.push(got);
            if is_last {
                break;
            }
        }
        answers
    }

    async fn records_of(&self, spender: &Spender) -> Vec<UsageRecord> {
        self.app.settled().await;
        let records = self.app.books.records().await.into_iter();
        records.filter(|record| record.account_id == spender.account).collect()
    }

    /// What is left, after checking that it is what was not spent.
    async fn left(&self, spender: &Spender) -> i64 {
        self.app.settled().await;
        let accounts = self.app.books.accounts().await;
        let account = accounts.iter().find(|account| account.id == spender.account);
        let account = account.expect("it was created");
        let entries = self.app.books.entries().await;
        let spent: i64 = entries
            .iter()
            .filter(|entry| entry.account_id == spender.account && entry.kind == "charge")
            .map(|entry| -entry.amount_nusd)
            .sum();
        assert!(spent <= DOLLAR, "{spent} nano-USD were spent of a dollar");
        assert!(account.balance_nusd >= 0, "overspent: {account:?}");
        assert_eq!(account.balance_nusd, DOLLAR - spent, "{account:?}");
        account.balance_nusd
    }

    /// What the smallest hold of this request takes.
    async fn floor(&self) -> i64 {
        let ask = self.app.chat_ask(&body(Some(FLOOR_TOKENS)));
        let got = self.app.ask(&ask).await;
        got.ok();
        self.app.record_of(&got).await.hold_nusd
    }

    async fn close(mut self) {
        for replica in &mut self.replicas {
            assert_eq!(replica.status(), None, "a replica ended by itself");
            replica.kill();
        }
        self.app.finish().await;
    }
}

async fn an_obedient_upstream_spends_a_dollar_to_its_end(store: Store) {
    let manner =
        Manner { tokens: 150, spread: 200, pause: Duration::from_millis(1), ..Manner::obedient() };
    let site = Site::open(store, Manner { tokens: 1, spread: 1, ..manner.clone() }).await;
    let floor = site.floor().await;
    site.model.behave(manner);
    let streams = if store == Store::Sqlite { 100 } else { 150 };
    let streams = number_of("TOLLGATE_TEST_OVERSPEND_STREAMS", streams);
    for run in 0..number_of("TOLLGATE_TEST_OVERSPEND_RUNS", 2) {
        let spender = site.spender(&format!("spender {run}")).await;
        let answers = site.spend(&spender, streams, &body(Some(1_000))).await;
        let left = site.left(&spender).await;
        let ends: Vec<End> = answers.iter().map(end_of).collect();
        let count = |end: &End| ends.iter().filter(|other| *other == end).count();
        println!(
            "run {run}: {} whole, {} refused, {left} nano-USD left",
            count(&End::Whole),
            count(&End::Refused)
        );
        assert_eq!(count(&End::CutOff), 0, "a stream that kept to its cap was cut off");
        assert!(count(&End::Whole) > 13, "a dollar pays for 13 holds of 1,000 tokens at once");
        assert!(left < floor, "refused with {left} left, though {floor} would do");
        let truths = site.model.generations();
        let records = site.records_of(&spender).await;
        for record in &records {
            let id = record.generation_id.as_ref();
            let Some(truth) = id.and_then(|id| truths.get(id)) else {
                assert_eq!(record.charge_nusd, 0, "nobody generated anything: {record:#?}");
                continue;
            };
            assert_eq!(record.source, "upstream", "{record:#?}");
            assert_eq!(record.completion_tokens, truth.completion_tokens, "{record:#?}");
            assert_eq!(record.charge_nusd, retail(truth.cost_nusd()), "{record:#?}");
            assert_eq!(record.shortfall_nusd, 0, "the operator paid: {record:#?}");
        }
        let charged = records.iter().filter(|record| record.charge_nusd > 0).count();
        assert_eq!(charged, count(&End::Whole), "what was answered was charged, and nothing else");
        for got in answers.iter().filter(|got| end_of(got) == End::Whole) {
            let record = records.iter().find(|record| record.id == got.request_id());
            let id = record.and_then(|record| record.generation_id.as_ref()).expect("an id");
            let told = got.header("x-tollgate-completion-tokens-max").unwrap_or("1000");
            assert_eq!(truths[id].cap.map(|cap| cap.to_string()).as_deref(), Some(told));
        }
    }
    site.close().await;
}

async fn a_disobedient_upstream_spends_no_more_than_a_dollar(store: Store) {
    let manner = Manner {
        obeys: false,
        tokens: 300,
        excess: 300,
        pause: Duration::from_millis(1),
        ..Manner::obedient()
    };
    let site = Site::open(store, Manner { tokens: 1, ..Manner::obedient() }).await;
    let floor = site.floor().await;
    site.model.behave(manner);
    let streams = if store == Store::Sqlite { 100 } else { 150 };
    let streams = number_of("TOLLGATE_TEST_OVERSPEND_STREAMS", streams);
    for run in 0..number_of("TOLLGATE_TEST_OVERSPEND_RUNS", 2) {
        let spender = site.spender(&format!("spender {run}")).await;
        let answers = site.spend(&spender, streams, &body(Some(100))).await;
        let left = site.left(&spender).await;
        let records = site.records_of(&spender).await;
        let lost: i64 = records.iter().map(|record| record.shortfall_nusd).sum();
        let cut: Vec<_> = answers.iter().filter(|got| end_of(got) == End::CutOff).collect();
        println!("run {run}: {} cut off, {left} nano-USD left, {lost} lost", cut.len());
        assert!(!cut.is_empty(), "nobody was cut off, so this run has shown nothing");
        assert!(left < floor, "refused with {left} left, though {floor} would do");
        for got in cut {
            let record = records.iter().find(|record| record.id == got.request_id());
            assert_cut_off(got, record.expect("a record of each"));
        }
        assert_eq!(lost, 0, "streams are ended in time, so nobody pays for more than there is");
    }
    site.close().await;
}

/// What was delivered is charged, as this suite counts it.
#[track_caller]
fn assert_cut_off(got: &Answered, record: &UsageRecord) {
    let vocabulary = tiktoken_rs::cl100k_base_singleton();
    let delivered = vocabulary.encode_ordinary(&got.content()).len();
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("cut_off", "counted"));
    assert_eq!(usize::try_from(record.completion_tokens), Ok(delivered), "{record:#?}");
    let cost = record.prompt_tokens * PROMPT_NUSD + record.completion_tokens * COMPLETION_NUSD;
    assert_eq!(record.charge_nusd, retail(cost), "{record:#?}");
    assert!(record.charge_nusd <= record.hold_nusd, "more than was set aside: {record:#?}");
}

async fn plain_answers_of_a_disobedient_upstream_spend_no_more_than_there_is(store: Store) {
    let manner = Manner { obeys: false, tokens: 300, excess: 300, ..Manner::obedient() };
    let site = Site::open(store, manner).await;
    let spender = site.spender("spender").await;
    let mut body = question(OLD_MODEL);
    body["max_tokens"] = json!(100);
    let answers = site.spend(&spender, 80, &body).await;
    let left = site.left(&spender).await;
    let records = site.records_of(&spender).await;
    let lost: i64 = records.iter().map(|record| record.shortfall_nusd).sum();
    let whole = answers.iter().filter(|got| end_of(got) == End::Whole).count();
    println!("{whole} whole, {left} nano-USD left, {lost} lost");
    assert!(lost > 0, "a plain answer cannot be cut, so that the operator loses something here");
    // Nothing vanishes: each answer's price is either charged or shown as lost.
    let truths = site.model.generations();
    for record in records.iter().filter(|record| record.source != "none") {
        let truth = &truths[record.generation_id.as_ref().expect("an id")];
        assert_eq!(record.charge_nusd + record.shortfall_nusd, retail(truth.cost_nusd()));
    }
    site.close().await;
}

async fn a_stream_that_outgrows_its_hold_is_extended(store: Store) {
    let model = Model::start(Manner { tokens: 400, ..Manner::obedient() }).await;
    let setup = Setup::new(store).env("UPSTREAM_BASE_URL", &model.url());
    let app = setup.env("TOLLGATE_COMPLETION_TOKENS_MAX", "50").start().await;
    let got = app.chat(&body(None)).await;
    assert_eq!(end_of(&got), End::Whole);
    assert_eq!(got.content(), " the".repeat(400));
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("completed", "upstream"));
    assert_eq!(record.completion_tokens, 400);
    assert!(record.hold_nusd >= record.charge_nusd, "all of it was set aside: {record:#?}");
    assert!(record.hold_nusd > 400 * retail(COMPLETION_NUSD), "{record:#?}");
    assert_eq!(model.chats()[0]["max_tokens"], Value::Null, "the operator's cap is for holds");
    app.finish().await;
}

async fn a_stream_that_cannot_be_extended_is_cut_off(store: Store) {
    let model = Model::start(Manner { tokens: 400, obeys: false, ..Manner::obedient() }).await;
    let setup = Setup::new(store).env("UPSTREAM_BASE_URL", &model.url()).credit("0.01");
    let app = setup.env("TOLLGATE_COMPLETION_TOKENS_MAX", "50").start().await;
    let got = app.chat(&body(None)).await;
    assert_eq!(end_of(&got), End::CutOff);
    let record = app.record().await;
    assert_cut_off(&got, &record);
    // A cent pays for 138 tokens; the prompt's share is small, and the last 16 are not fought for.
    assert!((100..=138).contains(&record.completion_tokens), "{record:#?}");
    let rest = 10_000_000 - record.hold_nusd;
    let floor = FLOOR_TOKENS * retail(COMPLETION_NUSD);
    assert!((0..floor).contains(&rest), "cut off though {rest} nano-USD were to be had");
    let [account] = &app.books.accounts().await[..] else { panic!("one account") };
    assert_eq!(account.balance_nusd, 10_000_000 - record.charge_nusd);
    app.finish().await;
}

/// There is money for one extension, and nobody is told that it is made: it is not made again.
#[tokio::test]
async fn an_extension_whose_answer_is_lost_is_made_once() {
    let gate = Gate::new();
    let stall = Some((Stall::Tokens(10), gate.clone()));
    let model = Model::start(Manner { tokens: 80, stall, ..Manner::obedient() }).await;
    let setup = Setup::new(Store::Postgres).proxied().env("UPSTREAM_BASE_URL", &model.url());
    let setup = setup.env("TOLLGATE_COMPLETION_TOKENS_MAX", "50").credit("0.008");
    let app = setup.start().await;
    let proxy = app.proxy.as_ref().expect("it was asked for");
    let mut exchange = app.begin_chat(&body(None)).await;
    exchange.until("data: ").await;
    eventually("the generation is noted", async || {
        app.books.holds().await.pop().and_then(|hold| hold.generation_id)
    })
    .await;
    proxy.lose(1);
    gate.open();
    let got = exchange.finish().await;
    assert_eq!(proxy.lost(), 1);
    assert_eq!(end_of(&got), End::Whole, "{}", got.text());
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.completion_tokens), ("completed", 80));
    app.finish().await;
}

/// The tokens that so many nano-USD pay for, after the prompt.
fn paid_by(nusd: i64) -> i64 {
    (nusd - retail(PROMPT_TOKENS * PROMPT_NUSD)) / retail(COMPLETION_NUSD)
}

/// A model that thinks sixty times as much as is held for, and says one word.
async fn thoughtful(store: Store) -> (Model, TestApp) {
    let manner = Manner { tokens: 3_000, unseen: 2_999, ..Manner::obedient() };
    let model = Model::start(manner).await;
    let setup = Setup::new(store).env("UPSTREAM_BASE_URL", &model.url());
    let app = setup.env("TOLLGATE_COMPLETION_TOKENS_MAX", "50").start().await;
    (model, app)
}

/// What a model thinks is known when it has ended: no stream can be ended for it, so it is told how
/// much there is, to an account and to its key.
async fn what_is_thought_unseen_costs_no_more_than_there_is(store: Store) {
    let (model, app) = thoughtful(store).await;
    let account = app.create_account("poor", &["--credit", "0.1"]).await;
    let poor = app.create_key(&account, &[]).await;
    let limited = app.create_key("test", &["--budget", "0.1"]).await;
    let account = app.create_account("comfortable", &["--credit", "0.3"]).await;
    let comfortable = app.create_key(&account, &[]).await;
    let callers = [(&poor, DOLLAR / 10), (&limited, DOLLAR / 10), (&comfortable, DOLLAR * 3 / 10)];
    for (number, (key, funds)) in callers.into_iter().enumerate() {
        let got = app.ask(&app.chat_ask(&body(None)).bearer(key)).await;
        assert_eq!(end_of(&got), End::Whole);
        let record = app.record_of(&got).await;
        let cap = model.chats()[number]["max_tokens"].as_i64().expect("the upstream is told");
        assert!((paid_by(funds) - 20..=paid_by(funds)).contains(&cap), "{cap} of {funds}");
        assert_eq!(got.header("x-tollgate-completion-tokens-max"), Some(&*cap.to_string()));
        assert_eq!(record.completion_tokens, cap.min(3_000), "{record:#?}");
        assert!(record.charge_nusd <= funds && record.shortfall_nusd == 0, "{record:#?}");
    }
    app.finish().await;
}

/// A call that does not wait for its hold is told what there is, less what is on its way to the
/// books: its client asks again as soon as it has its answer.
async fn what_was_thought_a_moment_ago_is_not_spent_again(store: Store) {
    let (model, app) = thoughtful(store).await;
    let account = app.create_account("comfortable", &["--credit", "0.3"]).await;
    let key = app.create_key(&account, &[]).await;
    let ask = app.chat_ask(&body(None)).bearer(&key);
    let answers = [app.ask(&ask).await, app.ask(&ask).await];
    let mut left = DOLLAR * 3 / 10;
    for (got, chat) in answers.iter().zip(model.chats()) {
        assert_eq!(end_of(got), End::Whole);
        let cap = chat["max_tokens"].as_i64().expect("the upstream is told");
        assert!((paid_by(left) - 20..=paid_by(left)).contains(&cap), "{cap} of {left}");
        let record = app.record_of(got).await;
        assert_eq!(record.completion_tokens, cap.min(3_000), "{record:#?}");
        assert_eq!(record.shortfall_nusd, 0, "{record:#?}");
        left -= record.charge_nusd;
    }
    app.finish().await;
}

/// A model whose limit nobody tells might refuse any cap; nor is there one for who can pay.
async fn a_stream_is_told_no_cap_that_might_be_refused(store: Store) {
    let app = Setup::new(store).kind(Kind::OpenAi).start().await;
    let mut body = streamed("gpt-4o-mini");
    uncap(&mut body);
    for credit in ["0.02", "5"] {
        let account = app.create_account(credit, &["--credit", credit]).await;
        let key = app.create_key(&account, &[]).await;
        app.upstream.script(Answer::openai().stream());
        let got = app.ask(&app.chat_ask(&body).bearer(&key)).await;
        got.ok();
        let sent = app.upstream.last_chat().json();
        let caps = ["max_tokens", "max_completion_tokens"].map(|name| sent[name].as_i64());
        assert_eq!(caps, [None, None], "{credit}: {sent}");
        assert_eq!(got.header("x-tollgate-completion-tokens-max"), None, "{credit}");
    }
    // One that the client names may be lowered.
    let account = app.create_account("poor", &["--credit", "0.02"]).await;
    let key = app.create_key(&account, &[]).await;
    body["max_completion_tokens"] = json!(100_000);
    app.upstream.script(Answer::openai().stream());
    let got = app.ask(&app.chat_ask(&body).bearer(&key)).await;
    got.ok();
    let cap = app.upstream.last_chat().json()["max_completion_tokens"].as_i64().expect("a cap");
    assert!((16_384..100_000).contains(&cap), "{cap}");
    assert_eq!(got.header("x-tollgate-completion-tokens-max"), Some(&*cap.to_string()));
    app.finish().await;
}

/// What a stream may still say is set aside already: asking for more takes it from others.
async fn a_stream_within_its_cap_takes_no_more_than_its_hold(store: Store) {
    let app = TestApp::start(store).await;
    app.upstream.script(Answer::openrouter().stream());
    app.chat(&streamed(MODEL)).await.ok();
    let hold = app.record().await.hold_nusd;
    // Money for two of these at a time, and not a nano-dollar more.
    let credit = format!("{}.{:09}", 2 * hold / DOLLAR, 2 * hold % DOLLAR);
    app.create_account("tight", &["--credit", &credit]).await;
    let key = app.create_key("tight", &[]).await;
    let ask = app.chat_ask(&streamed(MODEL)).bearer(&key);

    let answer = Answer::openrouter().pieces([" the"; 200]).tokens(12, 200).no_cost();
    let (mut events, gate) = (answer.events(), Gate::new());
    let rest = events.split_off(195);
    let script = answer.head().chunks(events).chunk(answer.content_event("|")).wait(&gate);
    app.upstream.script(script.chunks(rest).end());
    let mut first = app.begin(&ask).await;
    first.until(r#""|""#).await;

    app.upstream.script(Answer::openrouter().stream());
    let second = app.ask(&ask).await;
    assert_eq!(second.status, 200, "refused, though its money was there: {}", second.text());
    assert_eq!(second.header("x-tollgate-completion-tokens-max"), None, "its cap was lowered");
    gate.open();
    first.finish().await.ok();
    app.finish().await;
}

/// Whoever has locked the file, the stream that waits for its money has an end.
#[tokio::test]
async fn a_stream_that_waits_for_its_money_has_an_end() {
    let gate = Gate::new();
    let stall = Some((Stall::Tokens(10), gate.clone()));
    let model = Model::start(Manner { tokens: 400, stall, ..Manner::obedient() }).await;
    let setup = Setup::new(Store::Sqlite).env("UPSTREAM_BASE_URL", &model.url());
    let setup = setup.env("TOLLGATE_STREAM_SECONDS", "8");
    let app = setup.env("TOLLGATE_COMPLETION_TOKENS_MAX", "50").start().await;
    let mut exchange = app.begin_chat(&body(None)).await;
    exchange.until("data: ").await;
    let connecting = SqliteConnection::connect(&app.database_url());
    let mut other = connecting.await.expect("a connection");
    other.execute("BEGIN IMMEDIATE").await.expect("the file's lock");
    gate.open();
    let got = exchange.finish().await;
    assert!(got.text().contains("database_unavailable"), "{}", got.text());
    other.execute("COMMIT").await.expect("the end of the lock");
    assert_cut_off(&got, &app.record().await);
    app.finish().await;
}
