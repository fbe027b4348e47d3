//! What the log and the trace are told of a request that is over.
//!
//! Invariant: numbers and names of ours; never what was asked or answered, nor a key or an address.

use super::OpenHold;
use crate::models::timestamp::Timestamp;
use crate::models::usage::UsageRecord;

impl OpenHold {
    /// An upstream is about to be called: its span begins with the first attempt.
    pub(super) fn trace_call(&mut self) {
        if let (Some(trace), None) = (&self.trace, &self.call_trace) {
            let (upstream, kind) = (&self.upstream.name, self.upstream.kind.name());
            self.call_trace = Some(trace.call(&self.hold.model, upstream, kind));
        }
    }

    pub(super) fn tell(&self, record: &UsageRecord) {
        if let Some(call) = &self.call_trace {
            call.ended(record);
        }
        let took = record.ended_at.since(record.started_at);
        if self.settler.slow.is_some_and(|slow| took >= slow) {
            self.span.in_scope(|| self.tell_slow(record));
        }
    }

    fn tell_slow(&self, record: &UsageRecord) {
        let ms = |at: Timestamp| {
            u64::try_from(at.since(record.started_at).as_millis()).unwrap_or(u64::MAX)
        };
        // Of the calls, from each one's beginning to its answer's: the rest is the answer itself.
        let upstream_ms: i64 = self.tried.0.iter().map(|attempt| attempt.ms).sum();
        tracing::warn!(
            account.id = %record.account_id,
            model = record.model,
            upstream = record.upstream,
            streamed = record.streamed,
            ending = ?record.ending,
            attempts = record.attempts,
            completion_tokens = record.completion_tokens.0,
            upstream_ms,
            first_byte_ms = record.first_byte_at.map(ms),
            total_ms = ms(record.ended_at),
            "a slow request"
        );
    }
}
