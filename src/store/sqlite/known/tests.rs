//! A store that knows what its last commits left does what one does that reads everything anew.

use super::*;
use crate::models::account::AccountKind;
use crate::models::billing::EventTerms;
use crate::models::limits::{LimitsInForce, RateLimits};
use crate::models::money::{NanoUsd, Tokens};
use crate::models::timestamp::Timestamp;
use crate::store::books::{Step, World, now, request_id, steps};
use crate::store::ledger::LedgerStore;
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::native::{self, ManyRows, Script};
use crate::store::table::{
    ACCOUNTS, BILLING_EVENTS, HOLDS, IDEMPOTENCY_KEYS, KEY_BUDGETS, LEDGER_ENTRIES, RATE_WINDOWS,
    Table, USAGE_CORRECTIONS, USAGE_RECORDS,
};
use crate::store::{Demand, Extension, LedgerOp, Outcome, Store};
use proptest::prelude::*;
use sqlx::{Connection, SqliteConnection};
use std::time::Duration;
use tempfile::TempDir;

/// What may come between two batches.
#[derive(Clone, Copy, Debug)]
enum Between {
    Nothing,
    /// Somebody else with the writing connection changes rows …
    Ours(&'static str),
    /// … and so does another connection.
    Another(&'static str),
    /// A batch that the database refuses.
    IsRefused,
}

fn between() -> impl Strategy<Value = Between> {
    prop_oneof![
        4 => Just(Between::Nothing),
        1 => proptest::sample::select(CHANGES).prop_map(Between::Ours),
        1 => proptest::sample::select(CHANGES).prop_map(Between::Another),
        1 => Just(Between::IsRefused),
    ]
}

const CHANGES: &[&str] = &[
    "UPDATE accounts SET balance_nusd = balance_nusd - 7",
    "UPDATE key_budgets SET held_nusd = held_nusd + 3",
    "UPDATE holds SET amount_nusd = amount_nusd + 1",
    "DELETE FROM holds",
    "UPDATE rate_windows SET open_requests = open_requests + 1",
    "DELETE FROM rate_windows",
];

/// There is no key to which the budget belongs.
const FREE_BUDGET: &str = "PRAGMA foreign_keys = OFF";

struct File {
    store: SqliteStore,
    url: String,
    _folder: TempDir,
}

impl File {
    async fn with(world: &World) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("t.db").display());
        let store = SqliteStore::open(&url, EventTerms::default()).await.unwrap();
        store.migrate().await.unwrap();
        let mut script = Script::default();
        let books = &world.books;
        script.rows(&ManyRows::insert(&ACCOUNTS), books.accounts.values()).unwrap();
        script.rows(&ManyRows::insert(&KEY_BUDGETS), books.budgets.values()).unwrap();
        let mut writing = store.writer.acquire().await.unwrap();
        run(&mut writing, FREE_BUDGET).await;
        script.run(&mut writing).await.unwrap();
        drop(writing);
        Self { store, url, _folder: folder }
    }

    /// A store that knows nothing.
    async fn open_anew(&mut self) {
        self.store = SqliteStore::open(&self.url, EventTerms::default()).await.unwrap();
        let mut writing = self.store.writer.acquire().await.unwrap();
        run(&mut writing, FREE_BUDGET).await;
    }

    async fn commit(&self, batch: &[LedgerOp], at: Timestamp) -> Result<Vec<Outcome>, String> {
        self.store.commit(batch, at).await.map_err(|error| error.to_string())
    }

    async fn pass(&self, between: Between, refused: &LedgerOp) {
        match between {
            Between::Nothing => {}
            Between::Ours(change) => {
                let mut writing = self.store.writer.acquire().await.unwrap();
                run(&mut writing, change).await;
            }
            Between::Another(change) => {
                let mut other = SqliteConnection::connect(&self.url).await.unwrap();
                run(&mut other, change).await;
            }
            Between::IsRefused => {
                // Only a hold that is there can be made less than nothing.
                let _ = self.commit(std::slice::from_ref(refused), now()).await;
            }
        }
    }

    async fn rows(&self, table: &Table) -> Vec<serde_json::Value> {
        let text = native::select(table, "WHERE ? = '' ORDER BY 1, 2").into();
        let mut writing = self.store.writer.acquire().await.unwrap();
        native::read(&mut writing, &text, String::new()).await.unwrap()
    }
}

async fn run(conn: &mut SqliteConnection, text: &'static str) {
    sqlx::query(text).execute(conn).await.unwrap();
}

/// With limits of rate, which only some requests are held to.
fn limited(op: LedgerOp) -> LedgerOp {
    match op {
        LedgerOp::Place(mut placement) if !placement.is_granted => {
            let rates = RateLimits { requests_per_minute: Some(4), ..RateLimits::default() };
            let limits = LimitsInForce { account: rates, key: rates };
            placement.demand = Some(Demand { tokens: Tokens(3), limits });
            LedgerOp::Place(placement)
        }
        op => op,
    }
}

/// Makes the hold of the first request less than nothing, which the table refuses.
fn refused(world: &World) -> LedgerOp {
    let (account_id, api_key_id) = (world.account, Some(world.key));
    let [add_nusd, floor_nusd] = [-10_000, -20_000].map(NanoUsd);
    let (request_id, held_nusd) = (request_id(0), NanoUsd::ZERO);
    LedgerOp::Extend(Extension {
        request_id,
        account_id,
        api_key_id,
        held_nusd,
        add_nusd,
        floor_nusd,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn what_is_known_is_what_the_file_says(
        steps in steps(),
        batch in 1..6_usize,
        betweens in proptest::collection::vec(between(), 60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new(AccountKind::Prepaid, 2_000);
            let (knows, mut reads) = (File::with(&world).await, File::with(&world).await);
            let first = [world.op(&Step::Credit { amount: 1_500 })];
            let mut at = now();
            prop_assert_eq!(knows.commit(&first, at).await, reads.commit(&first, at).await);
            for (batch, between) in steps.chunks(batch).zip(betweens) {
                // Windows and days roll on.
                at = at.plus(Duration::from_secs(17 + 3 * 3_600));
                let ops: Vec<_> = batch.iter().map(|step| limited(world.op(step))).collect();
                reads.open_anew().await;
                prop_assert_eq!(knows.commit(&ops, at).await, reads.commit(&ops, at).await);
                for file in [&knows, &reads] {
                    // Ends what a refused batch has left unfinished, as the server soon does.
                    file.store.writer.version().await.unwrap();
                    file.pass(between, &refused(&world)).await;
                }
            }
            for table in [
                &ACCOUNTS, &KEY_BUDGETS, &HOLDS, &IDEMPOTENCY_KEYS, &RATE_WINDOWS, &USAGE_RECORDS,
                &USAGE_CORRECTIONS, &LEDGER_ENTRIES, &BILLING_EVENTS,
            ] {
                prop_assert_eq!(knows.rows(table).await, reads.rows(table).await);
            }
            Ok(())
        })?;
    }
}

/// The test above would pass where nothing is ever known.
#[tokio::test]
async fn what_was_committed_need_not_be_read() {
    let world = World::new(AccountKind::Prepaid, 2_000);
    let file = File::with(&world).await;
    let place = |request| world.op(&Step::Place { request, amount: 1, floor: 0, key: None });
    file.commit(&[world.op(&Step::Credit { amount: 1_000 })], now()).await.unwrap();
    file.commit(&[place(0), place(1)], now()).await.unwrap();
    let needs = Needs::of(&[place(0), place(1), place(2)]);

    let (transaction, known) = file.store.writer.in_texts().await.unwrap();
    let lacks = known.lacks(&needs);
    assert!(lacks.accounts.is_empty() && lacks.keys.is_empty());
    assert_eq!(lacks.requests, [request_id(2)].into());
    transaction.ended(known);

    let (unfinished, _) = file.store.writer.in_texts().await.unwrap();
    drop(unfinished);
    let (transaction, known) = file.store.writer.in_texts().await.unwrap();
    assert_eq!(known.lacks(&needs).requests.len(), 3, "nothing is known after a failure");
    transaction.ended(known);
}

/// A limit on what is remembered.
#[test]
fn with_too_many_rows_nothing_is_known() {
    let world = World::new(AccountKind::Prepaid, 2_000);
    let place = |request| world.op(&Step::Place { request, amount: 0, floor: 0, key: None });
    let known = |count: usize| {
        let mut books = Books { accounts: world.books.accounts.clone(), ..Books::default() };
        let batch: Vec<_> = (0..count).map(|number| place(number as u128)).collect();
        let _ = books.apply(&batch, now());
        assert_eq!(books.holds.len(), count);
        Known::after(1, books)
    };
    assert_eq!(known(HOLDS_MAX).holds.len(), HOLDS_MAX);
    let forgotten = known(HOLDS_MAX + 1);
    assert_eq!((forgotten.version, forgotten.holds.len(), forgotten.accounts.len()), (None, 0, 0));
}
