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
use crate::store::{Entry, StoreError};
use async_trait::async_trait;

/// A key, who pays for it, and what it may spend.
pub type KnownKey = (ApiKey, Account, KeyBudget);

/// A first login: an account, its first member, and what it starts with.
#[derive(Clone, Debug)]
pub struct SignUp {
    pub account: Account,
    pub account_audit: AuditEntry,
    pub member: Member,
    pub member_audit: AuditEntry,
    pub credit: Option<Entry>,
}

#[async_trait]
pub trait DirectoryStore: Send + Sync {
    async fn create_account(&self, account: &Account, audit: &AuditEntry)
    -> Result<(), StoreError>;
    /// Writes what an operator may change; what was spent stays as it is.
    async fn update_account(&self, account: &Account, audit: &AuditEntry)
    -> Result<(), StoreError>;
    async fn account(&self, id: AccountId) -> Result<Option<Account>, StoreError>;
    async fn account_by_name(&self, name: &str) -> Result<Option<Account>, StoreError>;
    async fn accounts_after(&self, after: Option<AccountId>) -> Result<Vec<Account>, StoreError>;

    /// All of a first login or nothing, so that no crash can lose the credit or double it.
    /// [`StoreError::Exists`] when the user is a member, or the account's name is taken.
    async fn sign_up(&self, sign_up: &SignUp) -> Result<(), StoreError>;

    async fn create_member(&self, member: &Member, audit: &AuditEntry) -> Result<(), StoreError>;
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
    /// Writes what may be changed of a key and of its limits; what was spent stays as it is.
    async fn update_key(
        &self,
        key: &ApiKey,
        budget: &KeyBudget,
        audit: &AuditEntry,
    ) -> Result<(), StoreError>;
    async fn key(&self, id: ApiKeyId) -> Result<Option<(ApiKey, KeyBudget)>, StoreError>;
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
