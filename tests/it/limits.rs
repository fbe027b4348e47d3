//! Limits of rate: requests and tokens per minute, and requests at once, of keys, of accounts and
//! of plans. What is refused, what clients are told, and what gives room again.
//!
//! A minute passes by making what was counted a minute older, in the table.

use serde_json::{Value, json};

use crate::app::{Setup, Store, TestApp, both_stores, eventually, question, streamed, uncap};
use crate::client::{Answered, Ask};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use crate::upstream::script::{Gate, Script};

both_stores!(
    requests_per_minute_of_a_key,
    tokens_per_minute_are_given_back,
    a_request_that_never_fits,
    an_answer_without_a_cap_is_made_to_fit,
    requests_at_once,
    a_hang_up_ends_a_request,
    a_kill_ends_a_request,
    an_account_s_limit_is_for_all_of_its_keys,
    a_plan_s_limits_are_for_who_has_none,
    who_has_no_limits_is_told_of_none,
    verify_counts_what_runs,
);

const MINUTE_MS: i64 = 60_000;

/// As if so much time had passed: what was counted is older.
async fn pass(app: &TestApp, milliseconds: i64) {
    for row in app.books.rows("SELECT subject, slots FROM rate_windows").await {
        let (subject, slots) = (row["subject"].as_str(), row["slots"].as_str());
        let (subject, slots) = (subject.expect("an id"), slots.expect("a text"));
        // The first number is a time, and the others follow from it.
        let Some((first, rest)) = slots.split_once(',') else { continue };
        let older = first.parse::<i64>().expect("microseconds") - milliseconds * 1_000;
        let set = format!("slots = '{older},{rest}'");
        app.books
            .tamper(&format!("UPDATE rate_windows SET {set} WHERE subject = '{subject}'"))
            .await;
    }
}

/// A key with a limit, of the test's account.
async fn limited(app: &TestApp, limits: &[&str]) -> String {
    app.create_key("test", limits).await
}

fn plain() -> Script {
    Answer::openrouter().plain()
}

async fn ask(app: &TestApp, key: &str, body: &Value) -> Answered {
    app.ask(&app.chat_ask(body).bearer(key)).await
}

/// A call that has to be let in.
async fn let_in(app: &TestApp, key: &str, body: &Value) -> Answered {
    app.upstream.script(plain());
    let got = ask(app, key, body).await;
    got.ok();
    got
}

fn number(got: &Answered, header: &str) -> i64 {
    let text = got.header(header).unwrap_or_else(|| panic!("no {header}: {:?}", got.headers));
    text.parse().unwrap_or_else(|_| panic!("{header}: {text}"))
}

/// A refusal of this type, and nobody was called for it.
#[track_caller]
fn assert_refused(got: &Answered, kind: &str) -> String {
    assert_eq!(got.status, 429, "{}", got.text());
    let error = got.json()["error"].clone();
    assert_eq!(error["type"], json!(kind), "{error}");
    assert_eq!(error["code"], json!("rate_limit_exceeded"), "{error}");
    assert_eq!(error["param"], Value::Null);
    error["message"].as_str().expect("a message").to_string()
}

/// The waiting time that a refusal tells in each of its forms, in milliseconds.
#[track_caller]
fn told_to_wait(got: &Answered) -> i64 {
    let milliseconds = number(got, "retry-after-ms");
    assert_eq!(number(got, "retry-after"), (milliseconds + 999) / 1_000, "rounded up");
    assert_eq!(got.header("x-should-retry"), None, "waiting helps");
    let text = got.json()["error"]["message"].to_string();
    let (_, tail) = text.split_once("Please try again in ").expect("OpenAI's words");
    assert_eq!(in_milliseconds(tail.trim_end_matches(['.', '"'])), milliseconds, "{text}");
    milliseconds
}

/// Go's way to write a duration: `20ms`, `1.5s`, `1m0s`.
fn in_milliseconds(text: &str) -> i64 {
    if let Some(milliseconds) = text.strip_suffix("ms") {
        return milliseconds.parse().expect("digits");
    }
    let text = text.strip_suffix('s').expect("a unit");
    let (minutes, seconds) = text.split_once('m').unwrap_or(("0", text));
    let (whole, part) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let number = |digits: &str| digits.parse::<i64>().expect("digits");
    number(minutes) * MINUTE_MS + number(whole) * 1_000 + number(&format!("{part:0<3}"))
}

async fn requests_per_minute_of_a_key(store: Store) {
    let app = TestApp::start(store).await;
    let key = limited(&app, &["--rpm", "2"]).await;
    for (body, left) in [(question(MODEL), 1), (streamed(MODEL), 0)] {
        app.upstream.script(match left {
            1 => plain(),
            _ => Answer::openrouter().stream(),
        });
        let got = ask(&app, &key, &body).await;
        got.ok();
        assert_eq!(number(&got, "x-ratelimit-limit-requests"), 2);
        assert_eq!(number(&got, "x-ratelimit-remaining-requests"), left);
        assert_eq!(got.header("x-ratelimit-reset-requests"), Some("1m0s"));
        assert_eq!(got.header("x-ratelimit-limit-tokens"), None, "there is no such limit");
    }
    let got = ask(&app, &key, &question(MODEL)).await;
    let message = assert_refused(&got, "requests");
    let words = "Rate limit reached for openai/gpt-4o-mini in this API key on requests per min \
                 (RPM): Limit 2, Used 2, Requested 1. Please try again in ";
    assert!(message.starts_with(words), "{message}");
    let wait = told_to_wait(&got);
    assert!((1..=MINUTE_MS).contains(&wait), "{wait}");
    assert_eq!(number(&got, "x-ratelimit-remaining-requests"), 0);
    let reset = in_milliseconds(got.header("x-ratelimit-reset-requests").expect("a header"));
    assert!((wait..=MINUTE_MS).contains(&reset), "{reset}: the second leaves after the first");
    assert_eq!(app.upstream.chats().len(), 2, "a refused request is not forwarded");
    app.records(2).await;

    // Another key of the account goes on, and so does this one when its minute is over.
    let_in(&app, &app.key, &question(MODEL)).await;
    pass(&app, MINUTE_MS).await;
    let got = let_in(&app, &key, &question(MODEL)).await;
    assert_eq!(number(&got, "x-ratelimit-remaining-requests"), 1);
    app.finish().await;
}

async fn tokens_per_minute_are_given_back(store: Store) {
    let app = TestApp::start(store).await;
    app.create_account("small", &["--credit", "1", "--tpm", "1000"]).await;
    let key = app.create_key("small", &[]).await;
    let gate = Gate::new();
    let answer = Answer::openrouter();
    app.upstream.script(answer.head().wait(&gate).chunks(answer.events()).end());
    let mut body = streamed(MODEL);
    body["max_tokens"] = json!(700);
    let mut first = app.begin(&app.chat_ask(&body).bearer(&key)).await;
    assert!(first.head().await, "it is let in");

    let refused = ask(&app, &key, &body).await;
    let message = assert_refused(&refused, "tokens");
    assert!(message.contains("in this account on tokens per min (TPM): Limit 1000"), "{message}");
    told_to_wait(&refused);
    let left = number(&refused, "x-ratelimit-remaining-tokens");
    let reserved = 1_000 - left;
    assert!((701..800).contains(&reserved), "the prompt and 700 tokens: {reserved}");
    assert!(message.contains(&format!("Used {reserved}, Requested {reserved}.")), "{message}");

    gate.open();
    let got = first.finish().await;
    got.ok();
    assert_eq!(number(&got, "x-ratelimit-limit-tokens"), 1_000);
    assert_eq!(number(&got, "x-ratelimit-remaining-tokens"), left);
    assert_eq!(got.header("x-ratelimit-reset-tokens"), Some("1m0s"));
    app.records(1).await;
    let got = let_in(&app, &key, &body).await;
    let left = number(&got, "x-ratelimit-remaining-tokens");
    assert_eq!(left, 1_000 - 19 - reserved, "the first has used 19");
    app.records(2).await;

    // A call that failed has used nothing.
    app.upstream.script(Script::json(500, "{}"));
    assert!(ask(&app, &key, &body).await.status >= 500);
    app.records(3).await;
    let got = let_in(&app, &key, &body).await;
    assert_eq!(number(&got, "x-ratelimit-remaining-tokens"), 1_000 - 2 * 19 - reserved);
    app.finish().await;
}

async fn a_request_that_never_fits(store: Store) {
    let app = TestApp::start(store).await;
    let key = limited(&app, &["--tpm", "150"]).await;
    // 200 tokens of completion.
    let got = ask(&app, &key, &question(MODEL)).await;
    let message = assert_refused(&got, "tokens");
    assert!(message.starts_with("Request too large for openai/gpt-4o-mini"), "{message}");
    assert!(message.contains("Limit 150, Requested 2"), "{message}");
    assert_eq!(got.header("x-should-retry"), Some("false"), "waiting does not help");
    assert_eq!((got.header("retry-after"), got.header("retry-after-ms")), (None, None));
    assert_eq!(number(&got, "x-ratelimit-remaining-tokens"), 150);
    app.assert_untouched().await;
    app.finish().await;
}

async fn an_answer_without_a_cap_is_made_to_fit(store: Store) {
    let app = TestApp::start(store).await;
    let key = limited(&app, &["--tpm", "150"]).await;
    for mut body in [question(MODEL), streamed(MODEL)] {
        uncap(&mut body);
        app.upstream.script(match body["stream"] {
            Value::Null => plain(),
            _ => Answer::openrouter().stream(),
        });
        let got = ask(&app, &key, &body).await;
        got.ok();
        let cap = number(&got, "x-tollgate-completion-tokens-max");
        assert_eq!(app.upstream.last_chat().json()["max_tokens"], json!(cap));
        assert!((100..150).contains(&cap), "what the prompt leaves: {cap}");
        assert_eq!(number(&got, "x-ratelimit-remaining-tokens"), 0, "all of it is reserved");
        app.settled().await;
        pass(&app, MINUTE_MS).await;
    }
    app.finish().await;
}

/// A stream that is under way until its gate opens.
async fn running(app: &TestApp, key: &str, gate: &Gate) -> crate::client::Exchange {
    let answer = Answer::openrouter();
    let mut events = answer.events();
    let rest = events.split_off(1);
    app.upstream.script(answer.head().chunks(events).wait(gate).chunks(rest).end());
    let mut exchange = app.begin(&app.chat_ask(&streamed(MODEL)).bearer(key)).await;
    exchange.until("data: ").await;
    exchange
}

async fn requests_at_once(store: Store) {
    let app = TestApp::start(store).await;
    let key = limited(&app, &["--concurrent", "2"]).await;
    let gates = [Gate::new(), Gate::new()];
    let first = running(&app, &key, &gates[0]).await;
    let second = running(&app, &key, &gates[1]).await;
    let got = ask(&app, &key, &question(MODEL)).await;
    let message = assert_refused(&got, "requests");
    assert!(message.contains("concurrent requests: Limit 2, Used 2, Requested 1"), "{message}");
    assert_eq!(told_to_wait(&got), 1_000);
    gates[0].open();
    first.finish().await.ok();
    eventually("the first is settled", async || {
        (app.books.records().await.len() == 1).then_some(())
    })
    .await;
    let_in(&app, &key, &question(MODEL)).await;
    gates[1].open();
    second.finish().await.ok();
    app.records(3).await;
    app.finish().await;
}

/// Until a call is let in again.
async fn free_again(app: &TestApp, key: &str) {
    eventually("there is room again", async || {
        app.upstream.script(plain());
        (ask(app, key, &question(MODEL)).await.status == 200).then_some(())
    })
    .await;
}

async fn a_hang_up_ends_a_request(store: Store) {
    let app = Setup::new(store).policy("count").start().await;
    let key = limited(&app, &["--concurrent", "1"]).await;
    let gate = Gate::new();
    let exchange = running(&app, &key, &gate).await;
    assert_refused(&ask(&app, &key, &question(MODEL)).await, "requests");
    exchange.hang_up();
    free_again(&app, &key).await;
    app.finish().await;
}

async fn a_kill_ends_a_request(store: Store) {
    let mut app = Setup::new(store).env("TOLLGATE_LEASE_SECONDS", "1").start().await;
    let key = limited(&app, &["--concurrent", "1", "--tpm", "100000"]).await;
    let gate = Gate::new();
    let exchange = running(&app, &key, &gate).await;
    app.kill9();
    exchange.finish().await;
    app.restart().await;
    free_again(&app, &key).await;
    app.settled().await;
    app.finish().await;
}

async fn an_account_s_limit_is_for_all_of_its_keys(store: Store) {
    let app = TestApp::start(store).await;
    app.create_account("busy", &["--credit", "1", "--rpm", "3"]).await;
    let keys = [app.create_key("busy", &["--rpm", "2"]).await, app.create_key("busy", &[]).await];
    let left = |got: &Answered| number(got, "x-ratelimit-remaining-requests");
    let got = let_in(&app, &keys[0], &question(MODEL)).await;
    assert_eq!((left(&got), number(&got, "x-ratelimit-limit-requests")), (1, 2), "the tighter one");
    assert_eq!(left(&let_in(&app, &keys[1], &question(MODEL)).await), 1);
    let_in(&app, &keys[1], &question(MODEL)).await;
    for key in &keys {
        let message = assert_refused(&ask(&app, key, &question(MODEL)).await, "requests");
        assert!(message.contains("in this account on"), "{message}");
    }
    app.records(3).await;
    app.finish().await;
}

const PLANS: &str = r#"
[[plan]]
name = "slow"
requests_per_minute = 2
key_requests_per_minute = 1
key_tokens_per_minute = 5000
"#;

async fn a_plan_s_limits_are_for_who_has_none(store: Store) {
    let app = Setup::new(store).prices(PLANS).start().await;
    app.create_account("slow", &["--credit", "1", "--plan", "slow"]).await;
    let keys = [app.create_key("slow", &[]).await, app.create_key("slow", &["--rpm", "7"]).await];
    let got = let_in(&app, &keys[0], &question(MODEL)).await;
    assert_eq!(number(&got, "x-ratelimit-remaining-requests"), 0);
    assert_eq!(number(&got, "x-ratelimit-limit-tokens"), 5_000);
    let message = assert_refused(&ask(&app, &keys[0], &question(MODEL)).await, "requests");
    assert!(message.contains("in this API key on requests per min (RPM): Limit 1"), "{message}");
    let got = let_in(&app, &keys[1], &question(MODEL)).await;
    assert_eq!(number(&got, "x-ratelimit-limit-requests"), 2, "the key's is 7, the account's 2");
    let message = assert_refused(&ask(&app, &keys[1], &question(MODEL)).await, "requests");
    assert!(message.contains("in this account on requests per min (RPM): Limit 2"), "{message}");

    let own = ["--credit", "1", "--plan", "slow", "--rpm", "50"];
    app.create_account("own", &own).await;
    let key = app.create_key("own", &["--rpm", "60"]).await;
    let got = let_in(&app, &key, &question(MODEL)).await;
    assert_eq!(number(&got, "x-ratelimit-limit-requests"), 50, "its own goes before the plan's");
    app.finish().await;
}

async fn who_has_no_limits_is_told_of_none(store: Store) {
    let app = TestApp::start(store).await;
    let got = let_in(&app, &app.key, &question(MODEL)).await;
    let told = |header: &&(String, String)| header.0.starts_with("x-ratelimit-");
    assert_eq!(got.headers.iter().find(told), None);
    app.record().await;
    assert_eq!(app.books.rows("SELECT * FROM rate_windows").await, Vec::<Value>::new());
    app.finish().await;
}

async fn verify_counts_what_runs(store: Store) {
    let app = TestApp::start(store).await;
    let key = limited(&app, &["--concurrent", "5"]).await;
    let_in(&app, &key, &question(MODEL)).await;
    app.record().await;
    app.cli(&["verify"]).await;
    app.books.tamper("UPDATE rate_windows SET open_requests = 1").await;
    let ended = app.try_cli(&["verify"]).await;
    assert!(!ended.status.success(), "{ended:?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains("1 requests run but 0 holds are open"), "{said}");
    app.books.tamper("UPDATE rate_windows SET open_requests = 0").await;
    app.finish().await;
}

/// The hold stands and nobody was told: it is placed again, and counted once.
#[tokio::test]
async fn a_lost_commit_counts_once() {
    let app = Setup::new(Store::Postgres).proxied().start().await;
    let key = limited(&app, &["--rpm", "5"]).await;
    let proxy = app.proxy.as_ref().expect("it was asked for");
    proxy.lose(1);
    let got = let_in(&app, &key, &question(MODEL)).await;
    assert_eq!(proxy.lost(), 1, "the commit of its hold");
    assert_eq!(number(&got, "x-ratelimit-remaining-requests"), 4);
    let got = let_in(&app, &key, &question(MODEL)).await;
    assert_eq!(number(&got, "x-ratelimit-remaining-requests"), 3);
    app.records(2).await;
    app.finish().await;
}

#[tokio::test]
async fn browsers_may_read_what_is_left() {
    let app = TestApp::start(Store::Sqlite).await;
    let key = limited(&app, &["--rpm", "1", "--tpm", "1000"]).await;
    app.upstream.script(plain());
    let asked = app.chat_ask(&question(MODEL)).bearer(&key).header("Origin", "https://example.org");
    let got = app.ask(&asked).await;
    let exposed = got.header("access-control-expose-headers").expect("CORS").to_lowercase();
    let names = got.headers.iter().map(|(name, _)| name.to_lowercase());
    let told: Vec<_> = names.filter(|name| name.starts_with("x-ratelimit-")).collect();
    assert_eq!(told.len(), 6, "{told:?}");
    for name in told.iter().map(String::as_str).chain(["retry-after", "retry-after-ms"]) {
        assert!(exposed.split(',').any(|exposed| exposed.trim() == name), "{name}: {exposed}");
    }
    app.record().await;
    app.finish().await;
}

#[tokio::test]
async fn a_limit_is_one_or_more() {
    let app = TestApp::start(Store::Sqlite).await;
    for flag in ["--rpm", "--tpm", "--concurrent"] {
        for number in ["0", "-1", "many", "1.5"] {
            let ended = app.try_cli(&["key", "create", "--account", "test", flag, number]).await;
            assert!(!ended.status.success(), "{flag} {number}: {ended:?}");
        }
    }
    let models = app.ask(&Ask::get("/v1/models").bearer(&app.key)).await;
    assert_eq!(models.status, 200, "{}", models.text());
    app.finish().await;
}
