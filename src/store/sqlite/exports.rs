//! Merged events, on SQLite.

use crate::models::billing::{BillingEvent, DeliveryState, Export, Lane, Meter, Outgoing};
use crate::models::ids::AccountId;
use crate::models::timestamp::Timestamp;
use crate::store::exports::corrected::{TellExport, Word, correct, members_follow, tellable};
use crate::store::exports::{
    ExportDone, ExportFilter, ExportStore, LaneClaim, Planned, of_an_attempt, plan,
};
use crate::store::outbox::of_state;
use crate::store::sqlite::outbox::outgoing;
use crate::store::sqlite::rows::{classify, select, write_rows};
use crate::store::sqlite::{SqliteStore, text};
use crate::store::table::{
    AUDIT_LOG, BILLING_EVENTS, EVENT_PROGRESS, EXPORT_LANES, EXPORT_PROGRESS, EXPORTS,
    LANE_PROGRESS, parse, sqlite as sql,
};
use crate::store::{PAGE_ROWS_MAX, StoreError};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqliteConnection};
use std::collections::{BTreeSet, HashMap};

/// Since when they may have arrived. Attempts tell one claim from another.
const FIRST_SENT: &str = "UPDATE exports SET first_sent_at = r.first_sent_at \
     FROM (SELECT value ->> '$.id' AS id, value ->> '$.attempts' AS attempts, \
      value ->> '$.first_sent_at' AS first_sent_at FROM json_each(?1)) r \
     WHERE exports.id = r.id AND exports.attempts = r.attempts \
     AND exports.state IN ('waiting', 'parked')";

#[async_trait]
impl ExportStore for SqliteStore {
    async fn plan_exports(
        &self,
        sink: &str,
        meters: &[Meter],
        now: Timestamp,
        limit: i64,
    ) -> Result<Planned, StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let events = due(&mut tx, sink, now, limit).await?;
        if events.is_empty() {
            return Ok(Planned::default());
        }
        let taken = events.len();
        let customers = customers(&mut tx, &events).await?;
        let named: BTreeSet<String> = customers.values().cloned().collect();
        let lanes = open_lanes(&mut tx, sink, &Vec::from_iter(named)).await?;
        let lanes = lanes.into_iter().map(|lane| (lane.customer.clone(), lane)).collect();
        let outgoing = outgoing(&mut tx, events).await?;
        let with_customer = |outgoing: Outgoing| {
            let customer = customers.get(&outgoing.event.account_id).cloned();
            (outgoing, customer)
        };
        let plan = plan(outgoing.into_iter().map(with_customer).collect(), lanes, meters, now);
        let update = sql::update(&BILLING_EVENTS, "id", EVENT_PROGRESS);
        write_rows(&mut tx, &sql::insert(&EXPORTS).into(), plan.exports.iter()).await?;
        write_rows(&mut tx, &update.into(), plan.events.iter()).await?;
        write_lanes(&mut tx, plan.lanes.values()).await?;
        let parked = plan.events.iter().filter(|event| event.state == DeliveryState::Parked);
        let parked: Vec<&str> = parked.map(|event| event.id.as_str()).collect();
        self.write_notices(&mut tx, &parked, now).await?;
        tx.commit().await.map_err(classify)?;
        Ok(Planned { taken, ..plan.planned() })
    }

    async fn claim_exports(&self, claim: &LaneClaim<'_>) -> Result<Vec<Export>, StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let customers: Vec<String> = sqlx::query_scalar(
            "UPDATE export_lanes SET leased_by = ?4, leased_until = ?5, next_attempt_at = ?5 \
             WHERE sink = ?1 AND customer IN (SELECT customer FROM export_lanes \
              WHERE sink = ?1 AND next_attempt_at <= ?2 ORDER BY next_attempt_at LIMIT ?3) \
             RETURNING customer",
        )
        .bind(claim.sink)
        .bind(claim.now.to_string())
        .bind(claim.lanes)
        .bind(claim.by)
        .bind(claim.until.to_string())
        .fetch_all(&mut *tx)
        .await
        .map_err(classify)?;
        let take: std::sync::Arc<str> = format!(
            "UPDATE exports SET attempts = attempts + 1, \
             first_sent_at = COALESCE(first_sent_at, ?2) WHERE id IN (SELECT id FROM exports \
              WHERE sink = ?1 AND customer = ?3 AND state = 'waiting' AND next_attempt_at <= ?2 \
              ORDER BY seq LIMIT ?4) {}",
            sql::returning(&EXPORTS)
        )
        .into();
        let mut exports: Vec<Export> = Vec::new();
        for customer in &customers {
            let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(take.clone()))
                .bind(claim.sink)
                .bind(claim.now.to_string())
                .bind(customer)
                .bind(claim.exports_per_lane)
                .fetch_all(&mut *tx)
                .await
                .map_err(classify)?;
            exports.extend(parse::<Export>(&rows)?);
        }
        let has_some = |customer: &String| exports.iter().any(|e| e.customer == *customer);
        let idle: Vec<String> = customers.into_iter().filter(|c| !has_some(c)).collect();
        release(&mut tx, claim, &idle).await?;
        tx.commit().await.map_err(classify)?;
        exports.sort_by(|a, b| (&a.customer, a.seq).cmp(&(&b.customer, b.seq)));
        Ok(exports)
    }

    async fn finish_exports(
        &self,
        claim: &LaneClaim<'_>,
        customers: &[String],
        done: &[ExportDone],
    ) -> Result<(), StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let update = sql::update(&EXPORTS, "id", EXPORT_PROGRESS);
        let update = format!("{update} AND {}", of_an_attempt("exports"));
        write_rows(&mut tx, &update.into(), done.iter()).await?;
        let known = done.iter().filter(|done| done.first_sent.is_some());
        write_rows(&mut tx, &FIRST_SENT.into(), known).await?;
        let ids = |state| {
            let of_state = done.iter().filter(move |done| done.state == state);
            serde_json::to_string(&of_state.map(|done| done.id.as_str()).collect::<Vec<_>>())
        };
        sqlx::query(
            "UPDATE billing_events SET state = 'exported', reason = NULL, leased_until = NULL \
             WHERE export_group IN (SELECT event_group FROM exports \
              WHERE id IN (SELECT value FROM json_each(?1))) \
             AND NOT EXISTS (SELECT 1 FROM exports o \
              WHERE o.event_group = billing_events.export_group \
              AND o.state IN ('waiting', 'parked'))",
        )
        .bind(ids(DeliveryState::Exported)?)
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        let parked: Vec<String> = sqlx::query_scalar(
            "UPDATE billing_events SET state = 'parked', leased_until = NULL, \
             reason = e.reason FROM exports e \
             WHERE e.id IN (SELECT value FROM json_each(?1)) AND e.state = 'parked' \
             AND billing_events.export_group = e.event_group \
             AND billing_events.state = 'waiting' RETURNING id",
        )
        .bind(ids(DeliveryState::Parked)?)
        .fetch_all(&mut *tx)
        .await
        .map_err(classify)?;
        let parked: Vec<&str> = parked.iter().map(String::as_str).collect();
        self.write_notices(&mut tx, &parked, claim.now).await?;
        release(&mut tx, claim, customers).await?;
        tx.commit().await.map_err(classify)
    }

    async fn exports_used(
        &self,
        (customer, meter): (&str, &str),
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Export>, StoreError> {
        let statement = sql::select(
            &EXPORTS,
            "WHERE customer = ?1 AND meter = ?2 AND used_at >= ?3 AND used_at < ?4 LIMIT ?5",
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(customer)
            .bind(meter)
            .bind(from.to_string())
            .bind(to.to_string())
            .bind(PAGE_ROWS_MAX)
            .fetch_all(&self.readers)
            .await
            .map_err(classify)?;
        parse(&rows)
    }

    async fn export(&self, id: &str) -> Result<Option<Export>, StoreError> {
        self.one(sql::select(&EXPORTS, "WHERE id = ?1"), id.to_owned()).await
    }

    async fn exports_after(
        &self,
        wanted: &ExportFilter,
        after: &str,
    ) -> Result<Vec<Export>, StoreError> {
        let condition = format!(
            "WHERE t.id > ?1 AND (?2 IS NULL OR t.customer = ?2) \
             AND (?3 IS NULL OR t.meter = ?3) AND (?4 IS NULL OR t.used_at >= ?4) \
             AND (?5 IS NULL OR t.used_at < ?5) {} ORDER BY t.id LIMIT {PAGE_ROWS_MAX}",
            of_state(wanted.state)
        );
        let rows: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(sql::select(&EXPORTS, &condition)))
                .bind(after)
                .bind(&wanted.customer)
                .bind(&wanted.meter)
                .bind(text(wanted.from))
                .bind(text(wanted.until))
                .fetch_all(&self.readers)
                .await
                .map_err(classify)?;
        parse(&rows)
    }

    async fn correct_exports(
        &self,
        ids: &[String],
        word: Word,
        audit: TellExport<'_>,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let ids = serde_json::to_string(ids)?;
        let lanes = sql::select(
            &EXPORT_LANES,
            // The exports first: asked for by lane, all of theirs would be read.
            "WHERE (t.sink, t.customer) IN (SELECT e.sink, e.customer FROM exports e \
             WHERE e.id IN (SELECT value FROM json_each(?1)))",
        );
        let mut lanes: Vec<Lane> = select(&mut tx, &lanes.into(), ids.clone()).await?;
        let named = format!("WHERE t.id IN (SELECT value FROM json_each(?1)) AND {}", tellable());
        let exports = select(&mut tx, &sql::select(&EXPORTS, &named).into(), ids).await?;
        let corrected = correct(word, &mut lanes, exports, now);
        write_exports(&mut tx, corrected.written(), &corrected.made, lanes.iter()).await?;
        sqlx::query(AssertSqlSafe(members_follow("IN (SELECT value FROM json_each(?1))")))
            .bind(serde_json::to_string(&corrected.groups())?)
            .execute(&mut *tx)
            .await
            .map_err(classify)?;
        let told = corrected.told(audit);
        write_rows(&mut tx, &sql::insert(&AUDIT_LOG).into(), told.iter()).await?;
        tx.commit().await.map_err(classify)?;
        Ok(corrected.count())
    }

    async fn lanes(&self) -> Result<Vec<Lane>, StoreError> {
        let statement = sql::select(&EXPORT_LANES, "WHERE ?1 = ''");
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        select(&mut conn, &statement.into(), String::new()).await
    }
}

/// Events that wait to be merged.
async fn due(
    conn: &mut SqliteConnection,
    sink: &str,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<BillingEvent>, StoreError> {
    let statement = sql::select(
        &BILLING_EVENTS,
        "WHERE sink = ?1 AND state = 'waiting' AND export_group IS NULL \
         AND next_attempt_at <= ?2 ORDER BY next_attempt_at LIMIT ?3",
    );
    let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(sink)
        .bind(now.to_string())
        .bind(limit)
        .fetch_all(conn)
        .await
        .map_err(classify)?;
    parse(&rows)
}

/// Who the events' accounts are at the sink, where that is known.
async fn customers(
    conn: &mut SqliteConnection,
    events: &[BillingEvent],
) -> Result<HashMap<AccountId, String>, StoreError> {
    let accounts: BTreeSet<AccountId> = events.iter().map(|event| event.account_id).collect();
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT id, stripe_customer_id FROM accounts WHERE stripe_customer_id IS NOT NULL \
         AND id IN (SELECT value FROM json_each(?1))",
    )
    .bind(serde_json::to_string(&accounts)?)
    .fetch_all(conn)
    .await
    .map_err(classify)?;
    let known = |(id, customer): (String, String)| Some((id.parse().ok()?, customer));
    Ok(rows.into_iter().filter_map(known).collect())
}

/// The customers' lanes, made where they are missing.
async fn open_lanes(
    conn: &mut SqliteConnection,
    sink: &str,
    customers: &[String],
) -> Result<Vec<Lane>, StoreError> {
    let new: Vec<Lane> = customers.iter().map(|customer| Lane::new(sink, customer)).collect();
    let insert = format!("{} WHERE true ON CONFLICT DO NOTHING", sql::insert(&EXPORT_LANES));
    write_rows(conn, &insert.into(), new.iter()).await?;
    load_lanes(conn, sink, customers).await
}

pub async fn load_lanes(
    conn: &mut SqliteConnection,
    sink: &str,
    customers: &[String],
) -> Result<Vec<Lane>, StoreError> {
    let statement = sql::select(
        &EXPORT_LANES,
        "WHERE sink = ?1 AND customer IN (SELECT value FROM json_each(?2))",
    );
    let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(sink)
        .bind(serde_json::to_string(customers)?)
        .fetch_all(conn)
        .await
        .map_err(classify)?;
    parse(&rows)
}

/// Writes down what a person's word has made of exports, and of their lanes.
pub async fn write_exports(
    conn: &mut SqliteConnection,
    changed: impl Iterator<Item = &Export>,
    made: &[Export],
    lanes: impl Iterator<Item = &Lane>,
) -> Result<(), StoreError> {
    let update = sql::update(&EXPORTS, "id", EXPORT_PROGRESS);
    write_rows(conn, &update.into(), changed).await?;
    write_rows(conn, &sql::insert(&EXPORTS).into(), made.iter()).await?;
    write_lanes(conn, lanes).await
}

async fn write_lanes(
    conn: &mut SqliteConnection,
    lanes: impl Iterator<Item = &Lane>,
) -> Result<(), StoreError> {
    let update = sql::update(&EXPORT_LANES, "customer", LANE_PROGRESS);
    write_rows(conn, &format!("{update} AND export_lanes.sink = r.sink").into(), lanes).await
}

async fn release(
    conn: &mut SqliteConnection,
    claim: &LaneClaim<'_>,
    customers: &[String],
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE export_lanes SET leased_by = NULL, leased_until = NULL, \
         next_attempt_at = (SELECT min(next_attempt_at) FROM exports e \
          WHERE e.sink = export_lanes.sink AND e.customer = export_lanes.customer \
          AND e.state = 'waiting') \
         WHERE sink = ?1 AND customer IN (SELECT value FROM json_each(?2)) AND leased_by = ?3",
    )
    .bind(claim.sink)
    .bind(serde_json::to_string(customers)?)
    .bind(claim.by)
    .execute(conn)
    .await
    .map_err(classify)?;
    Ok(())
}
