//! What Stripe says, on PostgreSQL.
//!
//! Invariant: what is about one payment is decided by one transaction at a time, so that a refund
//! that comes beside its payment is seen by it, or sees it; and so is what is about a subscription.

use crate::models::account::{Account, AccountStatus};
use crate::models::audit::AuditEntry;
use crate::models::ids::AccountId;
use crate::models::payment::{Payment, PaymentEvent, Reversal, Subscription, subscribed};
use crate::models::timestamp::Timestamp;
use crate::store::exports::corrected::{alone, say_alone};
use crate::store::payments::{
    ACTOR, EVENT_OUTCOME, Handled, News, PAYMENT_EVENTS, PAYMENTS, PaymentStore, REVERSAL_STATE,
    REVERSALS, Rejected, SUBSCRIPTION_STATE, SUBSCRIPTIONS, Subscribed, enter,
};
use crate::store::postgres::PostgresStore;
use crate::store::postgres::directory::{ACCOUNT_NAME, change, first, log, write};
use crate::store::postgres::exports::lock_lanes_of;
use crate::store::postgres::lent::Lent;
use crate::store::postgres::rows::{classify, select};
use crate::store::table::{ACCOUNT_SETTINGS, ACCOUNTS, EXPORTS, differing, postgres as sql};
use crate::store::{Outcome, PAGE_ROWS_MAX, StoreError};
use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{AssertSqlSafe, PgConnection};
use std::collections::BTreeSet;

/// What was handled so long ago does not come again.
pub const OLD_EVENTS: &str =
    "DELETE FROM payment_events WHERE state = 'handled' AND handled_at < $1::timestamptz";
/// What is taken back of payments that are none of ours.
pub const STRAY_REVERSALS: &str = "DELETE FROM payment_reversals r WHERE as_of < $1::timestamptz \
     AND NOT EXISTS (SELECT 1 FROM payments p WHERE p.payment_intent = r.payment_intent)";

#[async_trait]
impl PaymentStore for PostgresStore {
    async fn take_event(&self, event: &PaymentEvent, news: &News) -> Result<Handled, StoreError> {
        let mut tx = self.begin().await?;
        // A copy of the event waits here for the one that came first.
        let remember = format!(
            "{} WHERE payment_events.state = 'refused'",
            sql::upsert(&PAYMENT_EVENTS, "id", EVENT_OUTCOME)
        );
        if put(&mut tx, remember, event).await? == 0 {
            return Ok(Handled::Before);
        }
        let fits = match news {
            News::Paid(payment) => self.pay(&mut tx, payment, event).await?,
            News::Reversed(reversal) => self.reverse(&mut tx, reversal, event).await?,
            News::Subscribed(subscribed) => {
                subscribe(&mut tx, subscribed, event.handled_at).await?;
                true
            }
            News::Rejected(rejected) => {
                self.reject(&mut tx, rejected, event.handled_at).await?;
                true
            }
            News::Refused => true,
        };
        if !fits {
            return Ok(Handled::OutOfRange);
        }
        tx.commit().await?;
        Ok(Handled::Now)
    }

    async fn payment_of(&self, intent: &str) -> Result<Option<Payment>, StoreError> {
        self.one(sql::select(&PAYMENTS, "WHERE payment_intent = $1"), intent.to_owned()).await
    }

    async fn subscription(&self, id: &str) -> Result<Option<Subscription>, StoreError> {
        self.one(sql::select(&SUBSCRIPTIONS, "WHERE id = $1"), id.to_owned()).await
    }

    async fn accounts_of_customer(&self, customer: &str) -> Result<Vec<Account>, StoreError> {
        let accounts = sql::select(&ACCOUNTS, "WHERE stripe_customer_id = $1 LIMIT 2");
        let mut conn = self.lend().await?;
        select(&mut conn, &accounts.into(), customer.to_owned()).await
    }

    async fn accounts_without_customer(
        &self,
        after: Option<AccountId>,
    ) -> Result<Vec<Account>, StoreError> {
        let condition = format!(
            "WHERE stripe_customer_id IS NULL AND ($1 IS NULL OR id > $1) \
             ORDER BY id LIMIT {PAGE_ROWS_MAX}"
        );
        let mut conn = self.lend().await?;
        let accounts = sql::select(&ACCOUNTS, &condition);
        select(&mut conn, &accounts.into(), after.map(|id| id.0)).await
    }

    async fn payments_after(&self, after: &str) -> Result<Vec<Payment>, StoreError> {
        self.page(&PAYMENTS, "id", Some(after.to_owned())).await
    }

    async fn payment_events_after(&self, after: &str) -> Result<Vec<PaymentEvent>, StoreError> {
        self.page(&PAYMENT_EVENTS, "id", Some(after.to_owned())).await
    }
}

impl PostgresStore {
    /// Credits a payment, unless its session was credited before; false when a sum does not fit.
    async fn pay(
        &self,
        tx: &mut Lent,
        payment: &Payment,
        event: &PaymentEvent,
    ) -> Result<bool, StoreError> {
        lock(tx, &payment.payment_intent).await?;
        let known = sql::select(&PAYMENTS, "WHERE id = $1");
        if found::<Payment>(tx, known, payment.id.clone()).await?.pop().is_some() {
            return Ok(true);
        }
        let reversals = reversals_of(tx, &payment.payment_intent).await?;
        let Ok((payment, ops)) = enter(payment, true, &reversals, event) else { return Ok(false) };
        // Before the row that names it: another payment of its would wait for this one, and this
        // one for that.
        let account = sql::select(&ACCOUNTS, "WHERE id = $1 FOR UPDATE");
        first::<Account>(tx, account, payment.account_id.0).await?;
        put(tx, sql::insert(&PAYMENTS), &payment).await?;
        let outcomes = self.apply(tx, &ops, event.handled_at).await?;
        Ok(!outcomes.contains(&Outcome::OutOfRange))
    }

    /// Writes down what is taken back, and takes it where the payment is known.
    async fn reverse(
        &self,
        tx: &mut Lent,
        reversal: &Reversal,
        event: &PaymentEvent,
    ) -> Result<bool, StoreError> {
        lock(tx, &reversal.payment_intent).await?;
        let known = sql::select(&REVERSALS, "WHERE id = $1");
        let known = found::<Reversal>(tx, known, reversal.id.clone()).await?.pop();
        if known.is_some_and(|known| !reversal.supersedes(&known)) {
            return Ok(true);
        }
        put(tx, sql::upsert(&REVERSALS, "id", REVERSAL_STATE), reversal).await?;
        let payment = sql::select(&PAYMENTS, "WHERE payment_intent = $1");
        let payment = found::<Payment>(tx, payment, reversal.payment_intent.clone()).await?.pop();
        let Some(payment) = payment else { return Ok(true) };
        let reversals = reversals_of(tx, &payment.payment_intent).await?;
        let Ok((payment, ops)) = enter(&payment, false, &reversals, event) else {
            return Ok(false);
        };
        put(tx, sql::update(&PAYMENTS, "id", &["kept_nusd"]), &payment).await?;
        let outcomes = self.apply(tx, &ops, event.handled_at).await?;
        Ok(!outcomes.contains(&Outcome::OutOfRange))
    }

    /// Parks exports and their events, and tells of it.
    async fn reject(
        &self,
        tx: &mut Lent,
        rejected: &[Rejected],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let ids: Vec<String> = rejected.iter().map(|one| one.id.clone()).collect();
        lock_lanes_of(tx, "id", ids.clone()).await?;
        let park = sql::update(&EXPORTS, "id", &["state", "reason"]);
        let park = format!("{park} AND t.state IN ('exported', 'waiting')");
        for one in rejected {
            put(tx, park.clone(), one).await?;
        }
        let parked: Vec<String> = sqlx::query_scalar(
            "UPDATE billing_events t SET state = 'parked', leased_until = NULL, \
             reason = e.reason FROM exports e WHERE e.id = ANY($1) AND e.state = 'parked' \
             AND t.export_group = e.event_group AND t.state IN ('exported', 'waiting') \
             RETURNING t.id",
        )
        .bind(&ids)
        .fetch_all(&mut **tx)
        .await
        .map_err(classify)?;
        self.write_notices(tx, parked, now).await?;
        let alone = sqlx::query_scalar(AssertSqlSafe(alone("= ANY($1)"))).bind(ids);
        say_alone(&alone.fetch_all(&mut **tx).await.map_err(classify)?);
        Ok(())
    }
}

/// Until the end of the transaction nobody else decides about this payment or subscription.
async fn lock(conn: &mut PgConnection, id: &str) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 7001010))")
        .bind(id)
        .execute(conn)
        .await
        .map_err(classify)?;
    Ok(())
}

async fn put<T: Serialize>(tx: &mut Lent, statement: String, row: &T) -> Result<u64, StoreError> {
    write(tx, statement, row, "this row of a payment").await
}

async fn found<T: DeserializeOwned>(
    conn: &mut PgConnection,
    statement: String,
    key: String,
) -> Result<Vec<T>, StoreError> {
    select(conn, &statement.into(), key).await
}

async fn reversals_of(conn: &mut PgConnection, intent: &str) -> Result<Vec<Reversal>, StoreError> {
    let reversals = sql::select(&REVERSALS, "WHERE payment_intent = $1");
    found(conn, reversals, intent.to_owned()).await
}

/// Writes a subscription's newer state down, and what all of the account's come to. One that was
/// another account's changes both; accounts are locked in the order of their ids, as everywhere.
async fn subscribe(tx: &mut Lent, news: &Subscribed, now: Timestamp) -> Result<(), StoreError> {
    let Subscribed { subscription, default_plan } = news;
    lock(tx, &subscription.id).await?;
    let known = sql::select(&SUBSCRIPTIONS, "WHERE id = $1");
    let known = found::<Subscription>(tx, known, subscription.id.clone()).await?.pop();
    if known.as_ref().is_some_and(|known| !subscription.supersedes(known)) {
        return Ok(());
    }
    let ids = known.iter().chain([subscription]).map(|it| it.account_id);
    let mut accounts = Vec::new();
    for id in ids.collect::<BTreeSet<_>>() {
        let account = sql::select(&ACCOUNTS, "WHERE id = $1 FOR UPDATE");
        accounts.extend(first::<Account>(tx, account, id.0).await?);
    }
    if accounts.iter().all(|account| account.id != subscription.account_id) {
        return Ok(());
    }
    put(tx, sql::upsert(&SUBSCRIPTIONS, "id", SUBSCRIPTION_STATE), subscription).await?;
    if subscription.is_idle(known.as_ref()) {
        return Ok(());
    }
    for account in &accounts {
        follow(tx, account, known.as_ref(), default_plan.as_deref(), now).await?;
    }
    Ok(())
}

/// Makes of an account what its subscriptions come to, of which one was so `before`.
async fn follow(
    tx: &mut Lent,
    account: &Account,
    before: Option<&Subscription>,
    default_plan: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let all = sql::select(&SUBSCRIPTIONS, "WHERE account_id = $1");
    let all: Vec<Subscription> = select(tx, &all.into(), account.id.0).await?;
    let is_ours = account.status == AccountStatus::Suspended
        && suspended_by(tx, account.id).await?.as_deref() == Some(ACTOR);
    let after = subscribed(account, &all, before, is_ours, default_plan);
    let columns = differing(account, &after, ACCOUNT_SETTINGS)?;
    if columns.is_empty() {
        return Ok(());
    }
    log(tx, &AuditEntry::account_update(ACTOR, account, &after, now)).await?;
    change(tx, (&ACCOUNTS, "id"), &columns, &after, ACCOUNT_NAME).await
}

/// Who suspended an account last.
async fn suspended_by(
    conn: &mut PgConnection,
    account: AccountId,
) -> Result<Option<String>, StoreError> {
    sqlx::query_scalar(
        "SELECT actor FROM audit_log WHERE account_id = $1 AND (action = 'account.suspend' \
          OR action = 'account.update' AND before::json ->> 'status' = 'active' \
           AND after::json ->> 'status' = 'suspended') ORDER BY id DESC LIMIT 1",
    )
    .bind(account.0)
    .fetch_optional(conn)
    .await
    .map_err(classify)
}
