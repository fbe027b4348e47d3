//! Members: the users who act for an account.

use super::shown;
use crate::error::Error;
use crate::models::audit::AuditEntry;
use crate::models::identity::Member;
use crate::models::ids::{AccountId, UserId};
use crate::models::timestamp::Timestamp;
use crate::store::Store;

/// Lets a user act for an account. A user who acted for another one before acts for this one from
/// now on; what was used before stays with the other.
///
/// # Errors
/// [`Error::NotFound`] without such an account, or the store's.
pub async fn add_member(
    store: &dyn Store,
    actor: &str,
    account_id: AccountId,
    user_id: UserId,
) -> Result<Member, Error> {
    let account = store.account(account_id).await?.ok_or(Error::NotFound("account"))?;
    let now = Timestamp::now();
    let member = Member { user_id, account_id: account.id, created_at: now };
    let audit = |before: Option<&Member>| {
        let audit = AuditEntry::new(actor, "member.add", &user_id, now)
            .of_account(account.id)
            .to(&shown(&member));
        match before {
            Some(before) => audit.from(&shown(before)),
            None => audit,
        }
    };
    Ok(store.put_member(&member, &audit).await?)
}

/// Ends a user's acting for an account. The user does not come back by a first login, but when
/// somebody makes a member of them again.
///
/// # Errors
/// [`Error::NotFound`] when the user is not a member of this account, or the store's.
pub async fn remove_member(
    store: &dyn Store,
    actor: &str,
    account_id: AccountId,
    user_id: UserId,
) -> Result<(), Error> {
    let member = store.member(user_id).await?.map(|(member, _)| member);
    let member = member.filter(|member| member.account_id == account_id);
    let member = member.ok_or(Error::NotFound("member"))?;
    let audit = AuditEntry::new(actor, "member.remove", &user_id, Timestamp::now())
        .of_account(account_id)
        .from(&shown(&member));
    if store.remove_member(&member, &audit).await? {
        Ok(())
    } else {
        Err(Error::NotFound("member"))
    }
}
