//! Stripe, the other way: what it says of payments, refunds, disputes and subscriptions, and the
//! pages where people pay.
//!
//! Invariants: an event is believed by its signature only and handled once; what it changes is
//! committed before Stripe is told that it arrived; whose money it is follows from what was written
//! at Stripe with the operator's key, never from what a browser says.

mod checkout;
mod customers;
mod event;
mod payers;
mod signature;

pub use checkout::{Page, PortalRequest, TopUp};

use super::stripe::api::StripeApi;
use crate::config::{Config, PaymentsConfig};
use crate::error::Error;
use crate::models::billing::{DeliveryState, reasons};
use crate::models::ids::AccountId;
use crate::models::payment::{EventState, Payment, PaymentEvent, Subscription, SubscriptionStatus};
use crate::models::timestamp::Timestamp;
use crate::services::catalog::Catalog;
use crate::store::Store;
use crate::store::payments::{Handled, News, Rejected, Subscribed};
use event::{ErrorReport, Event, Paid, SubscriptionTold, Told};
use payers::Payers;
use secrecy::ExposeSecret;
use serde::Deserialize;
use signature::Secrets;
use std::sync::Arc;
use std::time::Duration;

pub struct Payments {
    store: Arc<dyn Store>,
    payers: Payers,
    catalog: Arc<Catalog>,
    /// `None`: no key is set, and Stripe is asked nothing.
    api: Option<Arc<StripeApi>>,
    secrets: Secrets,
    config: PaymentsConfig,
    /// The key is not for tests: neither may events be.
    is_live: bool,
    /// The plan of new accounts.
    default_plan: Option<String>,
}

/// What Stripe is asked while somebody waits takes no longer than this, all calls together; the
/// database has the rest of the request's time.
const STRIPE_WAIT: Duration = Duration::from_secs(12);
/// Exports named in one report: it has samples only.
const REJECTED_MAX: usize = 1_000;
const REASON_CHARACTERS_MAX: usize = 300;

/// Whether something that others remember was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Some,
    None,
}

/// An event with what follows from it.
struct Decided {
    object: String,
    account_id: Option<AccountId>,
    news: News,
    /// Why nothing follows, where something should.
    refused: Option<String>,
}

impl Decided {
    fn refused(object: String, why: impl Into<String>) -> Self {
        Self { object, account_id: None, news: News::Refused, refused: Some(why.into()) }
    }
}

impl Payments {
    /// # Errors
    /// [`Error::Internal`] when the key cannot be used in a request.
    pub fn new(
        config: &Config,
        store: Arc<dyn Store>,
        catalog: Arc<Catalog>,
    ) -> Result<Self, Error> {
        let billing = &config.billing;
        let stripe = billing.stripe.as_ref();
        let api = stripe.map(|stripe| StripeApi::new(stripe, billing.wait)).transpose()?;
        let is_live = stripe.is_some_and(|it| it.key.expose_secret().contains("_live_"));
        Ok(Self {
            store,
            payers: Payers::default(),
            catalog,
            api: api.map(Arc::new),
            secrets: Secrets::new(&config.payments.webhook_secrets),
            config: config.payments.clone(),
            is_live,
            default_plan: config.identity.signup.plan.clone(),
        })
    }

    /// For whoever else calls Stripe: the calls of one process take turns.
    #[must_use]
    pub fn api(&self) -> Option<&Arc<StripeApi>> {
        self.api.as_ref()
    }

    /// Whether events are taken at all.
    ///
    /// # Errors
    /// [`Error::NotConfigured`].
    pub fn check_on(&self) -> Result<(), Error> {
        if self.secrets.is_empty() { Err(Error::NotConfigured("webhook")) } else { Ok(()) }
    }

    /// Takes an event. When this is fine, Stripe need not send it again.
    ///
    /// # Errors
    /// [`Error::WrongSignature`]; [`Error::Invalid`] when it cannot be read; the store's, and
    /// [`Error::PaymentProvider`], where another try may succeed.
    pub async fn take(&self, header: &str, body: &[u8], now: Timestamp) -> Result<Change, Error> {
        self.secrets.verify(header, body, now)?;
        let event = Event::read(body)?;
        let told = event.told()?;
        let Some(decided) = self.decide(&event, told).await? else { return Ok(Change::None) };
        self.write(&event, decided, now).await
    }

    async fn decide(&self, event: &Event<'_>, told: Told) -> Result<Option<Decided>, Error> {
        let decided = match told {
            Told::Nothing => None,
            Told::Paid(paid) => self.paid(paid, event.created).await?,
            Told::Reversed { reversal, currency } => {
                let is_ours = event::is_ours(&currency);
                // Refunds of another trade, in whatever currency, are nothing to us.
                let known = self.store.payment_of(&reversal.payment_intent).await?;
                let account_id = known.map(|payment| payment.account_id);
                let object = reversal.id.clone();
                match (is_ours, account_id) {
                    (true, _) => {
                        let news = News::Reversed(reversal);
                        Some(Decided { object, account_id, news, refused: None })
                    }
                    (false, Some(_)) => {
                        Some(Decided::refused(object, format!("currency_{currency}")))
                    }
                    (false, None) => None,
                }
            }
            Told::Subscribed(told) => self.subscribed(told, event.created).await?,
            Told::Rejected(report) => Some(self.rejected(event, report).await?),
        };
        // A card for tests must not buy anything.
        if self.is_live && event.livemode == Some(false) {
            return Ok(decided.map(|decided| Decided::refused(decided.object, "test_mode")));
        }
        Ok(decided)
    }

    async fn paid(&self, paid: Paid, at: Timestamp) -> Result<Option<Decided>, Error> {
        let account = match paid.account_id {
            Some(id) => self.store.account(id).await?,
            None => None,
        };
        let Some(account) = account else {
            // A reference that is none of our accounts belongs to another trade, where nothing says
            // that it is ours.
            return Ok(paid.is_marked.then(|| Decided::refused(paid.session, "unknown_account")));
        };
        if !paid.is_marked {
            return Ok(Some(Decided::refused(paid.session, "unmarked_link")));
        }
        if !event::is_ours(&paid.currency) {
            let why = format!("currency_{}", paid.currency);
            return Ok(Some(Decided::refused(paid.session, why)));
        }
        let Some(credit) = paid.credit else {
            return Ok(Some(Decided::refused(paid.session, "amount_mismatch")));
        };
        let payment = Payment {
            id: paid.session.clone(),
            account_id: account.id,
            payment_intent: paid.payment_intent,
            paid_cents: paid.cents,
            credited_nusd: credit,
            kept_nusd: credit,
            created_at: at,
        };
        let news = News::Paid(payment);
        let account_id = Some(account.id);
        Ok(Some(Decided { object: paid.session, account_id, news, refused: None }))
    }

    /// A subscription concerns us when it names an account or a plan of ours, or has done so: one
    /// that no longer names a plan may be over all the same. The end of one that is known counts,
    /// whatever has become of its plan, its account or its customer since.
    async fn subscribed(
        &self,
        told: SubscriptionTold,
        as_of: Timestamp,
    ) -> Result<Option<Decided>, Error> {
        let known = self.store.subscription(&told.id).await?;
        let status = serde_json::from_value(told.status.clone().into()).ok();
        // When what it names is there, the event may come again.
        let may_wait = known.is_none() || status.is_some_and(SubscriptionStatus::is_good);
        let is_plan = |name: &String| self.catalog.plan(name).is_some();
        let plan = match told.named_plans.first() {
            Some(name) if is_plan(name) => Some(name.clone()),
            Some(_) if may_wait => {
                return Ok(Some(Decided::refused(told.id, "unknown_plan")));
            }
            Some(_) => None,
            None => told.lookup_keys.iter().find(|name| is_plan(name)).cloned(),
        };
        let is_unnamed = plan.is_none() && told.account.is_none();
        if is_unnamed && known.is_none() {
            return Ok(None);
        }
        let account = match &known {
            Some(known) if is_unnamed => Ok(known.account_id),
            _ => self.account_of(&told).await?,
        };
        let account_id = match (account, &known) {
            (Ok(account_id), _) => account_id,
            (Err(_), Some(known)) if !may_wait || told.account.is_none() => known.account_id,
            (Err(why), _) => return Ok(Some(Decided::refused(told.id, why))),
        };
        let Some(status) = status else {
            return Ok(Some(Decided::refused(told.id, "unknown_status")));
        };
        let plan = plan.or_else(|| known.and_then(|known| known.plan));
        let subscription = Subscription { id: told.id.clone(), account_id, status, plan, as_of };
        let default_plan = self.default_plan.clone();
        let news = News::Subscribed(Subscribed { subscription, default_plan });
        let account_id = Some(account_id);
        Ok(Some(Decided { object: told.id, account_id, news, refused: None }))
    }

    /// The account that a subscription names, else the one of its customer; or why it is none.
    async fn account_of(
        &self,
        told: &SubscriptionTold,
    ) -> Result<Result<AccountId, &'static str>, Error> {
        if let Some(id) = &told.account {
            let Ok(id) = id.parse() else { return Ok(Err("unknown_account")) };
            let account = self.store.account(id).await?;
            return Ok(account.map(|account| account.id).ok_or("unknown_account"));
        }
        Ok(match self.store.accounts_of_customer(&told.customer).await?.as_slice() {
            [account] => Ok(account.id),
            [] => Err("unknown_account"),
            _ => Err("shared_customer"),
        })
    }

    async fn rejected(
        &self,
        event: &Event<'_>,
        report: Option<ErrorReport>,
    ) -> Result<Decided, Error> {
        let report = match report {
            Some(report) => report,
            None => self.fetch_report(&event.id).await?,
        };
        let mut rejected: Vec<Rejected> = Vec::new();
        for kind in report.reason.error_types {
            for sample in kind.sample_errors {
                let reason = format!("{}{}: {}", reasons::DROPPED, kind.code, sample.error_message);
                let id = identifier(&sample.request.identifier).to_owned();
                rejected.push(Rejected {
                    id,
                    state: DeliveryState::Parked,
                    reason: super::exporter::shortened(&reason),
                });
            }
        }
        rejected.truncate(REJECTED_MAX);
        let summary: String =
            report.developer_message_summary.chars().take(REASON_CHARACTERS_MAX).collect();
        // Only samples are named: a person has to look after the rest.
        tracing::error!(
            errors = report.reason.error_count,
            named = rejected.len(),
            "Stripe does not count usage that it has taken: {summary:?}"
        );
        let news = News::Rejected(rejected);
        Ok(Decided { object: event.id.clone(), account_id: None, news, refused: None })
    }

    /// A thin event names what it is about, and no more.
    async fn fetch_report(&self, event: &str) -> Result<ErrorReport, Error> {
        #[derive(Deserialize)]
        struct Whole {
            #[serde(default)]
            data: ErrorReport,
        }
        let api = self.api.as_ref().ok_or(Error::NotConfigured("Stripe key"))?;
        let path = format!("/v2/core/events/{event}");
        let whole: Whole = within(api.fetch(&path, &[])).await?;
        Ok(whole.data)
    }

    async fn write(
        &self,
        event: &Event<'_>,
        decided: Decided,
        now: Timestamp,
    ) -> Result<Change, Error> {
        let Decided { object, account_id, news, refused } = decided;
        let mut row = PaymentEvent {
            id: event.id.clone(),
            kind: event.kind.clone(),
            object,
            state: EventState::Handled,
            reason: refused,
            account_id,
            created_at: event.created,
            handled_at: now,
        };
        if row.reason.is_some() {
            return self.refuse(row).await;
        }
        match self.store.take_event(&row, &news).await? {
            Handled::Now => {
                tracing::info!(event.id = row.id, "{} of {} is in the books", row.kind, row.object);
                Ok(Change::Some)
            }
            Handled::Before => Ok(Change::None),
            Handled::OutOfRange => {
                row.reason = Some("out_of_range".to_owned());
                self.refuse(row).await
            }
        }
    }

    /// Stripe is told that it arrived; sent again by hand, it is looked at again.
    async fn refuse(&self, row: PaymentEvent) -> Result<Change, Error> {
        let row = PaymentEvent { state: EventState::Refused, ..row };
        let why = row.reason.as_deref().unwrap_or_default();
        tracing::error!(
            event.id = row.id,
            "{} of {} changes nothing, and somebody should look: {why}",
            row.kind,
            row.object
        );
        self.store.take_event(&row, &News::Refused).await?;
        Ok(Change::None)
    }
}

/// What Stripe is asked while somebody waits.
async fn within<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let answer = tokio::time::timeout(STRIPE_WAIT, answer).await;
    answer.unwrap_or_else(|_| Err(Error::PaymentProvider("no answer in time".to_owned())))
}

/// The identifier of an export, also where a report names the key of its call.
fn identifier(text: &str) -> &str {
    const LENGTH: usize = "tollgate-".len() + 64;
    text.get(..LENGTH).unwrap_or(text)
}
