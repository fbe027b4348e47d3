//! Versions of prices, on PostgreSQL.

use crate::models::price::{Price, PriceTable};
use crate::models::timestamp::Timestamp;
use crate::store::StoreError;
use crate::store::postgres::PostgresStore;
use crate::store::postgres::directory::log;
use crate::store::postgres::rows::{classify, write_rows};
use crate::store::prices::{Next, NextTable, PriceStore};
use crate::store::table::{PRICE_TABLES, postgres as sql, price_rows};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, PgConnection};
use std::sync::Arc;

#[async_trait]
impl PriceStore for PostgresStore {
    async fn put_prices(&self, prices: &[Arc<Price>], at: Timestamp) -> Result<(), StoreError> {
        let rows = serde_json::to_string(&price_rows(prices))?;
        let mut tx = self.begin_with("BEGIN").await?;
        sqlx::query(
            "INSERT INTO prices (id, model, terms) SELECT r ->> 0, r ->> 1, r ->> 3 \
             FROM json_array_elements($1::json) r ON CONFLICT (id) DO NOTHING",
        )
        .bind(&rows)
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        // Another replica may write the same change at the same time.
        sqlx::query(
            "INSERT INTO price_changes (model, plan, upstream, effective_at, price_id) \
             SELECT r ->> 1, r ->> 2, r ->> 4, $2::timestamptz, r ->> 0 \
             FROM json_array_elements($1::json) r WHERE r ->> 0 IS DISTINCT FROM \
             (SELECT c.price_id FROM price_changes c WHERE c.model = r ->> 1 \
              AND c.plan = r ->> 2 AND c.upstream = r ->> 4 ORDER BY c.effective_at DESC LIMIT 1) \
             ON CONFLICT DO NOTHING",
        )
        .bind(&rows)
        .bind(at.to_string())
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
        tx.commit().await
    }

    async fn price(&self, id: &str) -> Result<Option<Price>, StoreError> {
        let terms: Option<String> = sqlx::query_scalar("SELECT terms FROM prices WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut *self.lend().await?)
            .await
            .map_err(classify)?;
        Ok(terms.map(|terms| serde_json::from_str(&terms)).transpose()?.map(Price::new))
    }

    async fn put_price_table(&self, decide: NextTable<'_>) -> Result<PriceTable, StoreError> {
        let mut tx = self.begin_with("BEGIN").await?;
        // One after the other; readers go on.
        sqlx::query("LOCK TABLE price_tables IN SHARE ROW EXCLUSIVE MODE")
            .execute(&mut *tx)
            .await
            .map_err(classify)?;
        let (table, audit) = match decide(newest(&mut tx).await?) {
            Next::Stays(table) => return Ok(table),
            Next::Follows(table, audit) => (table, audit),
        };
        log(&mut tx, &audit).await?;
        write_rows(&mut tx, &sql::insert(&PRICE_TABLES).into(), std::iter::once(&table)).await?;
        tx.commit().await?;
        Ok(table)
    }

    async fn price_table(&self) -> Result<Option<PriceTable>, StoreError> {
        let mut conn = self.lend().await?;
        newest(&mut conn).await
    }
}

async fn newest(conn: &mut PgConnection) -> Result<Option<PriceTable>, StoreError> {
    let newest = sql::select(&PRICE_TABLES, "ORDER BY version DESC LIMIT 1");
    let row: Option<String> =
        sqlx::query_scalar(AssertSqlSafe(newest)).fetch_optional(conn).await.map_err(classify)?;
    Ok(row.map(|row| serde_json::from_str(&row)).transpose()?)
}
