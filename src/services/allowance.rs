//! How much of a stream its hold pays for, and asking for more in time.
//!
//! Invariant: after the event that passes what the hold covers, nothing more reaches the client
//! before the extension is committed; a stream whose account has no more ends there.

use crate::error::Error;
use crate::models::hold::Hold;
use crate::models::money::{NanoUsd, Tokens};
use crate::models::price::Price;
use crate::services::ledger::{Answer, Ledger};
use crate::services::pricing::{Extras, WorstCase};
use crate::store::{Extension, LedgerOp, Limit, Outcome};
use futures::FutureExt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

pub struct Allowance {
    price: Arc<Price>,
    prompt: Tokens,
    /// What these may cost is not there for tokens.
    extras: Extras,
    choices: i64,
    /// All that the upstream may say, as it was told. `None`: it was told nothing.
    cap: Option<Tokens>,
    /// What is asked for each time: as much as the hold began with.
    step: NanoUsd,
    /// What the hold has come to.
    held: NanoUsd,
    /// Completion tokens that the hold pays for. `None`: as many as come.
    paid: Option<Tokens>,
    asked: Option<Answer>,
    lack: Lack,
}

/// Why there is no more.
#[derive(Clone, Copy)]
enum Lack {
    Money(Limit),
    /// The books do not say: they are away, or have the hold no more.
    Books,
}

/// An extension that pays for fewer tokens than this is no use.
const STEP_TOKENS_MIN: Tokens = Tokens(16);
/// More is asked for when this part of the paid tokens is used: 3/4.
const ASK_AT: (i64, i64) = (3, 4);

impl Allowance {
    #[must_use]
    pub fn new(
        price: Arc<Price>,
        hold: &Hold,
        prompt: Tokens,
        extras: Extras,
        choices: i64,
    ) -> Self {
        let held = hold.amount_nusd;
        let (cap, step, paid, asked) = (None, held, None, None);
        let lack = Lack::Money(Limit::Account);
        let mut allowance =
            Self { price, prompt, extras, choices, cap, step, held, paid, asked, lack };
        allowance.set(held);
        allowance
    }

    /// The completion tokens that an amount pays for, all choices together: that is how they are
    /// counted.
    pub fn set(&mut self, held: NanoUsd) {
        self.held = held;
        let worst = WorstCase::new(&self.price, self.prompt, 1).with(self.extras);
        self.paid = worst.tokens(held);
    }

    /// What the hold has come to.
    #[must_use]
    pub fn held(&self) -> NanoUsd {
        self.held
    }

    /// Another upstream answers, at its price.
    pub fn reprice(&mut self, price: Arc<Price>, held: NanoUsd) {
        self.price = price;
        self.set(held);
    }

    /// The upstream was told to say so much at most, for each choice.
    pub fn cap(&mut self, Tokens(each): Tokens) {
        self.cap = Some(Tokens(each.saturating_mul(self.choices)));
    }

    /// Whether it is time to ask for more. What covers the cap is enough until the upstream passes
    /// it: more would be taken from the account's other requests.
    #[must_use]
    pub fn wants_more(&self, used: Tokens) -> bool {
        let Some(paid) = self.paid else { return false };
        let (part, whole) = ASK_AT;
        let is_enough = self.cap.is_some_and(|cap| cap <= paid);
        let is_time = if is_enough { used > paid } else { used.0 >= paid.0 / whole * part };
        is_time && self.asked.is_none() && !self.is_last()
    }

    /// Asks the ledger for more.
    pub fn ask(&mut self, ledger: &Ledger, extension: impl FnOnce(NanoUsd, NanoUsd) -> Extension) {
        let worst = WorstCase::new(&self.price, Tokens(0), self.choices);
        let floor = worst.amount(STEP_TOKENS_MIN).unwrap_or(self.step).min(self.step);
        let op = LedgerOp::Extend(extension(self.step, floor));
        // A full queue answers nothing; the stream then ends where what is paid for does.
        self.asked = ledger.submit(op).ok();
    }

    /// Ready when the stream may go on at `used` tokens.
    ///
    /// # Errors
    /// [`Error::InsufficientQuota`], [`Error::KeyBudget`] when the hold is used up and there is no
    /// more, [`Error::Database`] when that cannot be told.
    pub fn poll(&mut self, cx: &mut Context<'_>, used: Tokens) -> Poll<Result<(), Error>> {
        // At its last token too: what follows may be the end of the stream, which costs nothing.
        let is_paid = self.paid.is_none_or(|paid| used <= paid);
        let Some(asked) = &mut self.asked else {
            return Poll::Ready(if is_paid { Ok(()) } else { Err(self.refusal()) });
        };
        let answer = match asked.poll_unpin(cx) {
            // Paid for until now: the answer may come while the stream goes on.
            Poll::Pending if is_paid => return Poll::Ready(Ok(())),
            pending => ready!(pending),
        };
        self.asked = None;
        self.lack = match answer {
            Ok(Ok(Outcome::Extended { amount, .. })) => {
                self.set(amount);
                return Poll::Ready(Ok(()));
            }
            Ok(Ok(Outcome::Refused { by, .. })) => Lack::Money(by),
            _ => Lack::Books,
        };
        // No more is to be had: what is paid for is still delivered.
        self.step = NanoUsd::ZERO;
        Poll::Ready(if is_paid { Ok(()) } else { Err(self.refusal()) })
    }

    fn refusal(&self) -> Error {
        match self.lack {
            Lack::Money(Limit::Key) => Error::KeyBudget,
            Lack::Money(Limit::Account) => Error::InsufficientQuota,
            Lack::Books => Error::Database("a hold cannot be extended".to_owned()),
        }
    }

    /// There is no more to be had.
    fn is_last(&self) -> bool {
        self.step.is_zero()
    }
}
