//! What owners and operators look at.
//!
//! Invariant: as for all reports; what is not of one account is for operators only, which is for
//! the controllers to see to.

use super::{Reports, run, too_many_groups};
use crate::error::Error;
use crate::models::account::Account;
use crate::models::billing::SinkWindow;
use crate::models::hold::Hold;
use crate::models::ids::AccountId;
use crate::models::overview::{DriftSum, LatencySum, MarginQuestion, MarginSum};
use crate::models::report::Span;
use crate::store::reports::GROUPS_MAX;
use crate::store::watch::Backlog;

impl Reports {
    /// # Errors
    /// [`Error::NotFound`] when there is no such account; else as [`Reports::usage`].
    pub async fn account(&self, id: AccountId) -> Result<Account, Error> {
        let store = self.store.clone();
        let asking = async move { store.account(id).await };
        run(&self.rows, asking).await?.ok_or(Error::NotFound("account"))
    }

    /// The oldest of an account's open holds.
    ///
    /// # Errors
    /// As [`Reports::usage`].
    pub async fn open_holds(&self, account: AccountId) -> Result<Vec<Hold>, Error> {
        let store = self.store.clone();
        run(&self.rows, async move { store.holds_of(account).await }).await
    }

    /// How long answers took, by bucket.
    ///
    /// # Errors
    /// As [`Reports::usage`].
    pub async fn latencies(
        &self,
        account: AccountId,
        buckets: Vec<Span>,
    ) -> Result<Vec<LatencySum>, Error> {
        let store = self.store.clone();
        run(&self.sums, async move { store.latencies(account, &buckets).await }).await
    }

    /// Charges and costs of all accounts.
    ///
    /// # Errors
    /// As [`Reports::usage`].
    pub async fn margins(&self, question: MarginQuestion) -> Result<Vec<MarginSum>, Error> {
        let store = self.store.clone();
        let sums = run(&self.sums, async move { store.margins(&question).await }).await?;
        if sums.len() > GROUPS_MAX { Err(too_many_groups()) } else { Ok(sums) }
    }

    /// The upstream's tokens and ours.
    ///
    /// # Errors
    /// As [`Reports::usage`].
    pub async fn drift(&self, span: Span) -> Result<Vec<DriftSum>, Error> {
        let store = self.store.clone();
        let sums = run(&self.sums, async move { store.drift(span).await }).await?;
        if sums.len() > GROUPS_MAX { Err(too_many_groups()) } else { Ok(sums) }
    }

    /// The sinks that there are or were, each with what has not reached it.
    ///
    /// # Errors
    /// As [`Reports::usage`].
    pub async fn sinks(&self) -> Result<Vec<(SinkWindow, Backlog)>, Error> {
        let store = self.store.clone();
        let asking = async move {
            let mut found = Vec::new();
            for sink in store.sinks().await? {
                let backlog = store.backlog(&sink.name).await?;
                found.push((sink, backlog));
            }
            Ok(found)
        };
        run(&self.sums, asking).await
    }
}
