//! A batch of the ledger on PostgreSQL: the rows it needs locked and loaded, and its changes
//! written, one statement a table.

use super::PostgresStore;
use super::rows::{classify, ids, one_reference, select, texts, write_rows};
use crate::models::account::Account;
use crate::models::hold::{Hold, IdempotencyKey};
use crate::models::ids::RequestId;
use crate::models::key::KeyBudget;
use crate::models::limits::Subject;
use crate::models::timestamp::Timestamp;
use crate::models::usage::UsageCorrection;
use crate::models::window::RateWindow;
use crate::store::books::{Books, Changes, Needs};
use crate::store::table::{
    ACCOUNT_BALANCES, ACCOUNTS, AUDIT_LOG, BILLING_EVENTS, HOLD_CHANGES, HOLDS, IDEMPOTENCY_KEYS,
    KEY_BUDGETS, KEY_SPENDING, LEDGER_ENTRIES, LOOKUPS, RATE_WINDOWS, USAGE_CORRECTIONS,
    USAGE_RECORDS, WINDOW_CHANGES, postgres as sql,
};
use crate::store::{LedgerOp, Outcome, StoreError};
use sqlx::{AssertSqlSafe, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// The statements of a batch, made once.
pub struct Sql {
    lock_accounts: Arc<str>,
    load_budgets: Arc<str>,
    load_holds: Arc<str>,
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
        Self {
            lock_accounts: sql::select(&ACCOUNTS, "WHERE id = ANY($1) ORDER BY id FOR UPDATE")
                .into(),
            load_budgets: sql::select(
                &KEY_BUDGETS,
                "WHERE api_key_id = ANY($1) ORDER BY api_key_id FOR UPDATE",
            )
            .into(),
            load_holds: sql::select(&HOLDS, "WHERE request_id = ANY($1)").into(),
            // Their accounts are locked, and nobody comes to a window by another way. The clock is
            // read behind that lock: it never goes back between two batches.
            load_windows: "SELECT to_json(clock.at)::text, row_to_json(t)::text \
                           FROM (SELECT clock_timestamp() AS at) clock \
                           LEFT JOIN rate_windows t ON t.subject = ANY($1)"
                .into(),
            load_idempotency: sql::select(&IDEMPOTENCY_KEYS, "WHERE id = ANY($1)").into(),
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

impl PostgresStore {
    /// Loads what a batch needs, lets the books decide, and writes their changes.
    pub(super) async fn apply(
        &self,
        conn: &mut PgConnection,
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

    async fn load(&self, conn: &mut PgConnection, batch: &[LedgerOp]) -> Result<Books, StoreError> {
        let mut needs = Needs::of(batch);
        let uuids = |ids: &BTreeSet<RequestId>| ids.iter().map(|id| id.0).collect::<Vec<_>>();
        let accounts: Vec<Uuid> = needs.accounts.iter().map(|id| id.0).collect();
        let keys: Vec<Uuid> = needs.keys.iter().map(|id| id.0).collect();
        let requests = uuids(&needs.requests);
        let accounts: Vec<Account> = select(conn, &self.sql.lock_accounts, accounts).await?;
        let budgets: Vec<KeyBudget> = select(conn, &self.sql.load_budgets, keys).await?;
        let holds: Vec<Hold> = select(conn, &self.sql.load_holds, requests.clone()).await?;
        let settled =
            ids(conn, "SELECT id FROM usage_records WHERE id = ANY($1)", requests).await?;
        let mut books = Books {
            accounts: accounts.into_iter().map(|row| (row.id, row)).collect(),
            budgets: budgets.into_iter().map(|row| (row.api_key_id, row)).collect(),
            holds: holds.into_iter().map(|row| (row.request_id, row)).collect(),
            settled,
            events: self.events.clone(),
            ..Books::default()
        };
        needs.add_windows_of(books.holds.values());
        if !needs.windows.is_empty() {
            self.load_windows(conn, &needs.windows, &mut books).await?;
        }
        if !needs.idempotency.is_empty() {
            let names: Vec<String> = needs.idempotency.into_iter().collect();
            let known: Vec<IdempotencyKey> =
                select(conn, &self.sql.load_idempotency, names).await?;
            books.idempotency = known.into_iter().map(|row| (row.id.clone(), row)).collect();
        }
        if !needs.corrections.is_empty() {
            let corrected = "SELECT request_id FROM usage_corrections WHERE request_id = ANY($1)";
            books.corrected = ids(conn, corrected, uuids(&needs.corrections)).await?;
        }
        if !needs.references.is_empty() {
            let entered = "SELECT reference FROM ledger_entries WHERE reference = ANY($1)";
            let among: Vec<String> = needs.references.into_iter().collect();
            books.entered = texts(conn, entered, among).await?;
        }
        Ok(books)
    }

    /// The windows, and what time it is: replicas have clocks of their own.
    async fn load_windows(
        &self,
        conn: &mut PgConnection,
        subjects: &BTreeSet<Subject>,
        books: &mut Books,
    ) -> Result<(), StoreError> {
        let subjects: Vec<Uuid> = subjects.iter().map(|subject| subject.0).collect();
        let rows: Vec<(String, Option<String>)> =
            sqlx::query_as(AssertSqlSafe(self.sql.load_windows.clone()))
                .bind(subjects)
                .fetch_all(conn)
                .await
                .map_err(classify)?;
        for (clock, window) in rows {
            books.clock = Some(serde_json::from_str(&clock)?);
            if let Some(window) = window {
                let window: RateWindow = serde_json::from_str(&window)?;
                books.windows.insert(window.subject, window);
            }
        }
        Ok(())
    }

    /// A request whose truth has come need not be asked after.
    async fn write_corrections(
        &self,
        conn: &mut PgConnection,
        corrections: &[UsageCorrection],
    ) -> Result<(), StoreError> {
        let corrected: Vec<Uuid> = corrections.iter().map(|row| row.request_id.0).collect();
        sqlx::query("DELETE FROM lookups WHERE request_id = ANY($1)")
            .bind(corrected)
            .execute(&mut *conn)
            .await
            .map_err(classify)?;
        write_rows(conn, &self.sql.insert_corrections, corrections.iter()).await
    }

    async fn write_idempotency(
        &self,
        conn: &mut PgConnection,
        changes: BTreeMap<String, Option<IdempotencyKey>>,
    ) -> Result<(), StoreError> {
        let names: Vec<&String> = changes.keys().collect();
        sqlx::query("DELETE FROM idempotency_keys WHERE id = ANY($1)")
            .bind(names)
            .execute(&mut *conn)
            .await
            .map_err(classify)?;
        write_rows(conn, &self.sql.insert_idempotency, changes.values().flatten()).await
    }

    async fn write(&self, conn: &mut PgConnection, changes: Changes) -> Result<(), StoreError> {
        let Changes { accounts, budgets, placed, changed, closed, idempotency, .. } = changes;
        let sql = &self.sql;
        write_rows(conn, &sql.update_accounts, accounts.values()).await?;
        write_rows(conn, &sql.update_budgets, budgets.values()).await?;
        write_rows(conn, &sql.insert_holds, placed.values()).await?;
        write_rows(conn, &sql.update_holds, changed.values()).await?;
        if !closed.is_empty() {
            let closed: Vec<Uuid> = closed.iter().map(|id| id.0).collect();
            sqlx::query("DELETE FROM holds WHERE request_id = ANY($1)")
                .bind(closed)
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
        write_rows(conn, &sql.insert_ledger, changes.ledger_entries.iter())
            .await
            .map_err(one_reference)?;
        write_rows(conn, &sql.insert_events, changes.billing_events.iter()).await?;
        write_rows(conn, &sql.insert_audit, changes.audit.iter()).await
    }
}
