//! What the books stand at, on PostgreSQL.

use crate::models::ids::{AccountId, InstanceId};
use crate::store::StoreError;
use crate::store::postgres::PostgresStore;
use crate::store::postgres::reports::bounded;
use crate::store::postgres::rows::select;
use crate::store::watch::{
    Backlog, HeldPage, LOOK_WAIT, OpenHolds, Statement, WatchStore, backlog, held_page, only,
    open_holds,
};
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use sqlx::{PgPool, Postgres};
use uuid::Uuid;

#[async_trait]
impl WatchStore for PostgresStore {
    async fn open_holds(&self, own: InstanceId) -> Result<OpenHolds, StoreError> {
        // The writer stands still for it.
        look(&self.books, open_holds(), own.0).await
    }

    async fn backlog(&self, sink: &str) -> Result<Backlog, StoreError> {
        look(&self.pool, backlog(), sink.to_owned()).await
    }

    async fn held_page(&self, after: Option<AccountId>) -> Result<HeldPage, StoreError> {
        look(&self.pool, held_page(), after.map_or(Uuid::nil(), |id| id.0)).await
    }
}

async fn look<T, K>(pool: &PgPool, (statement, _): Statement, key: K) -> Result<T, StoreError>
where
    T: DeserializeOwned,
    K: sqlx::Type<Postgres> + for<'q> sqlx::Encode<'q, Postgres> + Send + 'static,
{
    let statement = format!("SELECT row_to_json(r)::text FROM ({statement}) r");
    let mut tx = bounded(pool, LOOK_WAIT).await?;
    only(select(&mut tx, &statement.into(), key).await?)
}
