//! Billing sinks of our own: strict servers that refuse what the vendors would refuse, keep what
//! they took, and can misbehave on demand.
//!
//! Faults are drawn from a seed or queued by a test; what was accepted before a fault counts.

pub mod openmeter;
pub mod server;
pub mod stripe;
pub mod webhook;
