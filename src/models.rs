//! Data only: what the wire, the tables and the books are made of.
//!
//! Invariant: nothing here does I/O or knows the time. Depends on no other module of the crate.

pub mod account;
pub mod hold;
pub mod ids;
pub mod ledger;
pub mod money;
pub mod openai;
pub mod price;
pub mod timestamp;
pub mod usage;
