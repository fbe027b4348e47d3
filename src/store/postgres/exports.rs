//! Merged events, on PostgreSQL.

use crate::models::billing::{BillingEvent, DeliveryState, Export, Lane, Meter, Outgoing};
use crate::models::ids::AccountId;
use crate::models::timestamp::Timestamp;
use crate::store::exports::corrected::{TellExport, Word, correct, members_follow, tellable};
use crate::store::exports::{
    ExportDone, ExportFilter, ExportStore, LaneClaim, Planned, of_an_attempt, plan,
};
use crate::store::outbox::of_state;
use crate::store::postgres::PostgresStore;
use crate::store::postgres::outbox::outgoing;
use crate::store::postgres::rows::{classify, select, write_rows};
use crate::store::table::{
    BILLING_EVENTS, EVENT_PROGRESS, EXPORT_LANES, EXPORT_PROGRESS, EXPORTS, LANE_PROGRESS, parse,
    postgres as sql,
};
use crate::store::{PAGE_ROWS_MAX, StoreError};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, PgConnection};
use std::collections::{BTreeSet, HashMap};
use uuid::Uuid;

/// Since when they may have arrived. Attempts tell one claim from another.
const FIRST_SENT: &str = "UPDATE exports t SET first_sent_at = r.first_sent_at \
     FROM json_populate_recordset(NULL::exports, $1::json) r \
     WHERE t.id = r.id AND t.attempts = r.attempts AND t.state IN ('waiting', 'parked')";

#[async_trait]
impl ExportStore for PostgresStore {
    async fn plan_exports(
        &self,
        sink: &str,
        meters: &[Meter],
        now: Timestamp,
        limit: i64,
    ) -> Result<Planned, StoreError> {
        let mut tx = self.begin().await?;
        let events = due(&mut tx, sink, now, limit).await?;
        if events.is_empty() {
            return Ok(Planned::default());
        }
        let taken = events.len();
        let customers = customers(&mut tx, &events).await?;
        let named: BTreeSet<String> = customers.values().cloned().collect();
        let lanes = open_lanes(&mut tx, sink, named.into_iter().collect()).await?;
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
        self.write_notices(&mut tx, parked.map(|event| event.id.clone()).collect(), now).await?;
        tx.commit().await?;
        Ok(Planned { taken, ..plan.planned() })
    }

    async fn claim_exports(&self, claim: &LaneClaim<'_>) -> Result<Vec<Export>, StoreError> {
        let mut tx = self.begin().await?;
        let customers: Vec<String> = sqlx::query_scalar(
            "WITH due AS (SELECT customer FROM export_lanes \
              WHERE sink = $1 AND next_attempt_at <= $2::timestamptz \
              ORDER BY next_attempt_at LIMIT $3 FOR UPDATE SKIP LOCKED) \
             UPDATE export_lanes t SET leased_by = $4, leased_until = $5::timestamptz, \
             next_attempt_at = $5::timestamptz FROM due \
             WHERE t.sink = $1 AND t.customer = due.customer RETURNING t.customer",
        )
        .bind(claim.sink)
        .bind(claim.now.to_string())
        .bind(claim.lanes)
        .bind(claim.by)
        .bind(claim.until.to_string())
        .fetch_all(&mut *tx)
        .await
        .map_err(classify)?;
        if customers.is_empty() {
            return Ok(vec![]);
        }
        let rows: Vec<String> = sqlx::query_scalar(
            "UPDATE exports t SET attempts = attempts + 1, \
             first_sent_at = COALESCE(first_sent_at, $2::timestamptz) WHERE id IN \
             (SELECT w.id FROM unnest($3) c CROSS JOIN LATERAL \
              (SELECT id FROM exports e WHERE e.sink = $1 AND e.customer = c \
               AND e.state = 'waiting' AND e.next_attempt_at <= $2::timestamptz \
               ORDER BY e.seq LIMIT $4) w) RETURNING row_to_json(t)::text",
        )
        .bind(claim.sink)
        .bind(claim.now.to_string())
        .bind(&customers)
        .bind(claim.exports_per_lane)
        .fetch_all(&mut *tx)
        .await
        .map_err(classify)?;
        let mut exports: Vec<Export> = parse(&rows)?;
        let has_some = |customer: &String| exports.iter().any(|e| e.customer == *customer);
        let idle: Vec<String> = customers.into_iter().filter(|c| !has_some(c)).collect();
        release(&mut tx, claim, &idle).await?;
        tx.commit().await?;
        exports.sort_by(|a, b| (&a.customer, a.seq).cmp(&(&b.customer, b.seq)));
        Ok(exports)
    }

    async fn finish_exports(
        &self,
        claim: &LaneClaim<'_>,
        customers: &[String],
        done: &[ExportDone],
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        // Before the rest: what was planned meanwhile is seen below.
        lock_lanes(&mut tx, claim.sink, customers.to_vec()).await?;
        let update = sql::update(&EXPORTS, "id", EXPORT_PROGRESS);
        let update = format!("{update} AND {}", of_an_attempt("t"));
        write_rows(&mut tx, &update.into(), done.iter()).await?;
        let known = done.iter().filter(|done| done.first_sent.is_some());
        write_rows(&mut tx, &FIRST_SENT.into(), known).await?;
        let ids = |state| {
            let of_state = done.iter().filter(move |done| done.state == state);
            of_state.map(|done| done.id.clone()).collect::<Vec<_>>()
        };
        sqlx::query(
            "UPDATE billing_events t SET state = 'exported', reason = NULL, leased_until = NULL \
             WHERE export_group IN (SELECT event_group FROM exports WHERE id = ANY($1)) \
             AND NOT EXISTS (SELECT 1 FROM exports o WHERE o.event_group = t.export_group \
              AND o.state IN ('waiting', 'parked'))",
        )
        .bind(ids(DeliveryState::Exported))
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        let parked: Vec<String> = sqlx::query_scalar(
            "UPDATE billing_events t SET state = 'parked', leased_until = NULL, \
             reason = e.reason FROM exports e WHERE e.id = ANY($1) AND e.state = 'parked' \
             AND t.export_group = e.event_group AND t.state = 'waiting' RETURNING t.id",
        )
        .bind(ids(DeliveryState::Parked))
        .fetch_all(&mut *tx)
        .await
        .map_err(classify)?;
        self.write_notices(&mut tx, parked, claim.now).await?;
        release(&mut tx, claim, customers).await?;
        tx.commit().await
    }

    async fn exports_used(
        &self,
        (customer, meter): (&str, &str),
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Export>, StoreError> {
        let statement = sql::select(
            &EXPORTS,
            "WHERE customer = $1 AND meter = $2 AND used_at >= $3::timestamptz \
             AND used_at < $4::timestamptz LIMIT $5",
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(customer)
            .bind(meter)
            .bind(from.to_string())
            .bind(to.to_string())
            .bind(crate::store::PAGE_ROWS_MAX)
            .fetch_all(&mut *self.lend().await?)
            .await
            .map_err(classify)?;
        parse(&rows)
    }

    async fn export(&self, id: &str) -> Result<Option<Export>, StoreError> {
        self.one(sql::select(&EXPORTS, "WHERE id = $1"), id.to_owned()).await
    }

    async fn exports_after(
        &self,
        wanted: &ExportFilter,
        after: &str,
    ) -> Result<Vec<Export>, StoreError> {
        let condition = format!(
            "WHERE t.id > $1 AND ($2 IS NULL OR t.customer = $2) \
             AND ($3 IS NULL OR t.meter = $3) AND ($4 IS NULL OR t.used_at >= $4::timestamptz) \
             AND ($5 IS NULL OR t.used_at < $5::timestamptz) {} \
             ORDER BY t.id LIMIT {PAGE_ROWS_MAX}",
            of_state(wanted.state)
        );
        let rows: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(sql::select(&EXPORTS, &condition)))
                .bind(after)
                .bind(&wanted.customer)
                .bind(&wanted.meter)
                .bind(wanted.from.map(|at| at.to_string()))
                .bind(wanted.until.map(|at| at.to_string()))
                .fetch_all(&mut *self.lend().await?)
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
        let mut tx = self.begin().await?;
        let mut lanes = lock_lanes_of(&mut tx, "id", ids.to_vec()).await?;
        let named = format!("WHERE t.id = ANY($1) AND {}", tellable());
        let exports = select(&mut tx, &sql::select(&EXPORTS, &named).into(), ids.to_vec()).await?;
        let corrected = correct(word, &mut lanes, exports, now);
        write_exports(&mut tx, corrected.written(), &corrected.made, lanes.iter()).await?;
        sqlx::query(AssertSqlSafe(members_follow("= ANY($1)")))
            .bind(corrected.groups())
            .execute(&mut *tx)
            .await
            .map_err(classify)?;
        let told = corrected.told(audit);
        write_rows(&mut tx, &self.sql.insert_audit, told.iter()).await?;
        tx.commit().await?;
        Ok(corrected.count())
    }

    async fn lanes(&self) -> Result<Vec<Lane>, StoreError> {
        let statement = sql::select(&EXPORT_LANES, "WHERE $1");
        let mut conn = self.lend().await?;
        select(&mut conn, &statement.into(), true).await
    }
}

/// Events that wait to be merged, locked; those that another process merges are passed over.
async fn due(
    conn: &mut PgConnection,
    sink: &str,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<BillingEvent>, StoreError> {
    let statement = sql::select(
        &BILLING_EVENTS,
        "WHERE sink = $1 AND state = 'waiting' AND export_group IS NULL \
         AND next_attempt_at <= $2::timestamptz ORDER BY next_attempt_at LIMIT $3 \
         FOR UPDATE SKIP LOCKED",
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
    conn: &mut PgConnection,
    events: &[BillingEvent],
) -> Result<HashMap<AccountId, String>, StoreError> {
    let accounts: BTreeSet<AccountId> = events.iter().map(|event| event.account_id).collect();
    let accounts: Vec<Uuid> = accounts.into_iter().map(|id| id.0).collect();
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "SELECT id, stripe_customer_id FROM accounts \
         WHERE id = ANY($1) AND stripe_customer_id IS NOT NULL",
    )
    .bind(accounts)
    .fetch_all(conn)
    .await
    .map_err(classify)?;
    Ok(rows.into_iter().map(|(id, customer)| (AccountId(id), customer)).collect())
}

/// The customers' lanes, made where they are missing, and locked.
async fn open_lanes(
    conn: &mut PgConnection,
    sink: &str,
    customers: Vec<String>,
) -> Result<Vec<Lane>, StoreError> {
    let new: Vec<Lane> = customers.iter().map(|customer| Lane::new(sink, customer)).collect();
    let insert = format!("{} ON CONFLICT DO NOTHING", sql::insert(&EXPORT_LANES));
    write_rows(conn, &insert.into(), new.iter()).await?;
    lock_lanes(conn, sink, customers).await
}

/// In the order of customers, so that two processes wait for each other and never deadlock.
pub async fn lock_lanes(
    conn: &mut PgConnection,
    sink: &str,
    customers: Vec<String>,
) -> Result<Vec<Lane>, StoreError> {
    let statement = sql::select(
        &EXPORT_LANES,
        "WHERE sink = $1 AND customer = ANY($2) ORDER BY customer FOR UPDATE",
    );
    let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(sink)
        .bind(customers)
        .fetch_all(conn)
        .await
        .map_err(classify)?;
    parse(&rows)
}

/// Those of the exports with these values of a column, before what the exports are is read: else it
/// may be something else by the time that it is written.
pub async fn lock_lanes_of(
    conn: &mut PgConnection,
    column: &str,
    values: Vec<String>,
) -> Result<Vec<Lane>, StoreError> {
    let condition = format!(
        "WHERE (sink, customer) IN (SELECT sink, customer FROM exports WHERE {column} = ANY($1)) \
         ORDER BY customer FOR UPDATE"
    );
    select(conn, &sql::select(&EXPORT_LANES, &condition).into(), values).await
}

/// Writes down what a person's word has made of exports, and of their lanes.
pub async fn write_exports(
    conn: &mut PgConnection,
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
    conn: &mut PgConnection,
    lanes: impl Iterator<Item = &Lane>,
) -> Result<(), StoreError> {
    let update = sql::update(&EXPORT_LANES, "customer", LANE_PROGRESS);
    write_rows(conn, &format!("{update} AND t.sink = r.sink").into(), lanes).await
}

async fn release(
    conn: &mut PgConnection,
    claim: &LaneClaim<'_>,
    customers: &[String],
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE export_lanes t SET leased_by = NULL, leased_until = NULL, \
         next_attempt_at = (SELECT min(next_attempt_at) FROM exports e \
          WHERE e.sink = t.sink AND e.customer = t.customer AND e.state = 'waiting') \
         WHERE sink = $1 AND customer = ANY($2) AND leased_by = $3",
    )
    .bind(claim.sink)
    .bind(customers)
    .bind(claim.by)
    .execute(conn)
    .await
    .map_err(classify)?;
    Ok(())
}
