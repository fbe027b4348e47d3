//! What the books say to those who pay: sums of usage and costs, credits, single records.
//!
//! Invariants: every question names its account, and only that account's rows answer it; reports
//! never take the database from the requests that earn the money: few run at once, each is bounded
//! in time and rows, and a caller who hangs up does not make room for another one.

mod overview;

use crate::error::Error;
use crate::models::ids::{AccountId, ApiKeyId, RequestId, UserId};
use crate::models::key::{ApiKey, KeyBudget};
use crate::models::money::{NanoUsd, OutOfRange, Tokens};
use crate::models::openai::request::Invalid;
use crate::models::report::{Cost, CostItem, CreditTotals, Question, Span, UsageLine, UsageSum};
use crate::models::timestamp::Timestamp;
use crate::store::reports::GROUPS_MAX;
use crate::store::{Store, StoreError, in_time};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

pub struct Reports {
    store: Arc<dyn Store>,
    /// For sums, which may read a million rows.
    sums: Arc<Semaphore>,
    /// For single rows and pages of them.
    rows: Arc<Semaphore>,
}

/// Sums at once in one process. They are work for the database's processors, and a connection each.
const SUMS_AT_ONCE: usize = 2;
/// Short look-ups at once.
const ROWS_AT_ONCE: usize = 2;
/// For a place among those.
const PLACE_WAIT: Duration = Duration::from_secs(10);
/// For an answer. The store gives up before that by itself.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

impl Reports {
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        let sums = Arc::new(Semaphore::new(SUMS_AT_ONCE));
        let rows = Arc::new(Semaphore::new(ROWS_AT_ONCE));
        Self { store, sums, rows }
    }

    /// Usage by bucket, model, key and user, in that order.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the groups are too many, [`Error::Overloaded`], [`Error::Database`].
    pub async fn usage(&self, question: Question) -> Result<Vec<UsageSum>, Error> {
        let store = self.store.clone();
        let asking = async move { store.usage_sums(&question).await };
        let mut sums = run(&self.sums, asking).await?;
        if sums.len() > GROUPS_MAX {
            return Err(too_many_groups());
        }
        sums.sort_by(|a, b| {
            let a = (a.bucket, &a.model, a.api_key_id, a.user_id);
            a.cmp(&(b.bucket, &b.model, b.api_key_id, b.user_id))
        });
        Ok(sums)
    }

    /// Costs by bucket, item, key and user, in that order: what was charged, net of corrections,
    /// and what was entered by hand, unless it is about some keys, users or models only.
    ///
    /// # Errors
    /// As [`Reports::usage`].
    pub async fn costs(&self, question: Question, items: Items) -> Result<Vec<Cost>, Error> {
        let Question { account_id, by_model, .. } = question;
        let buckets = question.buckets.clone();
        let by_hand = question.keys.is_none() && question.users.is_none() && items.adjustments;
        let sums = self.usage(question).await?;
        let mut costs = Costs::default();
        for sum in sums {
            let item = sum.model.map_or(CostItem::Any, CostItem::Model);
            let tokens = sum.prompt_tokens.0.saturating_add(sum.completion_tokens.0);
            let group = (sum.bucket, item, sum.api_key_id, sum.user_id);
            costs.add(group, sum.charge_nusd, Some(Tokens(tokens)))?;
        }
        if by_hand {
            let store = self.store.clone();
            let asking = async move { store.adjustments(account_id, &buckets).await };
            for adjustment in run(&self.rows, asking).await? {
                let item = if by_model { CostItem::Adjustment } else { CostItem::Any };
                let cost = NanoUsd::ZERO.minus(adjustment.amount_nusd)?;
                costs.add((adjustment.bucket, item, None, None), cost, None)?;
            }
        }
        Ok(costs.listed())
    }

    /// # Errors
    /// [`Error::NotFound`] when there is no such account; else as [`Reports::usage`].
    pub async fn credits(&self, account: AccountId) -> Result<CreditTotals, Error> {
        let store = self.store.clone();
        let asking = async move { store.credit_totals(account).await };
        run(&self.rows, asking).await?.ok_or(Error::NotFound("account"))
    }

    /// A key and what it has spent up to `now`.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such key; else as [`Reports::usage`].
    pub async fn key(&self, id: ApiKeyId, now: Timestamp) -> Result<(ApiKey, KeyBudget), Error> {
        let store = self.store.clone();
        let asking = async move { store.key(id).await };
        let (key, mut budget) = run(&self.rows, asking).await?.ok_or(Error::NotFound("API key"))?;
        budget.roll(now);
        Ok((key, budget))
    }

    /// A page of an account's keys, in the order of their ids.
    ///
    /// # Errors
    /// As [`Reports::usage`].
    pub async fn keys(
        &self,
        account: AccountId,
        after: Option<ApiKeyId>,
    ) -> Result<Vec<ApiKey>, Error> {
        let store = self.store.clone();
        let asking = async move { store.keys_of(account, after).await };
        run(&self.rows, asking).await
    }

    /// A page of an account's records in a span, in their order, after one of them or from the
    /// first. An empty page is the end.
    ///
    /// # Errors
    /// As [`Reports::usage`].
    pub async fn lines(
        &self,
        account: AccountId,
        span: Span,
        after: Option<RequestId>,
    ) -> Result<Vec<UsageLine>, Error> {
        let store = self.store.clone();
        let after = after.unwrap_or_else(|| RequestId::floor(span.from));
        let asking = async move { store.usage_lines(account, after, span.until).await };
        run(&self.rows, asking).await
    }
}

/// Which items of the costs are wanted, beside the models that the question names.
#[derive(Clone, Copy, Debug)]
pub struct Items {
    pub adjustments: bool,
}

type Group = (usize, CostItem, Option<ApiKeyId>, Option<UserId>);

/// Costs in the making: one a group.
#[derive(Default)]
struct Costs(BTreeMap<Group, (NanoUsd, Option<Tokens>)>);

impl Costs {
    fn add(
        &mut self,
        group: Group,
        amount: NanoUsd,
        tokens: Option<Tokens>,
    ) -> Result<(), OutOfRange> {
        let known = self.0.entry(group).or_default();
        known.0 = known.0.plus(amount)?;
        known.1 = known.1.or(tokens);
        Ok(())
    }

    fn listed(self) -> Vec<Cost> {
        let costs = self.0.into_iter();
        costs
            .map(|((bucket, item, api_key_id, user_id), (amount_nusd, tokens))| Cost {
                bucket,
                item,
                api_key_id,
                user_id,
                amount_nusd,
                tokens,
            })
            .collect()
    }
}

fn too_many_groups() -> Error {
    Error::Invalid(Invalid {
        message: format!(
            "This asks for more than {GROUPS_MAX} results: ask for fewer buckets ('limit'), or \
             group by less."
        ),
        param: Some("group_by".into()),
    })
}

/// Asks the store once there is a place. The question runs to its end even when the caller goes
/// away: the database works on, and until then its place is taken.
async fn run<T: Send + 'static>(
    places: &Arc<Semaphore>,
    asking: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, Error> {
    let place = tokio::time::timeout(PLACE_WAIT, places.clone().acquire_owned()).await;
    let Ok(Ok(place)) = place else { return Err(Error::Overloaded) };
    let task = tokio::spawn(async move {
        let answer = in_time(asking).await;
        drop(place);
        answer
    });
    match tokio::time::timeout(ANSWER_WAIT, task).await {
        Ok(Ok(answer)) => Ok(answer?),
        Ok(Err(_)) => Err(Error::Internal("a report broke off".to_owned())),
        Err(_) => Err(Error::Database("a report took too long".to_owned())),
    }
}
