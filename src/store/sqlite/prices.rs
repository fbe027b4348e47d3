//! Versions of prices, on SQLite.

use crate::models::price::{Price, PriceTable};
use crate::models::timestamp::Timestamp;
use crate::store::StoreError;
use crate::store::prices::{Next, NextTable, PriceStore};
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::directory::log;
use crate::store::sqlite::rows::{classify, write_rows};
use crate::store::table::{PRICE_TABLES, price_rows, sqlite as sql};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, SqliteConnection};
use std::sync::Arc;

#[async_trait]
impl PriceStore for SqliteStore {
    async fn put_prices(&self, prices: &[Arc<Price>], at: Timestamp) -> Result<(), StoreError> {
        let rows = serde_json::to_string(&price_rows(prices))?;
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        sqlx::query(
            "INSERT INTO prices (id, model, terms) SELECT value ->> 0, value ->> 1, value ->> 3 \
             FROM json_each(?1) WHERE true ON CONFLICT (id) DO NOTHING",
        )
        .bind(&rows)
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        sqlx::query(
            "INSERT INTO price_changes (model, plan, upstream, effective_at, price_id) \
             SELECT r.value ->> 1, r.value ->> 2, r.value ->> 4, ?2, r.value ->> 0 \
             FROM json_each(?1) r \
             WHERE r.value ->> 0 IS NOT \
             (SELECT c.price_id FROM price_changes c WHERE c.model = r.value ->> 1 \
              AND c.plan = r.value ->> 2 AND c.upstream = r.value ->> 4 \
              ORDER BY c.effective_at DESC LIMIT 1)",
        )
        .bind(&rows)
        .bind(at.to_string())
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        tx.commit().await.map_err(classify)
    }

    async fn price(&self, id: &str) -> Result<Option<Price>, StoreError> {
        let terms: Option<String> = sqlx::query_scalar("SELECT terms FROM prices WHERE id = ?1")
            .bind(id)
            .fetch_optional(&self.readers)
            .await
            .map_err(classify)?;
        Ok(terms.map(|terms| serde_json::from_str(&terms)).transpose()?.map(Price::new))
    }

    async fn put_price_table(&self, decide: NextTable<'_>) -> Result<PriceTable, StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let (table, audit) = match decide(newest(&mut tx).await?) {
            Next::Stays(table) => return Ok(table),
            Next::Follows(table, audit) => (table, audit),
        };
        log(&mut tx, &audit).await?;
        write_rows(&mut tx, &sql::insert(&PRICE_TABLES).into(), std::iter::once(&table)).await?;
        tx.commit().await.map_err(classify)?;
        Ok(table)
    }

    async fn price_table(&self) -> Result<Option<PriceTable>, StoreError> {
        let mut conn = self.readers.acquire().await.map_err(classify)?;
        newest(&mut conn).await
    }
}

async fn newest(conn: &mut SqliteConnection) -> Result<Option<PriceTable>, StoreError> {
    let newest = sql::select(&PRICE_TABLES, "ORDER BY version DESC LIMIT 1");
    let row: Option<String> =
        sqlx::query_scalar(AssertSqlSafe(newest)).fetch_optional(conn).await.map_err(classify)?;
    Ok(row.map(|row| serde_json::from_str(&row)).transpose()?)
}
