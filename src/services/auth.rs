//! Who calls: an API key becomes a [`Principal`].
//!
//! Invariants: a key is known by its SHA-256 only; a typing error is refused by the key's checksum
//! without asking the store; a store that cannot answer is a 503, never a 401.

use crate::error::Error;
use crate::models::account::{Account, ApiKey, KeyBudget};
use crate::models::ids::AccountId;
use crate::models::ledger::sha256_hex;
use crate::models::timestamp::Timestamp;
use crate::store::Store;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use moka::future::Cache;
use std::sync::Arc;
use std::time::Duration;

/// The account that pays for a request, and the key that asks.
#[derive(Clone, Debug)]
pub struct Principal {
    pub account_id: AccountId,
    /// Of the account.
    pub plan: Option<String>,
    /// The key has a budget of its own.
    pub has_key_limits: bool,
    pub key: Arc<ApiKey>,
}

/// A new key: the secret, shown once, and what is kept of it.
pub struct NewSecret {
    pub text: String,
    pub hash: String,
    pub hint: String,
}

pub struct Auth {
    store: Arc<dyn Store>,
    known: Cache<String, Option<Principal>>,
    wait: Duration,
}

/// Begins every key, so that a scanner can recognise a leaked one.
const PREFIX: &str = "sk-tg-";
const SECRET_BYTES: usize = 32;
/// Keys remembered, unknown ones included.
const KNOWN_MAX: u64 = 100_000;
/// A revoked key works no longer than this, should the news of it not arrive.
const KNOWN_FOR: Duration = Duration::from_secs(10);
/// Longest key that is hashed at all.
const KEY_BYTES_MAX: usize = 128;

impl Auth {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, wait: Duration) -> Self {
        let known = Cache::builder().max_capacity(KNOWN_MAX).time_to_live(KNOWN_FOR).build();
        Self { store, known, wait }
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
        principal
            .filter(|principal| principal.key.is_usable(Timestamp::now()))
            .ok_or(Error::WrongKey)
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
            key: Arc::new(key),
        }))
    }

    /// Forgets all keys: another process has changed some.
    pub fn forget(&self) {
        self.known.invalidate_all();
    }
}

impl NewSecret {
    /// # Errors
    /// [`Error::Internal`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, Error> {
        let mut secret = [0_u8; SECRET_BYTES];
        SystemRandom::new()
            .fill(&mut secret)
            .map_err(|_| Error::Internal("no random bytes".to_owned()))?;
        let text = format!("{PREFIX}{}", bs58::encode(secret).with_check().into_string());
        let hash = sha256_hex(text.as_bytes());
        let hint = format!("{}…{}", &text[..PREFIX.len() + 4], &text[text.len() - 4..]);
        Ok(Self { text, hash, hint })
    }
}

/// Whether prefix, length and checksum fit: says nothing about whether the key exists.
fn is_well_formed(token: &str) -> bool {
    token.len() <= KEY_BYTES_MAX
        && token.strip_prefix(PREFIX).is_some_and(|encoded| {
            let decoded = bs58::decode(encoded).with_check(None).into_vec();
            decoded.is_ok_and(|secret| secret.len() == SECRET_BYTES)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_well_formed_and_a_typo_is_not() {
        let key = NewSecret::generate().unwrap();
        assert!(is_well_formed(&key.text), "{}", key.text);
        assert_eq!(key.hash, sha256_hex(key.text.as_bytes()));
        assert!(!key.hint.contains(&key.text[PREFIX.len()..]));
        for at in PREFIX.len()..key.text.len() {
            let mut typo = key.text.clone().into_bytes();
            typo[at] = if typo[at] == b'z' { b'y' } else { b'z' };
            assert!(!is_well_formed(std::str::from_utf8(&typo).unwrap()), "typo at {at}");
        }
        for odd in ["", "sk-tg-", "sk-", "sk-tg-l0OI", "sk-tg-\u{e9}"] {
            assert!(!is_well_formed(odd), "{odd}");
        }
    }
}
