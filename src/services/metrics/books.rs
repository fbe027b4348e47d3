//! What the books say, counted by the ledger writer when it is committed.
//!
//! Invariant: over the life of a process the sums here are those of what it has written, to the
//! last nano-USD. Tokens that are parts of others are counted as parts, beside their whole.

use super::times::Times;
use crate::models::ids::RequestId;
use crate::models::money::{NanoUsd, Tokens};
use crate::models::usage::{Ending, UsageRecord, UsageSource};
use crate::store::{LedgerOp, Limit, Outcome, Rest};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    model: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    model: Arc<str>,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEnding {
    model: Arc<str>,
    ending: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSource {
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfHold {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfForm {
    streamed: &'static str,
}

/// Models that have their own numbers; those that are used later are `other` together. A catalog
/// has some hundreds, of which most installations use few.
const MODELS_MAX: usize = 256;
const OTHER: &str = "other";

pub struct BookMetrics {
    families: Families,
    /// The handles of each model.
    models: Mutex<HashMap<Arc<str>, Arc<ModelMetrics>>>,
    pub holds: HoldMetrics,
    shortfall_nusd: Counter,
    given_back_nusd: Counter,
    taken_nusd: Counter,
    corrections: Counter,
    first_byte: [Times; 2],
    duration: Times,
}

/// Where the handles come from.
struct Families {
    requests: Family<OfEnding, Counter>,
    sources: Family<OfSource, Counter>,
    tokens: Family<OfKind, Counter>,
    charges: Family<Of, Counter>,
    costs: Family<Of, Counter>,
    counted: Family<Of, Counter>,
    compared: Family<Of, Counter>,
}

struct ModelMetrics {
    endings: [Counter; ENDINGS.len()],
    prompt: Counter,
    cached: Counter,
    completion: Counter,
    reasoning: Counter,
    charge_nusd: Counter,
    cost_pusd: Counter,
    counted: Counter,
    compared: Counter,
}

/// Holds of this process, by what became of them.
pub struct HoldMetrics {
    /// Those that are not closed. By their ids: of a commit whose answer was lost it is not known
    /// at once whether it placed one.
    open: Mutex<HashSet<RequestId>>,
    placed: Counter,
    settled: Counter,
    voided: Counter,
    /// Another process took it for a dead one's and settled it.
    taken_over: Counter,
    /// Its settlement was lost: it is left to recovery.
    lost: Counter,
    /// Not ours: the hold of a process that died.
    recovered: Counter,
    extended: Counter,
    refused_account: Counter,
    refused_key: Counter,
    limited: Counter,
}

const ENDINGS: [&str; 5] = ["completed", "upstream_failed", "client_gone", "cut_off", "killed"];

fn place(ending: Ending) -> usize {
    match ending {
        Ending::Completed => 0,
        Ending::UpstreamFailed => 1,
        Ending::ClientGone => 2,
        Ending::CutOff => 3,
        Ending::Killed => 4,
    }
}

fn name(source: UsageSource) -> &'static str {
    match source {
        UsageSource::Upstream => "upstream",
        UsageSource::Lookup => "lookup",
        UsageSource::Counted => "counted",
        UsageSource::Estimated => "estimated",
        UsageSource::None => "none",
    }
}

impl BookMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let families = Families::new(registry);
        let holds = HoldMetrics::new(registry);
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let shortfall_nusd = counter("shortfall_nusd", "What accounts could not pay");
        let corrections = counter("corrections", "Charges put right when the truth came late");
        let given_back_nusd = counter("corrections_given_back_nusd", "Given back by them");
        let taken_nusd = counter("corrections_taken_nusd", "Taken by them");
        let times = Family::new_with_constructor(Times::of_answers as fn() -> Histogram);
        registry.register(
            "time_to_first_byte_seconds",
            "From the hold to the answer's first byte; of a plain answer, to the whole",
            times.clone(),
        );
        let first_byte = ["false", "true"]
            .map(|streamed| Times(times.get_or_create_owned(&OfForm { streamed })));
        let duration = Times(Times::of_answers());
        registry.register("request_seconds", "From the hold to the settlement", duration.0.clone());
        let models = Mutex::default();
        Self {
            families,
            models,
            holds,
            shortfall_nusd,
            given_back_nusd,
            taken_nusd,
            corrections,
            first_byte,
            duration,
        }
    }

    /// Counts what was committed; `None`: the operation was lost. `is_own`: of this process, and
    /// not of one that died.
    pub fn committed(&self, op: &LedgerOp, outcome: Option<&Outcome>, is_own: bool) {
        match (op, outcome) {
            (LedgerOp::Settle(settlement), outcome) => {
                self.holds.closed(&settlement.record, outcome, is_own);
                if let Some(Outcome::Settled { charge, .. }) = outcome {
                    let owed = settlement.record.charge_nusd.0.saturating_sub(charge.0);
                    self.settled(&settlement.record, *charge, owed);
                }
            }
            (LedgerOp::Correct(_), Some(Outcome::Corrected { difference })) => {
                self.corrections.inc();
                add(&self.given_back_nusd, difference.0);
                add(&self.taken_nusd, difference.0.saturating_neg());
            }
            (_, outcome) if is_own => self.holds.changed(op, outcome),
            _ => {}
        }
    }

    /// A record of ours that was there when its settlement was tried again: the answer to the
    /// first commit was lost. `None`: another process had settled it.
    pub fn found(&self, id: RequestId, record: Option<&UsageRecord>, is_own: bool) {
        let Some(record) = record else {
            if is_own && self.holds.open().remove(&id) {
                self.holds.taken_over.inc();
            }
            return;
        };
        if is_own {
            self.holds.placed(id);
        }
        let charge = record.charge_nusd;
        let rest = Rest { account: NanoUsd::ZERO, key: None };
        self.holds.closed(record, Some(&Outcome::Settled { charge, rest }), is_own);
        self.settled(record, charge, record.shortfall_nusd.0);
    }

    fn settled(&self, record: &UsageRecord, charge: NanoUsd, owed: i64) {
        let of_model = self.of(&record.model);
        of_model.endings[place(record.ending)].inc();
        let source = name(record.source);
        self.families.sources.get_or_create(&OfSource { source }).inc();
        of_model.used(record, charge);
        add(&self.shortfall_nusd, owed);
        if record.ending == Ending::Killed {
            // Its times are those of another process, and of nobody's waiting.
            return;
        }
        self.duration.observe(record.ended_at.since(record.started_at));
        if let Some(at) = record.first_byte_at {
            let place = usize::from(record.streamed);
            self.first_byte[place].observe(at.since(record.started_at));
        }
    }

    /// Every model here was admitted, so that it is one of the catalog's.
    fn of(&self, model: &str) -> Arc<ModelMetrics> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = models.get(model) {
            return known.clone();
        }
        let has_room = models.len() < MODELS_MAX;
        let model: Arc<str> = Arc::from(if has_room { model } else { OTHER });
        let new = || Arc::new(self.families.of(&model));
        models.entry(model.clone()).or_insert_with(new).clone()
    }
}

impl Families {
    fn new(registry: &mut Registry) -> Self {
        let requests = Family::default();
        let help = "Usage records written, by how their requests ended";
        registry.register("requests", help, requests.clone());
        let sources = Family::default();
        let help = "Usage records written, by where their numbers come from";
        registry.register("usage_records", help, sources.clone());
        let tokens = Family::default();
        let help = "Tokens used; cached ones are within prompt, reasoning within completion";
        registry.register("tokens", help, tokens.clone());
        let charges = Family::default();
        registry.register("charges_nusd", "What accounts were charged", charges.clone());
        let costs = Family::default();
        let help = "What upstreams say that it cost, in pico-USD";
        registry.register("upstream_cost_pusd", help, costs.clone());
        let counted = Family::default();
        let help = "Completion tokens by our own count, where the upstream told its own";
        registry.register("drift_counted_tokens", help, counted.clone());
        let compared = Family::default();
        let help = "The same by the upstream's count, less reasoning that was not shown";
        registry.register("drift_upstream_tokens", help, compared.clone());
        Self { requests, sources, tokens, charges, costs, counted, compared }
    }

    fn of(&self, model: &Arc<str>) -> ModelMetrics {
        let ending =
            |ending| self.requests.get_or_create_owned(&OfEnding { model: model.clone(), ending });
        let tokens = |kind| self.tokens.get_or_create_owned(&OfKind { model: model.clone(), kind });
        let of = Of { model: model.clone() };
        ModelMetrics {
            endings: ENDINGS.map(ending),
            prompt: tokens("prompt"),
            cached: tokens("cached"),
            completion: tokens("completion"),
            reasoning: tokens("reasoning"),
            charge_nusd: self.charges.get_or_create_owned(&of),
            cost_pusd: self.costs.get_or_create_owned(&of),
            counted: self.counted.get_or_create_owned(&of),
            compared: self.compared.get_or_create_owned(&of),
        }
    }
}

impl ModelMetrics {
    fn used(&self, record: &UsageRecord, charge: NanoUsd) {
        let tokens = |counter: &Counter, tokens: Tokens| add(counter, tokens.0);
        tokens(&self.prompt, record.prompt_tokens);
        tokens(&self.cached, record.cached_tokens);
        tokens(&self.completion, record.completion_tokens);
        tokens(&self.reasoning, record.reasoning_tokens);
        add(&self.charge_nusd, charge.0);
        add(&self.cost_pusd, record.upstream_cost_pusd.unwrap_or_default());
        let is_told = matches!(record.source, UsageSource::Upstream | UsageSource::Lookup);
        // What was cut short was counted short.
        let is_whole = record.ending == Ending::Completed;
        if let Some(counted) = record.counted_completion_tokens.filter(|_| is_told && is_whole) {
            let most = record.completion_tokens;
            // Reasoning is counted as far as it is shown: any part of it.
            let least = Tokens(most.0.saturating_sub(record.reasoning_tokens.0)).min(most);
            tokens(&self.counted, counted);
            tokens(&self.compared, counted.max(least).min(most));
        }
    }
}

impl HoldMetrics {
    fn new(registry: &mut Registry) -> Self {
        let holds = Family::<OfHold, Counter>::default();
        registry.register("holds", "Holds, by what became of them here", holds.clone());
        let of = |state| holds.get_or_create_owned(&OfHold { state });
        Self {
            open: Mutex::default(),
            placed: of("placed"),
            settled: of("settled"),
            voided: of("voided"),
            taken_over: of("taken_over"),
            lost: of("lost"),
            recovered: of("recovered"),
            extended: of("extended"),
            refused_account: of("refused_account"),
            refused_key: of("refused_key"),
            limited: of("rate_limited"),
        }
    }

    /// Those that were placed by this process and are not closed yet.
    #[must_use]
    pub fn expected_open(&self) -> usize {
        self.open().len()
    }

    fn open(&self) -> MutexGuard<'_, HashSet<RequestId>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts it, once. One that is found settled is placed too: a commit of which nobody heard may
    /// have been both.
    fn placed(&self, request: RequestId) {
        let is_new = self.open().insert(request);
        self.placed.inc_by(u64::from(is_new));
    }

    fn closed(&self, record: &UsageRecord, outcome: Option<&Outcome>, is_own: bool) {
        let is_own = is_own && record.ending != Ending::Killed;
        if is_own && matches!(outcome, None | Some(Outcome::Settled { .. })) {
            self.open().remove(&record.id);
        }
        match outcome {
            Some(Outcome::Settled { .. }) if !is_own => {
                self.recovered.inc();
            }
            Some(Outcome::Settled { .. }) if record.is_billable() => drop(self.settled.inc()),
            Some(Outcome::Settled { .. }) => drop(self.voided.inc()),
            None if is_own => drop(self.lost.inc()),
            _ => {}
        }
    }

    fn changed(&self, op: &LedgerOp, outcome: Option<&Outcome>) {
        match (op, outcome) {
            (LedgerOp::Place(placement), Some(Outcome::Placed { .. })) => {
                self.placed(placement.hold.request_id);
            }
            (LedgerOp::Place(_), Some(Outcome::Limited(_))) => drop(self.limited.inc()),
            (LedgerOp::Place(_), Some(Outcome::Refused { by, .. })) => match by {
                Limit::Account => drop(self.refused_account.inc()),
                Limit::Key => drop(self.refused_key.inc()),
            },
            (LedgerOp::Extend(_), Some(Outcome::Extended { .. })) => drop(self.extended.inc()),
            (LedgerOp::Abandon(request), Some(_)) => {
                self.open().remove(request);
                self.lost.inc();
            }
            _ => {}
        }
    }
}

/// Nothing where there is nothing, or less.
fn add(counter: &Counter, number: i64) {
    counter.inc_by(u64::try_from(number).unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::hold::Hold;
    use crate::models::limits::Room;
    use crate::models::openai::answer::Reported;
    use crate::models::usage::TokenUsage;
    use crate::store::Placement;
    use serde_json::json;

    fn hold() -> Hold {
        let (id, now) = ("00000000-0000-7000-8000-000000000001", "2026-01-01T00:00:00Z");
        let hold = json!({
            "request_id": id, "account_id": id, "owner": id, "amount_nusd": 1,
            "lease_expires_at": now, "placed_at": now, "upstream": "u", "model": "m",
            "price_id": "p", "prompt_tokens_estimate": 1, "completion_tokens_seen": 0,
            "streamed": true, "counted_account": false, "counted_key": 0, "counted_tokens": 0,
        });
        serde_json::from_value(hold).unwrap()
    }

    /// Of a commit whose answer was lost, a second try finds what it did: both, or the end alone.
    #[test]
    fn what_is_found_settled_was_placed() {
        for is_heard_of in [false, true] {
            let metrics = BookMetrics::new(&mut Registry::default());
            let hold = hold();
            let reported = Reported { tokens: TokenUsage::default(), cost_pico: None };
            let (ending, source) = (Ending::Completed, UsageSource::Upstream);
            let record = hold.closed(ending, source, reported, hold.placed_at);
            let placement = Placement {
                hold,
                floor_nusd: NanoUsd(1),
                demand: None,
                funds: None,
                is_granted: true,
            };
            let place = LedgerOp::Place(placement);
            let nothing = NanoUsd::ZERO;
            let placed = Outcome::Placed {
                amount: NanoUsd(1),
                rest: Rest { account: nothing, key: None },
                left: nothing,
                room: Room::default(),
            };
            let decided = if is_heard_of { placed } else { Outcome::AlreadySettled };
            metrics.committed(&place, Some(&decided), true);
            metrics.found(record.id, Some(&record), true);
            let holds = &metrics.holds;
            assert_eq!((holds.placed.get(), holds.expected_open()), (1, 0), "{is_heard_of}");
            assert_eq!(holds.settled.get() + holds.voided.get(), 1, "{is_heard_of}");
        }
    }
}
