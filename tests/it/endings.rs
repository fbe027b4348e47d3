//! The endings: who hung up or failed, when, and what is charged then.

mod client_gone;
mod upstream_failed;

use crate::app::books::UsageRecord;

/// Everything the upstream generated, at its own numbers: 123,000 nano-USD and a fifth.
#[track_caller]
fn assert_whole(record: &UsageRecord, source: &str, what: &str) {
    assert_eq!(record.source, source, "{what}: {record:#?}");
    assert_eq!((record.prompt_tokens, record.completion_tokens), (12, 7), "{what}");
    assert_eq!(record.charge_nusd, 147_600, "{what}");
}
