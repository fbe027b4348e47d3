//! Users and roles.

use super::ids::{AccountId, UserId};
use super::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

/// What a caller may do beside asking models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// See and manage the own account.
    User,
    /// A person who runs this service: every account.
    Admin,
    /// A program that runs this service: as [`Role::Admin`].
    Service,
}

/// A user who acts for an account. Several may share one; nobody acts for two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub user_id: UserId,
    pub account_id: AccountId,
    pub created_at: Timestamp,
}
