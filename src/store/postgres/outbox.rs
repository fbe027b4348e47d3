//! Billing events on their way to sinks, on PostgreSQL.

use crate::models::billing::{
    BillingEvent, DeliveryState, NOTICE_SUFFIX, Outgoing, SinkWindow, reasons,
};
use crate::models::ids::RequestId;
use crate::models::timestamp::Timestamp;
use crate::store::exports::corrected::members_follow;
use crate::store::exports::groups::{Groups, WITHOUT_SOME};
use crate::store::exports::undecided;
use crate::store::outbox::{
    CHANGED_EVENTS_MAX, Claim, EventDone, EventFilter, OutboxStore, TellEvent, WEBHOOK, Wanted,
    apart, join, of_a_call, of_state, told,
};
use crate::store::postgres::PostgresStore;
use crate::store::postgres::exports::{lock_lanes_of, write_exports};
use crate::store::postgres::rows::{classify, select, write_rows};
use crate::store::table::{
    BILLING_EVENTS, BILLING_SINKS, EVENT_DONE, EXPORTS, USAGE_CORRECTIONS, USAGE_RECORDS, parse,
    postgres as sql,
};
use crate::store::{PAGE_ROWS_MAX, StoreError};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, PgConnection};
use std::collections::BTreeSet;
use uuid::Uuid;

/// What can be kept back.
const UNMERGED: &str = "state = 'waiting' AND export_group IS NULL";

#[async_trait]
impl OutboxStore for PostgresStore {
    async fn billing_events_after(
        &self,
        wanted: &EventFilter,
        after: &str,
    ) -> Result<Vec<BillingEvent>, StoreError> {
        let condition = format!(
            "WHERE t.id > $1 AND ($2 IS NULL OR t.sink = $2) \
             AND ($3 IS NULL OR t.account_id = $3) {} \
             ORDER BY t.id LIMIT {PAGE_ROWS_MAX}",
            of_state(wanted.state)
        );
        let statement = sql::select(&BILLING_EVENTS, &condition);
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(after)
            .bind(&wanted.sink)
            .bind(wanted.account.map(|id| id.0))
            .fetch_all(&mut *self.lend().await?)
            .await
            .map_err(classify)?;
        parse(&rows)
    }

    async fn billing_event(&self, id: &str) -> Result<Option<BillingEvent>, StoreError> {
        self.one(sql::select(&BILLING_EVENTS, "WHERE id = $1"), id.to_owned()).await
    }

    async fn register_sinks(&self, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        for statement in [
            "INSERT INTO billing_sinks (name, since) SELECT n, $2::timestamptz FROM unnest($1) n \
             WHERE NOT EXISTS (SELECT 1 FROM billing_sinks s WHERE s.name = n AND s.until IS NULL) \
             ON CONFLICT DO NOTHING",
            "UPDATE billing_sinks SET until = $2::timestamptz \
             WHERE until IS NULL AND NOT name = ANY($1)",
        ] {
            sqlx::query(statement)
                .bind(&self.events.sinks)
                .bind(now.to_string())
                .execute(&mut *tx)
                .await
                .map_err(classify)?;
        }
        tx.commit().await
    }

    async fn sinks(&self) -> Result<Vec<SinkWindow>, StoreError> {
        let statement = sql::select(&BILLING_SINKS, "WHERE $1 ORDER BY name, since");
        let mut conn = self.lend().await?;
        select(&mut conn, &statement.into(), true).await
    }

    async fn add_events(&self, events: &[BillingEvent]) -> Result<u64, StoreError> {
        let statement = format!("{} ON CONFLICT DO NOTHING", sql::insert(&BILLING_EVENTS));
        let done = sqlx::query(AssertSqlSafe(statement))
            .bind(serde_json::to_string(events)?)
            .execute(&mut *self.lend().await?)
            .await
            .map_err(classify)?;
        Ok(done.rows_affected())
    }

    async fn claim_events(&self, claim: Claim<'_>) -> Result<Vec<BillingEvent>, StoreError> {
        let mut tx = self.begin().await?;
        let rows: Vec<String> = sqlx::query_scalar(
            "UPDATE billing_events t SET attempts = attempts + 1, \
             leased_until = $3::timestamptz, next_attempt_at = $3::timestamptz \
             WHERE id IN (SELECT id FROM billing_events WHERE sink = $1 AND state = 'waiting' \
              AND export_group IS NULL AND next_attempt_at <= $2::timestamptz \
              ORDER BY next_attempt_at LIMIT $4 FOR UPDATE SKIP LOCKED) \
             RETURNING row_to_json(t)::text",
        )
        .bind(claim.sink)
        .bind(claim.now.to_string())
        .bind(claim.until.to_string())
        .bind(claim.limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(classify)?;
        tx.commit().await?;
        parse(&rows)
    }

    async fn outgoing(&self, events: Vec<BillingEvent>) -> Result<Vec<Outgoing>, StoreError> {
        outgoing(&mut *self.begin().await?, events).await
    }

    async fn finish_events(&self, done: &[EventDone], now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let update = sql::update(&BILLING_EVENTS, "id", EVENT_DONE);
        let update = format!("{update} AND {}", of_a_call("t"));
        write_rows(&mut tx, &update.into(), done.iter()).await?;
        let parked = done.iter().filter(|done| done.state == DeliveryState::Parked);
        self.write_notices(&mut tx, parked.map(|done| done.id.clone()).collect(), now).await?;
        tx.commit().await
    }

    async fn wake_customers(&self, sink: &str, now: Timestamp) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "UPDATE billing_events SET state = 'waiting', reason = NULL, \
             next_attempt_at = $2::timestamptz WHERE id IN (SELECT id FROM billing_events \
              WHERE state = 'parked' AND sink = $1 AND reason = $3 AND account_id IN \
              (SELECT id FROM accounts WHERE stripe_customer_id IS NOT NULL) \
              LIMIT $4 FOR UPDATE SKIP LOCKED)",
        )
        .bind(sink)
        .bind(now.to_string())
        .bind(reasons::NO_CUSTOMER)
        .bind(CHANGED_EVENTS_MAX)
        .execute(&mut *self.lend().await?)
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
        let mut tx = self.begin().await?;
        let parked = lock_parked(&mut tx, ids).await?;
        let (single, groups) = apart(&parked);
        let mut changed = sqlx::query(
            "UPDATE billing_events SET state = 'waiting', attempts = attempts + 1, \
             next_attempt_at = $2::timestamptz WHERE id = ANY($1)",
        )
        .bind(single)
        .bind(now.to_string())
        .execute(&mut *tx)
        .await
        .map_err(classify)?
        .rows_affected();
        if !groups.is_empty() {
            changed += renew_groups(&mut tx, &groups, now).await?;
        }
        self.tell(&mut tx, &parked, audit).await?;
        tx.commit().await?;
        Ok(changed)
    }

    async fn dismiss_events(
        &self,
        ids: &[String],
        audit: TellEvent<'_>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut tx = self.begin().await?;
        let parked = lock_parked(&mut tx, ids).await?;
        let (single, groups) = apart(&parked);
        let mut changed = sqlx::query(
            "UPDATE billing_events SET state = 'exported', reason = $2 WHERE id = ANY($1)",
        )
        .bind(single)
        .bind(reasons::DISMISSED)
        .execute(&mut *tx)
        .await
        .map_err(classify)?
        .rows_affected();
        if !groups.is_empty() {
            changed += dismiss_groups(&mut tx, &groups, now).await?;
        }
        self.tell(&mut tx, &parked, audit).await?;
        tx.commit().await?;
        Ok(changed)
    }

    async fn park_events(
        &self,
        ids: &[String],
        reason: &str,
        audit: TellEvent<'_>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut tx = self.begin().await?;
        let waiting = lock(&mut tx, ids, UNMERGED).await?;
        let ids: Vec<String> = waiting.iter().map(|event| event.id.clone()).collect();
        let done = sqlx::query(
            "UPDATE billing_events SET state = 'parked', reason = $2, leased_until = NULL \
             WHERE id = ANY($1)",
        )
        .bind(&ids)
        .bind(reason)
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        self.tell(&mut tx, &waiting, audit).await?;
        self.write_notices(&mut tx, ids, now).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}

impl PostgresStore {
    /// Writes into the audit log what has become of these events.
    async fn tell(
        &self,
        conn: &mut PgConnection,
        before: &[BillingEvent],
        tell: TellEvent<'_>,
    ) -> Result<(), StoreError> {
        let ids: Vec<String> = before.iter().map(|event| event.id.clone()).collect();
        let after = sql::select(&BILLING_EVENTS, "WHERE id = ANY($1)");
        let after = select(conn, &after.into(), ids).await?;
        write_rows(conn, &self.sql.insert_audit, told(before, after, tell).iter()).await
    }

    /// The webhook is told of what was parked; of a missing customer it is not, because that may be
    /// every event of most accounts.
    pub(super) async fn write_notices(
        &self,
        conn: &mut PgConnection,
        parked: Vec<String>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if parked.is_empty() || !self.events.sinks.iter().any(|sink| sink == WEBHOOK) {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO billing_events (id, sink, kind, request_id, account_id, state, attempts, \
             next_attempt_at, created_at, detail) \
             SELECT id || ':' || attempts || $3, $4, 'notice', request_id, \
             account_id, 'waiting', 0, $2::timestamptz, $2::timestamptz, \
             json_build_object('reason', reason)::text FROM billing_events \
             WHERE id = ANY($1) AND state = 'parked' AND sink <> $4 AND reason <> $5 \
             ON CONFLICT DO NOTHING",
        )
        .bind(parked)
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
    conn: &mut PgConnection,
    ids: &[String],
    condition: &str,
) -> Result<Vec<BillingEvent>, StoreError> {
    let condition = format!("WHERE id = ANY($1) AND {condition} ORDER BY id FOR UPDATE");
    let statement = sql::select(&BILLING_EVENTS, &condition);
    select(conn, &statement.into(), ids.to_vec()).await
}

/// In the order of all others: lanes, then events.
async fn lock_parked(
    conn: &mut PgConnection,
    ids: &[String],
) -> Result<Vec<BillingEvent>, StoreError> {
    let groups = sqlx::query_scalar(
        "SELECT DISTINCT export_group FROM billing_events \
         WHERE id = ANY($1) AND state = 'parked' AND export_group IS NOT NULL",
    );
    let groups = groups.bind(ids).fetch_all(&mut *conn).await.map_err(classify)?;
    lock_lanes_of(conn, "event_group", groups).await?;
    lock(conn, ids, "state = 'parked'").await
}

/// The rows that events are copies of.
pub async fn outgoing(
    conn: &mut PgConnection,
    events: Vec<BillingEvent>,
) -> Result<Vec<Outgoing>, StoreError> {
    let wanted = Wanted::of(&events);
    let uuids = |ids: Vec<RequestId>| ids.into_iter().map(|id| id.0).collect::<Vec<Uuid>>();
    let records = sql::select(&USAGE_RECORDS, "WHERE id = ANY($1)");
    let records = select(conn, &records.into(), uuids(wanted.records)).await?;
    let mut corrections = Vec::new();
    if !wanted.corrections.is_empty() {
        let statement = sql::select(&USAGE_CORRECTIONS, "WHERE request_id = ANY($1)");
        corrections = select(conn, &statement.into(), uuids(wanted.corrections)).await?;
    }
    let mut subjects = Vec::new();
    if !wanted.events.is_empty() {
        let statement = sql::select(&BILLING_EVENTS, "WHERE id = ANY($1)");
        subjects = select(conn, &statement.into(), wanted.events).await?;
    }
    Ok(join(events, records, corrections, subjects))
}

async fn load_groups(
    conn: &mut PgConnection,
    groups: &BTreeSet<String>,
) -> Result<Groups, StoreError> {
    let groups: Vec<String> = groups.iter().cloned().collect();
    let lanes = lock_lanes_of(conn, "event_group", groups.clone()).await?;
    let undecided = undecided();
    let statement = sql::select(&EXPORTS, &format!("WHERE event_group = ANY($1) AND {undecided}"));
    let exports = select(conn, &statement.into(), groups.clone()).await?;
    let partial = format!(
        "SELECT t.event_group FROM exports t WHERE t.event_group = ANY($1) AND {WITHOUT_SOME}"
    );
    let partial = sqlx::query_scalar(AssertSqlSafe(partial));
    let partial = partial.bind(groups).fetch_all(conn).await.map_err(classify)?;
    Ok(Groups::new(lanes, exports, partial))
}

/// Parked groups: planned anew, or sent again where something of them may have arrived.
async fn renew_groups(
    conn: &mut PgConnection,
    groups: &BTreeSet<String>,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let mut groups = load_groups(conn, groups).await?;
    let changed = groups.renew(now);
    write_exports(conn, changed.written.iter(), &changed.made, groups.lanes()).await?;
    let done = sqlx::query(
        "UPDATE billing_events SET state = 'waiting', reason = NULL, attempts = attempts + 1, \
         next_attempt_at = $3::timestamptz, \
         export_group = CASE WHEN export_group = ANY($1) THEN NULL ELSE export_group END \
         WHERE state = 'parked' AND (export_group = ANY($1) OR export_group = ANY($2))",
    )
    .bind(changed.replanned)
    .bind(changed.kept)
    .bind(now.to_string())
    .execute(conn)
    .await
    .map_err(classify)?;
    Ok(done.rows_affected())
}

async fn dismiss_groups(
    conn: &mut PgConnection,
    groups: &BTreeSet<String>,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let mut groups = load_groups(conn, groups).await?;
    let changed = groups.dismiss(now);
    write_exports(conn, changed.written.iter(), &changed.made, groups.lanes()).await?;
    let done = sqlx::query(AssertSqlSafe(members_follow("= ANY($1)")))
        .bind(&changed.kept)
        .execute(&mut *conn)
        .await
        .map_err(classify)?;
    sqlx::query(
        "UPDATE billing_events SET reason = $2 \
         WHERE state = 'exported' AND export_group = ANY($1)",
    )
    .bind(changed.kept)
    .bind(reasons::DISMISSED)
    .execute(conn)
    .await
    .map_err(classify)?;
    Ok(done.rows_affected())
}
