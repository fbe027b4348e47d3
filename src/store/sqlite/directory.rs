//! Accounts, members and keys, on SQLite.

use crate::error::Error;
use crate::models::account::Account;
use crate::models::audit::AuditEntry;
use crate::models::identity::Member;
use crate::models::ids::{AccountId, ApiKeyId, AuditId, UserId};
use crate::models::key::{ApiKey, KeyBudget};
use crate::models::timestamp::Timestamp;
use crate::store::directory::{Decide, DirectoryStore, KnownKey, Opening, OwnKey, TellMember};
use crate::store::sqlite::rows::{classify, select, unique};
use crate::store::sqlite::{SqliteStore, text};
use crate::store::table::{
    ACCOUNT_SETTINGS, ACCOUNTS, API_KEYS, AUDIT_LOG, KEY_BUDGET_LIMITS, KEY_BUDGETS, KEY_SETTINGS,
    MEMBERS, Table, differing, sqlite as sql,
};
use crate::store::{LedgerOp, StoreError};
use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{AssertSqlSafe, SqliteConnection};

pub(super) const ACCOUNT_NAME: &str = "an account of this name";
const MEMBER: &str = "this member";
const KEY: &str = "this key";

#[async_trait]
impl DirectoryStore for SqliteStore {
    async fn open_account(&self, opening: &Opening) -> Result<(), StoreError> {
        let Opening { account, audit, member, credit } = opening;
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        log(&mut tx, audit).await?;
        write(&mut tx, sql::insert(&ACCOUNTS), account, ACCOUNT_NAME).await?;
        if let Some((member, audit)) = member {
            log(&mut tx, audit).await?;
            write(&mut tx, sql::insert(&MEMBERS), member, MEMBER).await?;
            // After the row, which waits for a removal of this very moment.
            if is_removed(&mut tx, member.user_id).await? {
                return Err(StoreError::Exists(MEMBER));
            }
        }
        if let Some(credit) = credit {
            let batch = [LedgerOp::Enter(credit.clone())];
            Opening::credited(&self.apply(&mut tx, &batch, account.created_at).await?)?;
        }
        tx.commit().await.map_err(classify)
    }

    async fn update_account(
        &self,
        id: AccountId,
        decide: Decide<'_, Account>,
    ) -> Result<Option<Account>, Error> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let account = sql::select(&ACCOUNTS, "WHERE id = ?1");
        let Some(before) = first::<Account>(&mut tx, account, id.to_string()).await? else {
            return Ok(None);
        };
        let (after, audit) = decide(&before)?;
        let columns = differing(&before, &after, ACCOUNT_SETTINGS)?;
        if columns.is_empty() && !audit.tells_alone() {
            return Ok(Some(before));
        }
        log(&mut tx, &audit).await?;
        if !columns.is_empty() {
            change(&mut tx, (&ACCOUNTS, "id"), &columns, &after, ACCOUNT_NAME).await?;
        }
        tx.commit().await.map_err(classify)?;
        Ok(Some(after))
    }

    async fn account(&self, id: AccountId) -> Result<Option<Account>, StoreError> {
        self.one(sql::select(&ACCOUNTS, "WHERE id = ?1"), id.to_string()).await
    }

    async fn account_by_name(&self, name: &str) -> Result<Option<Account>, StoreError> {
        self.one(sql::select(&ACCOUNTS, "WHERE name = ?1"), name.to_owned()).await
    }

    async fn accounts_after(&self, after: Option<AccountId>) -> Result<Vec<Account>, StoreError> {
        self.page(&ACCOUNTS, "id", text(after)).await
    }

    async fn put_member(
        &self,
        member: &Member,
        audit: TellMember<'_>,
    ) -> Result<Member, StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let insert = format!("{} WHERE true ON CONFLICT DO NOTHING", sql::insert(&MEMBERS));
        if write(&mut tx, insert, member, MEMBER).await? > 0 {
            log(&mut tx, &audit(None)).await?;
        } else {
            let known = sql::select(&MEMBERS, "WHERE user_id = ?1");
            let before = first::<Member>(&mut tx, known, member.user_id.to_string()).await?;
            // Removed in this very moment.
            let before = before.ok_or(StoreError::Exists(MEMBER))?;
            if before.account_id == member.account_id {
                return Ok(before);
            }
            log(&mut tx, &audit(Some(&before))).await?;
            let moved = ["account_id", "created_at"];
            change(&mut tx, (&MEMBERS, "user_id"), &moved, member, MEMBER).await?;
        }
        take_back_removal(&mut tx, member.user_id).await?;
        tx.commit().await.map_err(classify)?;
        Ok(member.clone())
    }

    async fn remove_member(&self, member: &Member, audit: &AuditEntry) -> Result<bool, StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        log(&mut tx, audit).await?;
        let done = sqlx::query("DELETE FROM members WHERE user_id = ?1 AND account_id = ?2")
            .bind(member.user_id.to_string())
            .bind(member.account_id.to_string())
            .execute(&mut *tx)
            .await
            .map_err(classify)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        remember_removal(&mut tx, member.user_id, audit.created_at).await?;
        tx.commit().await.map_err(classify)?;
        Ok(true)
    }

    async fn member(&self, user: UserId) -> Result<Option<(Member, Account)>, StoreError> {
        let member = sql::select(&MEMBERS, "WHERE user_id = ?1");
        let Some(member) = self.one::<Member>(member, user.to_string()).await? else {
            return Ok(None);
        };
        let account = self.account(member.account_id).await?;
        Ok(account.map(|account| (member, account)))
    }

    async fn members_of(
        &self,
        account: AccountId,
        after: Option<UserId>,
    ) -> Result<Vec<Member>, StoreError> {
        self.page_of(&MEMBERS, "user_id", account, text(after)).await
    }

    async fn create_key(
        &self,
        key: &ApiKey,
        budget: &KeyBudget,
        audit: &AuditEntry,
    ) -> Result<(), StoreError> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        log(&mut tx, audit).await?;
        write(&mut tx, sql::insert(&API_KEYS), key, KEY).await?;
        write(&mut tx, sql::insert(&KEY_BUDGETS), budget, KEY).await?;
        tx.commit().await.map_err(classify)
    }

    async fn update_key(
        &self,
        id: ApiKeyId,
        decide: Decide<'_, OwnKey>,
    ) -> Result<Option<OwnKey>, Error> {
        let mut writing = self.writer.acquire().await?;
        let mut tx = writing.begin().await?;
        let key = sql::select(&API_KEYS, "WHERE id = ?1");
        let key = first::<ApiKey>(&mut tx, key, id.to_string()).await?;
        let budget = sql::select(&KEY_BUDGETS, "WHERE api_key_id = ?1");
        let budget = first::<KeyBudget>(&mut tx, budget, id.to_string()).await?;
        let Some(before) = key.zip(budget) else { return Ok(None) };
        let (after, audit) = decide(&before)?;
        let settings = differing(&before.0, &after.0, KEY_SETTINGS)?;
        let limits = differing(&before.1, &after.1, KEY_BUDGET_LIMITS)?;
        if settings.is_empty() && limits.is_empty() {
            return Ok(Some(before));
        }
        log(&mut tx, &audit).await?;
        change(&mut tx, (&API_KEYS, "id"), &settings, &after.0, KEY).await?;
        change(&mut tx, (&KEY_BUDGETS, "api_key_id"), &limits, &after.1, KEY).await?;
        tx.commit().await.map_err(classify)?;
        Ok(Some(after))
    }

    async fn key(&self, id: ApiKeyId) -> Result<Option<OwnKey>, StoreError> {
        let key = self.one(sql::select(&API_KEYS, "WHERE id = ?1"), id.to_string()).await?;
        let budget =
            self.one(sql::select(&KEY_BUDGETS, "WHERE api_key_id = ?1"), id.to_string()).await?;
        Ok(key.zip(budget))
    }

    async fn key_by_hash(&self, secret_hash: &str) -> Result<Option<KnownKey>, StoreError> {
        let statement =
            sql::select(&API_KEYS, "WHERE secret_hash = ?1 OR previous_secret_hash = ?1");
        let Some(key) = self.one::<ApiKey>(statement, secret_hash.to_owned()).await? else {
            return Ok(None);
        };
        let account = self.account(key.account_id).await?;
        let budget = sql::select(&KEY_BUDGETS, "WHERE api_key_id = ?1");
        let budget = self.one(budget, key.id.to_string()).await?;
        Ok(account.zip(budget).map(|(account, budget)| (key, account, budget)))
    }

    async fn keys_of(
        &self,
        account: AccountId,
        after: Option<ApiKeyId>,
    ) -> Result<Vec<ApiKey>, StoreError> {
        self.page_of(&API_KEYS, "id", account, text(after)).await
    }

    async fn key_budgets_after(
        &self,
        after: Option<ApiKeyId>,
    ) -> Result<Vec<KeyBudget>, StoreError> {
        self.page(&KEY_BUDGETS, "api_key_id", text(after)).await
    }

    async fn touch_keys(&self, used: &[(ApiKeyId, Timestamp)]) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE api_keys SET last_used_at = u.at FROM \
             (SELECT value ->> 0 AS id, value ->> 1 AS at FROM json_each(?1)) u \
             WHERE api_keys.id = u.id \
             AND (api_keys.last_used_at IS NULL OR api_keys.last_used_at < u.at)",
        )
        .bind(serde_json::to_string(used)?)
        .execute(&mut *self.writer.acquire().await?)
        .await
        .map_err(classify)?;
        Ok(())
    }

    async fn audit_after(&self, after: Option<AuditId>) -> Result<Vec<AuditEntry>, StoreError> {
        self.page(&AUDIT_LOG, "id", text(after)).await
    }
}

/// Whether a user was removed from an account and made a member of none since.
async fn is_removed(tx: &mut SqliteConnection, user: UserId) -> Result<bool, StoreError> {
    let found: Option<i32> = sqlx::query_scalar("SELECT 1 FROM removed_members WHERE user_id = ?1")
        .bind(user.to_string())
        .fetch_optional(&mut *tx)
        .await
        .map_err(classify)?;
    Ok(found.is_some())
}

async fn remember_removal(
    tx: &mut SqliteConnection,
    user: UserId,
    at: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO removed_members (user_id, removed_at) VALUES (?1, ?2) \
         ON CONFLICT (user_id) DO UPDATE SET removed_at = excluded.removed_at",
    )
    .bind(user.to_string())
    .bind(at.to_string())
    .execute(&mut *tx)
    .await
    .map_err(classify)?;
    Ok(())
}

async fn take_back_removal(tx: &mut SqliteConnection, user: UserId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM removed_members WHERE user_id = ?1")
        .bind(user.to_string())
        .execute(&mut *tx)
        .await
        .map_err(classify)?;
    Ok(())
}

/// Writes an entry into the audit log.
pub(super) async fn log(tx: &mut SqliteConnection, audit: &AuditEntry) -> Result<(), StoreError> {
    write(tx, sql::insert(&AUDIT_LOG), audit, "this audit entry").await?;
    Ok(())
}

pub(super) async fn first<T: DeserializeOwned>(
    tx: &mut SqliteConnection,
    statement: String,
    key: String,
) -> Result<Option<T>, StoreError> {
    Ok(select(tx, &statement.into(), key).await?.pop())
}

/// Writes a row; how many were.
pub(super) async fn write<T: Serialize>(
    tx: &mut SqliteConnection,
    statement: String,
    row: &T,
    what: &'static str,
) -> Result<u64, StoreError> {
    let done = sqlx::query(AssertSqlSafe(statement))
        .bind(serde_json::to_string(&[row])?)
        .execute(tx)
        .await
        .map_err(|error| unique(error, what))?;
    Ok(done.rows_affected())
}

/// Writes these columns of a row; without any there is nothing to do.
pub(super) async fn change<T: Serialize>(
    tx: &mut SqliteConnection,
    (table, key): (&Table, &str),
    columns: &[&str],
    row: &T,
    what: &'static str,
) -> Result<(), StoreError> {
    if !columns.is_empty() {
        write(tx, sql::update(table, key, columns), row, what).await?;
    }
    Ok(())
}
