//! `tollgate key …`.

use super::account::{find, usd};
use super::{Output, print};
use crate::models::account::{ApiKey, KeyBudget, KeyLimits};
use crate::models::ids::{AccountId, ApiKeyId};
use crate::models::money::NanoUsd;
use crate::models::timestamp::Timestamp;
use crate::services::auth::NewSecret;
use crate::services::catalog::OperatorTable;
use crate::store::Store;
use anyhow::bail;
use clap::Subcommand;

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
    },
    /// List an account's keys.
    List {
        #[arg(long)]
        account: String,
        #[command(flatten)]
        output: Output,
    },
    /// End a key's life now.
    Revoke { id: ApiKeyId },
}

pub async fn run(command: Key, store: &dyn Store, table: &OperatorTable) -> anyhow::Result<()> {
    match command {
        Key::Create { account, name, models, budget, budget_day, budget_week, budget_month } => {
            let account = find(store, &account).await?;
            let plan = account.plan.as_deref().and_then(|plan| table.plan(plan));
            let plan = plan.map(|plan| plan.key_limits).unwrap_or_default();
            let limits = KeyLimits {
                day: budget_day.or(plan.day),
                week: budget_week.or(plan.week),
                month: budget_month.or(plan.month),
                total: budget.or(plan.total),
            };
            say!("{}", create(store, account.id, name, models, limits).await?);
        }
        Key::List { account, output } => {
            let account = find(store, &account).await?;
            for key in store.keys_of(account.id).await? {
                show(&key, output)?;
            }
        }
        Key::Revoke { id } => {
            if !store.revoke_key(id, Timestamp::now()).await? {
                bail!("there is no key {id}");
            }
            store.announce_change().await?;
        }
    }
    Ok(())
}

/// Makes a key; the secret is not to be had again.
pub async fn create(
    store: &dyn Store,
    account_id: AccountId,
    name: String,
    models: Option<String>,
    limits: KeyLimits,
) -> anyhow::Result<String> {
    let secret = NewSecret::generate()?;
    let now = Timestamp::now();
    let key = ApiKey {
        id: ApiKeyId::generate(),
        account_id,
        name,
        secret_hash: secret.hash,
        hint: secret.hint,
        models,
        created_at: now,
        expires_at: None,
        revoked_at: None,
    };
    store.create_key(&key, &KeyBudget::open(key.id, limits, now)).await?;
    store.announce_change().await?;
    Ok(secret.text)
}

fn show(key: &ApiKey, output: Output) -> anyhow::Result<()> {
    // Not even the hash leaves: nobody needs it who may not have the table.
    let mut row = serde_json::to_value(key)?;
    if let Some(members) = row.as_object_mut() {
        members.remove("secret_hash");
    }
    print(&row, output, || {
        let state = if key.is_usable(Timestamp::now()) { "active" } else { "ended" };
        let models = key.models.as_deref().unwrap_or("all models");
        format!("{}  {}  {}  {state}  {models}", key.id, key.hint, key.name)
    })
}
