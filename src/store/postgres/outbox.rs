//! Billing events on their way to sinks, on PostgreSQL.

use crate::store::StoreError;
use crate::store::outbox::{BillingEvent, OutboxStore};
use crate::store::postgres::PostgresStore;
use crate::store::table::BILLING_EVENTS;
use async_trait::async_trait;

#[async_trait]
impl OutboxStore for PostgresStore {
    async fn billing_events_after(&self, after: &str) -> Result<Vec<BillingEvent>, StoreError> {
        self.page(&BILLING_EVENTS, "id", Some(after.to_owned())).await
    }
}
