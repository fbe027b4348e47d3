//! What a sink is to the worker: one call with some parcels, and a verdict on each.
//!
//! Invariant: a verdict never says "rejected" of what another try could deliver, nor "delivered" of
//! what the sink did not say so of.

use crate::services::http::Silence;
use std::future::Future;
use std::time::Duration;

/// What became of one parcel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The sink has it, from this call or an earlier one.
    Delivered,
    /// To be tried again.
    Later(Trouble),
    /// The sink will not take it however often it is sent: for a person.
    Rejected(String),
    /// The call was refused as a whole, and nothing of it taken: one of its parcels is at fault.
    Together(String),
    /// It was not sent: it goes back as it was.
    Untouched,
    /// The sink was asked, and has it not: it goes back as one that is sent from now on.
    Missing,
}

impl Verdict {
    /// Of a parcel that was not sent by itself, after it was refused with others where that is so:
    /// then it waits, so that those that are well do not wait behind it.
    pub fn unsent(refused: Option<String>) -> Self {
        match refused {
            Some(why) => Self::Later(Trouble::of_parcel(why, None).not_taken()),
            None => Self::Untouched,
        }
    }

    /// Why a call was refused as a whole.
    pub fn refusal(&self) -> Option<String> {
        match self {
            Self::Together(why) => Some(why.clone()),
            _ => None,
        }
    }

    /// Of a parcel that nothing else was refused with.
    pub fn alone(self) -> Self {
        match self {
            Self::Together(why) => Self::Rejected(why),
            other => other,
        }
    }
}

/// Why something is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: String,
    /// What the sink asked for.
    pub after: Option<Duration>,
    /// The whole sink is in trouble, not just this parcel.
    pub is_sinks: bool,
    /// The sink answered, and that answer may be what it repeats for the same idempotency key.
    pub is_answer: bool,
    /// The sink may have the parcel nevertheless.
    pub may_have_arrived: bool,
}

impl Trouble {
    /// The sink did not answer.
    pub fn silence(Silence { why, may_have_arrived }: Silence) -> Self {
        let (reason, after) = (why, None);
        Self { reason, after, is_sinks: true, is_answer: false, may_have_arrived }
    }

    /// The sink answered that it cannot, now.
    pub fn of_sink(reason: String, after: Option<Duration>) -> Self {
        Self { reason, after, is_sinks: true, is_answer: true, may_have_arrived: true }
    }

    /// This parcel has to wait; the sink is well.
    pub fn of_parcel(reason: String, after: Option<Duration>) -> Self {
        Self { reason, after, is_sinks: false, is_answer: true, may_have_arrived: true }
    }

    /// Whatever the answer was, it said that this was not taken.
    pub fn not_taken(self) -> Self {
        Self { may_have_arrived: false, ..self }
    }
}

/// A sink.
pub trait Exporter: Send + Sync {
    type Parcel: Send + Sync;

    /// Its name in the tables.
    const SINK: &'static str;
    /// Calls at once at most.
    const CALLS_MAX: usize;

    /// One call, bounded in time; a verdict on each parcel, in their order.
    fn send(&self, parcels: &[Self::Parcel]) -> impl Future<Output = Vec<Verdict>> + Send;
}

/// A sink's words as they may stand in a reason: short, on one line.
pub fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
}

const REASON_CHARS_MAX: usize = 300;
