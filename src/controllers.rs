//! HTTP in and out. A controller reads like a table of contents: one call a stage.
//!
//! Invariant: no SQL, no prices, no sockets here.

pub mod account;
/// For whoever runs this service.
pub mod admin;
pub mod billing;
pub mod chat;
pub mod client;
pub mod console;
pub mod credits;
pub mod export;
pub mod extract;
pub mod health;
pub mod keys;
pub mod latency;
pub mod metrics;
pub mod models;
mod parameters;
pub mod usage;
pub mod webhooks;
