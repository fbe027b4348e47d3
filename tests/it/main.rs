//! The black-box suite: the real binary between a real client and a scripted upstream, on SQLite
//! and on PostgreSQL, one file per feature.
//!
//! `app` runs the program and checks its books after every test, `upstream` plays the model's
//! provider to the byte, `client` is an HTTP client on a bare socket. Run it with `tests/run.sh`,
//! which starts the PostgreSQL that half of the tests need.

#![expect(clippy::expect_used, reason = "it is how a test says what it took for granted")]

mod app;
mod client;
mod random;
mod seed;
mod sinks;
mod source;
mod upstream;

mod admin;
mod archive;
mod bad_input;
mod billing;
mod books;
mod chaos;
mod chunks;
mod clocks;
mod commit_lost;
mod console;
mod cors;
mod count;
mod deploy;
mod dialects;
mod disconnect_table;
mod endings;
mod env_example;
mod faults;
mod frozen;
mod fuzzed;
mod growth;
mod hostile;
mod images;
mod keys;
mod kill_matrix;
mod limits;
mod limits_burst;
mod logs;
mod metrics;
mod migrations;
mod offers;
mod openapi;
mod oracle;
mod outage;
mod overspend;
mod payments;
mod pooler;
mod promises;
mod readiness;
mod reconcile;
mod reload;
mod retry;
mod rls;
mod settings;
mod soak;
mod start;
mod stopping;
mod stream;
mod supabase;
mod surface;
mod tidy;
mod tools;
mod traces;
mod upgrades;
mod upstreams;
mod views;
mod waiting;
mod wire;
