//! Versions of prices, and since when each counts.
//!
//! Invariant: a version is never changed.

use crate::models::audit::AuditEntry;
use crate::models::price::{Price, PriceTable};
use crate::models::timestamp::Timestamp;
use crate::store::StoreError;
use async_trait::async_trait;
use std::sync::Arc;

/// What becomes of the table in force.
pub enum Next {
    Stays(PriceTable),
    /// Another follows it, with its entry in the audit log.
    Follows(PriceTable, AuditEntry),
}

/// Decides, told the table in force.
pub type NextTable<'a> = &'a (dyn Fn(Option<PriceTable>) -> Next + Sync);

#[async_trait]
pub trait PriceStore: Send + Sync {
    /// Adds versions that are not there yet, and from when on they count where that is news.
    async fn put_prices(&self, prices: &[Arc<Price>], at: Timestamp) -> Result<(), StoreError>;

    async fn price(&self, id: &str) -> Result<Option<Price>, StoreError>;

    /// The table that is in force then: what `decide` says while nobody else sets one.
    async fn put_price_table(&self, decide: NextTable<'_>) -> Result<PriceTable, StoreError>;
    /// The newest.
    async fn price_table(&self) -> Result<Option<PriceTable>, StoreError>;
}
