//! Accounts and what is entered into their ledgers by hand.

use super::{Change, change, check_name, rates, shown};
use crate::error::Error;
use crate::models::account::{Account, AccountKind, AccountStatus, NewAccount};
use crate::models::audit::AuditEntry;
use crate::models::ids::AccountId;
use crate::models::ledger::EntryKind;
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::store::{Entry, LedgerOp, Outcome, Store};
use serde::Deserialize;
use serde_json::json;

/// What to change of an account; what is not there stays.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountPatch {
    pub name: Option<String>,
    pub kind: Option<AccountKind>,
    pub status: Option<AccountStatus>,
    #[serde(deserialize_with = "change")]
    pub plan: Change<String>,
    /// Postpaid: most to spend in a calendar month.
    #[serde(deserialize_with = "change")]
    pub limit_nusd: Change<NanoUsd>,
    #[serde(deserialize_with = "change")]
    pub stripe_customer_id: Change<String>,
    #[serde(deserialize_with = "change")]
    pub requests_per_minute: Change<i64>,
    #[serde(deserialize_with = "change")]
    pub tokens_per_minute: Change<i64>,
    #[serde(deserialize_with = "change")]
    pub concurrent_requests: Change<i64>,
}

impl AccountPatch {
    fn apply(self, to: &Account) -> Result<Account, Error> {
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        let limit_nusd = self.limit_nusd.unwrap_or(to.limit_nusd);
        if limit_nusd.is_some_and(|limit| limit < NanoUsd::ZERO) {
            return Err(Error::invalid("limit_nusd", "must not be negative"));
        }
        Ok(Account {
            name: self.name.unwrap_or_else(|| to.name.clone()),
            kind: self.kind.unwrap_or(to.kind),
            status: self.status.unwrap_or(to.status),
            plan: self.plan.unwrap_or_else(|| to.plan.clone()),
            limit_nusd,
            stripe_customer_id: self
                .stripe_customer_id
                .unwrap_or_else(|| to.stripe_customer_id.clone()),
            rates: rates(
                to.rates,
                self.requests_per_minute,
                self.tokens_per_minute,
                self.concurrent_requests,
            )?,
            ..to.clone()
        })
    }
}

/// Makes an account, with credit where there is some.
///
/// # Errors
/// [`Error::Exists`] when the name is taken, [`Error::Invalid`], or the store's.
pub async fn create_account(
    store: &dyn Store,
    actor: &str,
    new: NewAccount,
    credit: Option<NanoUsd>,
) -> Result<Account, Error> {
    check_name(&new.name)?;
    let now = Timestamp::now();
    let account = Account::open(new, now);
    let audit = AuditEntry::new(actor, "account.create", &account.id, now)
        .of_account(account.id)
        .to(&shown(&account));
    store.create_account(&account, &audit).await?;
    if let Some(credit) = credit.filter(|credit| *credit > NanoUsd::ZERO) {
        let entry = Entry {
            account_id: account.id,
            kind: EntryKind::Credit,
            amount_nusd: credit,
            reason: "opening credit".to_owned(),
            reference: Some(format!("opening:{}", account.id)),
            audit: None,
        };
        enter(store, actor, entry).await?;
    }
    Ok(account)
}

/// Changes an account's settings; gives it as it is then.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Invalid`], [`Error::Exists`] when the name is taken, or the
/// store's.
pub async fn update_account(
    store: &dyn Store,
    actor: &str,
    id: AccountId,
    patch: AccountPatch,
) -> Result<Account, Error> {
    let before = store.account(id).await?.ok_or(Error::NotFound("account"))?;
    let after = patch.apply(&before)?;
    let audit = AuditEntry::new(actor, "account.update", &id, Timestamp::now())
        .of_account(id)
        .from(&shown(&before))
        .to(&shown(&after));
    store.update_account(&before, &after, &audit).await?;
    store.account(id).await?.ok_or(Error::NotFound("account"))
}

/// Enters a credit or a correction, once for each reference. Gives the balance after it; `None`
/// when the reference was entered before.
///
/// # Errors
/// [`Error::NotFound`] without an account, [`Error::Invalid`] when the sum leaves its range, or the
/// store's.
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
        [Outcome::NoAccount] => Err(Error::NotFound("account")),
        [Outcome::OutOfRange] => {
            Err(Error::invalid("amount_usd", "the balance would leave its range"))
        }
        other => Err(Error::Internal(format!("the entry was not made: {other:?}"))),
    }
}
