//! Another configuration takes the place of the one in force, while requests run.
//!
//! Invariant: all of it or nothing. Until its last step nothing has changed; a request has either
//! the old upstreams at the old prices or the new ones at the new prices. It knows of no files.

use super::{Catalog, Fetched, OperatorTable, Source, TOGETHER_WAIT, fetch};
use crate::error::Error;
use crate::services::upstream::Upstream;
use futures::future::join_all;
use std::sync::Arc;

impl Catalog {
    /// Puts these upstreams, and this table where there is one, in force. The lists of those that
    /// are new are waited for a while, so that no model is missing meanwhile.
    ///
    /// # Errors
    /// Why not: prices could not be written down, or none of the upstreams gives a list of models.
    pub async fn reload(
        &self,
        table: Option<OperatorTable>,
        upstreams: Vec<Arc<Upstream>>,
    ) -> Result<(), Error> {
        let fetched = self.lists_of_new(&upstreams).await;
        let mut sources = self.sources.lock().await;
        let next = succeeding(&sources, fetched, &upstreams);
        let mut operator = (*self.operator()).clone();
        if let Some(table) = table {
            operator.table = table;
        }
        // Another one in any case: `run` looks anew at what is due.
        let operator = Arc::new(operator);
        if next.iter().any(Source::has_offers) {
            self.relist(&next, operator).await?;
        } else if self.is_filled() {
            let what = "none of the upstreams gives a list of models";
            return Err(Error::Internal(what.to_owned()));
        } else {
            // There is no list yet, so nothing is lost.
            self.put_in_force(operator);
        }
        *sources = next;
        self.upstreams.replace(upstreams);
        self.look_again();
        Ok(())
    }

    /// Asks those whose list is not known. One that does not answer in time is asked again later.
    async fn lists_of_new(&self, upstreams: &[Arc<Upstream>]) -> Vec<Fetched> {
        let new: Vec<Arc<Upstream>> = {
            let sources = self.sources.lock().await;
            let is_known =
                |new: &Upstream| sources.iter().any(|it| it.upstream.is_same_upstream(new));
            upstreams.iter().filter(|upstream| !is_known(upstream)).cloned().collect()
        };
        let asked = new.into_iter().map(|new| tokio::time::timeout(TOGETHER_WAIT, fetch(new)));
        join_all(asked).await.into_iter().flatten().collect()
    }
}

/// The sources of these upstreams; what is known of their lists stays known.
fn succeeding(
    known: &[Source],
    mut fetched: Vec<Fetched>,
    upstreams: &[Arc<Upstream>],
) -> Vec<Source> {
    let of = |upstream: &Arc<Upstream>| {
        if let Some(old) = known.iter().find(|old| old.upstream.is_same_upstream(upstream)) {
            return old.at(upstream.clone());
        }
        let mut source = Source::new(upstream.clone());
        if let Some(at) = fetched.iter().position(|(from, _)| Arc::ptr_eq(from, upstream)) {
            source.take(fetched.swap_remove(at).1);
        }
        source
    };
    upstreams.iter().map(of).collect()
}
