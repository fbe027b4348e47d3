//! The disconnect table: where the client hangs up, under which policy, with and without the
//! upstream's usage, and what is charged then, against what the upstream itself would bill.

use crate::app::books::UsageRecord;
use crate::app::{Setup, Store, TestApp, both_stores, eventually, streamed};
use crate::upstream::catalog::OLD_MODEL;
use crate::upstream::model::{Generation, Manner, Model, PROMPT_TOKENS, Stall};
use crate::upstream::script::Gate;

both_stores!(the_table);

const TOKENS: i64 = 20;
const MID_STREAM: i64 = 8;
const POINTS: [Stall; 5] =
    [Stall::Head, Stall::FirstToken, Stall::Tokens(MID_STREAM), Stall::Usage, Stall::Done];

/// A policy, and the provider behind OpenRouter: OpenAI stops when its client hangs up and bills
/// what it had made, Groq makes and bills the rest.
const POLICIES: [(&str, &str); 5] = [
    ("drain", "OpenAI"),
    ("lookup", "OpenAI"),
    ("count", "OpenAI"),
    ("auto", "Groq"),
    ("auto", "OpenAI"),
];

struct Case {
    policy: &'static str,
    provider: &'static str,
    point: Stall,
    tells_usage: bool,
}

impl Case {
    fn delivered(&self) -> i64 {
        match self.point {
            Stall::Head | Stall::FirstToken => 0,
            Stall::Tokens(tokens) => tokens,
            Stall::Usage | Stall::Done => TOKENS,
        }
    }

    /// Whether the gateway reads on. The provider is not known before its first event.
    fn drains(&self) -> bool {
        let knows = !matches!(self.point, Stall::Head | Stall::FirstToken);
        self.policy == "drain" || (self.policy == "auto" && self.provider == "Groq" && knows)
    }

    /// Whether the gateway waits for the answer's head, which has the id to ask by.
    fn waits_for_the_name(&self) -> bool {
        self.point == Stall::Head && self.policy != "count"
    }

    fn row(&self, record: &UsageRecord, truth: &Generation) -> String {
        let Self { policy, provider, point, tells_usage } = self;
        let point = format!("{point:?}");
        let charged = (record.prompt_tokens, record.completion_tokens);
        let owed = (PROMPT_TOKENS, truth.completion_tokens);
        let error = record.charge_nusd - truth.cost_nusd() * 12 / 10;
        format!(
            "{policy:7}{provider:7} {point:10} usage {tells_usage:5} {source:9} charged {charged:?} \
             of {owed:?}, {error:+} nano-USD",
            source = record.source,
        )
    }

    async fn play(&self, app: &TestApp, model: &Model) -> (UsageRecord, Generation) {
        let gate = Gate::new();
        model.behave(Manner {
            tokens: TOKENS,
            tells_usage: self.tells_usage,
            stops: self.provider == "OpenAI",
            provider: self.provider,
            stall: Some((self.point, gate.clone())),
            ..Manner::obedient()
        });
        let before = (model.chats().len(), app.books.records().await.len());
        let mut exchange = app.begin_chat(&streamed(OLD_MODEL)).await;
        eventually("the call reaches the upstream", async || {
            (model.chats().len() > before.0).then_some(())
        })
        .await;
        match self.point {
            Stall::Head => {}
            Stall::FirstToken => assert!(exchange.head().await),
            _ => {
                for _ in 0..self.delivered() {
                    exchange.until("\" the\"").await;
                }
                if self.delivered() == TOKENS {
                    exchange.until("\"stop\"").await;
                }
            }
        }
        if self.point == Stall::Done && self.tells_usage {
            // The usage chunk is not for this client: the gateway has read it all the same.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        exchange.hang_up();
        let (id, _) = model.generations().pop_last().expect("a generation");
        if !self.drains() && !self.waits_for_the_name() {
            eventually("the gateway hangs up as well", async || {
                model.generations()[&id].is_over.then_some(())
            })
            .await;
        }
        gate.open();
        let record = app.records(before.1 + 1).await.pop().expect("a record");
        (record, model.generations()[&id].clone())
    }

    fn check(&self, record: &UsageRecord, truth: &Generation) -> Option<String> {
        let is_right = if self.policy == "count" && !truth.is_told_by(record) {
            // By what was delivered: the upstream's own bill is not asked for.
            record.source == "counted" && record.completion_tokens == self.delivered()
        } else {
            truth.is_told_by(record)
        };
        // Where it reads on, and at the end, it may have read [DONE] before it noticed.
        let may_end = self.point == Stall::Done || self.drains() || self.waits_for_the_name();
        let is_gone = record.ending == "client_gone" || (may_end && record.ending == "completed");
        (!is_right || !is_gone).then(|| format!("{record:#?}"))
    }
}

async fn the_table(store: Store) {
    let mut wrong = Vec::new();
    for (policy, provider) in POLICIES {
        let model = Model::start(Manner::obedient()).await;
        let setup = Setup::new(store).policy(policy).env("UPSTREAM_BASE_URL", &model.url());
        let app = setup.env("TOLLGATE_LOOKUP_SECONDS", "5").start().await;
        for point in POINTS {
            for tells_usage in [true, false] {
                let case = Case { policy, provider, point, tells_usage };
                let (record, truth) = case.play(&app, &model).await;
                println!("{}", case.row(&record, &truth));
                if let Some(record) = case.check(&record, &truth) {
                    wrong.push(format!("{policy} {provider} {point:?} {tells_usage}: {record}"));
                }
            }
        }
        app.finish().await;
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
