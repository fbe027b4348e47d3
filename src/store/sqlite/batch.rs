//! A batch of the ledger on SQLite: the rows it needs locked and loaded, and its changes written,
//! one statement a table.

use super::SqliteStore;
use super::rows::{classify, ids, select, texts, write_rows};
use crate::models::account::Account;
use crate::models::hold::{Hold, IdempotencyKey};
use crate::models::key::KeyBudget;
use crate::models::limits::Subject;
use crate::models::timestamp::Timestamp;
use crate::models::usage::UsageCorrection;
use crate::models::window::RateWindow;
use crate::store::books::{Books, Changes, Needs};
use crate::store::table::{
    ACCOUNT_BALANCES, ACCOUNTS, AUDIT_LOG, BILLING_EVENTS, HOLD_CHANGES, HOLDS, IDEMPOTENCY_KEYS,
    KEY_BUDGETS, KEY_SPENDING, LEDGER_ENTRIES, LOOKUPS, RATE_WINDOWS, USAGE_CORRECTIONS,
    USAGE_RECORDS, WINDOW_CHANGES, sqlite as sql,
};
use crate::store::{LedgerOp, Outcome, StoreError};
use sqlx::SqliteConnection;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The statements of a batch, made once.
pub struct Sql {
    load_accounts: Arc<str>,
    load_budgets: Arc<str>,
    pub load_holds: Arc<str>,
    load_idempotency: Arc<str>,
    load_windows: Arc<str>,
    update_accounts: Arc<str>,
    update_budgets: Arc<str>,
    insert_idempotency: Arc<str>,
    upsert_windows: Arc<str>,
    insert_lookups: Arc<str>,
    insert_corrections: Arc<str>,
    insert_holds: Arc<str>,
    update_holds: Arc<str>,
    insert_usage: Arc<str>,
    insert_ledger: Arc<str>,
    insert_events: Arc<str>,
    pub insert_audit: Arc<str>,
}

impl Sql {
    pub fn new() -> Self {
        const LISTED: &str = "IN (SELECT value FROM json_each(?1))";
        Self {
            load_accounts: sql::select(&ACCOUNTS, &format!("WHERE id {LISTED}")).into(),
            load_budgets: sql::select(&KEY_BUDGETS, &format!("WHERE api_key_id {LISTED}")).into(),
            load_windows: sql::select(&RATE_WINDOWS, &format!("WHERE subject {LISTED}")).into(),
            load_idempotency: sql::select(&IDEMPOTENCY_KEYS, &format!("WHERE id {LISTED}")).into(),
            load_holds: sql::select(&HOLDS, &format!("WHERE request_id {LISTED}")).into(),
            update_budgets: sql::update(&KEY_BUDGETS, "api_key_id", KEY_SPENDING).into(),
            insert_idempotency: sql::insert(&IDEMPOTENCY_KEYS).into(),
            upsert_windows: sql::upsert(&RATE_WINDOWS, "subject", WINDOW_CHANGES).into(),
            insert_lookups: sql::insert(&LOOKUPS).into(),
            insert_corrections: sql::insert(&USAGE_CORRECTIONS).into(),
            update_accounts: sql::update(&ACCOUNTS, "id", ACCOUNT_BALANCES).into(),
            insert_holds: sql::insert(&HOLDS).into(),
            update_holds: sql::update(&HOLDS, "request_id", HOLD_CHANGES).into(),
            insert_usage: sql::insert(&USAGE_RECORDS).into(),
            insert_ledger: sql::insert(&LEDGER_ENTRIES).into(),
            insert_events: sql::insert(&BILLING_EVENTS).into(),
            insert_audit: sql::insert(&AUDIT_LOG).into(),
        }
    }
}

impl SqliteStore {
    /// Loads what a batch needs, lets the books decide, and writes their changes.
    pub(super) async fn apply(
        &self,
        conn: &mut SqliteConnection,
        batch: &[LedgerOp],
        now: Timestamp,
    ) -> Result<Vec<Outcome>, StoreError> {
        let books = self.load(conn, batch).await?;
        let (outcomes, changes) = books.apply(batch, now);
        if changes != Changes::default() {
            self.write(conn, changes).await?;
        }
        Ok(outcomes)
    }

    async fn load(
        &self,
        conn: &mut SqliteConnection,
        batch: &[LedgerOp],
    ) -> Result<Books, StoreError> {
        let mut needs = Needs::of(batch);
        let requests = serde_json::to_string(&needs.requests)?;
        let keys = serde_json::to_string(&needs.keys)?;
        let accounts = serde_json::to_string(&needs.accounts)?;
        let accounts: Vec<Account> = select(conn, &self.sql.load_accounts, accounts).await?;
        let budgets: Vec<KeyBudget> = select(conn, &self.sql.load_budgets, keys).await?;
        let holds: Vec<Hold> = select(conn, &self.sql.load_holds, requests.clone()).await?;
        let settled = "SELECT id FROM usage_records WHERE id IN (SELECT value FROM json_each(?1))";
        let mut books = Books {
            accounts: accounts.into_iter().map(|row| (row.id, row)).collect(),
            budgets: budgets.into_iter().map(|row| (row.api_key_id, row)).collect(),
            holds: holds.into_iter().map(|row| (row.request_id, row)).collect(),
            settled: ids(conn, settled, requests).await?,
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
                select(conn, &self.sql.load_idempotency, names).await?;
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
        let windows: Vec<RateWindow> = select(conn, &self.sql.load_windows, subjects).await?;
        books.windows = windows.into_iter().map(|row| (row.subject, row)).collect();
        Ok(())
    }

    /// A request whose truth has come need not be asked after.
    async fn write_corrections(
        &self,
        conn: &mut SqliteConnection,
        corrections: &[UsageCorrection],
    ) -> Result<(), StoreError> {
        let corrected: Vec<_> = corrections.iter().map(|row| row.request_id).collect();
        sqlx::query("DELETE FROM lookups WHERE request_id IN (SELECT value FROM json_each(?1))")
            .bind(serde_json::to_string(&corrected)?)
            .execute(&mut *conn)
            .await
            .map_err(classify)?;
        write_rows(conn, &self.sql.insert_corrections, corrections.iter()).await
    }

    async fn write_idempotency(
        &self,
        conn: &mut SqliteConnection,
        changes: BTreeMap<String, Option<IdempotencyKey>>,
    ) -> Result<(), StoreError> {
        let names: Vec<&String> = changes.keys().collect();
        sqlx::query("DELETE FROM idempotency_keys WHERE id IN (SELECT value FROM json_each(?1))")
            .bind(serde_json::to_string(&names)?)
            .execute(&mut *conn)
            .await
            .map_err(classify)?;
        write_rows(conn, &self.sql.insert_idempotency, changes.values().flatten()).await
    }

    async fn write(&self, conn: &mut SqliteConnection, changes: Changes) -> Result<(), StoreError> {
        let Changes { accounts, budgets, placed, changed, closed, idempotency, .. } = changes;
        let sql = &self.sql;
        write_rows(conn, &sql.update_accounts, accounts.values()).await?;
        write_rows(conn, &sql.update_budgets, budgets.values()).await?;
        write_rows(conn, &sql.insert_holds, placed.values()).await?;
        write_rows(conn, &sql.update_holds, changed.values()).await?;
        if !closed.is_empty() {
            sqlx::query("DELETE FROM holds WHERE request_id IN (SELECT value FROM json_each(?1))")
                .bind(serde_json::to_string(&closed)?)
                .execute(&mut *conn)
                .await
                .map_err(classify)?;
        }
        if !idempotency.is_empty() {
            self.write_idempotency(conn, idempotency).await?;
        }
        write_rows(conn, &sql.upsert_windows, changes.windows.values()).await?;
        write_rows(conn, &sql.insert_lookups, changes.lookups.iter()).await?;
        if !changes.corrections.is_empty() {
            self.write_corrections(conn, &changes.corrections).await?;
        }
        write_rows(conn, &sql.insert_usage, changes.usage_records.iter()).await?;
        write_rows(conn, &sql.insert_ledger, changes.ledger_entries.iter()).await?;
        write_rows(conn, &sql.insert_events, changes.billing_events.iter()).await?;
        write_rows(conn, &sql.insert_audit, changes.audit.iter()).await
    }
}
