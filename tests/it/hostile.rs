//! Hostile clients: framing that two readers read differently, JSON that two parsers read
//! differently, paths that lead elsewhere, texts that are SQL elsewhere, clients that never finish,
//! and bodies that nobody reads. And a hostile upstream, or a careless one: what it tells of its
//! operator.
//!
//! The rule: a request is refused with a 4xx, or means the same to everybody who reads it; what is
//! charged is what was forwarded; the server serves the next client.

mod framing;
mod json;
mod large;
mod operator;
mod paths;
mod slow;
mod sql;
mod unread;
