//! Accounts, their members, their keys and what keys may spend: who is who.
//!
//! Invariants: a secret is only ever here as its hash; a change and its entry in the audit log are
//! one transaction. What accounts and keys have spent is the ledger's, not this trait's.

use crate::models::account::Account;
use crate::models::audit::AuditEntry;
use crate::models::identity::Member;
use crate::models::ids::{AccountId, ApiKeyId, AuditId, UserId};
use crate::models::key::{ApiKey, KeyBudget};
use crate::models::timestamp::Timestamp;
use crate::store::StoreError;
use async_trait::async_trait;

/// A key, who pays for it, and what it may spend.
pub type KnownKey = (ApiKey, Account, KeyBudget);

/// A key and what it may spend.
pub type OwnKey = (ApiKey, KeyBudget);

#[async_trait]
pub trait DirectoryStore: Send + Sync {
    async fn create_account(&self, account: &Account, audit: &AuditEntry)
    -> Result<(), StoreError>;
    /// Writes what differs, of what an operator may change.
    async fn update_account(
        &self,
        before: &Account,
        after: &Account,
        audit: &AuditEntry,
    ) -> Result<(), StoreError>;
    async fn account(&self, id: AccountId) -> Result<Option<Account>, StoreError>;
    async fn account_by_name(&self, name: &str) -> Result<Option<Account>, StoreError>;
    async fn accounts_after(&self, after: Option<AccountId>) -> Result<Vec<Account>, StoreError>;

    async fn create_member(&self, member: &Member, audit: &AuditEntry) -> Result<(), StoreError>;
    /// Makes or moves a member.
    async fn put_member(&self, member: &Member, audit: &AuditEntry) -> Result<(), StoreError>;
    /// True when there was one.
    async fn remove_member(&self, user: UserId, audit: &AuditEntry) -> Result<bool, StoreError>;
    async fn member(&self, user: UserId) -> Result<Option<(Member, Account)>, StoreError>;
    async fn members_of(&self, account: AccountId) -> Result<Vec<Member>, StoreError>;

    async fn create_key(
        &self,
        key: &ApiKey,
        budget: &KeyBudget,
        audit: &AuditEntry,
    ) -> Result<(), StoreError>;
    /// Writes what differs, of what may be changed of a key and of its limits.
    async fn update_key(
        &self,
        before: &OwnKey,
        after: &OwnKey,
        audit: &AuditEntry,
    ) -> Result<(), StoreError>;
    async fn key(&self, id: ApiKeyId) -> Result<Option<OwnKey>, StoreError>;
    async fn key_by_hash(&self, secret_hash: &str) -> Result<Option<KnownKey>, StoreError>;
    async fn keys_of(&self, account: AccountId) -> Result<Vec<ApiKey>, StoreError>;
    async fn key_budgets_after(
        &self,
        after: Option<ApiKeyId>,
    ) -> Result<Vec<KeyBudget>, StoreError>;
    /// Writes down when keys were last used, where that is later than what is known.
    async fn touch_keys(&self, used: &[(ApiKeyId, Timestamp)]) -> Result<(), StoreError>;

    async fn audit_after(&self, after: Option<AuditId>) -> Result<Vec<AuditEntry>, StoreError>;
}
