//! The client goes away: at every moment of a call, under every policy.
//!
//! It hangs up with a reset, so that the gateway's next write to it fails: no test has to guess how
//! long the gateway takes to notice.

use super::assert_whole;
use crate::app::books::UsageRecord;
use crate::app::{
    Kind, Setup, Store, TestApp, both_stores, question, streamed, streamed_with_usage,
};
use crate::client::Exchange;
use crate::upstream::answer::{Answer, DONE, event};
use crate::upstream::catalog::MODEL;
use crate::upstream::script::{Gate, Script};

both_stores!(
    gone_clients_are_drained,
    gone_clients_are_looked_up,
    gone_clients_are_counted,
    a_document_for_a_stream_is_read_though_the_client_has_gone,
    a_stream_that_fails_without_a_word_costs_a_gone_client_nothing,
);

/// When the client hangs up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    BeforeHead,
    BeforeFirstChunk,
    MidStream,
    BeforeUsage,
    AfterUsage,
    AfterDone,
}

use Moment::{AfterDone, AfterUsage, BeforeFirstChunk, BeforeHead, BeforeUsage, MidStream};

const MOMENTS: [Moment; 6] =
    [BeforeHead, BeforeFirstChunk, MidStream, BeforeUsage, AfterUsage, AfterDone];

/// One call whose client hangs up at `moment`.
struct Gone {
    moment: Moment,
    answer: Answer,
    gate: Gate,
}

impl Gone {
    fn new(moment: Moment) -> Self {
        Self { moment, answer: Answer::openrouter(), gate: Gate::new() }
    }

    /// The events that leave before the client hangs up.
    fn before(&self) -> Vec<String> {
        let events = self.answer.events();
        let contents = self.answer.pieces.len();
        let sent = match self.moment {
            BeforeHead | BeforeFirstChunk => 0,
            MidStream => 2,
            BeforeUsage => contents + 1,
            AfterUsage => contents + 2,
            AfterDone => contents + 3,
        };
        events[..sent].to_vec()
    }

    /// The text of the deltas in `before`.
    fn delivered(&self) -> String {
        let pieces = match self.moment {
            BeforeHead | BeforeFirstChunk => 0,
            MidStream => 2,
            _ => self.answer.pieces.len(),
        };
        self.answer.pieces[..pieces].concat()
    }

    /// The rest follows one by one when the gate opens, so that a write meets the closed connection
    /// well before the last one.
    fn script(&self) -> Script {
        let before = self.before();
        let mut script = match self.moment {
            BeforeHead => Script::new().wait(&self.gate).then(self.answer.head()),
            _ => self.answer.head().chunks(&before).wait(&self.gate),
        };
        for event in &self.answer.events()[before.len()..] {
            script = script.chunk(event).sleep(30);
        }
        script.end()
    }

    /// Sends the request and hangs up at the moment; then lets the upstream go on.
    async fn play(&self, app: &TestApp) {
        let calls = app.upstream.chats().len();
        app.upstream.script(self.script());
        let mut exchange = app.begin_chat(&streamed_with_usage(MODEL)).await;
        app.upstream.wait_for_chats(calls + 1).await;
        self.read(&mut exchange).await;
        exchange.hang_up();
    }

    async fn read(&self, exchange: &mut Exchange) {
        match self.moment {
            BeforeHead => {}
            BeforeFirstChunk => assert!(exchange.head().await),
            MidStream => drop(exchange.until("tollgate ").await),
            BeforeUsage => drop(exchange.until(r#""finish_reason":"stop""#).await),
            AfterUsage => drop(exchange.until("total_tokens").await.until("\n\n").await),
            AfterDone => drop(exchange.until("[DONE]\n\n").await),
        }
    }
}

async fn gone_clients_are_drained(store: Store) {
    let app = Setup::new(store).policy("drain").start().await;
    for (number, moment) in MOMENTS.into_iter().enumerate() {
        let gone = Gone::new(moment);
        gone.play(&app).await;
        gone.gate.open();
        let record = app.records(number + 1).await.remove(number);
        assert_whole(&record, "upstream", &format!("{moment:?}"));
        assert_ending(&record, moment);
    }
    app.finish().await;
}

/// A client that has all that matters may be counted either way; one that has `[DONE]` is done.
#[track_caller]
fn assert_ending(record: &UsageRecord, moment: Moment) {
    let allowed: &[&str] = match moment {
        AfterDone => &["completed"],
        AfterUsage => &["completed", "client_gone"],
        _ => &["client_gone"],
    };
    assert!(allowed.contains(&record.ending.as_str()), "{moment:?}: {record:#?}");
}

async fn gone_clients_are_looked_up(store: Store) {
    let setup = Setup::new(store).policy("lookup");
    let app = setup.env("TOLLGATE_LOOKUP_SECONDS", "20").start().await;
    for (number, moment) in MOMENTS.into_iter().enumerate() {
        let gone = Gone::new(moment);
        // The upstream stopped at five tokens, and says so only at the third time of asking.
        app.upstream.generation(2, gone.answer.generation(12, 5, 0.0001));
        gone.play(&app).await;
        if ![BeforeHead, AfterUsage, AfterDone].contains(&moment) {
            app.upstream.wait_for_chat_gone(number).await;
        }
        gone.gate.open();
        let record = app.records(number + 1).await.remove(number);
        assert_ending(&record, moment);
        match moment {
            BeforeHead => assert_not_invented(&record),
            AfterUsage | AfterDone => assert_whole(&record, "upstream", &format!("{moment:?}")),
            BeforeFirstChunk | MidStream | BeforeUsage => {
                assert_eq!(record.source, "lookup", "{moment:?}: {record:#?}");
                assert_eq!((record.prompt_tokens, record.completion_tokens), (12, 5));
                assert_eq!(record.charge_nusd, 120_000, "{moment:?}");
            }
        }
    }
    app.finish().await;
}

/// Nothing was delivered and no generation id was seen: at most the prompt may be charged.
#[track_caller]
fn assert_not_invented(record: &UsageRecord) {
    if record.source == "lookup" {
        return assert_eq!(record.charge_nusd, 120_000, "the look-up says what it cost");
    }
    assert!(["none", "counted", "estimated"].contains(&record.source.as_str()), "{record:#?}");
    assert_eq!(record.completion_tokens, 0, "{record:#?}");
    assert!(record.charge_nusd <= record.prompt_tokens * 180, "{record:#?}");
}

async fn gone_clients_are_counted(store: Store) {
    let app = Setup::new(store).policy("count").start().await;
    let vocabulary = tiktoken_rs::o200k_base_singleton();
    for (number, moment) in MOMENTS.into_iter().enumerate() {
        let gone = Gone::new(moment);
        gone.play(&app).await;
        if ![AfterUsage, AfterDone].contains(&moment) {
            app.upstream.wait_for_gone((number + 1).min(4)).await;
        }
        gone.gate.open();
        let record = app.records(number + 1).await.remove(number);
        assert_ending(&record, moment);
        match moment {
            BeforeHead => assert_not_invented(&record),
            AfterUsage | AfterDone => assert_whole(&record, "upstream", &format!("{moment:?}")),
            BeforeFirstChunk | MidStream | BeforeUsage => {
                let text = gone.delivered();
                let counted = vocabulary.encode_ordinary(&text).len();
                assert_eq!(record.source, "counted", "{moment:?}: {record:#?}");
                assert_eq!(usize::try_from(record.completion_tokens), Ok(counted), "{moment:?}");
                let list = record.prompt_tokens * 180 + record.completion_tokens * 720;
                assert_eq!(record.charge_nusd, list, "{moment:?}: {record:#?}");
            }
        }
    }
    assert!(app.upstream.calls("/v1/generation").is_empty(), "count looks nothing up");
    app.finish().await;
}

async fn a_document_for_a_stream_is_read_though_the_client_has_gone(store: Store) {
    let app = Setup::new(store).kind(Kind::OpenAi).policy("drain").start().await;
    let (answer, gate) = (Answer::openai(), Gate::new());
    let plain = answer.plain();
    // Long enough that the gateway has noticed; should it not have, the answer is whole as well.
    let mut script = Script::new().wait(&gate).sleep(700);
    script.steps.extend(plain.steps);
    script.truth = plain.truth;
    app.upstream.script(script);
    let exchange = app.begin_chat(&streamed("gpt-4o-mini")).await;
    app.upstream.wait_for_chats(1).await;
    exchange.hang_up();
    gate.open();
    let record = app.record().await;
    assert!(["client_gone", "completed"].contains(&record.ending.as_str()), "{record:#?}");
    assert_eq!((record.source.as_str(), record.completion_tokens), ("upstream", 7));
    assert!(record.charge_nusd > record.prompt_tokens * 150, "{record:#?}");
    app.finish().await;
}

async fn a_stream_that_fails_without_a_word_costs_a_gone_client_nothing(store: Store) {
    let app = Setup::new(store).kind(Kind::OpenAi).policy("drain").start().await;
    let answer = Answer::openai();
    for (number, is_reset) in [false, true].into_iter().enumerate() {
        let gate = Gate::new();
        let script = answer.head().wait(&gate);
        let mut script = if is_reset { script.rst() } else { script.end() };
        script.truth = None;
        app.upstream.script(script);
        let mut exchange = app.begin_chat(&streamed("gpt-4o-mini")).await;
        assert!(exchange.head().await);
        exchange.hang_up();
        gate.open();
        let record = app.records(number + 1).await.remove(number);
        assert_eq!((record.source.as_str(), record.charge_nusd), ("none", 0), "{record:#?}");
    }
    app.finish().await;
}

#[tokio::test]
async fn the_default_policy_drains_openai_and_looks_up_openrouter() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    let (answer, gate) = (Answer::openai(), Gate::new());
    let script = answer.head().chunk(answer.content_event("one ")).wait(&gate);
    app.upstream.script(
        script.chunk(answer.finish_event()).sleep(30).chunk(answer.usage_event() + DONE).end(),
    );
    let mut exchange = app.begin_chat(&streamed("gpt-4o-mini")).await;
    exchange.until("one ").await;
    exchange.hang_up();
    gate.open();
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("client_gone", "upstream"));
    app.finish().await;

    let setup = Setup::new(Store::Sqlite).env("TOLLGATE_LOOKUP_SECONDS", "20");
    let app = setup.start().await;
    let gone = Gone::new(MidStream);
    app.upstream.generation(0, gone.answer.generation(12, 5, 0.0001));
    gone.play(&app).await;
    app.upstream.wait_for_gone(1).await;
    assert_eq!(app.record().await.source, "lookup");
    app.finish().await;
}

#[tokio::test]
async fn a_client_that_closes_in_good_order_is_noticed_too() {
    let app = Setup::new(Store::Sqlite).policy("lookup").start().await;
    let gone = Gone::new(MidStream);
    app.upstream.generation(0, gone.answer.generation(12, 5, 0.0001));
    app.upstream.script(gone.script());
    let mut exchange = app.begin_chat(&streamed(MODEL)).await;
    gone.read(&mut exchange).await;
    exchange.close();
    // The upstream sends nothing more: the hang-up must be noticed without a failing write.
    app.upstream.wait_for_gone(1).await;
    assert_eq!(app.record().await.ending, "client_gone");
    app.finish().await;
}

#[tokio::test]
async fn a_drain_is_bounded_in_time() {
    let setup = Setup::new(Store::Sqlite).kind(Kind::OpenAi).policy("drain");
    let app = setup.env("TOLLGATE_DISCONNECT_DRAIN_SECONDS", "1").start().await;
    let (answer, never) = (Answer::openai().no_usage(), Gate::new());
    let script = answer.head().chunk(answer.content_event("one two three"));
    app.upstream.script(script.wait(&never));
    let mut exchange = app.begin_chat(&streamed("gpt-4o-mini")).await;
    exchange.until("three").await;
    exchange.hang_up();
    app.upstream.wait_for_gone(1).await;
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("client_gone", "counted"));
    assert_eq!(record.completion_tokens, 3);
    app.finish().await;
}

#[tokio::test]
async fn a_failure_before_any_text_costs_one_who_has_gone_nothing() {
    let app = Setup::new(Store::Sqlite).kind(Kind::OpenAi).start().await;
    let (answer, gate) = (Answer::openai().no_usage(), Gate::new());
    let error = event(r#"{"error":{"message":"busy","code":503}}"#);
    app.upstream.script(answer.head().wait(&gate).chunk(error).sleep(30).end());
    let mut exchange = app.begin_chat(&streamed("gpt-4o-mini")).await;
    assert!(exchange.head().await);
    exchange.hang_up();
    gate.open();
    let record = app.record().await;
    assert_eq!((record.source.as_str(), record.charge_nusd), ("none", 0), "{record:#?}");
    app.finish().await;
}

#[tokio::test]
async fn a_plain_request_is_settled_after_its_client_has_gone() {
    let app = Setup::new(Store::Sqlite).policy("drain").start().await;
    let (answer, gate) = (Answer::openrouter(), Gate::new());
    let mut script = Script::new().wait(&gate);
    script.steps.extend(answer.plain().steps);
    script.truth = answer.plain().truth;
    app.upstream.script(script);
    let exchange = app.begin_chat(&question(MODEL)).await;
    app.upstream.wait_for_chats(1).await;
    exchange.hang_up();
    // Long enough for the gateway to see the reset; if it has not, the answer is simply lost.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    gate.open();
    let record = app.record().await;
    assert_whole(&record, "upstream", "plain");
    assert_eq!(record.ending, "client_gone");
    app.finish().await;
}

#[tokio::test]
async fn a_generation_that_is_never_found_is_counted() {
    let setup = Setup::new(Store::Sqlite).policy("lookup");
    let app = setup.env("TOLLGATE_LOOKUP_SECONDS", "5").start().await;
    let gone = Gone::new(MidStream);
    gone.play(&app).await;
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("client_gone", "counted"));
    assert!(record.completion_tokens > 0 && record.charge_nusd > 0, "{record:#?}");
    let asked = app.upstream.calls("/v1/generation");
    assert!(asked.len() >= 2, "404 means not yet: it was asked {} times", asked.len());
    assert!(asked.len() <= 10, "and the waits grow: it was asked {} times", asked.len());
    let key = asked[0].request.header("authorization").unwrap_or_default();
    assert_eq!(key, format!("Bearer {}", crate::app::UPSTREAM_KEY));
    app.finish().await;
}

#[tokio::test]
async fn a_completed_answer_without_usage_is_looked_up() {
    let setup = Setup::new(Store::Sqlite).env("TOLLGATE_LOOKUP_SECONDS", "20");
    let app = setup.start().await;
    for (streams, cost, charge) in [(true, 0.0002, 240_000), (false, 0.0, 0)] {
        let answer = Answer::openrouter().no_usage();
        app.upstream.generation(1, answer.generation(20, 9, cost));
        app.upstream.script(if streams { answer.stream() } else { answer.plain() });
        let body = if streams { streamed(MODEL) } else { question(MODEL) };
        let got = app.chat(&body).await;
        got.ok();
        let record = app.record_of(&got).await;
        assert_eq!((record.ending.as_str(), record.source.as_str()), ("completed", "lookup"));
        assert_eq!((record.prompt_tokens, record.completion_tokens), (20, 9));
        assert_eq!(record.charge_nusd, charge, "a zero is a zero, not missing");
    }
    app.finish().await;
}

#[tokio::test]
async fn without_a_head_the_generation_id_is_the_chunks_id() {
    let setup = Setup::new(Store::Sqlite).env("TOLLGATE_LOOKUP_SECONDS", "20");
    let app = setup.start().await;
    let answer = Answer::openrouter().no_usage();
    app.upstream.generation(0, answer.generation(20, 9, 0.0002));
    app.upstream.script(Script::stream().chunks(answer.events()).end());
    app.chat(&streamed(MODEL)).await.ok();
    let record = app.record().await;
    assert_eq!(record.generation_id.as_ref(), Some(&answer.id));
    assert_eq!(record.source, "lookup");
    app.finish().await;
}
