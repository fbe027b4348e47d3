//! A batch of the ledger on SQLite: the rows it needs locked and loaded, and its changes written,
//! a few statements a table.

use super::SqliteStore;
use super::known::Known;
use super::native::{self, Deletion, LISTED, ManyRows, Queries, Script};
use super::rows::{classify, ids, texts};
use super::writer::{BEGIN, COMMIT, VERSION};
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
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The statements of a batch, made once.
pub struct Sql {
    /// Accounts, budgets of keys, holds, and which of the requests are settled.
    load: Queries<4>,
    /// The same, as the first of a transaction, after the version of the file.
    begin: Queries<4>,
    /// The same of requests alone.
    begin_known: Queries<2>,
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
            begin: Queries::new(&[BEGIN, VERSION], &load),
            begin_known: Queries::new(&[BEGIN, VERSION], &[load[2], load[3]]),
            load: Queries::new(&[], &load),
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

/// Accounts, budgets, holds, and which of the requests are settled.
type Rows = [Vec<SqliteRow>; 4];

fn add(rows: &Rows, books: &mut Books) -> Result<(), StoreError> {
    let [accounts, budgets, holds, settled] = rows;
    let accounts: Vec<Account> = native::parse(accounts)?;
    let budgets: Vec<KeyBudget> = native::parse(budgets)?;
    let holds: Vec<Hold> = native::parse(holds)?;
    let settled: Vec<Settled> = native::parse(settled)?;
    books.accounts.extend(accounts.into_iter().map(|row| (row.id, row)));
    books.budgets.extend(budgets.into_iter().map(|row| (row.api_key_id, row)));
    books.holds.extend(holds.into_iter().map(|row| (row.request_id, row)));
    books.settled.extend(settled.into_iter().map(|row| row.id));
    Ok(())
}

/// The keys of [`Rows`].
fn keys(of: &Needs) -> [Vec<String>; 4] {
    let requests = names(&of.requests);
    [names(&of.accounts), names(&of.keys), requests.clone(), requests]
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
        let mut books = self.load(conn, Needs::of(batch)).await?;
        let (outcomes, changes) = books.apply(batch, now);
        self.script(changes)?.run(conn).await?;
        Ok(outcomes)
    }

    /// The same as a transaction of its own, which has then ended: with what is known before it,
    /// and after.
    pub(super) async fn apply_alone(
        &self,
        conn: &mut SqliteConnection,
        known: Known,
        batch: &[LedgerOp],
        now: Timestamp,
    ) -> Result<(Vec<Outcome>, Known), StoreError> {
        let (mut books, version) = self.begin(conn, known, Needs::of(batch)).await?;
        let (outcomes, changes) = books.apply(batch, now);
        let mut script = self.script(changes)?;
        script.last(COMMIT);
        script.run(conn).await?;
        Ok((outcomes, Known::after(version, books)))
    }

    /// Begins a transaction. The books with what is needed, and the version of the file.
    async fn begin(
        &self,
        conn: &mut SqliteConnection,
        known: Known,
        needs: Needs,
    ) -> Result<(Books, i64), StoreError> {
        let lacks = keys(&known.lacks(&needs));
        let (before, rows) = match lacks {
            [accounts, budgets, holds, settled] if accounts.is_empty() && budgets.is_empty() => {
                let requests = [holds, settled];
                let (before, [holds, settled]) = self.sql.begin_known.read(conn, requests).await?;
                (before, [Vec::new(), Vec::new(), holds, settled])
            }
            lacks => self.sql.begin.read(conn, lacks).await?,
        };
        let version = before.first().ok_or(sqlx::Error::RowNotFound);
        let version = version.and_then(|row| row.try_get(0)).map_err(classify)?;
        if known.version.is_some_and(|known| known != version) {
            return Ok((self.load(conn, needs).await?, version));
        }
        Ok((self.complete(conn, known.into_books(), rows, needs).await?, version))
    }

    async fn load(&self, conn: &mut SqliteConnection, needs: Needs) -> Result<Books, StoreError> {
        let (_, rows) = self.sql.load.read(conn, keys(&needs)).await?;
        self.complete(conn, Books::default(), rows, needs).await
    }

    /// The books with these rows, and with those that are rarely needed.
    async fn complete(
        &self,
        conn: &mut SqliteConnection,
        mut books: Books,
        rows: Rows,
        mut needs: Needs,
    ) -> Result<Books, StoreError> {
        add(&rows, &mut books)?;
        books.events = self.events.clone();
        let holds: Vec<_> = needs.requests.iter().filter_map(|id| books.holds.get(id)).collect();
        needs.add_windows_of(holds.into_iter());
        needs.windows.retain(|subject| !books.windows.contains_key(subject));
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
        books.windows.extend(windows.into_iter().map(|row| (row.subject, row)));
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
