//! Billing events on their way to sinks.
//!
//! Invariant: an event is written with its usage record, in one transaction.

use crate::models::ids::{AccountId, RequestId};
use crate::models::timestamp::Timestamp;
use crate::store::StoreError;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
/// A copy of a usage record on its way to a sink, as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillingEvent {
    pub id: String,
    pub sink: String,
    pub request_id: RequestId,
    pub account_id: AccountId,
    pub state: String,
    pub attempts: i64,
    pub next_attempt_at: Timestamp,
    pub leased_until: Option<Timestamp>,
    pub reason: Option<String>,
    pub created_at: Timestamp,
}

#[async_trait]
pub trait OutboxStore: Send + Sync {
    async fn billing_events_after(&self, after: &str) -> Result<Vec<BillingEvent>, StoreError>;
}
