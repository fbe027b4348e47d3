//! `/admin/v1`: accounts, members, keys, credits, prices and the audit log over HTTP, as it is used
//! by the program that runs the service; and that nobody else can.

mod accounts;
mod at_once;
mod audit;
mod events;
mod exports;
mod forms;
mod isolation;
mod keys;
mod lists;
mod overview;
mod prices;
mod replicas;

use serde_json::{Value, json};

use crate::app::{TestApp, question};
use crate::client::{Answered, Ask, Exchange};
use crate::upstream::answer::Answer;

/// What the ordinary answer costs: 123,000 nano-USD and a fifth.
const ORDINARY_NUSD: i64 = 147_600;
const NOBODY: &str = "0199a0b0-0000-7000-8000-000000000000";

/// Whoever runs the service, with a service key of an account of its own.
pub struct Admin {
    key: String,
    pub base_url: String,
}

impl Admin {
    pub async fn of(app: &TestApp) -> Self {
        app.create_account("house", &[]).await;
        let key = app.create_key("house", &["--role", "service", "--name", "console"]).await;
        Self { key, base_url: app.base_url.clone() }
    }

    fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Ask {
        let ask = Ask::new(method, &format!("/admin/v1{path}")).bearer(&self.key);
        match body {
            Some(body) => ask.header("Content-Type", "application/json").body(body.to_string()),
            None => ask,
        }
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answered {
        let bytes = self.request(method, path, body).bytes();
        Exchange::open(crate::app::address_of(&self.base_url), &bytes).await.finish().await
    }

    /// Asks for what has to succeed with this status.
    pub async fn done(&self, status: u16, method: &str, path: &str, body: Option<Value>) -> Value {
        let got = self.send(method, path, body.as_ref()).await;
        assert_eq!(got.status, status, "{method} {path} {body:?}: {}", got.text());
        if status == 204 { Value::Null } else { got.json() }
    }

    async fn get(&self, path: &str) -> Value {
        self.done(200, "GET", path, None).await
    }

    async fn create(&self, path: &str, body: Value) -> Value {
        self.done(201, "POST", path, Some(body)).await
    }

    async fn patch(&self, path: &str, body: Value) -> Value {
        self.done(200, "PATCH", path, Some(body)).await
    }

    /// An account with ten dollars.
    async fn account(&self, name: &str) -> String {
        let account = json!({"name": name, "credit_nusd": 10_000_000_000_i64});
        text(&self.create("/accounts", account).await["id"])
    }

    /// A key of an account, and its secret.
    async fn create_key(&self, account: &str, body: Value) -> (Value, String) {
        let key = self.create(&format!("/accounts/{account}/keys"), body).await;
        let secret = text(&key["secret"]);
        (key, secret)
    }

    async fn rotate(&self, key: &str, overlap_seconds: u64) -> String {
        let body = json!({"overlap_seconds": overlap_seconds});
        let key = self.done(200, "POST", &format!("/keys/{key}/rotate"), Some(body)).await;
        text(&key["secret"])
    }

    /// Follows the pages of a list to its end; every row once, in order.
    async fn all(&self, path: &str, limit: usize) -> Vec<Value> {
        let mut rows = Vec::new();
        let mut after = String::new();
        loop {
            let page = self.get(&format!("{path}?limit={limit}{after}")).await;
            let data = page["data"].as_array().expect("a list").clone();
            assert!(data.len() <= limit, "{page}");
            let has_more = page["has_more"].as_bool().expect("has_more");
            assert!(
                !has_more || data.len() == limit,
                "a page that is not the last is full: {page}"
            );
            rows.extend(data);
            if !has_more {
                return rows;
            }
            after = format!("&after={}", text(&page["last_id"]));
        }
    }

    async fn audit(&self) -> Vec<Value> {
        self.all("/audit", 100).await
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_string()
}

/// One ordinary question by this key, answered where it is let in.
async fn chat(app: &TestApp, key: &str, model: &str) -> Answered {
    app.upstream.script(Answer::openrouter().model(model).plain());
    app.ask(&app.chat_ask(&question(model)).bearer(key)).await
}

/// Asks that leave no call behind: who the key is, is told before anything else.
async fn status_of(app: &TestApp, key: &str) -> u16 {
    app.ask(&Ask::get("/v1/models").bearer(key)).await.status
}
