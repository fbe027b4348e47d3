//! What a person who has looked at the sink says of exports, and what follows from it.
//!
//! Invariants: of what is on its way nobody knows; what the sink may still know by its identifier
//! is sent again under another one. What was refused as a whole is tried again without such a word.

use super::replaced;
use crate::models::audit::AuditEntry;
use crate::models::billing::{DeliveryState, Export, Lane, reasons};
use crate::models::timestamp::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The sink counts it, or it was billed by hand.
    Counted,
    /// The sink does not count it, and shall have it again.
    Missing,
}

impl Word {
    fn fits(self, export: &Export) -> bool {
        let is_parked = export.state == DeliveryState::Parked;
        match self {
            Self::Counted => is_parked,
            Self::Missing if is_parked => export.reason.as_deref() == Some(reasons::IN_DOUBT),
            Self::Missing => export.state == DeliveryState::Exported && export.value != 0,
        }
    }
}

/// How the audit log tells what a person has said of an export: as it was, and as it is.
pub type TellExport<'a> = &'a (dyn Fn(&Export, &Export) -> AuditEntry + Sync);

/// What a person's word has changed.
#[derive(Debug, Default)]
pub struct Corrected {
    /// Each with what it was.
    changed: Vec<(Export, Export)>,
    /// What is sent in the place of what is void.
    pub made: Vec<Export>,
}

/// Corrects those of the exports that the word fits. `lanes` has that of each.
#[must_use]
pub fn correct(word: Word, lanes: &mut [Lane], exports: Vec<Export>, now: Timestamp) -> Corrected {
    let mut corrected = Corrected::default();
    for before in exports.into_iter().filter(|export| word.fits(export)) {
        let is_its =
            |lane: &&mut Lane| lane.sink == before.sink && lane.customer == before.customer;
        let Some(lane) = lanes.iter_mut().find(is_its) else { continue };
        let mut after = before.clone();
        match word {
            Word::Counted => {
                after.state = DeliveryState::Exported;
                after.reason = None;
            }
            Word::Missing => {
                let Ok(again) = replaced(lane, &mut after, now) else { continue };
                lane.wake(now);
                corrected.made.push(again);
            }
        }
        corrected.changed.push((before, after));
    }
    corrected
}

impl Corrected {
    #[must_use]
    pub fn count(&self) -> u64 {
        u64::try_from(self.changed.len()).unwrap_or(u64::MAX)
    }

    pub fn written(&self) -> impl Iterator<Item = &Export> {
        self.changed.iter().map(|(_, after)| after)
    }

    #[must_use]
    pub fn groups(&self) -> Vec<&str> {
        self.written().map(|export| export.event_group.as_str()).collect()
    }

    #[must_use]
    pub fn told(&self, tell: TellExport<'_>) -> Vec<AuditEntry> {
        self.changed.iter().map(|(before, after)| tell(before, after)).collect()
    }
}

/// Members are what the exports of their group are; in either dialect, `groups` tells which.
#[must_use]
pub fn members_follow(groups: &str) -> String {
    format!(
        "UPDATE billing_events AS t SET state = g.state, reason = g.reason, \
         attempts = attempts + 1 FROM \
         (SELECT event_group, MAX(CASE state WHEN 'parked' THEN reason END) AS reason, \
          CASE WHEN COUNT(CASE state WHEN 'parked' THEN 1 END) > 0 THEN 'parked' \
           WHEN COUNT(CASE state WHEN 'waiting' THEN 1 END) > 0 THEN 'waiting' \
           ELSE 'exported' END AS state \
          FROM exports WHERE event_group {groups} AND state <> 'void' GROUP BY event_group) g \
         WHERE t.export_group = g.event_group"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(word: Word, state: DeliveryState, reason: Option<&str>, value: i64) -> Corrected {
        let at = Timestamp::from_unix_seconds(1_800_000_000);
        let reason = reason.map(str::to_owned);
        let export = Export { value, state, reason, ..Export::sample(at) };
        let mut lanes = [Lane::new(&export.sink, &export.customer)];
        correct(word, &mut lanes, vec![export], at)
    }

    #[test]
    fn a_word_fits_what_somebody_can_know() {
        use DeliveryState::{Exported, Parked, Void, Waiting};
        let counts = |word, state, reason, value| said(word, state, reason, value).count() == 1;
        assert!(counts(Word::Missing, Exported, None, 5));
        assert!(!counts(Word::Missing, Exported, None, 0), "it was never sent");
        assert!(counts(Word::Missing, Parked, Some(reasons::IN_DOUBT), 5));
        assert!(!counts(Word::Missing, Parked, Some("400"), 5), "a retry may plan it anew");
        assert!(counts(Word::Counted, Parked, Some(reasons::IN_DOUBT), 5));
        assert!(counts(Word::Counted, Parked, Some("400"), 5), "billed by hand");
        assert!(!counts(Word::Counted, Exported, None, 5));
        for word in [Word::Counted, Word::Missing] {
            assert!(!counts(word, Waiting, None, 5), "on its way");
            assert!(!counts(word, Void, None, 5));
        }
    }

    #[test]
    fn what_is_missing_is_sent_under_another_identifier() {
        let mut corrected = said(Word::Missing, DeliveryState::Exported, None, 5);
        let again = corrected.made.pop().unwrap();
        let [(before, after)] = corrected.changed.try_into().unwrap();
        assert_eq!((after.state, &after.id), (DeliveryState::Void, &before.id));
        assert_eq!((again.state, again.value), (DeliveryState::Waiting, 5));
        assert_ne!(again.id, before.id);
        assert_eq!((again.event_group, again.first_sent_at), (before.event_group, None));
    }
}
