//! What the books stand at, and whether they agree with themselves: as of the last look.

use crate::models::timestamp::Timestamp;
use crate::store::watch::OpenHolds;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What is held against what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Holds that this process placed = settled + voided + open.
    Holds,
    /// What each account has set aside = the sum of its open holds.
    Held,
    /// Each usage record is in the ledger, and with every sink or on its way there.
    Usage,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    check: &'static str,
}

pub struct StateMetrics {
    open: Gauge,
    open_nusd: Gauge,
    oldest: Gauge,
    differences: Family<Of, Gauge>,
    checked: Family<Of, Counter>,
    looked_at: Gauge,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Held => "held",
            Self::Usage => "usage",
        }
    }
}

impl StateMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let open = Gauge::default();
        registry.register("holds_open", "Open holds of all processes", open.clone());
        let open_nusd = Gauge::default();
        registry.register("holds_open_nusd", "Money set aside in them", open_nusd.clone());
        let oldest = Gauge::default();
        registry.register("holds_oldest_seconds", "Age of the oldest of them", oldest.clone());
        let differences = Family::default();
        registry.register(
            "books_differences",
            "What does not fit in the books; anything but 0 is wrong",
            differences.clone(),
        );
        let checked = Family::default();
        registry.register("books_checked", "Rows that were held against others", checked.clone());
        let looked_at = Gauge::default();
        registry.register(
            "books_looked_at_seconds",
            "When the books were last looked at, since 1970",
            looked_at.clone(),
        );
        Self { open, open_nusd, oldest, differences, checked, looked_at }
    }

    pub fn holds(&self, holds: &OpenHolds, now: Timestamp) {
        self.open.set(holds.holds);
        self.open_nusd.set(holds.amount_nusd.0);
        let oldest = holds.oldest.map_or(0, |at| now.since(at).as_secs());
        self.oldest.set(i64::try_from(oldest).unwrap_or(i64::MAX));
    }

    /// `rows` more were looked at; so many differences are known now.
    pub fn checked(&self, check: Check, rows: u64, differences: i64) {
        let of = Of { check: check.name() };
        self.checked.get_or_create(&of).inc_by(rows);
        self.differences.get_or_create(&of).set(differences);
    }

    pub fn looked(&self, now: Timestamp) {
        self.looked_at.set(now.unix_seconds());
    }
}
