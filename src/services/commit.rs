//! A request's hold on its way into the books.
//!
//! Invariant: whoever has waited for it knows that the hold is on the disk, and for how much; what
//! the ledger refuses is an error here.

use crate::error::Error;
use crate::models::limits::Room;
use crate::models::money::NanoUsd;
use crate::services::catalog::Model;
use crate::services::exchange::Exchange;
use crate::services::ledger::{Answer, Failed, Hurry};
use crate::store::{Limit, Outcome};
use std::sync::Arc;
use std::time::Duration;

/// Whether the hold stands.
pub enum Commit {
    Waiting { answer: Answer, wait: Duration, model: Arc<Model>, hurry: Hurry },
    Stands,
}

/// What was placed.
#[derive(Default)]
pub struct Placed {
    pub amount: NanoUsd,
    /// What account and key had, this amount included.
    pub funds: NanoUsd,
    pub room: Room,
}

impl Commit {
    /// Waits for the hold before anything leaves.
    ///
    /// # Errors
    /// As [`Commit::wait`].
    pub async fn committed(&mut self, exchange: &mut Exchange) -> Result<Placed, Error> {
        match self.wait().await {
            Ok(placed) => {
                let placed = placed.unwrap_or_default();
                exchange.held(placed.amount);
                Ok(placed)
            }
            Err(error) => {
                exchange.void(&error);
                Err(error)
            }
        }
    }

    /// For when there is nothing else left to wait for.
    pub fn hurry(&self) -> Option<Hurry> {
        match self {
            Self::Waiting { hurry, .. } => Some(hurry.clone()),
            Self::Stands => None,
        }
    }

    /// What was placed, when it has just been told.
    ///
    /// # Errors
    /// Why the hold does not stand.
    pub async fn wait(&mut self) -> Result<Option<Placed>, Error> {
        let Self::Waiting { answer, wait, model, .. } = self else { return Ok(None) };
        let unanswered = |what: &str| Error::Database(what.to_owned());
        let outcome = tokio::time::timeout(*wait, answer)
            .await
            .map_err(|_| unanswered("the hold was not committed in time"))?
            .map_err(|_| unanswered("the ledger writer has stopped"))?;
        let model = model.clone();
        *self = Self::Stands;
        match outcome {
            Ok(Outcome::Placed { amount, left, room, .. }) => {
                let funds = amount.plus(left).unwrap_or(NanoUsd(i64::MAX));
                Ok(Some(Placed { amount, funds, room }))
            }
            Ok(Outcome::Limited(limited)) => {
                Err(Error::RateLimited { model: model.id.clone(), limited })
            }
            Ok(Outcome::Refused { by: Limit::Key, .. }) => Err(Error::KeyBudget),
            Ok(Outcome::Refused { .. } | Outcome::OutOfRange) => Err(Error::InsufficientQuota),
            Ok(Outcome::Repeated) => Err(Error::Repeated),
            Ok(Outcome::Suspended) => Err(Error::Suspended),
            Ok(Outcome::NoAccount) => Err(Error::WrongKey),
            Ok(other) => Err(Error::Internal(format!("placing a hold: {other:?}"))),
            Err(Failed::Away) => Err(Error::Database("the hold was not written down".to_owned())),
            Err(Failed::Refused) => Err(Error::Internal("the hold could not be placed".to_owned())),
        }
    }
}
