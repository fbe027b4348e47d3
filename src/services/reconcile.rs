//! Holds the books against what others say of the same days: the upstream, Stripe, OpenMeter.
//!
//! Invariants: nothing is changed, here or there; every question has a deadline and a limit; what
//! could not be read is said, and is never taken for agreement. What is on its way to a sink waits:
//! it is told apart from what is wrong. Comparing is pure; `verify` holds the books against
//! themselves.

mod finding;
mod openmeter;
mod stripe;
mod upstream;

use crate::config::{BillingConfig, STRIPE};
use crate::error::Error;
use crate::models::archive::Archives;
use crate::models::reconcile::Day;
use crate::models::report::Span;
use crate::models::timestamp::Timestamp;
use crate::services::billing::openmeter::query::ChargeMeter;
use crate::services::billing::stripe::api::StripeApi;
use crate::services::upstreams::Upstreams;
use crate::store::Store;
pub use finding::{Figure, Finding, Kind, Report};
use secrecy::SecretString;

/// OpenRouter keeps its sums for the last 30 days that are over, and Stripe takes events of 35.
pub const DAYS_MAX: u32 = 30;
/// A source that fails so often in a row is away: more questions would find nothing out.
const FAILURES_MAX: u32 = 3;

/// What is compared.
#[derive(Clone, Debug)]
pub struct Terms {
    /// One after the other, the oldest first; never none.
    pub days: Vec<Day>,
    /// Days before those of which records may be in files.
    pub archived: Vec<Day>,
    pub now: Timestamp,
    /// Calls that the upstream is asked about one by one.
    pub samples: usize,
    /// Which calls those are.
    pub seed: u64,
}

impl Terms {
    /// One day, or the last thirty that are over.
    ///
    /// # Errors
    /// When the day is yet to come, or longer ago than anybody remembers.
    pub fn new(
        day: Option<Day>,
        now: Timestamp,
        samples: usize,
        seed: u64,
    ) -> Result<Self, String> {
        let today = Day::of(now);
        let oldest = today.back(DAYS_MAX);
        let days = match day {
            Some(day) if day > today => return Err(format!("{day} is yet to come")),
            Some(day) if day < oldest => {
                return Err(format!("{day} is too long ago: the oldest to compare is {oldest}"));
            }
            Some(day) => vec![day],
            None => (1..=DAYS_MAX).rev().map(|days| today.back(days)).collect(),
        };
        Ok(Self { days, archived: vec![], now, samples, seed })
    }

    /// Without the days of which records, or events of them, may be in files and no more here.
    ///
    /// # Errors
    /// When no day is left.
    pub fn told(mut self, archives: &Archives) -> Result<Self, String> {
        (self.archived, self.days) =
            self.days.into_iter().partition(|day| archives.reach(day.start()));
        match (self.archived.last(), self.days.is_empty()) {
            (Some(day), true) => Err(format!("records of {day} are archived")),
            _ => Ok(self),
        }
    }

    fn is_over(&self, day: Day) -> bool {
        day.end() <= self.now
    }

    fn first_and_last(&self) -> (Day, Day) {
        let day = Day::of(self.now);
        let (first, last) = (self.days.first(), self.days.last());
        (first.copied().unwrap_or(day), last.copied().unwrap_or(day))
    }

    fn span(&self) -> Span {
        let (first, last) = self.first_and_last();
        Span { from: first.start(), until: last.end() }
    }
}

/// Whom the books are compared with.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// None where the demo answers.
    pub upstreams: Option<&'a Upstreams>,
    /// OpenRouter's, for its sums by day.
    pub management_key: Option<&'a SecretString>,
    pub sinks: &'a BillingConfig,
}

/// Compares with everything that is configured.
///
/// # Errors
/// The store's, and a configuration with which nothing can be asked.
pub async fn run(store: &dyn Store, sources: Sources<'_>, terms: &Terms) -> Result<Report, Error> {
    let Sources { upstreams, management_key, sinks } = sources;
    let mut report = Report::default();
    for day in &terms.archived {
        let because = "records of it are archived: it is not compared".to_owned();
        report.add(Finding { day: Some(*day), ..Finding::new(Kind::Note, "archive", because) });
    }
    match upstreams {
        Some(all) => upstream::check(store, all, management_key, terms, &mut report).await?,
        None => report.note("demo", "the demo keeps no list of its calls"),
    }
    match &sinks.stripe {
        Some(config) if config.is_sink => {
            let api = StripeApi::new(config, sinks.wait)?;
            stripe::check(store, &api, &config.meters, terms, &mut report).await?;
        }
        Some(_) => report.note(STRIPE, "no usage is sent there (STRIPE_METERING), nor compared"),
        None => {}
    }
    if let Some(config) = &sinks.openmeter {
        let meter = ChargeMeter::new(config)?;
        openmeter::check(store, &meter, terms, &mut report).await?;
    }
    Ok(report)
}

/// What a sink should have of a group, in the order of certainty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Expected {
    /// It said that it has this.
    exported: i128,
    /// It was told this and did not answer: it may have all, some or nothing of it. Each sign by
    /// itself, for it may have what takes and not what gives back.
    doubtful: [i128; 2],
    /// It was never told.
    waiting: [i128; 2],
}

impl Expected {
    /// Of amounts that all have the same sign.
    fn add(&mut self, is_exported: bool, is_tried: bool, amount: i64) {
        let sign = usize::from(amount < 0);
        let sum = match (is_exported, is_tried) {
            (true, _) => &mut self.exported,
            (false, true) => &mut self.doubtful[sign],
            (false, false) => &mut self.waiting[sign],
        };
        *sum += i128::from(amount);
    }

    /// Whether the sink's figure can be explained by what it was told.
    fn explains(&self, there: i128) -> bool {
        let [more, less] = self.doubtful;
        (self.exported + less..=self.exported + more).contains(&there)
    }

    fn is_on_its_way(&self) -> bool {
        self.doubtful != [0; 2] || self.waiting != [0; 2]
    }

    fn on_its_way(&self) -> i128 {
        self.doubtful.iter().chain(&self.waiting).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_the_last_thirty_that_are_over() {
        let now = Timestamp::parse("2026-11-24T18:00:00Z").unwrap();
        let terms = Terms::new(None, now, 0, 0).unwrap();
        let (first, last) = terms.first_and_last();
        assert_eq!(
            (first.to_string(), last.to_string()),
            ("2026-10-25".into(), "2026-11-23".into())
        );
        assert_eq!(terms.days.len(), 30);
        let one = |text: &str| Terms::new(Some(text.parse().unwrap()), now, 0, 0);
        assert!(one("2026-11-24").is_ok_and(|terms| !terms.is_over(terms.days[0])));
        assert!(one("2026-10-25").is_ok());
        assert!(one("2026-10-24").is_err() && one("2026-11-25").is_err());
    }

    #[test]
    fn what_is_on_its_way_is_not_wrong() {
        let mut expected = Expected::default();
        expected.add(true, true, 10);
        expected.add(false, true, 5);
        expected.add(false, false, 7);
        for there in [10, 12, 15] {
            assert!(expected.explains(there), "{there}");
        }
        for there in [9, 16, 22] {
            assert!(!expected.explains(there), "{there}: it was not told of more");
        }
        assert_eq!(expected.on_its_way(), 12);
    }

    #[test]
    fn what_takes_and_what_gives_back_may_each_be_there_without_the_other() {
        let mut expected = Expected::default();
        expected.add(true, true, 100);
        expected.add(false, true, 1_000);
        expected.add(false, true, -400);
        for there in [-300, 100, 700, 1_100] {
            assert!(expected.explains(there), "{there}");
        }
        assert!(!expected.explains(-301) && !expected.explains(1_101));
        expected.add(false, false, -600);
        assert_eq!((expected.on_its_way(), expected.is_on_its_way()), (0, true));
    }
}
