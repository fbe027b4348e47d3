//! Versions of prices, and since when each counts.
//!
//! Invariant: a version is never changed.

use crate::models::audit::AuditEntry;
use crate::models::price::{Price, PriceTable};
use crate::models::timestamp::Timestamp;
use crate::store::StoreError;
use async_trait::async_trait;
use std::sync::Arc;

/// The table that follows the one before it, and its entry in the audit log.
pub type NextTable<'a> = &'a (dyn Fn(Option<&PriceTable>) -> (PriceTable, AuditEntry) + Sync);

#[async_trait]
pub trait PriceStore: Send + Sync {
    /// Adds versions that are not there yet, and from when on they count where that is news.
    async fn put_prices(&self, prices: &[Arc<Price>], at: Timestamp) -> Result<(), StoreError>;

    async fn price(&self, id: &str) -> Result<Option<Price>, StoreError>;

    /// Adds the table that `decide` makes, told the one before it while nobody else sets one.
    async fn put_price_table(&self, decide: NextTable<'_>) -> Result<PriceTable, StoreError>;
    /// The newest.
    async fn price_table(&self) -> Result<Option<PriceTable>, StoreError>;
}
