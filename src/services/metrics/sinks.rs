//! Billing sinks: what became of what was sent, and what waits.

use crate::models::timestamp::Timestamp;
use crate::store::watch::Backlog;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    sink: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sent {
    sink: &'static str,
    result: &'static str,
}

pub struct SinkMetrics {
    sent: Family<Sent, Counter>,
    waiting: Family<Of, Gauge>,
    parked: Family<Of, Gauge>,
    without_customer: Family<Of, Gauge>,
    oldest: Family<Of, Gauge>,
}

/// What became of parcels, counted by the worker of one sink.
#[derive(Clone)]
pub struct Sender {
    pub delivered: Counter,
    pub later: Counter,
    pub rejected: Counter,
}

impl SinkMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let sent = Family::default();
        registry.register(
            "sink_parcels",
            "What became of events, or of what they were merged into, when it was sent",
            sent.clone(),
        );
        let waiting = Family::default();
        registry.register(
            "sink_events_waiting",
            "Events not yet at the sink, counted up to 100,000",
            waiting.clone(),
        );
        let parked = Family::default();
        registry.register(
            "sink_events_parked",
            "Events that somebody has to look at, counted up to 100,000",
            parked.clone(),
        );
        let without_customer = Family::default();
        registry.register(
            "sink_events_without_customer",
            "Events kept until their accounts have a customer there, counted up to 100,000",
            without_customer.clone(),
        );
        let oldest = Family::default();
        registry.register(
            "sink_oldest_seconds",
            "Age of the oldest event that waits",
            oldest.clone(),
        );
        Self { sent, waiting, parked, without_customer, oldest }
    }

    #[must_use]
    pub fn sender(&self, sink: &'static str) -> Sender {
        let of = |result| self.sent.get_or_create_owned(&Sent { sink, result });
        Sender { delivered: of("delivered"), later: of("later"), rejected: of("rejected") }
    }

    pub fn stand(&self, sink: &'static str, backlog: &Backlog, now: Timestamp) {
        let of = Of { sink };
        let oldest = backlog.oldest().map_or(0, |at| now.since(at).as_secs());
        self.waiting.get_or_create(&of).set(backlog.waiting.saturating_add(backlog.merged));
        self.parked.get_or_create(&of).set(backlog.parked);
        self.without_customer.get_or_create(&of).set(backlog.without_customer);
        self.oldest.get_or_create(&of).set(i64::try_from(oldest).unwrap_or(i64::MAX));
    }
}
