//! Several upstreams: who is asked, after whom, and what it comes to. One hold and one record for a
//! request whoever answers it, at the price of the one that does.

mod choice;
mod failover;
mod file;

use serde_json::{Value, json};

use crate::app::books::UsageRecord;
use crate::app::{Setup, Store, TestApp, eventually};
use crate::upstream::Upstream;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{self, MODEL};

/// What 12 and 7 tokens come to at the first one's prices, and a fifth: 150 and 600 nano-USD.
const FIRST_NUSD: i64 = 7_200;
/// The second one asks twice as much.
const SECOND_NUSD: i64 = 2 * FIRST_NUSD;

/// The program in front of two upstreams of OpenRouter's kind: `app.upstream` is the first.
struct Two {
    app: TestApp,
    second: Upstream,
}

/// One entry of the file.
fn entry(name: &str, upstream: &Upstream, more: &str) -> String {
    let url = upstream.url();
    format!(
        "[[upstream]]\nname = \"{name}\"\nkind = \"openrouter\"\nbase_url = \"{url}\"\n\
         api_key_env = \"UPSTREAM_API_KEY\"\n{more}\n"
    )
}

/// OpenRouter's list, with the one model at twice the first one's price, and its longest answer.
fn dear_models(limit: i64) -> Value {
    let pricing = json!({
        "prompt": "0.0000003", "completion": "0.0000012", "input_cache_read": "0.00000015",
    });
    json!({"data": [{
        "id": MODEL, "created": 1_721_260_800, "pricing": pricing,
        "top_provider": {"max_completion_tokens": limit},
    }]})
}

impl Two {
    /// `first` is what the first one's entry has besides.
    async fn start(store: Store, first: &str, choose: impl FnOnce(Setup) -> Setup) -> Self {
        let cheap = Upstream::start(catalog::openrouter_models()).await;
        let second = Upstream::start(dear_models(16_384)).await;
        let file = entry("first", &cheap, first) + &entry("second", &second, "order = 2");
        let app = choose(Setup::new(store).upstreams(file)).start_with(cheap).await;
        Self { app, second }
    }

    /// Calls of the first and the second.
    fn calls(&self) -> (usize, usize) {
        (self.app.upstream.chats().len(), self.second.chats().len())
    }

    async fn finish(self) {
        let (first, second) = self.calls();
        let calls = i64::try_from(first + second).expect("few");
        // An error is told before its record is written.
        let records = eventually(&format!("{calls} calls are recorded"), async || {
            let records = self.app.books.records().await;
            let attempts: i64 = records.iter().map(|record| record.attempts).sum();
            (calls <= attempts).then_some(records)
        })
        .await;
        for record in &records {
            let tried = tried(record);
            let counted = i64::try_from(tried.len()).expect("few");
            assert!(tried.is_empty() || counted == record.attempts, "{record:?}");
        }
        self.app.finish().await;
    }
}

/// An answer whose cost is not said, so that the price of whoever gives it decides.
fn answer() -> Answer {
    Answer::openrouter().model(MODEL).no_cost()
}

/// The calls that the record lists.
fn tried(record: &UsageRecord) -> Vec<Value> {
    let text = record.tried.as_deref().unwrap_or("[]");
    serde_json::from_str(text).expect("the list is JSON")
}

/// Upstream, failure and status of each.
fn outline(record: &UsageRecord) -> Vec<(String, String, Option<u64>)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let of = |it: &Value| (text(&it["upstream"]), text(&it["failure"]), it["status"].as_u64());
    tried(record).iter().map(of).collect()
}
