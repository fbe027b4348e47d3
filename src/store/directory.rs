//! Accounts, their members, their keys and what keys may spend: who is who.
//!
//! Invariants: a secret is only ever here as its hash; a change and its entry in the audit log are
//! one transaction. What accounts and keys have spent is the ledger's, not this trait's.

use crate::error::Error;
use crate::models::account::Account;
use crate::models::audit::AuditEntry;
use crate::models::identity::Member;
use crate::models::ids::{AccountId, ApiKeyId, AuditId, UserId};
use crate::models::key::{ApiKey, KeyBudget};
use crate::models::timestamp::Timestamp;
use crate::store::{Entry, Outcome, StoreError};
use async_trait::async_trait;

/// A key, who pays for it, and what it may spend.
pub type KnownKey = (ApiKey, Account, KeyBudget);

/// A new account, and what it starts with.
#[derive(Clone, Debug)]
pub struct Opening {
    pub account: Account,
    pub audit: AuditEntry,
    /// The user whose first login it is.
    pub member: Option<(Member, AuditEntry)>,
    pub credit: Option<Entry>,
}

impl Opening {
    /// What becomes of the opening whose credit had these outcomes: without its credit there is to
    /// be no account.
    pub(super) fn credited(outcomes: &[Outcome]) -> Result<(), StoreError> {
        match outcomes {
            [Outcome::Entered { .. }] => Ok(()),
            [Outcome::AlreadyEntered] => Err(StoreError::Exists("an entry of this reference")),
            other => Err(StoreError::NotEntered(format!("{other:?}"))),
        }
    }
}

/// A key and what it may spend.
pub type OwnKey = (ApiKey, KeyBudget);

/// What becomes of a row and how the audit log tells of it, decided while nobody else changes it:
/// so that two changes at the same time do not undo each other, and the log tells each as it was.
pub type Decide<'a, T> = &'a (dyn Fn(&T) -> Result<(T, AuditEntry), Error> + Sync);

/// How the audit log tells of a new member, or of one who was another account's.
pub type TellMember<'a> = &'a (dyn Fn(Option<&Member>) -> AuditEntry + Sync);

#[async_trait]
pub trait DirectoryStore: Send + Sync {
    /// All of it or nothing, so that no crash can lose the credit or double it.
    /// [`StoreError::Exists`] when the account's name is taken, the user is a member, or was one
    /// and was removed, or the credit was entered before.
    async fn open_account(&self, opening: &Opening) -> Result<(), StoreError>;
    /// Writes what `decide` changes, of what an operator may change, and its entry; neither where
    /// nothing changes. The account as it is then; `None` without such an account.
    async fn update_account(
        &self,
        id: AccountId,
        decide: Decide<'_, Account>,
    ) -> Result<Option<Account>, Error>;
    async fn account(&self, id: AccountId) -> Result<Option<Account>, StoreError>;
    async fn account_by_name(&self, name: &str) -> Result<Option<Account>, StoreError>;
    async fn accounts_after(&self, after: Option<AccountId>) -> Result<Vec<Account>, StoreError>;

    /// Makes a member, or moves one from another account; gives the row as it is then. `audit`
    /// is told what there was. A user who was removed before is let in again.
    async fn put_member(
        &self,
        member: &Member,
        audit: TellMember<'_>,
    ) -> Result<Member, StoreError>;
    /// True when there was one, of this account. From then on no login of the user's makes an
    /// account.
    async fn remove_member(&self, member: &Member, audit: &AuditEntry) -> Result<bool, StoreError>;
    async fn member(&self, user: UserId) -> Result<Option<(Member, Account)>, StoreError>;
    async fn members_of(
        &self,
        account: AccountId,
        after: Option<UserId>,
    ) -> Result<Vec<Member>, StoreError>;

    async fn create_key(
        &self,
        key: &ApiKey,
        budget: &KeyBudget,
        audit: &AuditEntry,
    ) -> Result<(), StoreError>;
    /// As [`DirectoryStore::update_account`], for a key and its limits.
    async fn update_key(
        &self,
        id: ApiKeyId,
        decide: Decide<'_, OwnKey>,
    ) -> Result<Option<OwnKey>, Error>;
    async fn key(&self, id: ApiKeyId) -> Result<Option<OwnKey>, StoreError>;
    async fn key_by_hash(&self, secret_hash: &str) -> Result<Option<KnownKey>, StoreError>;
    async fn keys_of(
        &self,
        account: AccountId,
        after: Option<ApiKeyId>,
    ) -> Result<Vec<ApiKey>, StoreError>;
    async fn key_budgets_after(
        &self,
        after: Option<ApiKeyId>,
    ) -> Result<Vec<KeyBudget>, StoreError>;
    /// Writes down when keys were last used, where that is later than what is known.
    async fn touch_keys(&self, used: &[(ApiKeyId, Timestamp)]) -> Result<(), StoreError>;

    async fn audit_after(&self, after: Option<AuditId>) -> Result<Vec<AuditEntry>, StoreError>;
}
