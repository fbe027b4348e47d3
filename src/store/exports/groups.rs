//! Groups of which something is parked, and what an operator has done with them: sent again, or
//! dismissed.
//!
//! Invariant: a group that cannot be changed as a whole, for a sum out of its range, stays as it
//! is, and so does what its lane carries. Pure: both stores load, let it decide, and write.

use super::{Renewed, dismiss, renew, resend};
use crate::models::billing::{Export, Lane};
use crate::models::money::OutOfRange;
use crate::models::timestamp::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};

pub struct Groups {
    lanes: BTreeMap<(String, String), Lane>,
    exports: HashMap<String, Vec<Export>>,
    /// Of which members are in an archive.
    partial: BTreeSet<String>,
}

/// Which exports `t` have members that are not there, but in an archive. Either dialect.
pub const WITHOUT_SOME: &str = "t.members <> (SELECT COUNT(*) FROM billing_events b \
     WHERE b.export_group = t.event_group)";

/// What has become of groups.
#[derive(Debug, Default)]
pub struct Changed {
    /// Those whose members are planned anew.
    pub replanned: Vec<String>,
    /// The others.
    pub kept: Vec<String>,
    pub written: Vec<Export>,
    pub made: Vec<Export>,
}

impl Groups {
    /// `exports`: all of these groups that are [`undecided`](super::undecided); `lanes` has those
    /// of their customers; `partial` are those groups that are [`WITHOUT_SOME`] of their members.
    #[must_use]
    pub fn new(lanes: Vec<Lane>, exports: Vec<Export>, partial: Vec<String>) -> Self {
        let lanes = lanes.into_iter();
        let lanes = lanes.map(|lane| ((lane.sink.clone(), lane.customer.clone()), lane)).collect();
        let mut groups: HashMap<String, Vec<Export>> = HashMap::new();
        for export in exports {
            groups.entry(export.event_group.clone()).or_default().push(export);
        }
        Self { lanes, exports: groups, partial: partial.into_iter().collect() }
    }

    pub fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.values()
    }

    /// They are planned anew, or sent again where something of them may have arrived. What is in an
    /// archive cannot be planned anew, and would never be sent: that goes as it was.
    pub fn renew(&mut self, now: Timestamp) -> Changed {
        let partial = std::mem::take(&mut self.partial);
        self.change(|lane, group| {
            let is_partial = group.iter().any(|export| partial.contains(&export.event_group));
            let how = if is_partial { resend } else { renew };
            how(lane, group, now).map(Some)
        })
    }

    /// Nothing more of them goes to the sink, where that can be said.
    pub fn dismiss(&mut self, now: Timestamp) -> Changed {
        self.change(|lane, group| {
            let is_done = dismiss(lane, group, now)?;
            Ok(is_done.then(|| Renewed::Resent(Vec::new())))
        })
    }

    fn change(
        &mut self,
        how: impl Fn(&mut Lane, &mut [Export]) -> Result<Option<Renewed>, OutOfRange>,
    ) -> Changed {
        let mut changed = Changed::default();
        for (name, mut group) in std::mem::take(&mut self.exports) {
            let Some(first) = group.first() else { continue };
            let of = (first.sink.clone(), first.customer.clone());
            let Some(mut lane) = self.lanes.get(&of).cloned() else { continue };
            match how(&mut lane, &mut group) {
                Ok(None) => continue,
                Ok(Some(Renewed::Replanned)) => changed.replanned.push(name),
                Ok(Some(Renewed::Resent(again))) => {
                    changed.kept.push(name);
                    changed.made.extend(again);
                }
                Err(error) => {
                    tracing::error!("a parked group stays: {error}");
                    continue;
                }
            }
            self.lanes.insert(of, lane);
            changed.written.extend(group);
        }
        changed
    }
}
