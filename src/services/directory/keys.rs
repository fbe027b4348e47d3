//! API keys: made, changed, given a new secret, ended.

use super::{Change, change, check_amount, check_name, check_rates, present, rates, shown};
use crate::error::Error;
use crate::models::audit::AuditEntry;
use crate::models::identity::Role;
use crate::models::ids::{AccountId, ApiKeyId};
use crate::models::key::{ApiKey, KeyBudget, KeyLimits};
use crate::models::limits::RateLimits;
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::services::secret::NewSecret;
use crate::store::Store;
use crate::store::directory::OwnKey;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// Model patterns longer than this in all are refused.
const MODELS_BYTES_MAX: usize = 4_096;
/// The old secret of a key works on for this long at most.
const OVERLAP_MAX: Duration = Duration::from_secs(90 * 86_400);

/// What a new key starts with.
#[derive(Clone, Debug)]
pub struct NewKey {
    pub account_id: AccountId,
    pub name: String,
    pub models: Option<String>,
    pub role: Role,
    pub rates: RateLimits,
    pub limits: KeyLimits,
    pub expires_at: Option<Timestamp>,
}

impl NewKey {
    /// A key that may do what its account may.
    #[must_use]
    pub fn plain(account_id: AccountId, name: &str, limits: KeyLimits) -> Self {
        Self {
            account_id,
            name: name.to_owned(),
            models: None,
            role: Role::User,
            rates: RateLimits::default(),
            limits,
            expires_at: None,
        }
    }
}

/// What to change of a key; what is not there stays.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyPatch {
    #[serde(deserialize_with = "present")]
    pub name: Option<String>,
    #[serde(deserialize_with = "change")]
    pub models: Change<String>,
    #[serde(deserialize_with = "change")]
    pub expires_at: Change<Timestamp>,
    #[serde(deserialize_with = "change")]
    pub requests_per_minute: Change<i64>,
    #[serde(deserialize_with = "change")]
    pub tokens_per_minute: Change<i64>,
    #[serde(deserialize_with = "change")]
    pub concurrent_requests: Change<i64>,
    #[serde(deserialize_with = "change")]
    pub day_limit_nusd: Change<NanoUsd>,
    #[serde(deserialize_with = "change")]
    pub week_limit_nusd: Change<NanoUsd>,
    #[serde(deserialize_with = "change")]
    pub month_limit_nusd: Change<NanoUsd>,
    #[serde(deserialize_with = "change")]
    pub total_limit_nusd: Change<NanoUsd>,
}

impl KeyPatch {
    fn apply(&self, (key, budget): &OwnKey) -> Result<OwnKey, Error> {
        let patch = self.clone();
        let key = ApiKey {
            name: patch.name.unwrap_or_else(|| key.name.clone()),
            models: patch.models.unwrap_or_else(|| key.models.clone()),
            expires_at: patch.expires_at.unwrap_or(key.expires_at),
            rates: rates(
                key.rates,
                patch.requests_per_minute,
                patch.tokens_per_minute,
                patch.concurrent_requests,
            )?,
            ..key.clone()
        };
        let budget = KeyBudget {
            day_limit_nusd: patch.day_limit_nusd.unwrap_or(budget.day_limit_nusd),
            week_limit_nusd: patch.week_limit_nusd.unwrap_or(budget.week_limit_nusd),
            month_limit_nusd: patch.month_limit_nusd.unwrap_or(budget.month_limit_nusd),
            total_limit_nusd: patch.total_limit_nusd.unwrap_or(budget.total_limit_nusd),
            ..budget.clone()
        };
        check(&key, &budget)?;
        Ok((key, budget))
    }
}

fn check(key: &ApiKey, budget: &KeyBudget) -> Result<(), Error> {
    check_name(&key.name)?;
    check_rates(&key.rates)?;
    if key.models.as_deref().is_some_and(|models| !are_patterns(models)) {
        let wanted = "must be names, or beginnings of names with a * after them, separated by \
                      commas, in at most 4096 bytes";
        return Err(Error::invalid("models", wanted));
    }
    for (param, limit) in [
        ("day_limit_nusd", budget.day_limit_nusd),
        ("week_limit_nusd", budget.week_limit_nusd),
        ("month_limit_nusd", budget.month_limit_nusd),
        ("total_limit_nusd", budget.total_limit_nusd),
    ] {
        check_amount(param, limit)?;
    }
    Ok(())
}

/// A star elsewhere than at the end would be taken literally, and fit no model.
fn are_patterns(models: &str) -> bool {
    let is_pattern = |text: &str| {
        let name = text.strip_suffix('*').unwrap_or(text);
        !text.is_empty() && !name.contains('*') && !name.chars().any(char::is_control)
    };
    models.len() <= MODELS_BYTES_MAX && models.split(',').map(str::trim).all(is_pattern)
}

/// A key and its budget as others may see them.
#[must_use]
pub fn shown_key((key, budget): &OwnKey) -> Value {
    let mut row = shown(key);
    row["budget"] = shown(budget);
    row
}

/// Makes a key; its secret is not to be had again.
///
/// # Errors
/// [`Error::Invalid`], or the store's.
pub async fn create_key(
    store: &dyn Store,
    actor: &str,
    new: NewKey,
) -> Result<(OwnKey, NewSecret), Error> {
    let secret = NewSecret::generate()?;
    let now = Timestamp::now();
    let key = ApiKey {
        id: ApiKeyId::generate(),
        account_id: new.account_id,
        name: new.name,
        secret_hash: secret.hash.clone(),
        hint: secret.hint.clone(),
        models: new.models,
        role: new.role,
        created_by: actor.to_owned(),
        rates: new.rates,
        created_at: now,
        expires_at: new.expires_at,
        revoked_at: None,
        last_used_at: None,
        previous_secret_hash: None,
        previous_expires_at: None,
    };
    let budget = KeyBudget::open(key.id, new.limits, now);
    check(&key, &budget)?;
    if key.expires_at.is_some_and(|at| at <= now) {
        return Err(Error::invalid("expires_at", "must be in the future"));
    }
    let key = (key, budget);
    let audit = AuditEntry::new(actor, "key.create", &key.0.id, now)
        .of_account(key.0.account_id)
        .to(&shown_key(&key));
    store.create_key(&key.0, &key.1, &audit).await?;
    Ok((key, secret))
}

/// Changes a key's settings; gives it as it is then.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Invalid`], or the store's.
pub async fn update_key(
    store: &dyn Store,
    actor: &str,
    id: ApiKeyId,
    patch: &KeyPatch,
) -> Result<OwnKey, Error> {
    write(store, actor, id, "key.update", &|before| patch.apply(before)).await
}

/// Gives the key another secret; the old one works on for `overlap`, and one that was still working
/// beside it ends. Limits, budget and history stay: it is the same key.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Invalid`] for a key that has ended or an overlap that is too long,
/// or the store's.
pub async fn rotate_key(
    store: &dyn Store,
    actor: &str,
    id: ApiKeyId,
    overlap: Duration,
) -> Result<(OwnKey, NewSecret), Error> {
    if overlap > OVERLAP_MAX {
        return Err(Error::invalid("overlap_seconds", "must be at most 90 days"));
    }
    let secret = NewSecret::generate()?;
    let now = Timestamp::now();
    let rotate = |(key, budget): &OwnKey| {
        if !key.is_usable(now) {
            return Err(Error::invalid("key", "it has ended"));
        }
        let key = ApiKey {
            secret_hash: secret.hash.clone(),
            hint: secret.hint.clone(),
            previous_secret_hash: Some(key.secret_hash.clone()),
            previous_expires_at: Some(now.plus(overlap)),
            ..key.clone()
        };
        Ok((key, budget.clone()))
    };
    let key = write(store, actor, id, "key.rotate", &rotate).await?;
    Ok((key, secret))
}

/// Ends a key's life now.
///
/// # Errors
/// [`Error::NotFound`], or the store's.
pub async fn revoke_key(store: &dyn Store, actor: &str, id: ApiKeyId) -> Result<OwnKey, Error> {
    let now = Timestamp::now();
    let revoke = |(key, budget): &OwnKey| {
        let revoked_at = key.revoked_at.or(Some(now));
        Ok((ApiKey { revoked_at, ..key.clone() }, budget.clone()))
    };
    write(store, actor, id, "key.revoke", &revoke).await
}

async fn write(
    store: &dyn Store,
    actor: &str,
    id: ApiKeyId,
    action: &str,
    change: &(dyn Fn(&OwnKey) -> Result<OwnKey, Error> + Sync),
) -> Result<OwnKey, Error> {
    let decide = |before: &OwnKey| {
        let after = change(before)?;
        let audit = AuditEntry::new(actor, action, &id, Timestamp::now())
            .of_account(before.0.account_id)
            .from(&shown_key(before))
            .to(&shown_key(&after));
        Ok((after, audit))
    };
    store.update_key(id, &decide).await?.ok_or(Error::NotFound("API key"))
}
