//! What was found, for people and for programs.
//!
//! Invariant: a finding names whom it is about as far as the source tells: day, model, account,
//! customer, call. It holds no text of a request or an answer.

use crate::models::reconcile::Day;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Here and there are not the same.
    Difference,
    /// It is on its way to a sink, or was parked.
    Waiting,
    /// A source did not say: nothing is known.
    Unread,
    /// Worth knowing; nothing is wrong.
    Note,
}

/// One number, here and there, in the unit that its name ends with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Figure {
    pub name: &'static str,
    pub here: i128,
    pub there: i128,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: Kind,
    /// A sink, or an upstream by its name; several behind one address with a `+` between.
    pub against: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day: Option<Day>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meter: Option<String>,
    /// The upstream's id of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<Figure>,
    pub because: String,
}

/// Findings that are kept; more of them are only counted.
const FINDINGS_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// Of each kind, those too that were not kept.
    pub counts: BTreeMap<Kind, u64>,
    /// How many sums or calls were compared, by source.
    pub compared: BTreeMap<String, u64>,
}

impl Report {
    pub fn add(&mut self, finding: Finding) {
        *self.counts.entry(finding.kind).or_default() += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    pub fn note(&mut self, against: &str, because: &str) {
        self.add(Finding::new(Kind::Note, against, because.to_owned()));
    }

    pub fn unread(&mut self, against: &str, day: Option<Day>, because: String) {
        self.add(Finding { day, ..Finding::new(Kind::Unread, against, because) });
    }

    /// So many more were compared.
    pub fn compared(&mut self, against: &str, count: usize) {
        *self.compared.entry(against.to_owned()).or_default() +=
            u64::try_from(count).unwrap_or(u64::MAX);
    }

    pub fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or_default()
    }

    /// All was compared, and is the same.
    pub fn is_clean(&self) -> bool {
        self.count(Kind::Difference) == 0 && self.count(Kind::Unread) == 0
    }
}

impl Finding {
    pub fn new(kind: Kind, against: &str, because: String) -> Self {
        Self {
            kind,
            against: against.to_owned(),
            day: None,
            model: None,
            account: None,
            customer: None,
            meter: None,
            call: None,
            figures: vec![],
            because,
        }
    }
}

impl Figure {
    /// Those that differ.
    pub fn differing(figures: &[(&'static str, i128, i128)]) -> Vec<Self> {
        let differing = figures.iter().filter(|(_, here, there)| here != there);
        differing.map(|(name, here, there)| Self { name, here: *here, there: *there }).collect()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Difference => "DIFFERS  ",
            Kind::Waiting => "WAITS    ",
            Kind::Unread => "UNREAD   ",
            Kind::Note => "NOTE     ",
        })?;
        f.write_str(&self.against)?;
        if let Some(day) = self.day {
            write!(f, "  {day}")?;
        }
        let named = [
            ("model", &self.model),
            ("account", &self.account),
            ("customer", &self.customer),
            ("meter", &self.meter),
            ("call", &self.call),
        ];
        for (name, value) in named {
            if let Some(value) = value {
                write!(f, "  {name} {value}")?;
            }
        }
        for Figure { name, here, there } in &self.figures {
            write!(f, "  {name} {here} here, {there} there")?;
        }
        write!(f, "  ({})", self.because)
    }
}
