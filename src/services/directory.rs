//! What is done to accounts, members and keys, by commands, by the admin API and by first logins.
//!
//! Invariant: every change is written with its entry in the audit log, which never holds a secret
//! or its hash. Callers tell other processes (`Store::announce_change`).

use crate::error::Error;
use crate::models::account::{Account, NewAccount};
use crate::models::audit::AuditEntry;
use crate::models::identity::Role;
use crate::models::ids::{AccountId, ApiKeyId};
use crate::models::key::{ApiKey, KeyBudget, KeyLimits};
use crate::models::ledger::EntryKind;
use crate::models::limits::RateLimits;
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::services::auth::NewSecret;
use crate::store::{Entry, LedgerOp, Outcome, Store};
use serde::Serialize;
use serde_json::{Value, json};

/// A command on the server's own machine, as the audit log names it.
pub const OPERATOR: &str = "operator";

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

/// Makes an account, with credit where there is some.
///
/// # Errors
/// The store's, among them that the name is taken.
pub async fn create_account(
    store: &dyn Store,
    actor: &str,
    new: NewAccount,
    credit: Option<NanoUsd>,
) -> Result<Account, Error> {
    let now = Timestamp::now();
    let account = Account::open(new, now);
    let audit = AuditEntry::new(actor, "account.create", &account.id, now)
        .of_account(account.id)
        .to(&shown(&account));
    store.create_account(&account, &audit).await?;
    if let Some(credit) = credit.filter(|credit| *credit > NanoUsd::ZERO) {
        let reference = format!("opening:{}", account.id);
        enter(
            store,
            actor,
            Entry {
                account_id: account.id,
                kind: EntryKind::Credit,
                amount_nusd: credit,
                reason: "opening credit".to_owned(),
                reference: Some(reference),
                audit: None,
            },
        )
        .await?;
    }
    Ok(account)
}

/// Says who an account is at Stripe.
///
/// # Errors
/// The store's.
pub async fn set_stripe_customer(
    store: &dyn Store,
    actor: &str,
    account: Account,
    customer: String,
) -> Result<(), Error> {
    let changed = Account { stripe_customer_id: Some(customer), ..account.clone() };
    let audit = AuditEntry::new(actor, "account.update", &account.id, Timestamp::now())
        .of_account(account.id)
        .from(&shown(&account))
        .to(&shown(&changed));
    Ok(store.update_account(&changed, &audit).await?)
}

/// Enters a credit or a correction, once for each reference. Gives the balance after it; `None`
/// when the reference was entered before.
///
/// # Errors
/// [`Error::Internal`] when the account is not there or the sum is out of range.
pub async fn enter(store: &dyn Store, actor: &str, entry: Entry) -> Result<Option<NanoUsd>, Error> {
    let now = Timestamp::now();
    let audit = AuditEntry::new(actor, "credit.enter", &entry.account_id, now)
        .of_account(entry.account_id)
        .to(&json!({
            "kind": entry.kind,
            "amount_nusd": entry.amount_nusd,
            "reason": entry.reason,
            "reference": entry.reference,
        }));
    let entry = Entry { audit: Some(audit), ..entry };
    let outcomes = store.commit(&[LedgerOp::Enter(entry)], now).await?;
    match outcomes.as_slice() {
        [Outcome::Entered { balance }] => Ok(Some(*balance)),
        [Outcome::AlreadyEntered] => Ok(None),
        other => Err(Error::Internal(format!("the entry was not made: {other:?}"))),
    }
}

/// Makes a key; its secret is not to be had again.
///
/// # Errors
/// The store's.
pub async fn create_key(
    store: &dyn Store,
    actor: &str,
    new: NewKey,
) -> Result<(ApiKey, NewSecret), Error> {
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
    };
    let budget = KeyBudget::open(key.id, new.limits, now);
    let audit = AuditEntry::new(actor, "key.create", &key.id, now)
        .of_account(key.account_id)
        .to(&shown(&key));
    store.create_key(&key, &budget, &audit).await?;
    Ok((key, secret))
}

/// Ends a key's life now.
///
/// # Errors
/// [`Error::NotFound`] when there is no such key.
pub async fn revoke_key(store: &dyn Store, actor: &str, id: ApiKeyId) -> Result<(), Error> {
    let (key, budget) = store.key(id).await?.ok_or(Error::NotFound("API key"))?;
    let now = Timestamp::now();
    let revoked = ApiKey { revoked_at: key.revoked_at.or(Some(now)), ..key.clone() };
    let audit = AuditEntry::new(actor, "key.revoke", &id, now)
        .of_account(key.account_id)
        .from(&shown(&key))
        .to(&shown(&revoked));
    Ok(store.update_key(&revoked, &budget, &audit).await?)
}

/// A row as others may see it: not even a secret's hash leaves, nobody needs it who may not have
/// the table.
#[must_use]
pub fn shown<T: Serialize>(row: &T) -> Value {
    // Rows of plain members have no way to fail.
    let mut row = serde_json::to_value(row).unwrap_or_default();
    if let Some(members) = row.as_object_mut() {
        members.remove("secret_hash");
        members.remove("ledger_hash");
    }
    row
}
