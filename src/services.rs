//! The trunk of a request, in its order, and the leaves it stands on.
//!
//! Invariant: a module may use those above it and those it is drawn beside, never one below. Leaves
//! (`pricing`, `sse`, `tokens`, `tap`, `reading`) do no I/O; `http` is the client of all that is
//! called.

// === leaves ===
pub mod bodies;
pub mod breaker;
pub mod http;
pub mod metrics;
pub mod pricing;
pub mod pulse;
pub mod random;
pub mod sse;
pub mod tokens;
pub mod trace;
pub mod woken;

// === what a request passes, in its order ===
pub mod admission;
pub mod allowance;
pub mod auth;
pub mod catalog;
pub mod choice;
pub mod commit;
pub mod directory;
pub mod exchange;
pub mod forwarding;
pub mod ledger;
pub mod meter;
pub mod reading;
pub mod settle;
pub mod tap;
pub mod upstream;
pub mod upstreams;
pub mod waiting;

// === what goes on beside requests ===
pub mod archive;
pub mod backfill;
pub mod billing;
pub mod late;
pub mod reconcile;
pub mod recovery;
pub mod reports;
pub mod verify;
pub mod watch;
