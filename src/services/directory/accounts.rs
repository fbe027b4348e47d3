//! Accounts and what is entered into their ledgers by hand.

use super::{
    AMOUNT_MAX, Change, REASON_CHARACTERS_MAX, REFERENCE_CHARACTERS_MAX, change, check_amount,
    check_name, check_rates, check_text, present, rates, shown,
};
use crate::error::Error;
use crate::models::account::{Account, AccountKind, AccountStatus, NewAccount};
use crate::models::audit::AuditEntry;
use crate::models::ids::AccountId;
use crate::models::ledger::EntryKind;
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::store::directory::Opening;
use crate::store::{Entry, LedgerOp, Outcome, Store};
use serde::Deserialize;

/// What to change of an account; what is not there stays.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountPatch {
    #[serde(deserialize_with = "present")]
    pub name: Option<String>,
    #[serde(deserialize_with = "present")]
    pub kind: Option<AccountKind>,
    #[serde(deserialize_with = "present")]
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
    fn apply(&self, to: &Account) -> Result<Account, Error> {
        let patch = self.clone();
        let account = Account {
            name: patch.name.unwrap_or_else(|| to.name.clone()),
            kind: patch.kind.unwrap_or(to.kind),
            status: patch.status.unwrap_or(to.status),
            plan: patch.plan.unwrap_or_else(|| to.plan.clone()),
            limit_nusd: patch.limit_nusd.unwrap_or(to.limit_nusd),
            stripe_customer_id: patch
                .stripe_customer_id
                .unwrap_or_else(|| to.stripe_customer_id.clone()),
            rates: rates(
                to.rates,
                patch.requests_per_minute,
                patch.tokens_per_minute,
                patch.concurrent_requests,
            )?,
            ..to.clone()
        };
        check(&account)?;
        if self.limit_nusd.flatten().is_some() {
            check_limit_has_use(account.kind)?;
        }
        Ok(account)
    }
}

fn check(account: &Account) -> Result<(), Error> {
    check_name(&account.name)?;
    check_rates(&account.rates)?;
    check_amount("limit_nusd", account.limit_nusd)?;
    match &account.stripe_customer_id {
        Some(id) => check_text("stripe_customer_id", id, REFERENCE_CHARACTERS_MAX),
        None => Ok(()),
    }
}

/// A limit that binds nobody would be taken for one that does.
fn check_limit_has_use(kind: AccountKind) -> Result<(), Error> {
    match kind {
        AccountKind::Postpaid => Ok(()),
        AccountKind::Prepaid => {
            Err(Error::invalid("limit_nusd", "only a postpaid account has a limit"))
        }
    }
}

/// Makes an account, with credit where there is some: both or neither.
///
/// # Errors
/// [`Error::Exists`] when the name is taken, [`Error::Invalid`], or the store's.
pub async fn create_account(
    store: &dyn Store,
    actor: &str,
    new: NewAccount,
    credit: Option<NanoUsd>,
) -> Result<Account, Error> {
    let now = Timestamp::now();
    if new.limit_nusd.is_some() {
        check_limit_has_use(new.kind)?;
    }
    let account = Account::open(new, now);
    check(&account)?;
    check_amount("credit_nusd", credit)?;
    let audit = AuditEntry::new(actor, "account.create", &account.id, now)
        .of_account(account.id)
        .to(&shown(&account));
    let credit = credit.filter(|credit| *credit > NanoUsd::ZERO).map(|amount_nusd| {
        let entry = Entry {
            account_id: account.id,
            kind: EntryKind::Credit,
            amount_nusd,
            reason: "opening credit".to_owned(),
            reference: Some(format!("opening:{}", account.id)),
            audit: None,
        };
        entry.audited(actor, now)
    });
    let opening = Opening { account, audit, member: None, credit };
    store.open_account(&opening).await?;
    Ok(opening.account)
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
    patch: &AccountPatch,
) -> Result<Account, Error> {
    let decide = |before: &Account| {
        let after = patch.apply(before)?;
        let now = Timestamp::now();
        let audit = AuditEntry::account_update_of(actor, before, &after, patch.status, now);
        Ok((after, audit))
    };
    store.update_account(id, &decide).await?.ok_or(Error::NotFound("account"))
}

/// Enters a credit or a correction, once for each reference. Gives the balance after it; `None`
/// when the reference was entered before.
///
/// # Errors
/// [`Error::NotFound`] without an account, [`Error::Invalid`] when the sum leaves its range, or the
/// store's.
pub async fn enter(store: &dyn Store, actor: &str, entry: Entry) -> Result<Option<NanoUsd>, Error> {
    check_entry(&entry)?;
    let now = Timestamp::now();
    let entry = LedgerOp::Enter(entry.audited(actor, now));
    let outcomes = store.commit(&[entry], now).await?;
    match outcomes.as_slice() {
        [Outcome::Entered { balance }] => Ok(Some(*balance)),
        [Outcome::AlreadyEntered] => Ok(None),
        [Outcome::NoAccount] => Err(Error::NotFound("account")),
        [Outcome::OutOfRange] => {
            Err(Error::invalid("amount_nusd", "the balance would leave its range"))
        }
        other => Err(Error::Internal(format!("the entry was not made: {other:?}"))),
    }
}

fn check_entry(entry: &Entry) -> Result<(), Error> {
    let Entry { kind, amount_nusd, reason, .. } = entry;
    let is_amount = match kind {
        EntryKind::Credit => *amount_nusd > NanoUsd::ZERO,
        EntryKind::Correction | EntryKind::Charge => !amount_nusd.is_zero(),
    };
    if !is_amount {
        return Err(Error::invalid("amount_nusd", "a credit is above zero, a correction not zero"));
    }
    if !(NanoUsd(-AMOUNT_MAX.0)..=AMOUNT_MAX).contains(amount_nusd) {
        return Err(Error::invalid("amount_nusd", "must be at most a billion dollars"));
    }
    check_text("reason", reason, REASON_CHARACTERS_MAX)
}

/// What an entry may be called outside the books.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check_reference(reference: &str) -> Result<(), Error> {
    check_text("reference", reference, REFERENCE_CHARACTERS_MAX)
}
