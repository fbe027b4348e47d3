//! Billing events on their way to sinks, on SQLite.

use crate::models::billing::{
    BillingEvent, DeliveryState, Export, NOTICE_SUFFIX, Outgoing, SinkWindow, reasons,
};
use crate::models::timestamp::Timestamp;
use crate::store::exports::corrected::members_follow;
use crate::store::exports::groups::{Groups, WITHOUT_SOME};
use crate::store::exports::undecided;
use crate::store::outbox::{
    CHANGED_EVENTS_MAX, Claim, EventDone, EventFilter, OutboxStore, TellEvent, WEBHOOK, Wanted,
    apart, join, of_a_call, of_state, told,
};
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::exports::{load_lanes, write_exports};
use crate::store::sqlite::rows::{classify, select, write_rows};
use crate::store::table::{
    AUDIT_LOG, BILLING_EVENTS, BILLING_SINKS, EVENT_DONE, EXPORTS, USAGE_CORRECTIONS,
    USAGE_RECORDS, parse, sqlite as sql,
};
use crate::store::{PAGE_ROWS_MAX, StoreError};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqliteConnection};
use std::collections::BTreeSet;

/// What can be kept back.
const UNMERGED: &str = "state = 'waiting' AND export_group IS NULL";

#[async_trait]
impl OutboxStore for SqliteStore {
    async fn billing_events_after(
        &self,
        wanted: &EventFilter,
        after: &str,
    ) -> Result<Vec<BillingEvent>, StoreError> {
        // By the order of the ids, all events would be read for the few that are parked.
        let is_of_parked = wanted.state == Some(DeliveryState::Parked);
        let index = if is_of_parked { "INDEXED BY billing_events_parked" } else { "" };
        let condition = format!(
            "{index} WHERE t.id > ?1 AND (?2 IS NULL OR t.sink = ?2) \
             AND (?3 IS NULL OR t.account_id = ?3) {} \
             ORDER BY t.id LIMIT {PAGE_ROWS_MAX}",
            of_state(wanted.state)
        );
        let statement = sql::select(&BILLING_EVENTS, &condition);
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(after)
            .bind(&wanted.sink)
            .bind(wanted.account.map(|id| id.to_string()))
            .fetch_all(&self.readers)
            .await
            .map_err(classify)?;
        parse(&rows)
    }

    async fn billing_event(&self, id: &str) -> Result<Option<BillingEvent>, StoreError> {
        self.one(sql::select(&BILLING_EVENTS, "WHERE id = ?1"), id.to_owned()).await
    }

    async fn register_sinks(&self, now: Timestamp) -> Result<(), StoreError> {
        let sinks = serde_json::to_string(&self.events.sinks)?;
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        for statement in [
            "INSERT INTO billing_sinks (name, since) SELECT value, ?2 FROM json_each(?1) \
             WHERE NOT EXISTS (SELECT 1 FROM billing_sinks s \
              WHERE s.name = value AND s.until IS NULL) ON CONFLICT DO NOTHING",
            "UPDATE billing_sinks SET until = ?2 WHERE until IS NULL \
             AND name NOT IN (SELECT value FROM json_each(?1))",
        ] {
            sqlx::query(statement)
                .bind(&sinks)
                .bind(now.to_string())
                .execute(&mut *tx)
                .await
                .map_err(classify)?;
        }
        tx.commit().await.map_err(classify)
    }

    async fn sinks(&self) -> Result<Vec<SinkWindow>, StoreError> {
        let statement = sql::select(&BILLING_SINKS, "WHERE ?1 = '' ORDER BY name, since");
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        select(&mut conn, &statement.into(), String::new()).await
    }

    async fn add_events(&self, events: &[BillingEvent]) -> Result<u64, StoreError> {
        let statement =
            format!("{} WHERE true ON CONFLICT DO NOTHING", sql::insert(&BILLING_EVENTS));
        let done = sqlx::query(AssertSqlSafe(statement))
            .bind(serde_json::to_string(events)?)
            .execute(&mut *self.writer.acquire().await?)
            .await
            .map_err(classify)?;
        Ok(done.rows_affected())
    }

    async fn claim_events(&self, claim: Claim<'_>) -> Result<Vec<BillingEvent>, StoreError> {
        let statement = format!(
            "UPDATE billing_events SET attempts = attempts + 1, leased_until = ?3, \
             next_attempt_at = ?3 WHERE id IN (SELECT id FROM billing_events WHERE sink = ?1 \
              AND state = 'waiting' AND export_group IS NULL AND next_attempt_at <= ?2 \
              ORDER BY next_attempt_at LIMIT ?4) {}",
            sql::returning(&BILLING_EVENTS)
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(claim.sink)
            .bind(claim.now.to_string())
            .bind(claim.until.to_string())
            .bind(claim.limit)
            .fetch_all(&mut *self.writer.acquire().await?)
            .await
            .map_err(classify)?;
        parse(&rows)
    }

    async fn outgoing(&self, events: Vec<BillingEvent>) -> Result<Vec<Outgoing>, StoreError> {
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        outgoing(&mut conn, events).await
    }

    async fn finish_events(&self, done: &[EventDone], now: Timestamp) -> Result<(), StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let update = sql::update(&BILLING_EVENTS, "id", EVENT_DONE);
        let update = format!("{update} AND {}", of_a_call("billing_events"));
        write_rows(&mut tx, &update.into(), done.iter()).await?;
        let parked = done.iter().filter(|done| done.state == DeliveryState::Parked);
        let parked: Vec<&str> = parked.map(|done| done.id.as_str()).collect();
        self.write_notices(&mut tx, &parked, now).await?;
        tx.commit().await.map_err(classify)
    }

    async fn wake_customers(&self, sink: &str, now: Timestamp) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "UPDATE billing_events SET state = 'waiting', reason = NULL, next_attempt_at = ?2 \
             WHERE id IN (SELECT id FROM billing_events WHERE state = 'parked' AND sink = ?1 \
              AND reason = ?3 AND account_id IN \
              (SELECT id FROM accounts WHERE stripe_customer_id IS NOT NULL) LIMIT ?4)",
        )
        .bind(sink)
        .bind(now.to_string())
        .bind(reasons::NO_CUSTOMER)
        .bind(CHANGED_EVENTS_MAX)
        .execute(&mut *self.writer.acquire().await?)
        .await
        .map_err(classify)?;
        Ok(done.rows_affected())
    }

    async fn retry_events(
        &self,
        ids: &[String],
        audit: TellEvent<'_>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let parked = lock(&mut tx, ids, "state = 'parked'").await?;
        let (single, groups) = apart(&parked);
        let mut changed = sqlx::query(
            "UPDATE billing_events SET state = 'waiting', attempts = attempts + 1, \
             next_attempt_at = ?2 WHERE id IN (SELECT value FROM json_each(?1))",
        )
        .bind(serde_json::to_string(&single)?)
        .bind(now.to_string())
        .execute(&mut *tx)
        .await
        .map_err(classify)?
        .rows_affected();
        if !groups.is_empty() {
            changed += renew_groups(&mut tx, &groups, now).await?;
        }
        self.tell(&mut tx, &parked, audit).await?;
        tx.commit().await.map_err(classify)?;
        Ok(changed)
    }

    async fn dismiss_events(
        &self,
        ids: &[String],
        audit: TellEvent<'_>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let parked = lock(&mut tx, ids, "state = 'parked'").await?;
        let (single, groups) = apart(&parked);
        let mut changed = sqlx::query(
            "UPDATE billing_events SET state = 'exported', reason = ?2 \
             WHERE id IN (SELECT value FROM json_each(?1))",
        )
        .bind(serde_json::to_string(&single)?)
        .bind(reasons::DISMISSED)
        .execute(&mut *tx)
        .await
        .map_err(classify)?
        .rows_affected();
        if !groups.is_empty() {
            changed += dismiss_groups(&mut tx, &groups, now).await?;
        }
        self.tell(&mut tx, &parked, audit).await?;
        tx.commit().await.map_err(classify)?;
        Ok(changed)
    }

    async fn park_events(
        &self,
        ids: &[String],
        reason: &str,
        audit: TellEvent<'_>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let waiting = lock(&mut tx, ids, UNMERGED).await?;
        let ids: Vec<&str> = waiting.iter().map(|event| event.id.as_str()).collect();
        let done = sqlx::query(
            "UPDATE billing_events SET state = 'parked', reason = ?2, leased_until = NULL \
             WHERE id IN (SELECT value FROM json_each(?1))",
        )
        .bind(serde_json::to_string(&ids)?)
        .bind(reason)
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        self.tell(&mut tx, &waiting, audit).await?;
        self.write_notices(&mut tx, &ids, now).await?;
        tx.commit().await.map_err(classify)?;
        Ok(done.rows_affected())
    }
}

impl SqliteStore {
    /// Writes into the audit log what has become of these events.
    async fn tell(
        &self,
        conn: &mut SqliteConnection,
        before: &[BillingEvent],
        tell: TellEvent<'_>,
    ) -> Result<(), StoreError> {
        let ids: Vec<&str> = before.iter().map(|event| event.id.as_str()).collect();
        let after = sql::select(&BILLING_EVENTS, "WHERE id IN (SELECT value FROM json_each(?1))");
        let after = select(conn, &after.into(), serde_json::to_string(&ids)?).await?;
        write_rows(conn, &sql::insert(&AUDIT_LOG).into(), told(before, after, tell).iter()).await
    }

    /// The webhook is told of what was parked; of a missing customer it is not, because that may be
    /// every event of most accounts.
    pub(super) async fn write_notices(
        &self,
        conn: &mut SqliteConnection,
        parked: &[&str],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if parked.is_empty() || !self.events.sinks.iter().any(|sink| sink == WEBHOOK) {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO billing_events (id, sink, kind, request_id, account_id, state, attempts, \
             next_attempt_at, created_at, detail) \
             SELECT id || ':' || attempts || ?3, ?4, 'notice', request_id, \
             account_id, 'waiting', 0, ?2, ?2, json_object('reason', reason) FROM billing_events \
             WHERE id IN (SELECT value FROM json_each(?1)) AND state = 'parked' \
             AND sink <> ?4 AND reason <> ?5 ON CONFLICT DO NOTHING",
        )
        .bind(serde_json::to_string(parked)?)
        .bind(now.to_string())
        .bind(NOTICE_SUFFIX)
        .bind(WEBHOOK)
        .bind(reasons::NO_CUSTOMER)
        .execute(conn)
        .await
        .map_err(classify)?;
        Ok(())
    }
}

/// Those of the events of which this holds, in the order of their ids.
async fn lock(
    conn: &mut SqliteConnection,
    ids: &[String],
    condition: &str,
) -> Result<Vec<BillingEvent>, StoreError> {
    let condition =
        format!("WHERE id IN (SELECT value FROM json_each(?1)) AND {condition} ORDER BY id");
    let statement = sql::select(&BILLING_EVENTS, &condition);
    select(conn, &statement.into(), serde_json::to_string(ids)?).await
}

/// The rows that events are copies of.
pub async fn outgoing(
    conn: &mut SqliteConnection,
    events: Vec<BillingEvent>,
) -> Result<Vec<Outgoing>, StoreError> {
    const LISTED: &str = "IN (SELECT value FROM json_each(?1))";
    let wanted = Wanted::of(&events);
    let records = sql::select(&USAGE_RECORDS, &format!("WHERE id {LISTED}"));
    let ids = serde_json::to_string(&wanted.records)?;
    let records = select(conn, &records.into(), ids).await?;
    let mut corrections = Vec::new();
    if !wanted.corrections.is_empty() {
        let statement = sql::select(&USAGE_CORRECTIONS, &format!("WHERE request_id {LISTED}"));
        let ids = serde_json::to_string(&wanted.corrections)?;
        corrections = select(conn, &statement.into(), ids).await?;
    }
    let mut subjects = Vec::new();
    if !wanted.events.is_empty() {
        let statement = sql::select(&BILLING_EVENTS, &format!("WHERE id {LISTED}"));
        let ids = serde_json::to_string(&wanted.events)?;
        subjects = select(conn, &statement.into(), ids).await?;
    }
    Ok(join(events, records, corrections, subjects))
}

async fn load_groups(
    conn: &mut SqliteConnection,
    groups: &BTreeSet<String>,
) -> Result<Groups, StoreError> {
    let undecided = undecided();
    let listed = "event_group IN (SELECT value FROM json_each(?1))";
    let statement = sql::select(&EXPORTS, &format!("WHERE {listed} AND {undecided}"));
    let exports: Vec<Export> =
        select(conn, &statement.into(), serde_json::to_string(groups)?).await?;
    let customers: BTreeSet<(String, String)> =
        exports.iter().map(|export| (export.sink.clone(), export.customer.clone())).collect();
    let mut lanes = Vec::new();
    for (sink, customer) in customers {
        lanes.extend(load_lanes(conn, &sink, &[customer]).await?);
    }
    let partial = format!("SELECT t.event_group FROM exports t WHERE {listed} AND {WITHOUT_SOME}");
    let partial = sqlx::query_scalar(AssertSqlSafe(partial))
        .bind(serde_json::to_string(groups)?)
        .fetch_all(conn)
        .await
        .map_err(classify)?;
    Ok(Groups::new(lanes, exports, partial))
}

/// Parked groups: planned anew, or sent again where something of them may have arrived.
async fn renew_groups(
    conn: &mut SqliteConnection,
    groups: &BTreeSet<String>,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let mut groups = load_groups(conn, groups).await?;
    let changed = groups.renew(now);
    write_exports(conn, changed.written.iter(), &changed.made, groups.lanes()).await?;
    let done = sqlx::query(
        "UPDATE billing_events SET state = 'waiting', reason = NULL, attempts = attempts + 1, \
         next_attempt_at = ?3, export_group = CASE WHEN export_group IN \
          (SELECT value FROM json_each(?1)) THEN NULL ELSE export_group END \
         WHERE state = 'parked' AND export_group IN \
         (SELECT value FROM json_each(?1) UNION SELECT value FROM json_each(?2))",
    )
    .bind(serde_json::to_string(&changed.replanned)?)
    .bind(serde_json::to_string(&changed.kept)?)
    .bind(now.to_string())
    .execute(conn)
    .await
    .map_err(classify)?;
    Ok(done.rows_affected())
}

async fn dismiss_groups(
    conn: &mut SqliteConnection,
    groups: &BTreeSet<String>,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let mut groups = load_groups(conn, groups).await?;
    let changed = groups.dismiss(now);
    write_exports(conn, changed.written.iter(), &changed.made, groups.lanes()).await?;
    let names = serde_json::to_string(&changed.kept)?;
    let done = sqlx::query(AssertSqlSafe(members_follow("IN (SELECT value FROM json_each(?1))")))
        .bind(&names)
        .execute(&mut *conn)
        .await
        .map_err(classify)?;
    sqlx::query(
        "UPDATE billing_events SET reason = ?2 WHERE state = 'exported' \
         AND export_group IN (SELECT value FROM json_each(?1))",
    )
    .bind(names)
    .bind(reasons::DISMISSED)
    .execute(conn)
    .await
    .map_err(classify)?;
    Ok(done.rows_affected())
}
