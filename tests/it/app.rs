//! `TestApp`: the real program, on a fresh database, in front of the scripted upstream, with one
//! method per thing that a user or an operator does.
//!
//! Invariant: a test ends with `finish`, which checks the books. A test that forgets it fails.

pub mod audit;
pub mod books;
pub mod clock;
pub mod cluster;
pub mod history;
pub mod pgbouncer;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod setup;
pub mod store;
pub mod supabase;
pub mod wait;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitStatus;

use serde_json::{Value, json};

use crate::client::{Answered, Ask, Exchange};
use crate::upstream::Upstream;
use books::{Books, UsageRecord};
use pgbouncer::PgBouncer;
use process::{Ended, Environment, Process};
use proxy::Proxy;
pub use setup::{Kind, Setup, UPSTREAM_KEY};
use store::Database;
pub use store::Store;
pub(crate) use store::both_stores;
pub use wait::{PATIENCE, eventually, in_its_time};

pub struct TestApp {
    pub upstream: Upstream,
    pub books: Books,
    pub account: String,
    pub key: String,
    /// Up to and including `/v1`.
    pub base_url: String,
    pub process: Process,
    /// What those before it have said.
    said: String,
    pub environment: Environment,
    /// Set by the tests of refused holds, which may drop a call that had already left.
    pub drops_calls: bool,
    /// Between the program and PostgreSQL, where the test asked for it.
    pub proxy: Option<Proxy>,
    /// The same, where the test asked for a pooler.
    pub pooler: Option<PgBouncer>,
    database: Database,
    stopped: bool,
    finished: bool,
}

/// A small question. `max_tokens` keeps its hold small.
pub fn question(model: &str) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": "Is the tollgate open?"}],
        "max_tokens": 200,
    })
}

pub fn streamed(model: &str) -> Value {
    let mut body = question(model);
    body["stream"] = json!(true);
    body
}

pub fn streamed_with_usage(model: &str) -> Value {
    let mut body = streamed(model);
    body["stream_options"] = json!({"include_usage": true});
    body
}

/// The cap on the answer is taken off.
pub fn uncap(body: &mut Value) {
    body.as_object_mut().expect("an object").remove("max_tokens");
}

/// Who may read and write it.
pub fn mode(path: &Path) -> u32 {
    let file = std::fs::metadata(path).expect("it was made");
    file.permissions().mode() & 0o777
}

impl TestApp {
    pub async fn start(store: Store) -> Self {
        Setup::new(store).start().await
    }

    /// Creates account and key as an operator does before the first start, and starts the program.
    async fn launch(
        upstream: Upstream,
        database: Database,
        environment: Environment,
        credit: &str,
    ) -> Self {
        let folder = database.folder.path();
        let create = ["account", "create", "--name", "test", "--credit", credit];
        let account = succeed(&create, &process::run(&create, &environment, folder).await);
        let create = ["key", "create", "--account", "test"];
        let key = succeed(&create, &process::run(&create, &environment, folder).await);
        let mut process = Process::serve(&environment, folder);
        let base_url = process.base_url().await;
        let books = Books::open(&database);
        Self {
            upstream,
            books,
            account,
            key,
            base_url,
            process,
            said: String::new(),
            environment,
            drops_calls: false,
            proxy: None,
            pooler: None,
            database,
            stopped: false,
            finished: false,
        }
    }

    // === what a client does ===

    pub fn address(&self) -> SocketAddr {
        address_of(&self.base_url)
    }

    /// A chat completion as SDKs send it, not sent yet.
    pub fn chat_ask(&self, body: &Value) -> Ask {
        Ask::post_json("/v1/chat/completions", body.to_string()).bearer(&self.key)
    }

    /// Sends a chat completion and reads nothing of the answer yet.
    pub async fn begin_chat(&self, body: &Value) -> Exchange {
        self.begin(&self.chat_ask(body)).await
    }

    /// A whole chat completion, plain or streamed.
    pub async fn chat(&self, body: &Value) -> Answered {
        self.begin_chat(body).await.finish().await
    }

    pub async fn begin(&self, ask: &Ask) -> Exchange {
        Exchange::open(self.address(), &ask.bytes()).await
    }

    pub async fn ask(&self, ask: &Ask) -> Answered {
        self.begin(ask).await.finish().await
    }

    pub async fn get(&self, path: &str) -> Answered {
        self.ask(&Ask::get(path).bearer(&self.key)).await
    }

    /// Without a key.
    pub async fn get_plain(&self, path: &str) -> Answered {
        self.ask(&Ask::get(path)).await
    }

    /// Bytes that need not be HTTP at all.
    pub async fn raw(&self, bytes: &[u8]) -> Answered {
        Exchange::open(self.address(), bytes).await.finish().await
    }

    // === what an operator does ===

    pub async fn try_cli(&self, arguments: &[&str]) -> Ended {
        process::run(arguments, &self.environment, self.database.folder.path()).await
    }

    /// With one variable set otherwise.
    pub async fn try_cli_with(&self, arguments: &[&str], name: &str, value: &str) -> Ended {
        let mut environment = self.environment.clone();
        environment.insert(name.to_string(), value.to_string());
        process::run(arguments, &environment, self.database.folder.path()).await
    }

    /// Runs a command that has to succeed, and gives what it printed.
    pub async fn cli(&self, arguments: &[&str]) -> String {
        succeed(arguments, &self.try_cli(arguments).await)
    }

    /// The rows of a command that lists, one JSON object a line.
    pub async fn list(&self, arguments: &[&str]) -> Vec<Value> {
        let printed = self.cli(&[arguments, &["--json"]].concat()).await;
        let rows = printed.lines().map(serde_json::from_str);
        rows.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    pub async fn create_account(&self, name: &str, more: &[&str]) -> String {
        self.cli(&[&["account", "create", "--name", name], more].concat()).await
    }

    pub async fn create_key(&self, account: &str, more: &[&str]) -> String {
        self.cli(&[&["key", "create", "--account", account], more].concat()).await
    }

    /// Its own database's address, without what stands between.
    pub fn database_url(&self) -> String {
        self.database.url.clone()
    }

    pub fn kill9(&mut self) {
        self.stopped = true;
        self.process.kill();
    }

    /// Asks the program to stop, and does not wait for it.
    pub fn sigterm(&mut self) {
        self.stopped = true;
        self.process.terminate();
    }

    /// Writes the file that this variable names anew.
    pub fn rewrite(&self, variable: &str, text: &str) {
        std::fs::write(&self.environment[variable], text).expect("the test's own folder");
    }

    /// SIGHUP, and waits for what it comes to: the new lines of the log.
    pub async fn reload(&self) -> String {
        let before = self.process.stderr().len();
        self.process.hang_up();
        eventually("the files are read again", async || {
            let said = self.process.stderr().split_off(before);
            let is_done = ["files were read again", "reading the files again"];
            is_done.iter().any(|done| said.contains(done)).then_some(said)
        })
        .await
    }

    pub async fn stopped(&mut self) -> ExitStatus {
        self.process.wait().await
    }

    /// Another process on the same books, and its base URL.
    pub async fn replica(&self) -> (Process, String) {
        let mut process = Process::serve(&self.environment, self.database.folder.path());
        let base_url = process.base_url().await;
        (process, base_url)
    }

    /// Starts the program again, on the same database, after `kill9` or `sigterm`.
    pub async fn restart(&mut self) {
        assert!(self.stopped, "only a stopped program is started again");
        self.said += &self.process.last_words();
        self.process = Process::serve(&self.environment, self.database.folder.path());
        self.base_url = self.process.base_url().await;
        self.stopped = false;
    }

    /// As `restart`, on a disk that is full at so many blocks of 512 bytes a file.
    pub async fn restart_on_a_small_disk(&mut self, blocks: u32) {
        assert!(self.stopped, "only a stopped program is started again");
        self.said += &self.process.last_words();
        let folder = self.database.folder.path();
        self.process = Process::serve_on_a_small_disk(&self.environment, folder, blocks);
        self.base_url = self.process.base_url().await;
        self.stopped = false;
    }

    /// Where the program runs.
    pub fn folder(&self) -> &Path {
        self.database.folder.path()
    }

    // === what the books say ===

    /// Waits until no money is set aside any more.
    pub async fn settled(&self) {
        eventually("every hold is settled or voided", async || {
            self.books.holds().await.is_empty().then_some(())
        })
        .await;
    }

    /// All usage records, oldest first, once there are `count` and nothing is held.
    pub async fn records(&self, count: usize) -> Vec<UsageRecord> {
        let records = eventually(&format!("{count} usage records"), async || {
            let records = self.books.records().await;
            (records.len() >= count && self.books.holds().await.is_empty()).then_some(records)
        })
        .await;
        assert_eq!(records.len(), count, "more usage records than requests: {records:#?}");
        records
    }

    /// The only usage record.
    pub async fn record(&self) -> UsageRecord {
        self.records(1).await.remove(0)
    }

    /// The usage record of an answer, found by its `x-request-id`.
    pub async fn record_of(&self, answer: &Answered) -> UsageRecord {
        let id = answer.request_id();
        eventually(&format!("the usage record {id}"), async || self.books.record(&id).await).await
    }

    /// Nothing was forwarded, set aside, recorded or charged.
    pub async fn assert_untouched(&self) {
        assert_eq!(self.upstream.chats().len(), 0, "something was forwarded");
        assert_eq!(self.books.holds().await.len(), 0, "something was set aside");
        assert_eq!(self.books.records().await.len(), 0, "something was recorded");
        let charges = self.books.entries().await.into_iter().filter(|entry| entry.kind != "credit");
        assert_eq!(charges.count(), 0, "something was charged");
    }

    /// Checks the books and ends the program. The last line of every test.
    pub async fn finish(mut self) {
        self.finished = true;
        self.settled().await;
        let mut found = audit::differences(&self.books, &self.sinks()).await;
        found.extend(self.untrue().await);
        if !self.drops_calls {
            found.extend(self.unrecorded().await);
        }
        assert!(found.is_empty(), "the books are wrong:\n{}", found.join("\n"));
        self.cli(&["verify"]).await;
        if !self.stopped {
            assert_eq!(self.process.status(), None, "the program ended by itself");
        }
        self.said += &self.process.last_words();
        assert!(!self.said.contains("panicked at"), "the program panicked:\n{}", self.said);
        // Where a test has made them wrong, the program may have seen it.
        let is_right = self.books.is_tampered() || !self.said.contains("the books do not fit");
        assert!(is_right, "the program found its books wrong:\n{}", self.said);
        self.books.close().await;
        self.database.drop_database().await;
    }

    /// The billing sinks that the environment configures.
    fn sinks(&self) -> Vec<&'static str> {
        let sinks = [
            ("OPENMETER_URL", "openmeter"),
            ("STRIPE_SECRET_KEY", "stripe"),
            ("TOLLGATE_WEBHOOK_URL", "webhook"),
        ];
        let is_off = |sink: &str| {
            let metering = self.environment.get("STRIPE_METERING");
            sink == "stripe" && metering.is_some_and(|value| value == "off")
        };
        let set = sinks
            .iter()
            .filter(|(variable, sink)| self.environment.contains_key(*variable) && !is_off(sink));
        set.map(|(_, sink)| *sink).collect()
    }

    /// A call that reached the upstream and is in no usage record would be lost.
    async fn unrecorded(&self) -> Option<String> {
        let calls = i64::try_from(self.upstream.chats().len()).expect("a small number");
        let records = self.books.records().await;
        let attempts: i64 = records.iter().map(|record| record.attempts).sum();
        let lost = calls > attempts;
        lost.then(|| format!("the upstream was called {calls} times, recorded are {attempts}"))
    }

    /// Records that claim the upstream's numbers must carry the upstream's numbers.
    async fn untrue(&self) -> Vec<String> {
        let mut found = Vec::new();
        for record in self.books.records().await {
            let id = record.generation_id.as_deref().unwrap_or_default();
            let Some(truth) = self.upstream.truth(id) else {
                continue;
            };
            if !["upstream", "lookup"].contains(&record.source.as_str()) {
                continue;
            }
            let tokens = (record.prompt_tokens, record.completion_tokens);
            let cost = match (record.upstream_cost_pusd, truth.cost_nusd) {
                (Some(recorded), Some(true_cost)) => (recorded - true_cost * 1_000).abs() < 1_000,
                (recorded, true_cost) => recorded.is_none() && true_cost.is_none(),
            };
            if tokens != (truth.prompt_tokens, truth.completion_tokens) || !cost {
                found.push(format!("the upstream said {truth:?}, recorded is {record:?}"));
            }
        }
        found
    }
}

/// The socket of a base URL.
pub fn address_of(base_url: &str) -> SocketAddr {
    let address = base_url.strip_prefix("http://").and_then(|url| url.strip_suffix("/v1"));
    let address = address.and_then(|address| address.parse().ok());
    address.unwrap_or_else(|| panic!("not a base URL: {base_url}"))
}

/// What a command printed, once it is sure that it went well.
#[track_caller]
fn succeed(arguments: &[&str], ended: &Ended) -> String {
    assert!(ended.status.success(), "tollgate {arguments:?}: {ended:?}");
    ended.stdout.trim().to_string()
}

impl Drop for TestApp {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the program's log ---\n{}", self.process.stderr());
        } else {
            assert!(self.finished, "a test must end with TestApp::finish, which checks the books");
        }
    }
}
