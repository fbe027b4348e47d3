//! The audit log: who changed what, from what to what.
//!
//! Invariant: an entry is written in the transaction of its change.

use super::account::{Account, AccountStatus};
use super::ids::{AccountId, AuditId};
use super::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub id: AuditId,
    /// `operator` (a command on the server), `key:…` or `user:…`.
    pub actor: String,
    /// As `key.create`.
    pub action: String,
    /// Id of what was changed.
    pub subject: String,
    pub account_id: Option<AccountId>,
    /// JSON of the row before and after, without secrets. `None`: there was or is none.
    pub before: Option<String>,
    pub after: Option<String>,
    pub created_at: Timestamp,
}

impl AuditEntry {
    #[must_use]
    pub fn new(actor: &str, action: &str, subject: &dyn ToString, now: Timestamp) -> Self {
        Self {
            id: AuditId::generate(),
            actor: actor.to_owned(),
            action: action.to_owned(),
            subject: subject.to_string(),
            account_id: None,
            before: None,
            after: None,
            created_at: now,
        }
    }

    #[must_use]
    pub fn of_account(self, account: AccountId) -> Self {
        Self { account_id: Some(account), ..self }
    }

    #[must_use]
    pub fn from(self, before: &Value) -> Self {
        Self { before: Some(before.to_string()), ..self }
    }

    #[must_use]
    pub fn to(self, after: &Value) -> Self {
        Self { after: Some(after.to_string()), ..self }
    }

    /// Of a change of an account's settings.
    #[must_use]
    pub fn account_update(actor: &str, before: &Account, after: &Account, now: Timestamp) -> Self {
        Self::new(actor, "account.update", &after.id, now)
            .of_account(after.id)
            .from(&shown(before))
            .to(&shown(after))
    }

    /// Of a change that somebody asked for. To suspend what is suspended is one: from then on it is
    /// also theirs, and whoever did it before cannot undo it.
    #[must_use]
    pub fn account_update_of(
        actor: &str,
        before: &Account,
        after: &Account,
        status: Option<AccountStatus>,
        now: Timestamp,
    ) -> Self {
        let entry = Self::account_update(actor, before, after, now);
        let suspended = AccountStatus::Suspended;
        let is_joined = status == Some(suspended) && before.status == suspended;
        if is_joined { Self { action: ACCOUNT_SUSPEND.to_owned(), ..entry } } else { entry }
    }

    /// Whether it is worth an entry although no column changes.
    #[must_use]
    pub fn tells_alone(&self) -> bool {
        self.action == ACCOUNT_SUSPEND
    }
}

/// Somebody suspends an account that others have suspended.
const ACCOUNT_SUSPEND: &str = "account.suspend";

/// A row as others may see it: not even a secret's hash leaves, nobody needs it who may not have
/// the table.
#[must_use]
pub fn shown<T: Serialize>(row: &T) -> Value {
    // Rows of plain members have no way to fail.
    let mut row = serde_json::to_value(row).unwrap_or_default();
    if let Some(members) = row.as_object_mut() {
        for hidden in ["secret_hash", "previous_secret_hash", "ledger_hash"] {
            members.remove(hidden);
        }
    }
    row
}
