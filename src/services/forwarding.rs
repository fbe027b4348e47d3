//! An admitted request on its way to its answer.
//!
//! Invariants: there is no answer before the hold is committed, and the client of a stream is told
//! nothing before that either; whichever of the two fails first ends the other, and an exchange
//! that fails here is voided, because its client has got nothing.

use crate::error::Error;
use crate::services::commit::{Commit, Placed};
use crate::services::exchange::{Answer, Exchange, Trip};
use crate::services::ledger::Hurry;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;

/// Gives the answer. When this is dropped before, its client has gone.
#[must_use]
pub struct Forwarding {
    calls: Pin<Box<dyn Future<Output = Answered> + Send>>,
    is_streamed: bool,
    /// Told when the hold is committed; dropped when it is refused.
    held: oneshot::Receiver<()>,
}

/// The exchange and what its client gets, or the upstream's failure, or why the hold does not
/// stand.
pub type Answered = Result<(Exchange, Answer), Error>;

/// How far a request has come when its client is told something.
pub enum Begun {
    Answered(Exchange, Answer),
    /// A stream whose hold stands and whose upstream has not answered yet.
    NotYet(Forwarding),
}

/// For so long a failure of the upstream can be the status of a stream's answer, and its client
/// may try again by it. After that the client is told that it is waited for: proxies give up on
/// silent answers after half a minute and more.
const STATUS_WAIT: Duration = Duration::from_secs(15);

impl Forwarding {
    pub(super) fn new(exchange: Exchange, commit: Commit, trip: Trip) -> Self {
        let (says, held) = oneshot::channel();
        let is_streamed = exchange.is_streamed();
        Self { calls: Box::pin(calls(exchange, commit, trip, says)), is_streamed, held }
    }

    /// Waits for the answer, or until the client of a stream should hear something.
    ///
    /// # Errors
    /// As [`Answered`].
    pub async fn begun(mut self) -> Result<Begun, Error> {
        let answer = if self.is_streamed { self.in_time().await } else { Some((&mut self).await) };
        match answer {
            Some(answer) => answer.map(|(exchange, answer)| Begun::Answered(exchange, answer)),
            None => Ok(Begun::NotYet(self)),
        }
    }

    async fn in_time(&mut self) -> Option<Answered> {
        let Self { calls, held, .. } = self;
        let late = async {
            tokio::time::sleep(STATUS_WAIT).await;
            // Where it does not stand, that is the answer.
            if held.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            answer = calls => Some(answer),
            () = late => None,
        }
    }
}

impl Future for Forwarding {
    type Output = Answered;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answered> {
        self.calls.as_mut().poll(cx)
    }
}

/// Calls upstreams while the hold is committed.
async fn calls(
    mut exchange: Exchange,
    mut commit: Commit,
    trip: Trip,
    says: oneshot::Sender<()>,
) -> Answered {
    let (hurry, needs) = (commit.hurry(), exchange.needs());
    let call = async {
        let answer = exchange.call(trip).await?;
        // What is noted of the answer hurries the hold as well.
        if !exchange.has_noted() {
            hurry.iter().for_each(Hurry::say);
        }
        Ok(answer)
    };
    let held = async {
        let placed = commit.wait().await?;
        // Less than there was a moment ago, and its cap has left.
        if let (Some(Placed { amount, .. }), Some(needs)) = (&placed, needs)
            && *amount < needs
        {
            return Err(Error::InsufficientQuota);
        }
        // Nobody listens any more where the answer was in time.
        let _ = says.send(());
        Ok(placed)
    };
    match futures::future::try_join(call, held).await {
        Ok((answer, placed)) => {
            if let Some(Placed { amount, .. }) = placed {
                exchange.held(amount);
            }
            Ok((exchange, answer))
        }
        Err(error) => {
            exchange.void(&error);
            Err(error)
        }
    }
}
