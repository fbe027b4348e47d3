//! What the books stand at, on SQLite.

use crate::models::ids::{AccountId, InstanceId};
use crate::store::StoreError;
use crate::store::sqlite::reports::object;
use crate::store::sqlite::rows::select;
use crate::store::sqlite::{SqliteStore, text};
use crate::store::watch::{
    Backlog, HeldPage, LOOK_WAIT, OpenHolds, Statement, WatchStore, backlog, held_page, only,
    open_holds,
};
use async_trait::async_trait;
use serde::de::DeserializeOwned;

#[async_trait]
impl WatchStore for SqliteStore {
    async fn open_holds(&self, own: InstanceId) -> Result<OpenHolds, StoreError> {
        self.look(open_holds(), own.to_string()).await
    }

    async fn backlog(&self, sink: &str) -> Result<Backlog, StoreError> {
        self.look(backlog(), sink.to_owned()).await
    }

    async fn held_page(&self, after: Option<AccountId>) -> Result<HeldPage, StoreError> {
        self.look(held_page(), text(after).unwrap_or_default()).await
    }
}

impl SqliteStore {
    async fn look<T: DeserializeOwned>(
        &self,
        (statement, columns): Statement,
        key: String,
    ) -> Result<T, StoreError> {
        let names = object(columns.iter().copied());
        let mut tx = self.bounded(LOOK_WAIT).await?;
        let statement = format!("SELECT {names} FROM ({statement}) r");
        only(select(&mut tx, &statement.into(), key).await?)
    }
}
