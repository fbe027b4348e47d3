//! Months that are kept in files, on PostgreSQL: the month's partition is detached and dropped.

use crate::models::archive::{Archive, ArchivedSpending, Month, Unfinished};
use crate::store::StoreError;
use crate::store::archives::{ArchiveStore, Counted, check, counted, is_late, unfinished};
use crate::store::postgres::PostgresStore;
use crate::store::postgres::rows::{classify, select, write_rows};
use crate::store::table::{ARCHIVED_SPENDING, ARCHIVES, postgres as sql};
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, PgConnection};

#[async_trait]
impl ArchiveStore for PostgresStore {
    async fn archives(&self) -> Result<Vec<Archive>, StoreError> {
        let statement = sql::select(&ARCHIVES, "WHERE $1 = '' ORDER BY t.month");
        let mut conn = self.lend().await?;
        select(&mut conn, &statement.into(), String::new()).await
    }

    async fn archived_spending(&self) -> Result<Vec<ArchivedSpending>, StoreError> {
        let statement = sql::select(&ARCHIVED_SPENDING, "WHERE $1 = ''");
        let mut conn = self.lend().await?;
        select(&mut conn, &statement.into(), String::new()).await
    }

    async fn unfinished(&self, month: Month) -> Result<Unfinished, StoreError> {
        let mut conn = self.lend().await?;
        open(&mut conn, month).await
    }

    async fn begin_archive(
        &self,
        archive: &Archive,
        spending: &[ArchivedSpending],
    ) -> Result<(), StoreError> {
        let mut tx = self.begin_with("BEGIN").await?;
        let (from, until) = archive.month.ids();
        let found: Counted = sqlx::query_as(AssertSqlSafe(counted("$1", "$2")))
            .bind(from.0)
            .bind(until.0)
            .fetch_one(&mut *tx)
            .await
            .map_err(classify)?;
        check(archive, found, open(&mut tx, archive.month).await?)?;
        write_rows(&mut tx, &sql::insert(&ARCHIVES).into(), std::iter::once(archive)).await?;
        write_rows(&mut tx, &sql::insert(&ARCHIVED_SPENDING).into(), spending.iter()).await?;
        tx.commit().await
    }

    async fn remove_archived(&self, month: Month) -> Result<bool, StoreError> {
        // Copies first: while there is a record, it is as it was. Nobody else looks at these rows,
        // so that locks on them are in nobody's way.
        self.delete("billing_events", "request_id", month).await?;
        self.delete("usage_corrections", "request_id", month).await?;
        self.drop_partition(month).await?;
        // What was written while there was no partition, or is beside something that came late.
        self.delete("usage_records", "id", month).await?;
        sqlx::query("UPDATE archives SET state = 'removed' WHERE month = $1")
            .bind(month.to_string())
            .execute(&mut *self.lend().await?)
            .await
            .map_err(classify)?;
        Ok(true)
    }
}

impl PostgresStore {
    async fn delete(&self, table: &str, id: &str, month: Month) -> Result<(), StoreError> {
        let (from, until) = month.ids();
        let mut tx = self.begin_with("BEGIN").await?;
        // A limit that the database has for everybody must not end it half way, each time anew.
        run(&mut tx, "SET LOCAL statement_timeout = 0".to_owned()).await?;
        let statement = format!(
            "DELETE FROM {table} WHERE {id} >= $1 AND {id} < $2 AND NOT {}",
            is_late(table, "$3")
        );
        sqlx::query(AssertSqlSafe(statement))
            .bind(from.0)
            .bind(until.0)
            .bind(month.to_string())
            .execute(&mut *tx)
            .await
            .map_err(classify)?;
        tx.commit().await
    }

    async fn drop_partition(&self, month: Month) -> Result<(), StoreError> {
        let name = format!("usage_records_{}", month.to_string().replace('-', "_"));
        let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(&name)
            .fetch_one(&mut *self.lend().await?)
            .await
            .map_err(classify)?;
        if !exists {
            return Ok(());
        }
        let mut tx = self.begin_with("BEGIN").await?;
        // The month's own rows first: while they are looked at, none comes to them.
        run(&mut tx, "SET LOCAL lock_timeout = '2s'".to_owned()).await?;
        run(&mut tx, format!("LOCK TABLE {name} IN SHARE MODE")).await?;
        // Nor goes a table that has other months' rows, by whatever mistake.
        let (from, until) = month.ids();
        let has_others: bool = sqlx::query_scalar(AssertSqlSafe(format!(
            "SELECT EXISTS (SELECT 1 FROM {name} AS usage_records \
             WHERE {} OR id < $2 OR id >= $3)",
            is_late("usage_records", "$1")
        )))
        .bind(month.to_string())
        .bind(from.0)
        .bind(until.0)
        .fetch_one(&mut *tx)
        .await
        .map_err(classify)?;
        if has_others {
            return Ok(());
        }
        // It needs the whole table for a moment, and whoever comes meanwhile waits behind it:
        // rather not now than long.
        run(&mut tx, format!("ALTER TABLE usage_records DETACH PARTITION {name}")).await?;
        run(&mut tx, format!("DROP TABLE {name}")).await?;
        tx.commit().await
    }
}

async fn run(conn: &mut PgConnection, statement: String) -> Result<(), StoreError> {
    sqlx::query(AssertSqlSafe(statement)).execute(conn).await.map_err(classify)?;
    Ok(())
}

async fn open(conn: &mut PgConnection, month: Month) -> Result<Unfinished, StoreError> {
    let (from, until) = month.ids();
    let (holds, lookups, events) = sqlx::query_as(AssertSqlSafe(unfinished("$1", "$2")))
        .bind(from.0)
        .bind(until.0)
        .fetch_one(conn)
        .await
        .map_err(classify)?;
    Ok(Unfinished { holds, lookups, events })
}
