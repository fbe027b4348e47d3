//! Months with corrections: what was learnt late goes with what it is about, wherever the archive
//! is interrupted, and every account is left with what it had.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tollgate::models::ids::RequestId;
use tollgate::models::money::NanoUsd;
use tollgate::models::timestamp::Timestamp;
use tollgate::models::usage::UsageCorrection;
use tollgate::store::{Correction, LedgerOp, Outcome};

use super::{CHARGE_NUSD, Calls, Past, at, read};
use crate::app::{Setup, Store, eventually};
use crate::billing::with_openmeter;
use crate::seed::request_id;
use crate::sinks::openmeter::OpenMeter;
use crate::views::{COSTS, nano, results, see};

/// What the first call of each account should have cost, by month: more than was charged, and less.
const DEARER: i64 = CHARGE_NUSD + 1_500;
const CHEAPER: i64 = CHARGE_NUSD - 2_200;

impl Past {
    /// A late truth about a call that began then.
    async fn correct(&self, request: RequestId, charge: i64, learnt: &str) {
        let store = self.store().await;
        let records = store.records_of(&[request]).await.expect("a store");
        let [record] = records.as_slice() else { panic!("{records:?}") };
        let correction = UsageCorrection {
            request_id: request,
            account_id: record.account_id,
            generation_id: record.generation_id.clone().expect("it has one"),
            prompt_tokens: record.prompt_tokens,
            completion_tokens: record.completion_tokens,
            upstream_cost_pusd: record.upstream_cost_pusd,
            charge_nusd: NanoUsd(charge),
            difference_nusd: NanoUsd::ZERO,
            created_at: at(learnt),
        };
        let op = LedgerOp::Correct(Box::new(Correction {
            api_key_id: record.api_key_id,
            charged_nusd: record.charge_nusd,
            correction,
        }));
        let done = store.commit(&[op], at(learnt)).await.expect("the store takes it");
        assert!(matches!(done[0], Outcome::Corrected { .. }), "{done:?}");
    }

    /// Waits until the sink was told of everything.
    pub(super) async fn exported(&self) {
        eventually("every event is exported", async || {
            (self.count("billing_events WHERE state <> 'exported'").await == 0).then_some(())
        })
        .await;
    }

    /// What an account sees, by month: the costs of its calls.
    async fn costs(&self, key: &str) -> BTreeMap<&'static str, i64> {
        let mut sums = BTreeMap::new();
        for (month, next) in
            [("2026-07", "2026-08"), ("2026-08", "2026-09"), ("2026-09", "2026-10")]
        {
            let start = |month: &str| at(&format!("{month}-01T00:00:00Z")).unix_millis() / 1_000;
            let span = format!("start_time={}&end_time={}", start(month), start(next));
            let page = see(&self.app, key, &format!("{COSTS}?{span}&limit=31")).await;
            let amounts = results(&page).into_iter().map(|(_, row)| nano(&row["amount"]["value"]));
            sums.insert(month, amounts.sum());
        }
        sums
    }

    /// What must not change at all: accounts, what keys have spent, every entry of the ledger.
    async fn money(&self) -> [Vec<Value>; 3] {
        let rows = async |sql: &str| self.app.books.rows(sql).await;
        [
            rows("SELECT * FROM accounts ORDER BY id").await,
            rows("SELECT * FROM key_budgets ORDER BY api_key_id").await,
            rows("SELECT * FROM ledger_entries ORDER BY account_id, seq").await,
        ]
    }

    /// Rows of a month that cannot be removed until `free`: an archive is interrupted at them.
    async fn hold(&self, store: Store, table: &str) {
        for statement in obstacle(store, table, "2026_07") {
            self.app.books.tamper(&statement).await;
        }
    }

    async fn free(&self, store: Store, table: &str) {
        let statement = match store {
            Store::Postgres if table == "usage_records" => "DROP VIEW held".to_owned(),
            Store::Postgres => format!("DROP TRIGGER held ON {table}"),
            Store::Sqlite => "DROP TRIGGER held".to_owned(),
        };
        self.app.books.tamper(&statement).await;
    }
}

fn obstacle(store: Store, table: &str, month: &str) -> Vec<String> {
    match store {
        Store::Sqlite => vec![format!(
            "CREATE TRIGGER held BEFORE DELETE ON {table} \
             BEGIN SELECT RAISE(ABORT, 'it is held'); END"
        )],
        // Its rows go with their partition.
        Store::Postgres if table == "usage_records" => {
            vec![format!("CREATE VIEW held AS SELECT id FROM usage_records_{month}")]
        }
        Store::Postgres => vec![
            "CREATE OR REPLACE FUNCTION hold() RETURNS TRIGGER LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'it is held'; END $$"
                .to_owned(),
            format!("CREATE TRIGGER held BEFORE DELETE ON {table} EXECUTE FUNCTION hold()"),
        ],
    }
}

/// Two accounts with calls in three months. Of July one is corrected at once and one in August, of
/// August one late in September, of September one that stays.
async fn corrected_months(past: &Past, other: &str) {
    let key = past.key_of(other).await;
    let first = |began: Timestamp, number: u64| request_id(began, number);
    for (index, month) in ["2026-07", "2026-08", "2026-09"].into_iter().enumerate() {
        let number = u64::try_from(index).expect("few") * 100;
        let own = past.of_test(month, number).await;
        past.write(&own).await;
        let began = at(&format!("{month}-30T23:59:58Z"));
        let theirs = Calls { account: other, key, began, seconds: 4, number: number + 50 };
        past.write(&theirs).await;
        let (own, theirs) = (first(own.began, number), first(theirs.began, number + 50));
        match month {
            "2026-07" => {
                past.correct(own, CHEAPER, "2026-07-31T00:10:00Z").await;
                past.correct(theirs, DEARER, "2026-08-01T00:10:00Z").await;
            }
            "2026-08" => past.correct(theirs, CHEAPER, "2026-08-31T09:00:00Z").await,
            _ => {
                let august = first(at("2026-08-02T10:00:00Z"), 100);
                past.correct(august, DEARER, "2026-10-01T04:00:00Z").await;
                past.correct(theirs, 0, "2026-10-01T05:00:00Z").await;
            }
        }
    }
}

pub(super) async fn corrections_go_with_their_records(store: Store) {
    let openmeter = OpenMeter::start().await;
    let app = with_openmeter(Setup::new(store), &openmeter).start().await;
    let other = app.create_account("other", &["--credit", "1"]).await;
    let other_key = app.create_key("other", &[]).await;
    let past = Past::of(app, &["openmeter"]).await;
    corrected_months(&past, &other).await;
    past.exported().await;
    past.app.cli(&["verify"]).await;
    let (money, records) = (past.money().await, past.count("usage_records").await);
    let keys = [past.app.key.clone(), other_key];
    let three = 3 * CHARGE_NUSD;
    let own = [three - CHARGE_NUSD + CHEAPER, three - CHARGE_NUSD + DEARER, three];
    let theirs = [own[1], own[0], three - CHARGE_NUSD];
    for (key, sums) in keys.iter().zip([own, theirs]) {
        assert_eq!(past.costs(key).await.into_values().collect::<Vec<_>>(), sums);
    }
    let credits = async || [see_credits(&past, &keys[0]).await, see_credits(&past, &keys[1]).await];
    let before = credits().await;
    let written = past.store().await.corrections_after(None).await.expect("a store");
    assert_eq!(written.len(), 5);

    for table in ["billing_events", "usage_corrections", "usage_records"] {
        past.hold(store, table).await;
        let said = past.refused("2026-09").await;
        let is_held = said.contains("it is held") || said.contains("other objects depend on it");
        assert!(is_held, "it was not stopped at {table}: {said}");
        past.app.cli(&["verify"]).await;
        assert_eq!(past.money().await, money, "interrupted at {table}");
        past.free(store, table).await;
    }
    let said = past.archive("2026-09").await;
    assert!(said.contains("2026-07: 6 usage records") && said.contains("2026-08: 6"), "{said}");
    past.app.cli(&["verify"]).await;
    assert_eq!(past.money().await, money, "no account has more or less");
    assert_eq!(credits().await, before);
    for (key, september) in keys.iter().zip([own[2], theirs[2]]) {
        assert_eq!(past.costs(key).await.into_values().collect::<Vec<_>>(), [0, 0, september]);
    }
    assert_eq!(past.count("usage_records").await, records - 12);
    assert_eq!(past.count("usage_corrections").await, 1, "that of September");
    assert_eq!(past.count("billing_events").await, 7, "and its calls");
    for (month, rows) in [("2026-07", &written[..2]), ("2026-08", &written[2..4])] {
        let rows: Vec<Value> =
            rows.iter().map(|row| serde_json::to_value(row).expect("JSON")).collect();
        assert_eq!(read(&past.file(&format!("{month}/usage_corrections.ndjson"))), rows);
        assert_eq!(read(&past.file(&format!("{month}/billing_events.ndjson"))).len(), 8);
        let net: i64 = rows.iter().map(|row| row["difference_nusd"].as_i64().expect("some")).sum();
        let manifest = std::fs::read_to_string(past.file(&format!("{month}/manifest.json")));
        let manifest: Value = serde_json::from_str(&manifest.expect("a file")).expect("JSON");
        assert_eq!(
            (&manifest["corrections"], &manifest["difference_nusd"]),
            (&json!(2), &json!(net))
        );
    }
    // A sum that is not that of the entries is still noticed.
    past.app.books.tamper("UPDATE archives SET difference_nusd = difference_nusd + 1").await;
    assert!(past.app.try_cli(&["verify"]).await.stdout.contains("archive 2026-08"));
    past.app.books.tamper("UPDATE archives SET difference_nusd = difference_nusd - 1").await;
    assert!(past.archive("2026-10").await.contains("2026-09: 6 usage records"));
    past.app.cli(&["verify"]).await;
    assert_eq!(past.money().await, money);
    past.finish().await;
}

async fn see_credits(past: &Past, key: &str) -> Value {
    see(&past.app, key, "/v1/credits").await
}

/// Nobody was there to settle it: three weeks after its month, in the windows of September.
pub(super) async fn what_ended_weeks_later_is_no_difference(store: Store) {
    let past = Past::of(Setup::new(store).start().await, &[]).await;
    let calls = past.of_test("2026-08", 0).await;
    past.write(&Calls { seconds: 45 * 86_400, ..calls }).await;
    past.app.cli(&["verify"]).await;
    let money = past.money().await;
    past.archive("2026-09").await;
    past.app.cli(&["verify"]).await;
    assert_eq!(past.money().await, money);
    past.finish().await;
}
