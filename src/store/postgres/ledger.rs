//! What changes the books, on PostgreSQL.

use crate::models::hold::Hold;
use crate::models::ids::{InstanceId, RequestId};
use crate::models::limits::Subject;
use crate::models::timestamp::Timestamp;
use crate::models::usage::UsageRecord;
use crate::models::window::RateWindow;
use crate::store::ledger::LedgerStore;
use crate::store::postgres::PostgresStore;
use crate::store::postgres::lent::Lent;
use crate::store::postgres::rows::classify;
use crate::store::postgres::verify::records_of;
use crate::store::table::{HOLDS, RATE_WINDOWS, readable};
use crate::store::{LedgerOp, Outcome, StoreError};
use async_trait::async_trait;
use sqlx::AssertSqlSafe;
use std::time::Duration;

/// So many microseconds, `$2`, from now on: by the database's clock, which is the same for all.
const IN_TIME: &str = "now() + $2 * interval '1 microsecond'";

fn micros(lease: Duration) -> i64 {
    i64::try_from(lease.as_micros()).unwrap_or(i64::MAX)
}

#[async_trait]
impl LedgerStore for PostgresStore {
    async fn commit(&self, batch: &[LedgerOp], now: Timestamp) -> Result<Vec<Outcome>, StoreError> {
        let mut tx = self.begin_books().await?;
        let outcomes = self.apply(&mut tx, batch, now).await?;
        tx.commit().await?;
        Ok(outcomes)
    }

    async fn settled(&self, requests: &[RequestId]) -> Result<Vec<UsageRecord>, StoreError> {
        records_of(&mut *self.begin_books().await?, requests).await
    }

    async fn renew_leases(
        &self,
        owner: InstanceId,
        _: Timestamp,
        lease: Duration,
    ) -> Result<(), StoreError> {
        let renew = format!("UPDATE holds SET lease_expires_at = {IN_TIME} WHERE");
        // A batch that has some of them takes them in another order: those few are waited for when
        // nothing else is held that it might wait for.
        for which in [
            "request_id IN (SELECT request_id FROM holds WHERE owner = $1 FOR UPDATE SKIP LOCKED)",
            "owner = $1 AND lease_expires_at < now() + $2 / 2 * interval '1 microsecond'",
        ] {
            sqlx::query(AssertSqlSafe(format!("{renew} {which}")))
                .bind(owner.0)
                .bind(micros(lease))
                .execute(&mut *Lent::of(&self.books).await?)
                .await
                .map_err(classify)?;
        }
        Ok(())
    }

    async fn claim_orphans(
        &self,
        owner: InstanceId,
        except: InstanceId,
        _: Timestamp,
        lease: Duration,
        limit: i64,
    ) -> Result<Vec<Hold>, StoreError> {
        let statement = format!(
            // Materialized: read again for each row, it would be another so many each time.
            "WITH dead AS MATERIALIZED (SELECT request_id FROM holds \
              WHERE lease_expires_at < now() AND owner <> $3 \
              ORDER BY request_id LIMIT $4 FOR UPDATE SKIP LOCKED) \
             UPDATE holds t SET owner = $1, lease_expires_at = {IN_TIME} \
             WHERE request_id IN (SELECT request_id FROM dead) RETURNING row_to_json(t)::text"
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(owner.0)
            .bind(micros(lease))
            .bind(except.0)
            .bind(limit)
            .fetch_all(&mut *Lent::of(&self.books).await?)
            .await
            .map_err(classify)?;
        Ok(readable(rows.iter().map(|row| serde_json::from_str(row))))
    }

    async fn abandon_hold(&self, request: RequestId) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE holds SET owner = '00000000-0000-0000-0000-000000000000', \
             lease_expires_at = 'epoch' WHERE request_id = $1",
        )
        .bind(request.0)
        .execute(&mut *Lent::of(&self.books).await?)
        .await
        .map_err(classify)?;
        Ok(())
    }

    async fn expire_leases_of_others(&self, _owner: InstanceId) -> Result<(), StoreError> {
        // Replicas share this store: only time tells that an owner is dead.
        Ok(())
    }

    async fn holds_after(&self, after: Option<RequestId>) -> Result<Vec<Hold>, StoreError> {
        self.page(&HOLDS, "request_id", after.map(|id| id.0)).await
    }

    async fn windows_after(&self, after: Option<Subject>) -> Result<Vec<RateWindow>, StoreError> {
        self.page(&RATE_WINDOWS, "subject", after.map(|id| id.0)).await
    }
}
