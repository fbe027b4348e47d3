//! What changes the books, on PostgreSQL.

use crate::models::hold::Hold;
use crate::models::ids::{InstanceId, RequestId};
use crate::models::timestamp::Timestamp;
use crate::store::books::Changes;
use crate::store::ledger::LedgerStore;
use crate::store::postgres::PostgresStore;
use crate::store::postgres::rows::classify;
use crate::store::table::{HOLDS, parse};
use crate::store::{LedgerOp, Outcome, StoreError};
use async_trait::async_trait;

#[async_trait]
impl LedgerStore for PostgresStore {
    async fn commit(&self, batch: &[LedgerOp], now: Timestamp) -> Result<Vec<Outcome>, StoreError> {
        let mut tx = self.pool.begin().await.map_err(classify)?;
        let books = self.load(&mut tx, batch).await?;
        let (outcomes, changes) = books.apply(batch, now);
        if changes != Changes::default() {
            self.write(&mut tx, changes).await?;
        }
        tx.commit().await.map_err(classify)?;
        Ok(outcomes)
    }

    async fn renew_leases(&self, owner: InstanceId, until: Timestamp) -> Result<(), StoreError> {
        sqlx::query("UPDATE holds SET lease_expires_at = $2::timestamptz WHERE owner = $1")
            .bind(owner.0)
            .bind(until.to_string())
            .execute(&self.pool)
            .await
            .map_err(classify)?;
        Ok(())
    }

    async fn claim_orphans(
        &self,
        owner: InstanceId,
        except: InstanceId,
        now: Timestamp,
        until: Timestamp,
        limit: i64,
    ) -> Result<Vec<Hold>, StoreError> {
        let rows: Vec<String> = sqlx::query_scalar(
            "UPDATE holds t SET owner = $1, lease_expires_at = $3::timestamptz WHERE request_id IN \
             (SELECT request_id FROM holds \
              WHERE lease_expires_at < $2::timestamptz AND owner <> $5 \
              ORDER BY request_id LIMIT $4 FOR UPDATE SKIP LOCKED) RETURNING row_to_json(t)::text",
        )
        .bind(owner.0)
        .bind(now.to_string())
        .bind(until.to_string())
        .bind(limit)
        .bind(except.0)
        .fetch_all(&self.pool)
        .await
        .map_err(classify)?;
        parse(&rows)
    }

    async fn abandon_hold(&self, request: RequestId) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE holds SET owner = '00000000-0000-0000-0000-000000000000', \
             lease_expires_at = 'epoch' WHERE request_id = $1",
        )
        .bind(request.0)
        .execute(&self.pool)
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
}
