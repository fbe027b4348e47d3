//! `tollgate key …`.

use super::account::{find, usd};
use super::{Output, Rates, print};
use crate::models::identity::Role;
use crate::models::ids::ApiKeyId;
use crate::models::key::{ApiKey, KeyLimits};
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::services::catalog::OperatorTable;
use crate::services::directory::{self, NewKey, OPERATOR};
use crate::store::Store;
use clap::Subcommand;
use std::time::Duration;

#[derive(Subcommand)]
pub enum Key {
    /// Make a key; prints it, once.
    Create {
        /// Name or id of the account that pays.
        #[arg(long)]
        account: String,
        #[arg(long, default_value = "key")]
        name: String,
        /// Models it may use, comma separated; a pattern may end in `*`.
        #[arg(long)]
        models: Option<String>,
        /// `user`; `service` for a program that runs this service over `/admin/v1`, or `admin`.
        #[arg(long, default_value = "user", value_parser = role)]
        role: Role,
        /// It ends after so many days.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
        expires_in_days: Option<u32>,
        /// Most it may spend in all, in USD. Instead of the plan's, as are the next three.
        #[arg(long, value_parser = usd)]
        budget: Option<NanoUsd>,
        /// Most it may spend in a day (UTC), in USD.
        #[arg(long, value_parser = usd)]
        budget_day: Option<NanoUsd>,
        /// Most it may spend in a week from Monday, in USD.
        #[arg(long, value_parser = usd)]
        budget_week: Option<NanoUsd>,
        /// Most it may spend in a calendar month, in USD.
        #[arg(long, value_parser = usd)]
        budget_month: Option<NanoUsd>,
        #[command(flatten)]
        rates: Rates,
    },
    /// List an account's keys.
    List {
        #[arg(long)]
        account: String,
        #[command(flatten)]
        output: Output,
    },
    /// Give a key another secret; prints it, once. It is the same key: budgets and limits stay.
    Rotate {
        id: ApiKeyId,
        /// How long the old secret works on.
        #[arg(long, default_value_t = 0)]
        overlap_seconds: u64,
    },
    /// End a key's life now.
    Revoke { id: ApiKeyId },
}

/// A hundred years: what lasts longer has no end.
const DAYS_MAX: i64 = 36_500;

pub async fn run(command: Key, store: &dyn Store, table: &OperatorTable) -> anyhow::Result<()> {
    match command {
        Key::Create {
            account,
            name,
            models,
            role,
            expires_in_days,
            budget,
            budget_day,
            budget_week,
            budget_month,
            rates,
        } => {
            let account = find(store, &account).await?;
            let plan = account.plan.as_deref().and_then(|plan| table.plan(plan));
            let plan = plan.map(|plan| plan.key_limits).unwrap_or_default();
            let own = KeyLimits {
                day: budget_day,
                week: budget_week,
                month: budget_month,
                total: budget,
            };
            let expires_at = expires_in_days.map(in_days);
            let plain = NewKey::plain(account.id, &name, own.or(plan));
            let new = NewKey { models, role, expires_at, rates: rates.into(), ..plain };
            let (_, secret) = directory::create_key(store, OPERATOR, new).await?;
            store.announce_change().await?;
            say!("{}", secret.text);
        }
        Key::List { account, output } => {
            let account = find(store, &account).await?;
            let mut after = None;
            loop {
                let page = store.keys_of(account.id, after).await?;
                let Some(last) = page.last() else { return Ok(()) };
                after = Some(last.id);
                for key in &page {
                    show(key, output)?;
                }
            }
        }
        Key::Rotate { id, overlap_seconds } => {
            let overlap = Duration::from_secs(overlap_seconds);
            let (_, secret) = directory::rotate_key(store, OPERATOR, id, overlap).await?;
            store.announce_change().await?;
            say!("{}", secret.text);
        }
        Key::Revoke { id } => {
            directory::revoke_key(store, OPERATOR, id).await?;
            store.announce_change().await?;
        }
    }
    Ok(())
}

fn in_days(days: u32) -> Timestamp {
    Timestamp::now().plus(Duration::from_secs(u64::from(days) * 86_400))
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "user" => Ok(Role::User),
        "admin" => Ok(Role::Admin),
        "service" => Ok(Role::Service),
        _ => Err("user, admin or service".to_owned()),
    }
}

fn show(key: &ApiKey, output: Output) -> anyhow::Result<()> {
    let row = directory::shown(key);
    print(&row, output, || {
        let state = if key.is_usable(Timestamp::now()) { "active" } else { "ended" };
        let models = key.models.as_deref().unwrap_or("all models");
        format!("{}  {}  {}  {state}  {models}", key.id, key.hint, key.name)
    })
}
