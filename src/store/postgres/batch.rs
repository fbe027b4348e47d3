//! A batch of the ledger on PostgreSQL: the rows it needs locked and loaded, and its changes
//! written, nearly all of them as one statement.

use super::PostgresStore;
use super::arrays::Inserts;
use super::rows::{classify, ids, one_reference, select, texts, write_rows};
use super::script::Script;
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
    ACCOUNT_BALANCES, ACCOUNTS, AUDIT_LOG, HOLD_CHANGES, HOLDS, IDEMPOTENCY_KEYS, KEY_BUDGETS,
    KEY_SPENDING, LOOKUPS, RATE_WINDOWS, USAGE_CORRECTIONS, WINDOW_CHANGES, postgres as sql,
};
use crate::store::{LedgerOp, Outcome, StoreError};
use sqlx::{AssertSqlSafe, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// The statements of a batch, made once.
pub struct Sql {
    lock_accounts: Arc<str>,
    /// Budgets of keys, holds, and which of the requests are settled.
    load: Arc<str>,
    load_idempotency: Arc<str>,
    load_windows: Arc<str>,
    update_accounts: Arc<str>,
    update_budgets: Arc<str>,
    insert_idempotency: Arc<str>,
    upsert_windows: Arc<str>,
    insert_lookups: Arc<str>,
    insert_corrections: Arc<str>,
    update_holds: Arc<str>,
    pub insert_audit: Arc<str>,
}

impl Sql {
    pub fn new() -> Self {
        Self {
            // No stronger: another program's rows that refer to an account must not wait for us,
            // nor we, and with us everybody's money, for its transaction.
            lock_accounts: sql::select(
                &ACCOUNTS,
                "WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE",
            )
            .into(),
            load: load().into(),
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
            update_holds: sql::update(&HOLDS, "request_id", HOLD_CHANGES).into(),
            insert_audit: sql::insert(&AUDIT_LOG).into(),
        }
    }
}

/// A statement of its own behind the lock of the accounts, so that it sees what others did to them
/// before. `$1`: keys, `$2`: requests.
fn load() -> String {
    let budgets = "WHERE api_key_id = ANY($1) ORDER BY api_key_id FOR UPDATE";
    format!(
        "WITH budget (row) AS ({}) SELECT row, NULL::text, NULL::uuid FROM budget \
         UNION ALL SELECT NULL, row, NULL FROM ({}) hold (row) \
         UNION ALL SELECT NULL, NULL, id FROM usage_records WHERE id = ANY($2)",
        sql::select(&KEY_BUDGETS, budgets),
        sql::select(&HOLDS, "WHERE request_id = ANY($2)"),
    )
}

/// A row of [`load`]: one of the three.
type Loaded = (Option<String>, Option<String>, Option<Uuid>);

impl PostgresStore {
    /// Loads what a batch needs, lets the books decide, and writes their changes.
    pub(super) async fn apply(
        &self,
        conn: &mut PgConnection,
        batch: &[LedgerOp],
        now: Timestamp,
    ) -> Result<Vec<Outcome>, StoreError> {
        let mut books = self.load(conn, batch).await?;
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
        let accounts: Vec<Account> = select(conn, &self.sql.lock_accounts, accounts).await?;
        let loaded: Vec<Loaded> = sqlx::query_as(AssertSqlSafe(self.sql.load.clone()))
            .bind(keys)
            .bind(uuids(&needs.requests))
            .fetch_all(&mut *conn)
            .await
            .map_err(classify)?;
        let mut books = Books {
            accounts: accounts.into_iter().map(|row| (row.id, row)).collect(),
            events: self.events.clone(),
            ..Books::default()
        };
        for (budget, hold, settled) in &loaded {
            if let Some(budget) = budget {
                let budget: KeyBudget = serde_json::from_str(budget)?;
                books.budgets.insert(budget.api_key_id, budget);
            }
            if let Some(hold) = hold {
                let hold: Hold = serde_json::from_str(hold)?;
                books.holds.insert(hold.request_id, hold);
            }
            books.settled.extend(settled.map(RequestId));
        }
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

    /// Who asks for the first time does so on a connection of its own, and keeps nobody waiting.
    async fn inserts(&self, conn: &mut PgConnection) -> Result<&Inserts, StoreError> {
        if let Some(known) = self.inserts.get() {
            return Ok(known);
        }
        let read = Inserts::read(conn).await?;
        Ok(self.inserts.get_or_init(|| read))
    }

    async fn write(&self, conn: &mut PgConnection, changes: Changes) -> Result<(), StoreError> {
        let Changes { accounts, budgets, placed, changed, closed, idempotency, .. } = changes;
        // Both forget rows and may write the same ones.
        if !idempotency.is_empty() {
            self.write_idempotency(conn, idempotency).await?;
        }
        if !changes.corrections.is_empty() {
            self.write_corrections(conn, &changes.corrections).await?;
        }
        let inserts = self.inserts(conn).await?;
        // A hold is placed, changed or closed, never two of it: the books see to that.
        let (sql, mut script) = (&self.sql, Script::default());
        script.rows(&sql.update_accounts, accounts.values())?;
        script.rows(&sql.update_budgets, budgets.values())?;
        script.insert(&inserts.holds, placed.values())?;
        script.rows(&sql.update_holds, changed.values())?;
        script.ids(CLOSE_HOLDS, closed.iter().map(|id| id.0).collect());
        script.rows(&sql.upsert_windows, changes.windows.values())?;
        script.rows(&sql.insert_lookups, changes.lookups.iter())?;
        script.insert(&inserts.usage, changes.usage_records.iter())?;
        script.insert(&inserts.ledger, changes.ledger_entries.iter())?;
        script.insert(&inserts.events, changes.billing_events.iter())?;
        script.rows(&sql.insert_audit, changes.audit.iter())?;
        script.run(conn).await.map_err(one_reference)
    }
}

const CLOSE_HOLDS: &str = "DELETE FROM holds WHERE request_id = ANY($1)";
