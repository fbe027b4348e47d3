//! Calls of upstreams for one request, in their order, where there was more to it than one answer.
//!
//! Invariant: bounded in number. In a row of a table it is a text, NULL where there is none, so
//! that both databases keep it byte for byte: it is under the hash of its usage record.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// Calls of upstreams for one request at most.
pub const ATTEMPTS_MAX: usize = 8;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts(pub Vec<Attempt>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its name.
    pub upstream: String,
    /// What it answered with; none when nothing came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why it was not the answer. None: it was, or its client left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// From the call to its answer's beginning, or to its failure.
    pub ms: i64,
    /// What a failed one is called at its upstream, where it may have generated something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_id: Option<String>,
    /// What a failed one cost the operator, in pico-USD, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_pusd: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// No connection, or it broke before an answer.
    Unreachable,
    TimedOut,
    RateLimited,
    /// It refuses the operator's key or credit.
    Refused,
    /// It found the request at fault.
    Rejected,
    /// It does not serve this model.
    NoModel,
    /// Its status, or what came was no completion.
    Failed,
}

impl Attempts {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Attempts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_empty() {
            return serializer.serialize_none();
        }
        serializer.serialize_str(&serde_json::to_string(&self.0).map_err(ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Attempts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<String>::deserialize(deserializer)? {
            None => Ok(Self::default()),
            Some(text) => serde_json::from_str(&text).map(Self).map_err(de::Error::custom),
        }
    }
}
