//! What can be asked of the books, and what becomes of it.
//!
//! Invariant: an operation carries all that deciding it needs; an outcome says what was done.

use crate::models::attempt::Attempts;
use crate::models::audit::AuditEntry;
use crate::models::hold::Hold;
use crate::models::ids::{AccountId, ApiKeyId, RequestId};
use crate::models::ledger::EntryKind;
use crate::models::limits::{Limited, LimitsInForce, Room};
use crate::models::money::{NanoUsd, Tokens};
use crate::models::timestamp::Timestamp;
use crate::models::usage::{UsageCorrection, UsageRecord};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Instant;

pub use crate::models::limits::Limit;

/// One change of the books. As JSON it is what a journal keeps while the database is away.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "every request has the largest, a placement")]
pub enum LedgerOp {
    /// Sets money aside: what is wanted, or what there is down to a floor, else refused.
    Place(Placement),
    /// Adds to a hold what is wanted, or what there is down to a floor.
    Extend(Extension),
    /// Writes down what recovery would need to know.
    Note(Note),
    /// Closes a hold with its usage record: charged, or voided with a charge of zero.
    Settle(Box<Settlement>),
    /// Puts a charge right by a new entry, when the truth comes late.
    Correct(Box<Correction>),
    /// Adds a credit or a correction.
    Enter(Entry),
    /// Its settlement was lost within this process: its hold is left to recovery.
    Abandon(RequestId),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Placement {
    /// Its amount is what is wanted.
    pub hold: Hold,
    /// Less than this is of no use.
    pub floor_nusd: NanoUsd,
    /// `None`: nothing is limited, and no window is looked at.
    #[serde(skip)]
    pub demand: Option<Demand>,
    /// For when the books cannot be asked. `None`: nothing was read lately.
    #[serde(skip)]
    pub funds: Option<Funds>,
    /// It was let in while the database was away, and is not to be refused any more.
    pub is_granted: bool,
}

/// What account and key can spend after an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    pub account: NanoUsd,
    /// `None`: the key has no budget.
    pub key: Option<NanoUsd>,
}

/// What account and key could spend when they were last read.
#[derive(Clone, Copy, Debug)]
pub struct Funds {
    pub account: NanoUsd,
    /// `None`: the key has no budget.
    pub key: Option<NanoUsd>,
    pub read_at: Instant,
}

/// What a request takes of what is limited: itself, and its tokens at most.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    pub tokens: Tokens,
    pub limits: LimitsInForce,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Extension {
    pub request_id: RequestId,
    pub account_id: AccountId,
    pub api_key_id: Option<ApiKeyId>,
    /// What the hold has come to so far.
    pub held_nusd: NanoUsd,
    pub add_nusd: NanoUsd,
    pub floor_nusd: NanoUsd,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settlement {
    pub record: UsageRecord,
    /// The numbers are an estimate, and the upstream may yet tell the truth.
    pub look_up: Option<LookUpPlan>,
}

/// When an estimate is asked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookUpPlan {
    pub first_at: Timestamp,
    pub give_up_at: Timestamp,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Correction {
    pub api_key_id: Option<ApiKeyId>,
    /// What the usage record was charged.
    pub charged_nusd: NanoUsd,
    /// `difference_nusd` is decided by the books.
    pub correction: UsageCorrection,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Note {
    pub request_id: RequestId,
    pub account_id: AccountId,
    /// The request went on to another upstream than it was placed for.
    pub moved: Option<Moved>,
    pub generation_id: Option<String>,
    pub completion_tokens_seen: Tokens,
}

/// Where a request is now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Moved {
    pub upstream: String,
    pub price_id: String,
    pub tried: Attempts,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub account_id: AccountId,
    pub kind: EntryKind,
    pub amount_nusd: NanoUsd,
    pub reason: String,
    /// What it is for outside the books: it is entered once.
    pub reference: Option<String>,
    pub audit: Option<AuditEntry>,
}

impl Entry {
    /// With what the audit log says of it.
    #[must_use]
    pub fn audited(self, actor: &str, now: Timestamp) -> Self {
        let audit = AuditEntry::new(actor, "credit.enter", &self.account_id, now)
            .of_account(self.account_id)
            .to(&json!({
                "kind": self.kind,
                "amount_nusd": self.amount_nusd,
                "reason": self.reason,
                "reference": self.reference,
            }));
        Self { audit: Some(audit), ..self }
    }
}

/// What became of one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was set aside, and what may be counted on after it: what both account and key have
    /// left, or nothing in an outage. Also the answer to a repetition.
    Placed {
        amount: NanoUsd,
        rest: Rest,
        left: NanoUsd,
        room: Room,
    },
    /// The hold's new amount.
    Extended {
        amount: NanoUsd,
        rest: Rest,
    },
    /// There is less than the floor.
    Refused {
        rest: Rest,
        by: Limit,
    },
    /// There is no room for it in a limit of rate.
    Limited(Box<Limited>),
    /// The idempotency key was used for another request.
    Repeated,
    Corrected {
        difference: NanoUsd,
    },
    Noted,
    Settled {
        charge: NanoUsd,
        rest: Rest,
    },
    /// The usage record was there before: nothing was changed.
    AlreadySettled,
    /// There is neither a hold nor a usage record of this id: nothing was changed.
    NoHold,
    Entered {
        balance: NanoUsd,
    },
    /// There is an entry of this reference: nothing was changed.
    AlreadyEntered,
    NoAccount,
    Abandoned,
    /// The account is suspended.
    Suspended,
    /// A sum left the range of its type: nothing was changed.
    OutOfRange,
}
