//! Billing events, what each adds to a meter, and the exports they are merged into.
//!
//! Invariants: what an event adds is what its ledger entry took; the classes of tokens are
//! disjoint; over the exports of a customer `amount = value × unit + carried`, so that what was
//! sent differs from the ledger by less than one unit. What is sent when is decided elsewhere.

use super::alert::{Alert, AlertTerms};
use super::ids::{AccountId, RequestId};
use super::money::NanoUsd;
use super::timestamp::Timestamp;
use super::usage::{Outline, UsageCorrection, UsageRecord};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Which events are written with a charge.
#[derive(Clone, Debug, Default)]
pub struct EventTerms {
    /// Each billable usage record and each correction goes to each of these.
    pub sinks: Vec<String>,
    /// Whom crossings are told to. `None`: nobody, and none is looked for.
    pub alerts: Option<(String, AlertTerms)>,
}

/// A copy of a usage record, or of its correction, on its way to a sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BillingEvent {
    pub id: String,
    pub sink: String,
    pub kind: EventKind,
    pub request_id: RequestId,
    pub account_id: AccountId,
    pub state: DeliveryState,
    pub attempts: i64,
    pub next_attempt_at: Timestamp,
    pub leased_until: Option<Timestamp>,
    pub reason: Option<String>,
    /// The exports that it is a member of.
    pub export_group: Option<String>,
    /// JSON of what is in no other row.
    pub detail: Option<String>,
    pub created_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    Usage,
    /// The truth came late.
    Correction,
    /// Another event was parked: for the webhook only.
    Notice,
    /// With this charge a balance ran low.
    BalanceLow,
    /// With this charge so much of a budget is spent.
    BudgetThreshold,
}

/// What a charge is for.
#[derive(Clone, Copy, Debug)]
pub enum ChargeOf<'a> {
    Usage(&'a UsageRecord),
    Correction(&'a UsageCorrection),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    Waiting,
    Exported,
    /// Not to be sent again until somebody says so.
    Parked,
    /// An export that does not count: its members were planned anew, another one is in its place,
    /// or it was dismissed.
    Void,
}

impl BillingEvent {
    /// Of a usage record.
    #[must_use]
    pub fn usage(record: &Outline, sink: &str) -> Self {
        let id = format!("{}:{sink}", record.id);
        Self::new(id, EventKind::Usage, (record.id, record.account_id), record.ended_at, sink)
    }

    /// Of a truth that came late.
    #[must_use]
    pub fn correction(correction: &UsageCorrection, sink: &str) -> Self {
        let id = format!("{}:{sink}:correction", correction.request_id);
        let of = (correction.request_id, correction.account_id);
        Self::new(id, EventKind::Correction, of, correction.created_at, sink)
    }

    /// Of a crossing that a charge made. The charge's own event names it.
    #[must_use]
    pub fn alert(alert: &Alert, charge: ChargeOf<'_>, sink: &str) -> Self {
        let event = match charge {
            ChargeOf::Usage(record) => Self::usage(&record.outline(), sink),
            ChargeOf::Correction(correction) => Self::correction(correction, sink),
        };
        let kind = match alert {
            Alert::BalanceLow { .. } => EventKind::BalanceLow,
            Alert::BudgetThreshold(_) => EventKind::BudgetThreshold,
        };
        let id = format!("{}:{}", event.id, alert.name());
        Self { id, kind, detail: serde_json::to_string(alert).ok(), ..event }
    }

    /// The id follows from what it is of, so that the same event cannot be written twice.
    fn new(
        id: String,
        kind: EventKind,
        (request_id, account_id): (RequestId, AccountId),
        at: Timestamp,
        sink: &str,
    ) -> Self {
        Self {
            id,
            sink: sink.to_owned(),
            kind,
            request_id,
            account_id,
            state: DeliveryState::Waiting,
            attempts: 0,
            next_attempt_at: at,
            leased_until: None,
            reason: None,
            export_group: None,
            detail: None,
            created_at: at,
        }
    }

    /// The event that a notice is about: its id, which of its parkings, and a suffix. A notice of
    /// an earlier version has no number.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        let about = self.id.strip_suffix(NOTICE_SUFFIX)?;
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        about
            .rsplit_once(':')
            .filter(|(_, last)| is_number(last))
            .map_or(Some(about), |(id, _)| Some(id))
    }
}

/// The id of an event from outside: it may not be anybody's, but a database takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventId(pub String);

/// Not the id of an event.
#[derive(Debug)]
pub struct NoEventId;

impl FromStr for EventId {
    type Err = NoEventId;

    /// The id of a request and, after a colon, what it is for.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (request, rest) = text.split_once(':').ok_or(NoEventId)?;
        request.parse::<RequestId>().map_err(|_| NoEventId)?;
        if rest.chars().all(|character| character.is_ascii_graphic()) {
            return Ok(Self(text.to_owned()));
        }
        Err(NoEventId)
    }
}

/// The id of an export from outside: it may not be anybody's, but a database takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportId(pub String);

/// Not the id of an export.
#[derive(Debug)]
pub struct NoExportId;

/// How the identifiers of exports begin, at the sink too.
pub const EXPORT_PREFIX: &str = "tollgate-";

impl FromStr for ExportId {
    type Err = NoExportId;

    /// A prefix and a hash.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hash = text.strip_prefix(EXPORT_PREFIX).ok_or(NoExportId)?;
        let is_hash = hash.len() == HASH_CHARS && hash.bytes().all(|b| b.is_ascii_hexdigit());
        if is_hash { Ok(Self(text.to_owned())) } else { Err(NoExportId) }
    }
}

/// Of a SHA-256 in hexadecimal digits.
const HASH_CHARS: usize = 64;

/// What the id of a notice has behind that of its event.
pub const NOTICE_SUFFIX: &str = ":notice";

/// Why an event is parked, where the program itself asks after it.
pub mod reasons {
    /// The account is not known at the sink: sent when it is.
    pub const NO_CUSTOMER: &str = "no_customer";
    /// The sink does not take events of so long ago.
    pub const TOO_OLD: &str = "too_old";
    /// Whether it arrived cannot be told: for a person.
    pub const IN_DOUBT: &str = "in_doubt";
    pub const OUT_OF_RANGE: &str = "out_of_range";
    /// A person has dealt with it by other means: it is not sent any more.
    pub const DISMISSED: &str = "dismissed";
    /// How the reason of what the sink took at first, and does not count, begins.
    pub const DROPPED: &str = "stripe ";
    pub const ALL: [&str; 5] = [NO_CUSTOMER, TOO_OLD, IN_DOUBT, OUT_OF_RANGE, DISMISSED];
}

impl fmt::Display for DeliveryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Exported => "exported",
            Self::Parked => "parked",
            Self::Void => "void",
        })
    }
}

/// Since when, and until when, events were written for a sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkWindow {
    pub name: String,
    pub since: Timestamp,
    pub until: Option<Timestamp>,
}

/// What one event adds to the meters. Negative where a correction gives back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Billed {
    pub charge_nusd: NanoUsd,
    /// 1; of a correction 0.
    pub requests: i64,
    // Disjoint classes of tokens.
    pub uncached_prompt_tokens: i64,
    pub cached_tokens: i64,
    pub cache_write_tokens: i64,
    pub audio_prompt_tokens: i64,
    pub text_completion_tokens: i64,
    pub reasoning_tokens: i64,
    pub audio_completion_tokens: i64,
    pub image_completion_tokens: i64,
}

impl Billed {
    #[must_use]
    pub fn usage(record: &UsageRecord) -> Self {
        let cache_write =
            record.cache_write_tokens.0.saturating_add(record.cache_write_1h_tokens.0);
        let rest = |whole: i64, parts: &[i64]| {
            parts.iter().fold(whole, |rest, part| rest.saturating_sub(*part)).max(0)
        };
        let (cached, audio) = (record.cached_tokens.0, record.audio_prompt_tokens.0);
        let reasoning = record.reasoning_tokens.0;
        let (sound, image) = (record.audio_completion_tokens.0, record.image_completion_tokens.0);
        Self {
            charge_nusd: record.charge_nusd,
            requests: 1,
            uncached_prompt_tokens: rest(record.prompt_tokens.0, &[cached, cache_write, audio]),
            cached_tokens: cached,
            cache_write_tokens: cache_write,
            audio_prompt_tokens: audio,
            text_completion_tokens: rest(record.completion_tokens.0, &[reasoning, sound, image]),
            reasoning_tokens: reasoning,
            audio_completion_tokens: sound,
            image_completion_tokens: image,
        }
    }

    /// What a correction changes. It knows totals only, so their change is in the classes that
    /// have no detail.
    #[must_use]
    pub fn correction(correction: &UsageCorrection, record: &UsageRecord) -> Self {
        Self {
            charge_nusd: NanoUsd(correction.difference_nusd.0.saturating_neg()),
            uncached_prompt_tokens: correction.prompt_tokens.0 - record.prompt_tokens.0,
            text_completion_tokens: correction.completion_tokens.0 - record.completion_tokens.0,
            ..Self::default()
        }
    }
}

/// A billing event with the rows that it is a copy of.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub event: BillingEvent,
    pub record: UsageRecord,
    pub correction: Option<UsageCorrection>,
    /// What a notice is about.
    pub about: Option<BillingEvent>,
}

impl Outgoing {
    #[must_use]
    pub fn billed(&self) -> Billed {
        match (self.event.kind, &self.correction) {
            (EventKind::Usage, _) => Billed::usage(&self.record),
            (EventKind::Correction, Some(correction)) => {
                Billed::correction(correction, &self.record)
            }
            (EventKind::Correction, None)
            | (EventKind::Notice | EventKind::BalanceLow | EventKind::BudgetThreshold, _) => {
                Billed::default()
            }
        }
    }
}

/// What a meter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Whole micro-USD: one cannot send fractions, so the rest is carried.
    ChargeMicroUsd,
    Requests,
    UncachedPromptTokens,
    CachedTokens,
    CacheWriteTokens,
    AudioPromptTokens,
    TextCompletionTokens,
    ReasoningTokens,
    AudioCompletionTokens,
    ImageCompletionTokens,
}

/// A meter at the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meter {
    pub event_name: String,
    pub measure: Measure,
}

/// Nano-USD in the unit that is sent.
pub const NANO_PER_MICRO: i64 = 1_000;

impl Measure {
    /// By these names in the configuration; the charge has a variable of its own.
    pub const OPTIONAL: [(&'static str, Self); 9] = [
        ("requests", Self::Requests),
        ("uncached_prompt_tokens", Self::UncachedPromptTokens),
        ("cached_tokens", Self::CachedTokens),
        ("cache_write_tokens", Self::CacheWriteTokens),
        ("audio_prompt_tokens", Self::AudioPromptTokens),
        ("text_completion_tokens", Self::TextCompletionTokens),
        ("reasoning_tokens", Self::ReasoningTokens),
        ("audio_completion_tokens", Self::AudioCompletionTokens),
        ("image_completion_tokens", Self::ImageCompletionTokens),
    ];

    /// What an event adds, in nano-USD or as a number.
    #[must_use]
    pub fn of(self, billed: &Billed) -> i64 {
        match self {
            Self::ChargeMicroUsd => billed.charge_nusd.0,
            Self::Requests => billed.requests,
            Self::UncachedPromptTokens => billed.uncached_prompt_tokens,
            Self::CachedTokens => billed.cached_tokens,
            Self::CacheWriteTokens => billed.cache_write_tokens,
            Self::AudioPromptTokens => billed.audio_prompt_tokens,
            Self::TextCompletionTokens => billed.text_completion_tokens,
            Self::ReasoningTokens => billed.reasoning_tokens,
            Self::AudioCompletionTokens => billed.audio_completion_tokens,
            Self::ImageCompletionTokens => billed.image_completion_tokens,
        }
    }

    /// How much of it is one of what is sent.
    #[must_use]
    pub fn unit(self) -> i64 {
        if self == Self::ChargeMicroUsd { NANO_PER_MICRO } else { 1 }
    }
}

/// One merged meter event, as it is sent: written down before it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The identifier at the sink.
    pub id: String,
    pub sink: String,
    /// One group of members, for every meter.
    pub event_group: String,
    pub customer: String,
    /// The meter's event name.
    pub meter: String,
    /// 1, 2, 3 … of a customer.
    pub seq: i64,
    /// When it was used: the time of the newest member, all of one minute.
    pub used_at: Timestamp,
    pub members: i64,
    /// Their sum: nano-USD, or a number of tokens.
    pub amount: i64,
    /// Of `amount` in one of `value`.
    pub unit: i64,
    /// What is sent: whole units.
    pub value: i64,
    pub state: DeliveryState,
    pub attempts: i64,
    /// Answers that said no for now: each needs another idempotency key.
    pub refusals: i64,
    /// When it may have arrived for the first time.
    pub first_sent_at: Option<Timestamp>,
    pub next_attempt_at: Timestamp,
    pub reason: Option<String>,
    pub created_at: Timestamp,
}

/// One customer's exports: sent one after the other, by whoever has the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    pub sink: String,
    pub customer: String,
    /// Of the charge, less than a unit: it goes into the next export.
    pub carried_nusd: i64,
    /// Number of the newest export.
    pub seq: i64,
    /// `None`: nothing waits.
    pub next_attempt_at: Option<Timestamp>,
    pub leased_until: Option<Timestamp>,
    pub leased_by: Option<String>,
}

impl Lane {
    #[must_use]
    pub fn new(sink: &str, customer: &str) -> Self {
        Self {
            sink: sink.to_owned(),
            customer: customer.to_owned(),
            carried_nusd: 0,
            seq: 0,
            next_attempt_at: None,
            leased_until: None,
            leased_by: None,
        }
    }

    /// Something waits; who has the lease will find it at its end.
    pub fn wake(&mut self, now: Timestamp) {
        let is_leased = self.leased_until.is_some_and(|until| until > now);
        if !is_leased {
            self.next_attempt_at = Some(now);
        }
    }
}

#[cfg(test)]
impl Export {
    /// Any row.
    pub fn sample(at: Timestamp) -> Self {
        Self {
            id: "e".to_owned(),
            sink: "stripe".to_owned(),
            event_group: "g".to_owned(),
            customer: "cus_1".to_owned(),
            meter: "m".to_owned(),
            seq: 1,
            used_at: at,
            members: 1,
            amount: 1,
            unit: 1,
            value: 1,
            state: DeliveryState::Waiting,
            attempts: 0,
            refusals: 0,
            first_sent_at: None,
            next_attempt_at: at,
            reason: None,
            created_at: at,
        }
    }
}
