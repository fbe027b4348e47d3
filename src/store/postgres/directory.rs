//! Accounts, members and keys, on PostgreSQL.

use crate::error::Error;
use crate::models::account::Account;
use crate::models::audit::AuditEntry;
use crate::models::identity::Member;
use crate::models::ids::{AccountId, ApiKeyId, AuditId, UserId};
use crate::models::key::{ApiKey, KeyBudget};
use crate::models::timestamp::Timestamp;
use crate::store::directory::{Decide, DirectoryStore, KnownKey, Opening, OwnKey, TellMember};
use crate::store::postgres::PostgresStore;
use crate::store::postgres::lent::Lent;
use crate::store::postgres::rows::{classify, select, unique};
use crate::store::table::{
    ACCOUNT_SETTINGS, ACCOUNTS, API_KEYS, AUDIT_LOG, KEY_BUDGET_LIMITS, KEY_BUDGETS, KEY_SETTINGS,
    MEMBERS, Table, differing, postgres as sql,
};
use crate::store::{LedgerOp, StoreError};
use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

pub(super) const ACCOUNT_NAME: &str = "an account of this name";
const MEMBER: &str = "this member";
const KEY: &str = "this key";

#[async_trait]
impl DirectoryStore for PostgresStore {
    async fn open_account(&self, opening: &Opening) -> Result<(), StoreError> {
        let Opening { account, audit, member, credit } = opening;
        let mut tx = self.audited(audit).await?;
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
        tx.commit().await
    }

    async fn update_account(
        &self,
        id: AccountId,
        decide: Decide<'_, Account>,
    ) -> Result<Option<Account>, Error> {
        let mut tx = self.begin().await?;
        let account = sql::select(&ACCOUNTS, "WHERE id = $1 FOR UPDATE");
        let Some(before) = first::<Account>(&mut tx, account, id.0).await? else {
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
        tx.commit().await?;
        Ok(Some(after))
    }

    async fn account(&self, id: AccountId) -> Result<Option<Account>, StoreError> {
        self.one(sql::select(&ACCOUNTS, "WHERE id = $1"), id.0).await
    }

    async fn account_by_name(&self, name: &str) -> Result<Option<Account>, StoreError> {
        self.one(sql::select(&ACCOUNTS, "WHERE name = $1"), name.to_owned()).await
    }

    async fn accounts_after(&self, after: Option<AccountId>) -> Result<Vec<Account>, StoreError> {
        self.page(&ACCOUNTS, "id", after.map(|id| id.0)).await
    }

    async fn put_member(
        &self,
        member: &Member,
        audit: TellMember<'_>,
    ) -> Result<Member, StoreError> {
        let mut tx = self.begin().await?;
        let insert = format!("{} ON CONFLICT DO NOTHING", sql::insert(&MEMBERS));
        if write(&mut tx, insert, member, MEMBER).await? > 0 {
            log(&mut tx, &audit(None)).await?;
        } else {
            let known = sql::select(&MEMBERS, "WHERE user_id = $1 FOR UPDATE");
            let before = first::<Member>(&mut tx, known, member.user_id.0).await?;
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
        tx.commit().await?;
        Ok(member.clone())
    }

    async fn remove_member(&self, member: &Member, audit: &AuditEntry) -> Result<bool, StoreError> {
        let mut tx = self.audited(audit).await?;
        let done = sqlx::query("DELETE FROM members WHERE user_id = $1 AND account_id = $2")
            .bind(member.user_id.0)
            .bind(member.account_id.0)
            .execute(&mut *tx)
            .await
            .map_err(classify)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        remember_removal(&mut tx, member.user_id, audit.created_at).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn member(&self, user: UserId) -> Result<Option<(Member, Account)>, StoreError> {
        let row: Option<(String, String)> = sqlx::query_as(
            "SELECT row_to_json(m)::text, row_to_json(a)::text \
             FROM members m JOIN accounts a ON a.id = m.account_id WHERE m.user_id = $1",
        )
        .bind(user.0)
        .fetch_optional(&mut *self.lend().await?)
        .await
        .map_err(classify)?;
        let Some((member, account)) = row else { return Ok(None) };
        Ok(Some((serde_json::from_str(&member)?, serde_json::from_str(&account)?)))
    }

    async fn members_of(
        &self,
        account: AccountId,
        after: Option<UserId>,
    ) -> Result<Vec<Member>, StoreError> {
        self.page_of(&MEMBERS, "user_id", account, after.map(|id| id.0)).await
    }

    async fn create_key(
        &self,
        key: &ApiKey,
        budget: &KeyBudget,
        audit: &AuditEntry,
    ) -> Result<(), StoreError> {
        let mut tx = self.audited(audit).await?;
        write(&mut tx, sql::insert(&API_KEYS), key, KEY).await?;
        write(&mut tx, sql::insert(&KEY_BUDGETS), budget, KEY).await?;
        tx.commit().await
    }

    async fn update_key(
        &self,
        id: ApiKeyId,
        decide: Decide<'_, OwnKey>,
    ) -> Result<Option<OwnKey>, Error> {
        let mut tx = self.begin().await?;
        let key = sql::select(&API_KEYS, "WHERE id = $1 FOR UPDATE");
        let key = first::<ApiKey>(&mut tx, key, id.0).await?;
        let budget = sql::select(&KEY_BUDGETS, "WHERE api_key_id = $1 FOR UPDATE");
        let budget = first::<KeyBudget>(&mut tx, budget, id.0).await?;
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
        tx.commit().await?;
        Ok(Some(after))
    }

    async fn key(&self, id: ApiKeyId) -> Result<Option<OwnKey>, StoreError> {
        let key = self.one(sql::select(&API_KEYS, "WHERE id = $1"), id.0).await?;
        let budget = self.one(sql::select(&KEY_BUDGETS, "WHERE api_key_id = $1"), id.0).await?;
        Ok(key.zip(budget))
    }

    async fn key_by_hash(&self, secret_hash: &str) -> Result<Option<KnownKey>, StoreError> {
        let row: Option<(String, String, String)> = sqlx::query_as(
            "SELECT row_to_json(k)::text, row_to_json(a)::text, row_to_json(b)::text \
             FROM api_keys k JOIN accounts a ON a.id = k.account_id \
             JOIN key_budgets b ON b.api_key_id = k.id \
             WHERE k.secret_hash = $1 OR k.previous_secret_hash = $1",
        )
        .bind(secret_hash)
        .fetch_optional(&mut *self.lend().await?)
        .await
        .map_err(classify)?;
        let Some((key, account, budget)) = row else {
            return Ok(None);
        };
        let budget = serde_json::from_str(&budget)?;
        Ok(Some((serde_json::from_str(&key)?, serde_json::from_str(&account)?, budget)))
    }

    async fn keys_of(
        &self,
        account: AccountId,
        after: Option<ApiKeyId>,
    ) -> Result<Vec<ApiKey>, StoreError> {
        self.page_of(&API_KEYS, "id", account, after.map(|id| id.0)).await
    }

    async fn key_budgets_after(
        &self,
        after: Option<ApiKeyId>,
    ) -> Result<Vec<KeyBudget>, StoreError> {
        self.page(&KEY_BUDGETS, "api_key_id", after.map(|id| id.0)).await
    }

    async fn touch_keys(&self, used: &[(ApiKeyId, Timestamp)]) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE api_keys k SET last_used_at = u.at FROM \
             (SELECT (r ->> 0)::uuid AS id, (r ->> 1)::timestamptz AS at \
              FROM json_array_elements($1::json) r) u \
             WHERE k.id = u.id AND (k.last_used_at IS NULL OR k.last_used_at < u.at)",
        )
        .bind(serde_json::to_string(used)?)
        .execute(&mut *self.lend().await?)
        .await
        .map_err(classify)?;
        Ok(())
    }

    async fn audit_after(&self, after: Option<AuditId>) -> Result<Vec<AuditEntry>, StoreError> {
        self.page(&AUDIT_LOG, "id", after.map(|id| id.0)).await
    }
}

impl PostgresStore {
    /// A transaction that begins with its entry in the audit log.
    async fn audited(&self, audit: &AuditEntry) -> Result<Lent, StoreError> {
        let mut tx = self.begin().await?;
        log(&mut tx, audit).await?;
        Ok(tx)
    }
}

/// Whether a user was removed from an account and made a member of none since.
async fn is_removed(tx: &mut Lent, user: UserId) -> Result<bool, StoreError> {
    let found: Option<i32> = sqlx::query_scalar("SELECT 1 FROM removed_members WHERE user_id = $1")
        .bind(user.0)
        .fetch_optional(&mut **tx)
        .await
        .map_err(classify)?;
    Ok(found.is_some())
}

async fn remember_removal(tx: &mut Lent, user: UserId, at: Timestamp) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO removed_members (user_id, removed_at) VALUES ($1, $2::timestamptz) \
         ON CONFLICT (user_id) DO UPDATE SET removed_at = excluded.removed_at",
    )
    .bind(user.0)
    .bind(at.to_string())
    .execute(&mut **tx)
    .await
    .map_err(classify)?;
    Ok(())
}

async fn take_back_removal(tx: &mut Lent, user: UserId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM removed_members WHERE user_id = $1")
        .bind(user.0)
        .execute(&mut **tx)
        .await
        .map_err(classify)?;
    Ok(())
}

/// Writes an entry into the audit log.
pub(super) async fn log(tx: &mut Lent, audit: &AuditEntry) -> Result<(), StoreError> {
    write(tx, sql::insert(&AUDIT_LOG), audit, "this audit entry").await?;
    Ok(())
}

pub(super) async fn first<T: DeserializeOwned>(
    tx: &mut Lent,
    statement: String,
    key: Uuid,
) -> Result<Option<T>, StoreError> {
    Ok(select(tx, &statement.into(), key).await?.pop())
}

/// Writes a row; how many were.
pub(super) async fn write<T: Serialize>(
    tx: &mut Lent,
    statement: String,
    row: &T,
    what: &'static str,
) -> Result<u64, StoreError> {
    let done = sqlx::query(AssertSqlSafe(statement))
        .bind(serde_json::to_string(&[row])?)
        .execute(&mut **tx)
        .await
        .map_err(|error| unique(error, what))?;
    Ok(done.rows_affected())
}

/// Writes these columns of a row; without any there is nothing to do.
pub(super) async fn change<T: Serialize>(
    tx: &mut Lent,
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
