//! Tollgate: an OpenAI-compatible gateway that turns model usage into money without losing or
//! inventing any of it.
//!
//! # The path of a request, which is the order of the files
//!
//! ```text
//! server       accepts the connection
//! routes       gives the request an id; one table of routes, one stack of layers
//! controllers  extract: who calls, what body  ·  chat: the table of contents
//! services     auth -> catalog -> admission (hold placed) -> forwarding -> exchange -> upstream
//!              -> meter (tap), after a while by way of waiting -> settle -> ledger
//! store        the batch becomes one transaction, on SQLite or PostgreSQL
//! ```
//!
//! # What always holds
//!
//! - Nothing reaches a client before its hold is committed, and every hold is closed once, by a
//!   usage record of the same id.
//! - Only `store::books` changes a balance; it is pure, and both stores call it.
//! - Imports point one way: models < config, error < store < services < state < controllers <
//!   routes < server, demo, log < commands < main.
//! - Money and tokens are integers; no float computes anything.

// === the path of a request ===

/// The listener.
pub mod server;

/// The table of routes.
pub mod routes;

/// HTTP in and out. The files that `controllers::console` serves are in `src/console`.
pub mod controllers;

/// What handlers can reach.
pub mod state;

/// The trunk of a request and its leaves.
pub mod services;

/// Business transactions on two databases.
pub mod store;

// === what all of them stand on ===

/// Data only: the wire, the tables, money.
pub mod models;

/// One error, one envelope, one log line.
pub mod error;

/// Environment variables, each read once.
pub mod config;

// === around them ===

/// The command line.
pub mod commands;

/// An upstream for the first run.
pub mod demo;

/// Tracing.
pub mod log;
