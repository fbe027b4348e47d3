//! The trunk of a request and the leaves it stands on.
//!
//! Invariant: a module uses those above it, never one below; a test holds them to it. So each is
//! read after what it is made of. The path of a request through them is drawn in the crate's own
//! documentation.

// === leaves: `pricing`, `sse` and `tokens` do no I/O ===

/// Room for bodies in memory.
pub mod bodies;

/// Who is in trouble is left alone for a while.
pub mod breaker;

/// The client of all that is called.
pub mod http;

/// Counters and gauges.
pub mod metrics;

/// What a request costs.
pub mod pricing;

/// Whether the database answers.
pub mod pulse;

/// Random numbers that a seed gives again.
pub mod random;

/// The text of an API key.
pub mod secret;

/// Events of a stream, where they are in its bytes.
pub mod sse;

/// Counting tokens.
pub mod tokens;

/// Spans for whoever collects them.
pub mod trace;

/// Polling only what was woken.
pub mod woken;

// === what a request passes, from its end to its beginning: `admission` up to the ledger ===

/// The writer: everything that waits becomes one transaction.
pub mod ledger;

/// What was read of an answer.
pub mod reading;

/// Each event of a stream, while it passes.
pub mod tap;

/// How much of a stream its hold pays for.
pub mod allowance;

/// One upstream.
pub mod upstream;

/// All upstreams, by name.
pub mod upstreams;

/// Who is asked for a model, and after whom.
pub mod choice;

/// The models and their prices.
pub mod catalog;

/// What is done to accounts, members and keys.
pub mod directory;

/// Who calls.
pub mod auth;

/// A hold and a reading become a usage record, once.
pub mod settle;

/// One call under way.
pub mod exchange;

/// The hold on its way into the books.
pub mod commit;

/// The request on its way to its answer.
pub mod forwarding;

/// May this caller have this model, can it pay, is there room?
pub mod admission;

/// The body of a stream.
pub mod meter;

/// The body of a stream whose upstream has not answered yet.
pub mod waiting;

// === what goes on beside requests ===

/// Billing events leave for their sinks.
pub mod billing;

/// The holds of processes that died.
pub mod recovery;

/// Estimates are asked after for a day.
pub mod late;

/// What nobody will ask for any more goes.
pub mod housekeeping;

/// What the books say to those who pay.
pub mod reports;

/// Recomputes the books and names every difference.
pub mod verify;

/// Billing events that are missing.
pub mod backfill;

/// Looks at the books now and then, for the metrics.
pub mod watch;

/// Holds the books against what others say.
pub mod reconcile;

/// Records of past months go to files.
pub mod archive;
