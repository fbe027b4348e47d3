//! First logins: a user of Supabase who has no account gets one.

use super::shown;
use crate::error::Error;
use crate::models::account::{Account, AccountKind, NewAccount};
use crate::models::audit::AuditEntry;
use crate::models::identity::Member;
use crate::models::ids::UserId;
use crate::models::ledger::EntryKind;
use crate::models::limits::RateLimits;
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::services::catalog::Plan;
use crate::store::directory::Opening;
use crate::store::{Entry, Store, StoreError};
use serde_json::Value;

/// What a user without an account gets at the first login.
#[derive(Clone, Debug)]
pub struct SignupTerms {
    pub is_open: bool,
    pub kind: AccountKind,
    pub plan: Option<String>,
    pub limit_nusd: Option<NanoUsd>,
    pub credit: NanoUsd,
}

impl SignupTerms {
    /// What the plan says now.
    #[must_use]
    pub fn by(self, plan: &Plan) -> Self {
        Self { kind: plan.kind, limit_nusd: plan.limit_nusd, ..self }
    }
}

/// Makes a user's account and its first member, with credit where there is some: all of it or
/// nothing, and once, however many try. The account that the user acts for; `None` when there is to
/// be none, also for a user who was removed from an account, whichever.
///
/// # Errors
/// The store's.
pub async fn sign_up(
    store: &dyn Store,
    user: UserId,
    terms: &SignupTerms,
) -> Result<Option<Account>, Error> {
    if !terms.is_open {
        return Ok(None);
    }
    let opening = first_login(user, terms, Timestamp::now());
    match store.open_account(&opening).await {
        // Its credit is not in what was written first. Or another login of the same user was first,
        // here or on another machine; or the user was removed.
        Ok(()) | Err(StoreError::Exists(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(store.member(user).await?.map(|(_, account)| account))
}

fn first_login(user: UserId, terms: &SignupTerms, now: Timestamp) -> Opening {
    let actor = format!("user:{user}");
    let account = Account::open(
        NewAccount {
            // Unique: a user who signs up twice at once does it once.
            name: actor.clone(),
            kind: terms.kind,
            plan: terms.plan.clone(),
            limit_nusd: terms.limit_nusd,
            stripe_customer_id: None,
            rates: RateLimits::default(),
        },
        now,
    );
    let id = account.id;
    let member = Member { user_id: user, account_id: id, created_at: now };
    let audit = |action, subject: &dyn ToString, row: &Value| {
        AuditEntry::new(&actor, action, subject, now).of_account(id).to(row)
    };
    let credit = (terms.credit > NanoUsd::ZERO).then(|| {
        let entry = Entry {
            account_id: id,
            kind: EntryKind::Credit,
            amount_nusd: terms.credit,
            reason: "sign-up credit".to_owned(),
            reference: Some(format!("signup:{user}")),
            audit: None,
        };
        entry.audited(&actor, now)
    });
    let member_audit = audit("member.create", &user, &shown(&member));
    Opening {
        audit: audit("account.create", &id, &shown(&account)),
        account,
        member: Some((member, member_audit)),
        credit,
    }
}
