//! Accounts become customers of Stripe, each once: when somebody wants to pay, and by themselves.
//!
//! Invariants: one account has one customer, however many processes try and wherever one dies. The
//! idempotency key holds for a day; whoever comes later finds the customer by its metadata. A
//! customer that an operator has set is never replaced.
//! <https://docs.stripe.com/api/idempotent_requests> <https://docs.stripe.com/search>

use super::Payments;
use super::event::{self, ACCOUNT_KEY};
use crate::error::Error;
use crate::models::account::Account;
use crate::models::audit::AuditEntry;
use crate::models::ids::AccountId;
use crate::models::timestamp::Timestamp;
use crate::services::billing::stripe::api::StripeApi;
use crate::store::payments::ACTOR;
use serde::Deserialize;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often new accounts are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Calls in a row that Stripe does not answer well before it is left alone for a while.
const TROUBLES_MAX: usize = 5;
/// After trouble pauses double up to this.
const PAUSE_MAX: Duration = Duration::from_secs(600);

#[derive(Deserialize)]
struct Customer {
    id: String,
}

#[derive(Deserialize)]
struct Found {
    data: Vec<Customer>,
}

impl Payments {
    /// Makes accounts customers until `stop`, where that is wanted.
    pub async fn run_customers(&self, stop: CancellationToken) {
        let Some(api) = self.api.as_ref().filter(|_| self.config.creates_customers) else { return };
        let mut pause = LOOK_EVERY;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            let made = tokio::select! {
                made = self.make_customers(api) => made,
                () = stop.cancelled() => return,
            };
            pause = match made {
                Ok(()) => LOOK_EVERY,
                Err(error) => {
                    tracing::warn!("accounts wait for their customers at Stripe: {error}");
                    (pause * 2).min(PAUSE_MAX)
                }
            };
        }
    }

    /// Goes through all accounts without one; what is wrong with a single account does not keep
    /// the others. The calls take turns within the rate of the whole process.
    async fn make_customers(&self, api: &StripeApi) -> Result<(), Error> {
        let mut after = None;
        let (mut failed, mut in_a_row) = (Ok(()), 0);
        loop {
            let accounts = self.store.accounts_without_customer(after).await?;
            let Some(last) = accounts.last() else { return failed };
            after = Some(last.id);
            for account in &accounts {
                match self.make_customer(api, account).await {
                    Err(refused @ Error::PaymentRefused(_)) => failed = Err(refused),
                    // It may be this account's alone: Stripe repeats a failure for a day.
                    Err(trouble @ Error::PaymentProvider(_)) if in_a_row < TROUBLES_MAX => {
                        in_a_row += 1;
                        failed = Err(trouble);
                    }
                    made => {
                        made?;
                        in_a_row = 0;
                    }
                }
            }
        }
    }

    /// The account's customer, made where there is none.
    ///
    /// # Errors
    /// [`Error::PaymentProvider`], or the store's.
    pub(super) async fn customer(&self, api: &StripeApi, id: AccountId) -> Result<String, Error> {
        let account = self.store.account(id).await?.ok_or(Error::NotFound("account"))?;
        match account.stripe_customer_id {
            Some(customer) => Ok(customer),
            None => self.make_customer(api, &account).await,
        }
    }

    async fn make_customer(&self, api: &StripeApi, account: &Account) -> Result<String, Error> {
        let id = account.id;
        let query = [("query", format!("metadata['{ACCOUNT_KEY}']:'{id}'"))];
        let found: Found = api.fetch("/v1/customers/search", &query).await?;
        let customer: Customer = if let Some(known) = found.data.into_iter().next() {
            known
        } else {
            let form = [
                ("name", account.name.clone()),
                (&format!("metadata[{ACCOUNT_KEY}]"), id.to_string()),
            ];
            api.create("/v1/customers", &form, &format!("tollgate-customer-{id}")).await?
        };
        event::is_id(&customer.id)?;
        self.remember(id, customer.id).await
    }

    /// Whoever was first is right, an operator above all.
    async fn remember(&self, id: AccountId, customer: String) -> Result<String, Error> {
        let decide = |before: &Account| {
            let known = before.stripe_customer_id.clone();
            let stripe_customer_id = known.or_else(|| Some(customer.clone()));
            let after = Account { stripe_customer_id, ..before.clone() };
            let audit = AuditEntry::account_update(ACTOR, before, &after, Timestamp::now());
            Ok((after, audit))
        };
        let account = self.store.update_account(id, &decide).await?;
        let account = account.ok_or(Error::NotFound("account"))?;
        Ok(account.stripe_customer_id.unwrap_or(customer))
    }
}
