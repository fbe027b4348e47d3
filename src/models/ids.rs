//! Typed ids: a UUIDv7 each, so that an account cannot stand where a request is meant and rows
//! sort by the time they were made.

use super::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, later than those made before it.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(
    /// Who pays.
    AccountId
);
id!(
    /// An API key; not the secret itself.
    ApiKeyId
);
id!(
    /// One request; also the id of its hold and of its usage record.
    RequestId
);
impl RequestId {
    /// Below every id made at this instant or later, and above those made before it.
    #[must_use]
    pub fn floor(at: Timestamp) -> Self {
        let millis = u128::try_from(at.unix_millis()).unwrap_or_default();
        Self(Uuid::from_u128(millis << 80))
    }

    /// The instant that it was made of, to the millisecond.
    #[must_use]
    pub fn began_at(self) -> Timestamp {
        let millis = i64::try_from(self.0.as_u128() >> 80).unwrap_or(i64::MAX);
        Timestamp::from_unix_micros(millis.saturating_mul(1_000))
    }
}

id!(
    /// One running Tollgate process: the owner of holds.
    InstanceId
);
id!(
    /// A user of Supabase: its `sub`.
    UserId
);
id!(
    /// An entry of the audit log.
    AuditId
);
