//! Views of OpenAI's wire format: the few members that Tollgate looks at.
//!
//! The bodies themselves are never rebuilt from these views (that would drop members that the
//! views do not know); [`splice`] changes single members in the text as it came.

pub mod answer;
pub mod depth;
pub mod lenient;
pub mod pairs;
pub mod refused;
pub mod request;
pub mod splice;
pub mod tools;
pub mod usage;
