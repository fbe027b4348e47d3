//! What changes the books, on SQLite.

use crate::models::hold::Hold;
use crate::models::ids::{InstanceId, RequestId};
use crate::models::limits::Subject;
use crate::models::timestamp::Timestamp;
use crate::models::usage::UsageRecord;
use crate::models::window::RateWindow;
use crate::store::ledger::LedgerStore;
use crate::store::sqlite::rows::classify;
use crate::store::sqlite::{SqliteStore, native, text};
use crate::store::table::{HOLDS, RATE_WINDOWS};
use crate::store::verify::VerifyStore;
use crate::store::{LedgerOp, Outcome, StoreError};
use async_trait::async_trait;
use std::time::Duration;

#[async_trait]
impl LedgerStore for SqliteStore {
    async fn commit(&self, batch: &[LedgerOp], now: Timestamp) -> Result<Vec<Outcome>, StoreError> {
        let (mut transaction, known) = self.writer.in_texts().await?;
        let (outcomes, known) = self.apply_alone(transaction.conn(), known, batch, now).await?;
        transaction.ended(known);
        Ok(outcomes)
    }

    async fn settled(&self, requests: &[RequestId]) -> Result<Vec<UsageRecord>, StoreError> {
        self.records_of(requests).await
    }

    async fn renew_leases(
        &self,
        owner: InstanceId,
        now: Timestamp,
        lease: Duration,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE holds SET lease_expires_at = ?2 WHERE owner = ?1")
            .bind(owner.to_string())
            .bind(now.plus(lease).to_string())
            .execute(&mut *self.writer.acquire().await?)
            .await
            .map_err(classify)?;
        Ok(())
    }

    async fn claim_orphans(
        &self,
        owner: InstanceId,
        except: InstanceId,
        now: Timestamp,
        lease: Duration,
        limit: i64,
    ) -> Result<Vec<Hold>, StoreError> {
        let claimed: Vec<String> = sqlx::query_scalar(
            "UPDATE holds SET owner = ?1, lease_expires_at = ?3 WHERE request_id IN \
             (SELECT request_id FROM holds WHERE lease_expires_at < ?2 AND owner <> ?5 \
              ORDER BY request_id LIMIT ?4) RETURNING request_id",
        )
        .bind(owner.to_string())
        .bind(now.to_string())
        .bind(now.plus(lease).to_string())
        .bind(limit)
        .bind(except.to_string())
        .fetch_all(&mut *self.writer.acquire().await?)
        .await
        .map_err(classify)?;
        let mut conn = self.writer.acquire().await?;
        let claimed = serde_json::to_string(&claimed)?;
        native::read_readable(&mut conn, &self.sql.load_holds, claimed).await
    }

    async fn abandon_hold(&self, request: RequestId) -> Result<(), StoreError> {
        sqlx::query("UPDATE holds SET owner = ?3, lease_expires_at = ?2 WHERE request_id = ?1")
            .bind(request.to_string())
            .bind(Timestamp::from_unix_seconds(0).to_string())
            .bind(uuid::Uuid::nil().to_string())
            .execute(&mut *self.writer.acquire().await?)
            .await
            .map_err(classify)?;
        Ok(())
    }

    async fn expire_leases_of_others(&self, owner: InstanceId) -> Result<(), StoreError> {
        sqlx::query("UPDATE holds SET lease_expires_at = ?2 WHERE owner <> ?1")
            .bind(owner.to_string())
            .bind(Timestamp::from_unix_seconds(0).to_string())
            .execute(&mut *self.writer.acquire().await?)
            .await
            .map_err(classify)?;
        Ok(())
    }

    async fn holds_after(&self, after: Option<RequestId>) -> Result<Vec<Hold>, StoreError> {
        self.page(&HOLDS, "request_id", text(after)).await
    }

    async fn windows_after(&self, after: Option<Subject>) -> Result<Vec<RateWindow>, StoreError> {
        self.page(&RATE_WINDOWS, "subject", text(after.map(|subject| subject.0))).await
    }
}
