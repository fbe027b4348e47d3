//! Who calls: an API key becomes a [`Principal`].
//!
//! Invariants: a key is known by its SHA-256 only; a typing error is refused by the key's checksum
//! without asking the store; a store that cannot answer is a 503, never a 401.

mod secret;
mod uses;

use crate::error::Error;
use crate::models::account::Account;
use crate::models::identity::Role;
use crate::models::ids::{AccountId, ApiKeyId, UserId};
use crate::models::key::{ApiKey, KeyBudget};
use crate::models::ledger::sha256_hex;
use crate::models::timestamp::Timestamp;
use crate::store::{Store, StoreError};
use moka::future::Cache;
pub use secret::NewSecret;
use secret::is_well_formed;
use std::sync::Arc;
use std::time::Duration;
use uses::Uses;

/// Who calls, and the account that pays.
#[derive(Clone, Debug)]
pub struct Principal {
    pub account_id: AccountId,
    /// Of the account.
    pub plan: Option<String>,
    pub role: Role,
    pub caller: Caller,
    /// The caller's key has a budget of its own.
    pub has_key_limits: bool,
}

#[derive(Clone, Debug)]
pub enum Caller {
    Key(Arc<ApiKey>),
    User(UserId),
}

pub struct Auth {
    store: Arc<dyn Store>,
    known: Cache<String, Option<Principal>>,
    uses: Uses,
    wait: Duration,
}

/// Keys remembered, unknown ones included.
const KNOWN_MAX: u64 = 100_000;
/// A revoked key works no longer than this, should the news of it not arrive.
const KNOWN_FOR: Duration = Duration::from_secs(10);

impl Auth {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, wait: Duration) -> Self {
        let known = Cache::builder().max_capacity(KNOWN_MAX).time_to_live(KNOWN_FOR).build();
        Self { store, known, uses: Uses::default(), wait }
    }

    /// The principal of a bearer token.
    ///
    /// # Errors
    /// [`Error::WrongKey`], or [`Error::Database`] when that cannot be told.
    pub async fn principal(&self, token: &str) -> Result<Principal, Error> {
        if !is_well_formed(token) {
            return Err(Error::WrongKey);
        }
        let hash = sha256_hex(token.as_bytes());
        // One look-up at a time for a key; a failed one is not remembered.
        let found = self.known.try_get_with_by_ref(&hash, self.look_up(&hash)).await;
        let principal = found.map_err(|error| Error::Database(error.to_string()))?;
        let now = Timestamp::now();
        let principal = principal.filter(|it| it.is_usable(now)).ok_or(Error::WrongKey)?;
        if let Some(key) = principal.key_id() {
            self.uses.note(key, now);
        }
        Ok(principal)
    }

    async fn look_up(&self, hash: &str) -> Result<Option<Principal>, Error> {
        let look_up = self.store.key_by_hash(hash);
        let found = tokio::time::timeout(self.wait, look_up)
            .await
            .map_err(|_| Error::Database("no answer in time".to_owned()))??;
        Ok(found.map(|(key, account, budget): (ApiKey, Account, KeyBudget)| Principal {
            has_key_limits: budget.has_limits(),
            account_id: account.id,
            plan: account.plan,
            role: key.role,
            caller: Caller::Key(Arc::new(key.by_secret(hash))),
        }))
    }

    /// Writes down when keys were last used.
    ///
    /// # Errors
    /// The store's.
    pub async fn write_uses(&self) -> Result<(), StoreError> {
        self.uses.write(self.store.as_ref()).await
    }

    /// Forgets all keys: another process has changed some.
    pub fn forget(&self) {
        self.known.invalidate_all();
    }
}

impl Principal {
    #[must_use]
    pub fn key_id(&self) -> Option<ApiKeyId> {
        match &self.caller {
            Caller::Key(key) => Some(key.id),
            Caller::User(_) => None,
        }
    }

    /// Whether the caller may ask for this model.
    #[must_use]
    pub fn allows(&self, model: &str) -> bool {
        match &self.caller {
            Caller::Key(key) => key.allows(model),
            Caller::User(_) => true,
        }
    }

    /// As the audit log names it.
    #[must_use]
    pub fn actor(&self) -> String {
        match &self.caller {
            Caller::Key(key) => format!("key:{}", key.id),
            Caller::User(user) => format!("user:{user}"),
        }
    }

    fn is_usable(&self, now: Timestamp) -> bool {
        match &self.caller {
            Caller::Key(key) => key.is_usable(now),
            Caller::User(_) => true,
        }
    }
}
