//! Past months go to files, and the books stay right without their records.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use tollgate::models::ids::ApiKeyId;
use tollgate::models::timestamp::Timestamp;

use crate::app::books::Pool;
use crate::app::{Setup, Store, TestApp, both_stores, mode, question};
use crate::seed::{self, Call};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

mod corrections;
mod late;
mod reconciled;

use corrections::{corrections_go_with_their_records, what_ended_weeks_later_is_no_difference};
use late::{what_came_late_hinders_no_later_month, what_came_late_is_not_removed};
use reconciled::archived_days_are_not_compared;

both_stores!(
    months_go_to_files_and_the_books_stay_right,
    what_is_not_over_stays,
    an_interrupted_archive_is_gone_on_with,
    an_archive_that_does_not_fit_is_noticed,
    corrections_go_with_their_records,
    what_ended_weeks_later_is_no_difference,
    archived_days_are_not_compared,
    what_came_late_hinders_no_later_month,
    what_came_late_is_not_removed,
);

const MONTHS: [&str; 3] = ["2026-07", "2026-08", "2026-09"];
/// Calls in each of them.
const CALLS: u64 = 3;
/// Each costs so much, in pico-USD, and a fifth.
const COST_PICO: i64 = 5_000_000;
const CHARGE_NUSD: i64 = 6_000;

/// The program with calls in past months, as it wrote them then.
struct Past {
    app: TestApp,
    to: tempfile::TempDir,
    /// Those that were configured then.
    sinks: &'static [&'static str],
}

/// Whose calls, and when.
#[derive(Clone, Copy)]
struct Calls<'a> {
    account: &'a str,
    key: ApiKeyId,
    began: Timestamp,
    seconds: u64,
    /// Of the first one.
    number: u64,
}

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).expect("a time")
}

impl Past {
    async fn start(store: Store) -> Self {
        let past = Self::of(Setup::new(store).start().await, &[]).await;
        for (index, month) in MONTHS.iter().enumerate() {
            past.write(&past.of_test(month, u64::try_from(index).expect("few") * 100).await).await;
        }
        past
    }

    /// Before anything was called.
    async fn of(app: TestApp, sinks: &'static [&'static str]) -> Self {
        // Account and key are as old as their first call, and months have their partitions.
        if matches!(app.books.pool, Pool::Postgres(_)) {
            app.books.tamper("SELECT tollgate_ensure_partitions('2026-07-15T00:00:00Z')").await;
        }
        app.books.tamper("UPDATE accounts SET period_start = '2026-07-01T00:00:00.000000Z'").await;
        let starts = "UPDATE key_budgets SET day_start = '2026-07-01T00:00:00.000000Z', \
                      week_start = '2026-06-29T00:00:00.000000Z', \
                      month_start = '2026-07-01T00:00:00.000000Z'";
        app.books.tamper(starts).await;
        Self { app, to: tempfile::tempdir().expect("a temporary folder"), sinks }
    }

    /// On the second of a month, by the only key.
    async fn of_test(&self, month: &str, number: u64) -> Calls<'_> {
        let key = self.key_of(&self.app.account).await;
        let began = at(&format!("{month}-02T10:00:00Z"));
        Calls { account: &self.app.account, key, began, seconds: 2, number }
    }

    async fn key_of(&self, account: &str) -> ApiKeyId {
        let query = format!("SELECT id FROM api_keys WHERE account_id = '{account}'");
        let key = self.app.books.rows(&query).await.remove(0);
        key["id"].as_str().expect("an id").parse().expect("an id")
    }

    async fn store(&self) -> Box<dyn tollgate::store::Store> {
        seed::open(&self.app.database_url(), self.sinks).await
    }

    /// Each is settled a second after its end.
    async fn write(&self, calls: &Calls<'_>) {
        let store = self.store().await;
        let query = format!("SELECT id FROM prices WHERE model = '{MODEL}'");
        let price = self.app.books.rows(&query).await.remove(0);
        let price = store.price(price["id"].as_str().expect("an id")).await;
        let price = price.expect("a store").expect("a price");
        let call = |number: u64| Call {
            account: calls.account.parse().expect("an id"),
            key: Some(calls.key),
            upstream: "openrouter",
            generation_id: format!("gen-{}-{number}", calls.number),
            prompt: 10,
            completion: 5,
            cost_pico: COST_PICO,
            at: calls.began,
            seconds: calls.seconds,
        };
        let entered = calls.began.plus(std::time::Duration::from_secs(calls.seconds + 1));
        let rows: Vec<Call> = (0..CALLS).map(call).collect();
        seed::write_at(store.as_ref(), &price, &rows, calls.number, entered).await;
    }

    fn folder(&self) -> &str {
        self.to.path().to_str().expect("a path")
    }

    async fn archive(&self, before: &str) -> String {
        self.app.cli(&["archive", "--before", before, "--to", self.folder()]).await
    }

    async fn refused(&self, before: &str) -> String {
        let ended = self.app.try_cli(&["archive", "--before", before, "--to", self.folder()]).await;
        assert!(!ended.status.success(), "{ended:?}");
        ended.stderr
    }

    fn file(&self, path: &str) -> PathBuf {
        self.to.path().join(path)
    }

    async fn count(&self, what: &str) -> i64 {
        let rows = self.app.books.rows(&format!("SELECT COUNT(*) AS n FROM {what}")).await;
        rows[0]["n"].as_i64().expect("a number")
    }

    /// The copy of a month's first call on its way to a sink; gives the call's id.
    async fn event(&self, month: &str, state: &str) -> String {
        let query = "SELECT id, account_id FROM usage_records ORDER BY id";
        let records = self.app.books.rows(query).await;
        let index = MONTHS.iter().position(|it| *it == month).expect("a month") * 3;
        let (id, account) = (&records[index]["id"], &records[index]["account_id"]);
        let id = id.as_str().expect("an id");
        let insert = format!(
            "INSERT INTO billing_events (id, sink, kind, request_id, account_id, state, attempts, \
             next_attempt_at, created_at) VALUES ('{id}:openmeter', 'openmeter', 'usage', '{id}', \
             '{}', '{state}', '1', '2026-08-02T10:00:02.000000Z', '2026-08-02T10:00:02.000000Z')",
            account.as_str().expect("an id")
        );
        self.app.books.tamper(&insert).await;
        id.to_string()
    }

    async fn finish(self) {
        self.app.upstream.script(Answer::openrouter().plain());
        self.app.chat(&question(MODEL)).await.ok();
        self.app.finish().await;
    }
}

fn read(path: &Path) -> Vec<Value> {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|it| panic!("{}: {it}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
}

fn sha256(path: &Path) -> String {
    let bytes = std::fs::read(path).expect("a file");
    tollgate::models::ledger::hex(digest(&SHA256, &bytes).as_ref())
}

async fn months_go_to_files_and_the_books_stay_right(store: Store) {
    let past = Past::start(store).await;
    past.app.cli(&["verify"]).await;
    let event = past.event("2026-08", "exported").await;
    let entries = past.count("ledger_entries").await;
    let said = past.archive("2026-09").await;
    let months: Vec<&str> = said.lines().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(months, ["2026-07", "2026-08"], "{said}");
    assert_eq!(past.count("usage_records").await, 3, "September stays");
    assert_eq!(past.count("billing_events").await, 0, "it went with its record");
    assert_eq!(past.count("ledger_entries").await, entries, "these stay for ever");
    if store == Store::Postgres {
        let left = "pg_class WHERE relname LIKE 'usage_records_2026_0_'";
        assert_eq!(past.count(left).await, 1, "the partitions are gone");
    }
    assert_eq!(mode(&past.file("2026-08")), 0o700, "it is for its owner");
    let manifest = std::fs::read_to_string(past.file("2026-08/manifest.json")).expect("a file");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    assert_eq!(manifest["records"], json!(CALLS));
    assert_eq!(manifest["charge_nusd"], json!(3 * CHARGE_NUSD));
    for file in manifest["files"].as_array().expect("files") {
        let path = past.file(&format!("2026-08/{}", file["name"].as_str().expect("a name")));
        assert_eq!(file["sha256"], json!(sha256(&path)));
        assert_eq!(file["rows"], json!(read(&path).len()));
    }
    let hash = sha256(&past.file("2026-08/manifest.json"));
    assert!(said.contains(&hash), "{said}");
    let records = read(&past.file("2026-08/usage_records.ndjson"));
    assert_eq!(records.len(), 3);
    assert!(records.iter().all(|row| row["charge_nusd"] == json!(CHARGE_NUSD)), "{records:?}");
    let events = read(&past.file("2026-08/billing_events.ndjson"));
    assert_eq!(events[0]["request_id"], json!(event));
    assert!(!past.file("2026-08.partial").exists());
    past.app.cli(&["verify"]).await;
    assert_eq!(past.archive("2026-09").await, "", "there is nothing to do");
    // The rest of it, by the variable: all but the month before this one.
    let args = ["archive", "--to", past.folder()];
    let ended = past.app.try_cli_with(&args, "TOLLGATE_RETENTION_MONTHS", "1").await;
    assert!(ended.status.success() && ended.stdout.contains("2026-09"), "{ended:?}");
    past.finish().await;
}

async fn what_is_not_over_stays(store: Store) {
    let past = Past::start(store).await;
    let id = past.event("2026-08", "waiting").await;
    let said = past.refused("2026-10").await;
    assert!(said.contains("2026-08 is not over") && said.contains("1 billing events"), "{said}");
    assert!(past.file("2026-07/manifest.json").exists(), "the month before it was");
    assert!(!past.file("2026-08").exists() && past.count("usage_records").await == 6);
    past.app.books.tamper("UPDATE billing_events SET state = 'exported'").await;
    let lookup = format!(
        "INSERT INTO lookups (request_id, account_id, generation_id, attempts, next_attempt_at, \
         give_up_at) VALUES ('{id}', '{}', 'g', '1', '2099-01-01T00:00:00.000000Z', \
         '2099-01-01T00:00:00.000000Z')",
        past.app.account
    );
    past.app.books.tamper(&lookup).await;
    assert!(past.refused("2026-10").await.contains("1 look-ups"));
    past.app.books.tamper("DELETE FROM lookups").await;
    std::fs::create_dir(past.file("2026-08")).expect("a folder");
    assert!(past.refused("2026-10").await.contains("files of 2026-08 already"));
    std::fs::remove_dir(past.file("2026-08")).expect("a folder");
    // What an interrupted run has left is written anew.
    std::fs::create_dir(past.file("2026-08.partial")).expect("a folder");
    std::fs::write(past.file("2026-08.partial/usage_records.ndjson"), "half").expect("a file");
    assert!(past.archive("2026-10").await.contains("2026-09: 3 usage records"));
    // This month never goes.
    past.app.upstream.script(Answer::openrouter().plain());
    past.app.chat(&question(MODEL)).await.ok();
    past.app.settled().await;
    assert!(past.refused("2099-01").await.contains("is not over"));
    past.finish().await;
}

async fn an_interrupted_archive_is_gone_on_with(store: Store) {
    let past = Past::start(store).await;
    let key = past.app.books.rows("SELECT id FROM api_keys").await.remove(0);
    let key = key["id"].as_str().expect("an id").to_string();
    let sums = 3 * CHARGE_NUSD;
    past.app
        .books
        .tamper(&format!(
            "INSERT INTO archives (month, records, charge_nusd, corrections, difference_nusd, \
             manifest_hash, state, archived_at) VALUES ('2026-07', '3', '{sums}', '0', '0', 'x', \
             'removing', '2026-10-01T00:00:00.000000Z')"
        ))
        .await;
    past.app
        .books
        .tamper(&format!(
            "INSERT INTO archived_spending (month, api_key_id, spent_nusd, corrections) \
             VALUES ('2026-07', '{key}', '{sums}', '0')"
        ))
        .await;
    past.app.cli(&["verify"]).await;
    let first = "(SELECT id FROM usage_records ORDER BY id LIMIT 1)";
    past.app.books.tamper(&format!("DELETE FROM usage_records WHERE id IN {first}")).await;
    past.app.cli(&["verify"]).await;
    // Not while something of it has not been told to everybody.
    let waits = "INSERT INTO billing_events (id, sink, kind, request_id, account_id, state, \
         attempts, next_attempt_at, created_at) SELECT CAST(id AS TEXT) || ':webhook', 'webhook', \
         'usage', id, account_id, 'waiting', 0, ended_at, ended_at FROM usage_records \
         ORDER BY id LIMIT 1";
    past.app.books.tamper(waits).await;
    assert!(past.refused("2026-08").await.contains("1 billing events that are not exported"));
    assert_eq!(past.count("usage_records").await, 8);
    past.app.books.tamper("DELETE FROM billing_events").await;
    assert_eq!(past.archive("2026-08").await, "2026-07: 3 usage records, x");
    assert_eq!(past.count("usage_records").await, 6);
    assert_eq!(past.count("archives WHERE state = 'removed'").await, 1);
    past.finish().await;
}

async fn an_archive_that_does_not_fit_is_noticed(store: Store) {
    let past = Past::start(store).await;
    past.archive("2026-08").await;
    let differs = async |change: &str, back: &str, words: &str| {
        past.app.books.tamper(change).await;
        let found = past.app.try_cli(&["verify"]).await;
        assert!(!found.status.success() && found.stdout.contains(words), "{change}: {found:?}");
        past.app.books.tamper(back).await;
        past.app.cli(&["verify"]).await;
    };
    let sum = "UPDATE archives SET charge_nusd = charge_nusd";
    differs(&format!("{sum} + 1"), &format!("{sum} - 1"), "archive 2026-07").await;
    let count = "UPDATE archives SET records = records";
    differs(&format!("{count} - 1"), &format!("{count} + 1"), "archive 2026-07").await;
    let spent = "UPDATE archived_spending SET spent_nusd = spent_nusd";
    differs(&format!("{spent} + 1"), &format!("{spent} - 1"), "in all").await;
    // Records that are missing in a month that is not archived.
    let key = past.app.books.rows("SELECT api_key_id FROM archived_spending").await.remove(0);
    past.app.books.tamper("DELETE FROM archived_spending").await;
    past.app.books.tamper("UPDATE archives SET month = '2025-07'").await;
    let found = past.app.try_cli(&["verify"]).await;
    let missing = found.stdout.matches("differs from the charge of").count();
    assert_eq!(missing, 3, "{found:?}");
    past.app.books.tamper("UPDATE archives SET month = '2026-07'").await;
    let insert = format!(
        "INSERT INTO archived_spending (month, api_key_id, spent_nusd, corrections) \
         VALUES ('2026-07', '{}', '{}', '0')",
        key["api_key_id"].as_str().expect("an id"),
        3 * CHARGE_NUSD
    );
    past.app.books.tamper(&insert).await;
    past.finish().await;
}
