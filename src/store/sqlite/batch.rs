//! A batch of the ledger on SQLite: the rows it needs locked and loaded, and its changes written,
//! a few statements a table.

use super::SqliteStore;
use super::native::{self, Deletion, LISTED, ManyRows, Queries, Script};
use super::rows::{ids, texts};
use super::writer::{BEGIN, COMMIT};
use crate::models::account::Account;
use crate::models::hold::{Hold, IdempotencyKey};
use crate::models::ids::RequestId;
use crate::models::key::KeyBudget;
use crate::models::limits::Subject;
use crate::models::timestamp::Timestamp;
use crate::models::window::RateWindow;
use crate::store::books::{Books, Changes, Needs};
use crate::store::table::{
    ACCOUNT_BALANCES, ACCOUNTS, AUDIT_LOG, BILLING_EVENTS, HOLD_CHANGES, HOLDS, IDEMPOTENCY_KEYS,
    KEY_BUDGETS, KEY_SPENDING, LEDGER_ENTRIES, LOOKUPS, RATE_WINDOWS, USAGE_CORRECTIONS,
    USAGE_RECORDS, WINDOW_CHANGES,
};
use crate::store::{LedgerOp, Outcome, StoreError};
use serde::Deserialize;
use sqlx::SqliteConnection;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The statements of a batch, made once.
pub struct Sql {
    /// Accounts, budgets of keys, holds, and which of the requests are settled.
    load: Queries<4>,
    /// The same, as the first of a transaction.
    begin: Queries<4>,
    pub load_holds: Arc<str>,
    load_idempotency: Arc<str>,
    load_windows: Arc<str>,
    update_accounts: ManyRows,
    update_budgets: ManyRows,
    close_holds: Deletion,
    forget_idempotency: Deletion,
    /// A request whose truth has come need not be asked after.
    forget_lookups: Deletion,
    insert_idempotency: ManyRows,
    upsert_windows: ManyRows,
    insert_lookups: ManyRows,
    insert_corrections: ManyRows,
    insert_holds: ManyRows,
    update_holds: ManyRows,
    insert_usage: ManyRows,
    insert_ledger: ManyRows,
    insert_events: ManyRows,
    insert_audit: ManyRows,
}

impl Sql {
    pub fn new() -> Self {
        let load = [
            (&ACCOUNTS, ACCOUNTS.columns, "id"),
            (&KEY_BUDGETS, KEY_BUDGETS.columns, "api_key_id"),
            (&HOLDS, HOLDS.columns, "request_id"),
            (&USAGE_RECORDS, &["id"], "id"),
        ];
        Self {
            begin: Queries::new(Some(BEGIN), &load),
            load: Queries::new(None, &load),
            load_windows: native::select(&RATE_WINDOWS, &format!("WHERE subject {LISTED}")).into(),
            load_idempotency: native::select(&IDEMPOTENCY_KEYS, &format!("WHERE id {LISTED}"))
                .into(),
            load_holds: native::select(&HOLDS, &format!("WHERE request_id {LISTED}")).into(),
            update_budgets: ManyRows::update(&KEY_BUDGETS, "api_key_id", KEY_SPENDING),
            close_holds: Deletion::new(&HOLDS, "request_id"),
            forget_idempotency: Deletion::new(&IDEMPOTENCY_KEYS, "id"),
            forget_lookups: Deletion::new(&LOOKUPS, "request_id"),
            insert_idempotency: ManyRows::insert(&IDEMPOTENCY_KEYS),
            upsert_windows: ManyRows::upsert(&RATE_WINDOWS, "subject", WINDOW_CHANGES),
            insert_lookups: ManyRows::insert(&LOOKUPS),
            insert_corrections: ManyRows::insert(&USAGE_CORRECTIONS),
            update_accounts: ManyRows::update(&ACCOUNTS, "id", ACCOUNT_BALANCES),
            insert_holds: ManyRows::insert(&HOLDS),
            update_holds: ManyRows::update(&HOLDS, "request_id", HOLD_CHANGES),
            insert_usage: ManyRows::insert(&USAGE_RECORDS),
            insert_ledger: ManyRows::insert(&LEDGER_ENTRIES),
            insert_events: ManyRows::insert(&BILLING_EVENTS),
            insert_audit: ManyRows::insert(&AUDIT_LOG),
        }
    }
}

/// A request that has its usage record.
#[derive(Deserialize)]
struct Settled {
    id: RequestId,
}

impl SqliteStore {
    /// Loads what a batch needs, lets the books decide, and writes their changes: as a part of the
    /// transaction that `conn` is in.
    pub(super) async fn apply(
        &self,
        conn: &mut SqliteConnection,
        batch: &[LedgerOp],
        now: Timestamp,
    ) -> Result<Vec<Outcome>, StoreError> {
        let books = self.load(conn, &self.sql.load, batch).await?;
        let (outcomes, changes) = books.apply(batch, now);
        self.script(changes)?.run(conn).await?;
        Ok(outcomes)
    }

    /// The same as a transaction of its own, which has then ended.
    pub(super) async fn apply_alone(
        &self,
        conn: &mut SqliteConnection,
        batch: &[LedgerOp],
        now: Timestamp,
    ) -> Result<Vec<Outcome>, StoreError> {
        let books = self.load(conn, &self.sql.begin, batch).await?;
        let (outcomes, changes) = books.apply(batch, now);
        let mut script = self.script(changes)?;
        script.last(COMMIT);
        script.run(conn).await?;
        Ok(outcomes)
    }

    async fn load(
        &self,
        conn: &mut SqliteConnection,
        queries: &Queries<4>,
        batch: &[LedgerOp],
    ) -> Result<Books, StoreError> {
        let mut needs = Needs::of(batch);
        let requests = names(&needs.requests);
        let keys = [names(&needs.accounts), names(&needs.keys), requests.clone(), requests];
        let [accounts, budgets, holds, settled] = queries.read(conn, keys).await?;
        let accounts: Vec<Account> = native::parse(&accounts)?;
        let budgets: Vec<KeyBudget> = native::parse(&budgets)?;
        let holds: Vec<Hold> = native::parse(&holds)?;
        let settled: Vec<Settled> = native::parse(&settled)?;
        let mut books = Books {
            accounts: accounts.into_iter().map(|row| (row.id, row)).collect(),
            budgets: budgets.into_iter().map(|row| (row.api_key_id, row)).collect(),
            holds: holds.into_iter().map(|row| (row.request_id, row)).collect(),
            settled: settled.into_iter().map(|row| row.id).collect(),
            events: self.events.clone(),
            ..Books::default()
        };
        needs.add_windows_of(books.holds.values());
        if !needs.windows.is_empty() {
            self.load_windows(conn, &needs.windows, &mut books).await?;
        }
        if !needs.idempotency.is_empty() {
            let names = serde_json::to_string(&needs.idempotency)?;
            let known: Vec<IdempotencyKey> =
                native::read(conn, &self.sql.load_idempotency, names).await?;
            books.idempotency = known.into_iter().map(|row| (row.id.clone(), row)).collect();
        }
        if !needs.corrections.is_empty() {
            let corrected = "SELECT request_id FROM usage_corrections \
                             WHERE request_id IN (SELECT value FROM json_each(?1))";
            let among = serde_json::to_string(&needs.corrections)?;
            books.corrected = ids(conn, corrected, among).await?;
        }
        if !needs.references.is_empty() {
            let entered = "SELECT reference FROM ledger_entries \
                           WHERE reference IN (SELECT value FROM json_each(?1))";
            let among = serde_json::to_string(&needs.references)?;
            books.entered = texts(conn, entered, among).await?;
        }
        Ok(books)
    }

    async fn load_windows(
        &self,
        conn: &mut SqliteConnection,
        subjects: &BTreeSet<Subject>,
        books: &mut Books,
    ) -> Result<(), StoreError> {
        let subjects = serde_json::to_string(subjects)?;
        let windows: Vec<RateWindow> = native::read(conn, &self.sql.load_windows, subjects).await?;
        books.windows = windows.into_iter().map(|row| (row.subject, row)).collect();
        Ok(())
    }

    fn script(&self, changes: Changes) -> Result<Script, StoreError> {
        let Changes { accounts, budgets, placed, changed, closed, idempotency, .. } = changes;
        let (sql, mut script) = (&self.sql, Script::default());
        script.rows(&sql.update_accounts, accounts.values())?;
        script.rows(&sql.update_budgets, budgets.values())?;
        script.rows(&sql.insert_holds, placed.values())?;
        script.rows(&sql.update_holds, changed.values())?;
        script.delete(&sql.close_holds, &names(&closed))?;
        script.delete(&sql.forget_idempotency, &names(idempotency.keys()))?;
        script.rows(&sql.insert_idempotency, idempotency.values().flatten())?;
        script.rows(&sql.upsert_windows, changes.windows.values())?;
        script.rows(&sql.insert_lookups, changes.lookups.iter())?;
        let corrected = names(changes.corrections.iter().map(|row| row.request_id));
        script.delete(&sql.forget_lookups, &corrected)?;
        script.rows(&sql.insert_corrections, changes.corrections.iter())?;
        script.rows(&sql.insert_usage, changes.usage_records.iter())?;
        script.rows(&sql.insert_ledger, changes.ledger_entries.iter())?;
        script.rows(&sql.insert_events, changes.billing_events.iter())?;
        script.rows(&sql.insert_audit, changes.audit.iter())?;
        Ok(script)
    }
}

fn names<T: ToString>(ids: impl IntoIterator<Item = T>) -> Vec<String> {
    ids.into_iter().map(|id| id.to_string()).collect()
}
