//! The books: what is written for an answer, and what it costs.
//!
//! Prices of the catalogue: 150 nano-USD a prompt token (75 cached), 600 a completion token; the
//! default markup is a fifth.

use std::time::Duration;

use serde_json::{Value, json};

use crate::app::audit;
use crate::app::books::UsageRecord;
use crate::app::{
    Kind, Setup, Store, TestApp, both_stores, eventually, question, streamed, streamed_with_usage,
    uncap,
};
use crate::upstream::answer::{Answer, DONE, nano_usd};
use crate::upstream::catalog::{FREE_MODEL, MODEL, UNPRICED_MODEL, VARIABLE_MODEL};
use crate::upstream::script::{Gate, Script};

both_stores!(
    the_record_of_a_stream,
    the_record_of_a_plain_answer,
    costs_are_marked_up_and_rounded_up,
    list_prices,
    a_hold_stands_before_the_first_byte,
    many_at_once,
    no_overspend,
    billing_events_for_each_sink,
    verify_finds_what_was_tampered_with,
);

/// One streamed answer, and its record.
async fn charge(app: &TestApp, answer: &Answer) -> UsageRecord {
    app.upstream.script(answer.stream());
    let got = app.chat(&streamed(MODEL)).await;
    got.ok();
    app.record_of(&got).await
}

async fn the_record_of_a_stream(store: Store) {
    let app = TestApp::start(store).await;
    let answer = Answer::openrouter().model("openai/gpt-4o-mini-2024-07-18").parts(4, 3);
    let record = charge(&app, &answer).await;
    assert_eq!(record.account_id, app.account);
    assert!(record.api_key_id.is_some());
    assert_eq!(record.upstream, "openrouter");
    assert_eq!(record.model, MODEL);
    assert_eq!(record.model_served.as_deref(), Some("openai/gpt-4o-mini-2024-07-18"));
    assert_eq!(record.provider.as_deref(), Some("OpenAI"));
    assert_eq!(record.generation_id.as_ref(), Some(&answer.id));
    assert_eq!(record.ending, "completed");
    assert_eq!(record.finish_reason.as_deref(), Some("stop"));
    assert_eq!(record.upstream_status, Some(200));
    assert_eq!(record.source, "upstream");
    assert_eq!((record.prompt_tokens, record.cached_tokens), (12, 4));
    assert_eq!((record.completion_tokens, record.reasoning_tokens), (7, 3));
    assert_eq!(record.cache_write_tokens, 0);
    assert!(record.counted_completion_tokens > Some(0), "ours stands beside the upstream's");
    assert_eq!(record.upstream_cost_pusd, Some(123_000_000));
    assert_eq!((record.charge_nusd, record.shortfall_nusd), (147_600, 0));
    assert!(record.hold_nusd > 0);
    assert_eq!(record.attempts, 1);
    let first_byte = record.first_byte_at.expect("a first byte came");
    assert!(record.started_at <= first_byte && first_byte <= record.ended_at);
    let prices = app.books.rows("SELECT id, model FROM prices").await;
    let price = prices.iter().find(|price| price["id"] == json!(record.price_id));
    assert_eq!(price.expect("the price version is kept")["model"], json!(MODEL));
    app.finish().await;
}

async fn the_record_of_a_plain_answer(store: Store) {
    let app = TestApp::start(store).await;
    let answer = Answer::openrouter();
    app.upstream.script(answer.plain());
    app.chat(&question(MODEL)).await.ok();
    let record = app.record().await;
    assert!(!record.streamed);
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("completed", "upstream"));
    assert_eq!((record.prompt_tokens, record.completion_tokens), (12, 7));
    assert_eq!(record.generation_id.as_ref(), Some(&answer.id));
    assert_eq!(record.finish_reason.as_deref(), Some("stop"));
    assert!(record.counted_completion_tokens > Some(0), "ours stands beside the upstream's");
    assert_eq!(record.charge_nusd, 147_600);
    let balances: Vec<i64> = app.books.entries().await.iter().map(|one| one.balance_nusd).collect();
    assert_eq!(balances, [10_000_000_000, 10_000_000_000 - 147_600]);
    app.finish().await;
}

async fn costs_are_marked_up_and_rounded_up(store: Store) {
    let app = TestApp::start(store).await;
    let cases = [
        ("0.000123", Some(147_600)),
        ("1", Some(1_200_000_000)),
        ("1.23e-4", Some(147_600)),
        ("1E-9", Some(2)),
        ("0.000000010", Some(12)),
        ("0.00012345678901234", Some(148_149)),
        // Free is not the same as unknown, whichever way the zero is written.
        ("0", Some(0)),
        ("0.0", Some(0)),
        ("0e3", Some(0)),
        ("null", None),
    ];
    for (cost, expected) in cases {
        let record = charge(&app, &Answer::openrouter().cost(cost)).await;
        let list = (12 * 150 + 7 * 600) * 12 / 10;
        assert_eq!(record.charge_nusd, expected.unwrap_or(list), "cost {cost}");
        assert_eq!(record.upstream_cost_pusd.is_some(), expected.is_some(), "cost {cost}");
        assert_eq!(record.source, "upstream", "cost {cost}");
    }
    app.finish().await;
}

async fn list_prices(store: Store) {
    let app = TestApp::start(store).await;
    let plain = charge(&app, &Answer::openrouter().no_cost().tokens(1000, 500)).await;
    assert_eq!(plain.charge_nusd, (1000 * 150 + 500 * 600) * 12 / 10);
    assert_eq!(plain.upstream_cost_pusd, None);
    // Cached tokens are a part of the prompt and cheaper, reasoning is a part of the completion.
    let parts =
        charge(&app, &Answer::openrouter().no_cost().tokens(1000, 500).parts(400, 200)).await;
    assert_eq!(parts.charge_nusd, (600 * 150 + 400 * 75 + 500 * 600) * 12 / 10);
    app.finish().await;
}

#[tokio::test]
async fn the_markup_is_configured() {
    for (markup, expected) in
        [("1", 123_000), ("1.00", 123_000), ("2.5", 307_500), ("1.055", 129_765)]
    {
        let app = Setup::new(Store::Sqlite).env("TOLLGATE_MARKUP", markup).start().await;
        let record = charge(&app, &Answer::openrouter()).await;
        assert_eq!(record.charge_nusd, expected, "markup {markup}");
        app.finish().await;
    }
}

#[tokio::test]
async fn the_operators_table_is_retail() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    app.upstream.script(Answer::openai().tokens(1000, 500).parts(400, 0).plain());
    app.chat(&question("gpt-4o-mini")).await.ok();
    assert_eq!(app.record().await.charge_nusd, 600 * 150 + 400 * 75 + 500 * 600);
    app.finish().await;
}

#[tokio::test]
async fn a_fee_per_request_is_charged_once() {
    let prices = r#"
[[price]]
model = "gpt-4o-mini"
prompt_usd_per_mtok = "0.15"
completion_usd_per_mtok = "0.60"
request_usd = "0.001"
"#;
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).prices(prices).start().await;
    app.upstream.script(Answer::openai().tokens(10, 10).plain());
    app.chat(&question("gpt-4o-mini")).await.ok();
    assert_eq!(app.record().await.charge_nusd, 10 * 150 + 10 * 600 + 1_000_000);
    app.finish().await;
}

#[tokio::test]
async fn models_without_a_price_are_refused() {
    let app = TestApp::start(Store::Sqlite).await;
    for model in [UNPRICED_MODEL, VARIABLE_MODEL] {
        let got = app.chat(&streamed(model)).await;
        assert_eq!(got.status, 400, "{model}: {}", got.text());
        assert_eq!(got.json()["error"]["code"], json!("model_not_priced"), "{model}");
    }
    app.assert_untouched().await;
    app.finish().await;
}

#[tokio::test]
async fn a_free_model_is_served_and_costs_nothing() {
    let app = TestApp::start(Store::Sqlite).await;
    app.upstream.script(Answer::openrouter().no_cost().model(FREE_MODEL).stream());
    app.chat(&streamed(FREE_MODEL)).await.ok();
    let record = app.record().await;
    assert_eq!((record.charge_nusd, record.completion_tokens), (0, 7));
    app.finish().await;
}

#[tokio::test]
async fn the_client_sees_its_own_price() {
    let app = TestApp::start(Store::Sqlite).await;
    let mut answer = Answer::openrouter();
    answer.usage.as_mut().expect("usage").cached = 4;
    let shown = |usage: &Value| {
        assert_eq!(nano_usd(&usage["cost"].to_string()), Some(147_600), "{usage}");
        assert_eq!(usage["cost_details"], json!(null), "{usage}");
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], json!(4), "{usage}");
    };
    app.upstream.script(answer.plain());
    let got = app.chat(&question(MODEL)).await;
    let text = got.ok();
    shown(&got.json()["usage"]);
    let upto = |text: &str| text.split(r#""cost":"#).next().expect("a part").to_string();
    assert_eq!(upto(&text), upto(&answer.plain_body()), "nothing before the cost is touched");

    app.upstream.script(answer.stream());
    let got = app.chat(&streamed_with_usage(MODEL)).await;
    let text = got.ok();
    let events = got.events();
    shown(&events.last().expect("events")["usage"]);
    assert_eq!(upto(&text), upto(&answer.events().concat()));
    assert!(text.ends_with(DONE));
    for secret in ["0.000123", "upstream_inference_cost\":0"] {
        assert!(!text.contains(secret), "the operator's own cost is shown: {text}");
    }
    app.finish().await;
}

async fn a_hold_stands_before_the_first_byte(store: Store) {
    let app = TestApp::start(store).await;
    let (answer, gate) = (Answer::openrouter(), Gate::new());
    let mut events = answer.events().into_iter();
    let first = events.next().expect("a first event");
    app.upstream.script(answer.head().chunk(first).wait(&gate).chunks(events).end());
    let mut exchange = app.begin_chat(&streamed(MODEL)).await;
    exchange.until("data: ").await;
    let holds = app.books.holds().await;
    assert_eq!(holds.len(), 1, "the hold is durable before the client sees a byte");
    assert_eq!((&holds[0].account_id, holds[0].model.as_str()), (&app.account, MODEL));
    // 200 completion tokens are allowed, and they alone cost this much.
    assert!(holds[0].amount_nusd >= 200 * 600 * 12 / 10, "{holds:?}");
    assert_eq!(app.books.accounts().await[0].held_nusd, holds[0].amount_nusd);
    crate::app::eventually("the generation id is written to the hold", async || {
        let hold = app.books.holds().await.pop().expect("the hold stands");
        (hold.generation_id.as_ref() == Some(&answer.id)).then_some(())
    })
    .await;
    gate.open();
    let got = exchange.finish().await;
    got.ok();
    assert_eq!(got.request_id(), holds[0].request_id);
    app.finish().await;
}

/// Where the upstream is called while the hold is committed: with a generation that is noted before
/// anything passes, and without.
#[tokio::test]
async fn a_hold_that_overlaps_with_its_call_stands_before_the_first_byte() {
    for (kind, model) in [(Kind::OpenRouter, MODEL), (Kind::OpenAi, "gpt-4o-mini")] {
        overlaps(kind, model).await;
    }
}

async fn overlaps(kind: Kind, model: &str) {
    let answer = || if kind == Kind::OpenAi { Answer::openai() } else { Answer::openrouter() };
    let setup = Setup::new(Store::Postgres).kind(kind).proxied();
    let app = setup.env("TOLLGATE_DATABASE_SECONDS", "20").start().await;
    // Who begins to listen forgets all.
    app.books.is_listened_to().await;
    // An account's first request never overlaps.
    app.upstream.script(answer().stream());
    app.chat(&streamed(model)).await.ok();
    app.record().await;
    let (answer, called, told) = (answer(), Gate::new(), Gate::new());
    let mut events = answer.events().into_iter();
    let first = events.next().expect("a first event");
    let stream = answer.head().chunk(first).wait(&told).chunks(events).end();
    app.upstream.script(Script::new().wait(&called).then(stream));
    let wire = app.proxy.as_ref().expect("a wire");
    wire.slow(Duration::from_millis(1_500));
    let mut exchange = app.begin_chat(&streamed(model)).await;
    app.upstream.wait_for_chats(2).await;
    assert_eq!(app.books.holds().await.len(), 0, "the call leaves before its hold stands");
    called.open();
    assert!(exchange.head().await, "an answer");
    let holds = app.books.holds().await;
    assert_eq!(holds.len(), 1, "the hold is durable before the client is told anything");
    exchange.until("data: ").await;
    told.open();
    let got = exchange.finish().await;
    got.ok();
    assert_eq!(got.request_id(), holds[0].request_id);
    wire.slow(Duration::ZERO);
    app.record_of(&got).await;
    app.finish().await;
}

async fn many_at_once(store: Store) {
    let app = TestApp::start(store).await;
    let other = app.create_account("other", &["--credit", "5"]).await;
    let other_key = app.create_key("other", &[]).await;
    let keys = [&app.key, &other_key];
    for _ in 0..60 {
        app.upstream.script(Answer::openrouter().stream());
    }
    let requests = (0..60).map(|number| {
        let ask = app.chat_ask(&streamed(MODEL)).bearer(keys[number % 2]);
        let app = &app;
        async move { app.ask(&ask).await.ok() }
    });
    futures::future::join_all(requests).await;
    let records = app.records(60).await;
    let others = records.iter().filter(|record| record.account_id == other).count();
    assert_eq!(others, 30, "each request is charged to the account of its key");
    for account in app.books.accounts().await {
        let credit = if account.id == other { 5_000_000_000 } else { 10_000_000_000 };
        assert_eq!(account.balance_nusd, credit - 30 * 147_600, "{account:?}");
    }
    app.finish().await;
}

async fn no_overspend(store: Store) {
    // Enough for a few of these calls at a time: each may cost 2,000 x 720 nano-USD. Those that
    // come when less is left are served with a lower cap, down to 16 tokens.
    let mut app = Setup::new(store).credit("0.005").start().await;
    app.drops_calls = true;
    for _ in 0..40 {
        app.upstream.script(Answer::openrouter().no_cost().tokens(12, 16).stream());
    }
    let mut body = streamed(MODEL);
    body["max_tokens"] = json!(2000);
    let answers = futures::future::join_all((0..20).map(|_| app.chat(&body))).await;
    let refused = answers.iter().filter(|got| got.status == 429).count();
    let served = answers.iter().filter(|got| got.status == 200).count();
    assert_eq!(served + refused, 20, "{answers:?}");
    assert!(served >= 3, "{served} of 20 were served on credit for three at a time");
    app.settled().await;
    let account = app.books.accounts().await.remove(0);
    assert!(account.balance_nusd >= 0, "spent more than there was: {account:?}");
    let lost: i64 = app.books.records().await.iter().map(|record| record.shortfall_nusd).sum();
    assert_eq!(lost, 0, "the operator paid");
    app.finish().await;
}

#[tokio::test]
async fn a_postpaid_account_needs_no_credit_and_keeps_to_its_limit() {
    let app = TestApp::start(Store::Sqlite).await;
    app.create_account("later", &["--postpaid", "--limit", "0.001"]).await;
    let key = app.create_key("later", &[]).await;
    let ask = app.chat_ask(&streamed(MODEL)).bearer(&key);
    app.upstream.script(Answer::openrouter().stream());
    app.ask(&ask).await.ok();
    let record = app.record().await;
    let accounts = app.books.accounts().await;
    let account = accounts.iter().find(|account| account.name == "later").expect("it was created");
    assert_eq!(account.balance_nusd, -147_600);
    assert_eq!(record.account_id, account.id);
    // The limit is a million nano-USD a month; 16,384 tokens at 720 may cost eleven times that.
    let mut body = streamed(MODEL);
    uncap(&mut body);
    app.upstream.script(Answer::openrouter().stream());
    let got = app.ask(&app.chat_ask(&body).bearer(&key)).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let cap = got.header("x-tollgate-completion-tokens-max").expect("it was capped").to_string();
    let cap: i64 = cap.parse().expect("a number");
    assert!((16..1_200).contains(&cap), "852,400 nano-USD pay for {cap} tokens at 720");
    let sent: serde_json::Value = app.upstream.chats().remove(1).json();
    assert_eq!(sent["max_tokens"], cap, "the upstream is told");
    app.finish().await;
}

async fn billing_events_for_each_sink(store: Store) {
    // Nothing listens on port 1: the events wait.
    let app = Setup::new(store)
        .env("OPENMETER_URL", "http://127.0.0.1:1/api/v1/events")
        .env("STRIPE_SECRET_KEY", "sk_test_not_real")
        .env("STRIPE_API_BASE", "http://127.0.0.1:1")
        .start()
        .await;
    app.upstream.script(Answer::openrouter().stream());
    app.chat(&streamed(MODEL)).await.ok();
    // Nothing was used by this one, so nothing is billed.
    app.upstream.script(crate::upstream::script::Script::json(500, "{}"));
    assert_eq!(app.chat(&streamed(MODEL)).await.status, 502);
    app.records(2).await;
    let events = app.books.events().await;
    let sinks: Vec<_> = events.iter().map(|event| event.sink.as_str()).collect();
    assert_eq!(sinks, ["openmeter", "stripe"]);
    eventually("the account is nobody at Stripe, and OpenMeter is away", async || {
        let events = app.books.events().await;
        let states: Vec<_> = events.iter().map(|event| event.state.as_str()).collect();
        (states == ["waiting", "parked"]).then_some(())
    })
    .await;
    assert_eq!(app.list(&["events", "list"]).await.len(), 2);
    assert_eq!(app.list(&["events", "list", "--parked"]).await.len(), 1);
    app.finish().await;
}

async fn verify_finds_what_was_tampered_with(store: Store) {
    let app = TestApp::start(store).await;
    let record = charge(&app, &Answer::openrouter()).await;
    app.settled().await;
    app.cli(&["verify"]).await;
    let changes = [
        ("UPDATE usage_records SET charge_nusd = charge_nusd ", "+ 1", "- 1"),
        ("UPDATE usage_records SET completion_tokens = completion_tokens ", "+ 1", "- 1"),
        ("UPDATE accounts SET balance_nusd = balance_nusd ", "+ 1", "- 1"),
        ("UPDATE accounts SET held_nusd = held_nusd ", "+ 1", "- 1"),
        ("UPDATE ledger_entries SET amount_nusd = amount_nusd ", "+ 1", "- 1"),
    ];
    for (update, change, back) in changes {
        app.books.tamper(&format!("{update}{change}")).await;
        let verified = app.try_cli(&["verify"]).await;
        assert!(!verified.status.success(), "unseen: {update}{change}");
        let said = verified.stdout + &verified.stderr;
        let named = said.contains(&record.id) || said.contains(&app.account);
        assert!(named, "{update}{change} is not named: {said}");
        // This suite's own audit is put to the test as well; it does not know the records' hashes.
        let audit = audit::differences(&app.books, &[]).await;
        assert!(!audit.is_empty() || update.contains("tokens"), "unseen: {update}{change}");
        app.books.tamper(&format!("{update}{back}")).await;
    }
    app.finish().await;
}
