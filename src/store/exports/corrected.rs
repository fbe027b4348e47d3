//! What a person who has looked at the sink says of exports, and what follows from it.
//!
//! Invariants: of what is on its way, or was until just now, nobody knows; what the sink may still
//! know by its identifier is sent again under another one, while the sink takes it. What was
//! refused is tried again without such a word.

use super::{OLDEST, SUMMARY_LAG, is_dropped, is_unsure, replaced};
use crate::models::audit::AuditEntry;
use crate::models::billing::{DeliveryState, Export, Lane, reasons};
use crate::models::timestamp::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The sink counts it.
    Counted,
    /// The sink does not count it, and shall have it again.
    Missing,
}

impl Word {
    fn fits(self, export: &Export, now: Timestamp) -> bool {
        match self {
            Self::Counted => is_unsure(export),
            Self::Missing => {
                let is_sent = export.state == DeliveryState::Exported && export.value != 0;
                let is_summed = export.next_attempt_at <= now.minus(SUMMARY_LAG);
                let is_told = export.state == DeliveryState::Parked && is_dropped(export);
                (is_told || ((is_sent || is_unsure(export)) && is_summed))
                    && export.used_at >= now.minus(OLDEST)
            }
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

/// Corrects those of the exports that the word fits. `lanes` has that of each. What the sink has
/// dropped is only among them where it is [`tellable`].
#[must_use]
pub fn correct(word: Word, lanes: &mut [Lane], exports: Vec<Export>, now: Timestamp) -> Corrected {
    let mut corrected = Corrected::default();
    for before in exports.into_iter().filter(|export| word.fits(export, now)) {
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

/// Which exports `t` can be told of, in either dialect: not those of which members are in an
/// archive, but for what the sink has dropped of which all are. No event stands for that, which a
/// retry could name; where one does, the retry is for it.
#[must_use]
pub fn tellable() -> String {
    let dropped = reasons::DROPPED;
    format!(
        "(SELECT COUNT(*) FROM billing_events b WHERE b.export_group = t.event_group) \
         = CASE WHEN t.state = 'parked' AND t.reason LIKE '{dropped}%' THEN 0 ELSE t.members END"
    )
}

/// Of exports in a list, those that are parked and have no members. Either dialect.
#[must_use]
pub fn alone(listed: &str) -> String {
    format!(
        "SELECT t.id FROM exports t WHERE t.id {listed} AND t.state = 'parked' \
         AND NOT EXISTS (SELECT 1 FROM billing_events b WHERE b.export_group = t.event_group)"
    )
}

/// Says which exports were dropped that have no members: nothing else tells of them.
pub fn say_alone(ids: &[String]) {
    for id in ids {
        tracing::warn!(
            export.id = id,
            "Stripe does not count it, and its events are in an archive: see `exports missing`"
        );
    }
}

/// Members are what the exports of their group are, void ones aside; in either dialect, `groups`
/// tells which.
#[must_use]
pub fn members_follow(groups: &str) -> String {
    format!(
        "UPDATE billing_events AS t SET state = g.state, reason = g.reason, \
         attempts = attempts + 1 FROM \
         (SELECT event_group, MAX(CASE state WHEN 'parked' THEN reason END) AS reason, \
          CASE WHEN COUNT(CASE state WHEN 'parked' THEN 1 END) > 0 THEN 'parked' \
           WHEN COUNT(CASE state WHEN 'waiting' THEN 1 END) > 0 THEN 'waiting' \
           ELSE 'exported' END AS state \
          FROM exports WHERE event_group {groups} GROUP BY event_group) g \
         WHERE t.export_group = g.event_group"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn export(state: DeliveryState) -> Export {
        let at = Timestamp::from_unix_seconds(NOW - 3_600);
        let reason = (state == DeliveryState::Parked).then(|| "400".to_owned());
        Export { value: 5, state, reason, first_sent_at: Some(at), ..Export::sample(at) }
    }

    fn said(word: Word, export: Export) -> Corrected {
        let mut lanes = [Lane::new(&export.sink, &export.customer)];
        correct(word, &mut lanes, vec![export], Timestamp::from_unix_seconds(NOW))
    }

    #[test]
    fn a_word_fits_what_somebody_can_know() {
        use DeliveryState::{Exported, Parked, Void, Waiting};
        let counts = |word, export| said(word, export).count() == 1;
        assert!(counts(Word::Missing, export(Exported)));
        assert!(counts(Word::Missing, export(Parked)));
        assert!(counts(Word::Counted, export(Parked)));
        assert!(!counts(Word::Counted, export(Exported)));
        let nothing = Export { value: 0, ..export(Exported) };
        assert!(!counts(Word::Missing, nothing), "it was never sent");
        for word in [Word::Counted, Word::Missing] {
            let unsent = Export { first_sent_at: None, ..export(Parked) };
            assert!(!counts(word, unsent), "a retry may plan it anew");
            assert!(!counts(word, export(Waiting)), "on its way");
            assert!(!counts(word, export(Void)));
        }
        let dropped = Some(format!("{}gone", reasons::DROPPED));
        let dropped = Export { reason: dropped, ..export(Parked) };
        assert!(!counts(Word::Counted, dropped.clone()), "the sink has told");
        let just_now = Timestamp::from_unix_seconds(NOW);
        assert!(counts(Word::Missing, Export { next_attempt_at: just_now, ..dropped }));
        let just_now = Timestamp::from_unix_seconds(NOW - 3_599);
        for export in [export(Exported), export(Parked)] {
            let early = Export { next_attempt_at: just_now, ..export.clone() };
            assert!(!counts(Word::Missing, early), "summaries may not have it yet");
            let old = Timestamp::from_unix_seconds(NOW).minus(OLDEST + MINUTE);
            let old = Export { used_at: old, ..export };
            assert!(!counts(Word::Missing, old), "the sink would not take it");
        }
    }

    const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);

    #[test]
    fn what_is_missing_is_sent_under_another_identifier() {
        let mut corrected = said(Word::Missing, export(DeliveryState::Exported));
        let again = corrected.made.pop().unwrap();
        let [(before, after)] = corrected.changed.try_into().unwrap();
        assert_eq!((after.state, &after.id), (DeliveryState::Void, &before.id));
        assert_eq!((again.state, again.value), (DeliveryState::Waiting, 5));
        assert_ne!(again.id, before.id);
        assert_eq!((again.event_group, again.first_sent_at), (before.event_group, None));
    }
}
