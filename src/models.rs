//! Data only: what the wire, the tables and the books are made of.
//!
//! Invariant: nothing here does I/O or knows the time. Depends on no other module of the crate.

pub mod account;
pub mod alert;
pub mod archive;
pub mod attempt;
pub mod audit;
pub mod billing;
pub mod hold;
pub mod identity;
pub mod ids;
pub mod key;
pub mod ledger;
pub mod limits;
pub mod money;
pub mod openai;
pub mod openrouter;
pub mod overview;
pub mod payment;
pub mod price;
pub mod reconcile;
pub mod report;
pub mod timestamp;
pub mod usage;
pub mod window;
