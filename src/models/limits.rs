//! How fast an account or a key may go.

use serde::{Deserialize, Serialize};

/// `None`: no limit of this kind here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    pub requests_per_minute: Option<i64>,
    /// Prompt and completion together.
    pub tokens_per_minute: Option<i64>,
    /// Requests that run at the same time.
    pub concurrent_requests: Option<i64>,
}
