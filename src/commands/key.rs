//! `tollgate key …`.

use super::account::find;
use super::{Output, print};
use crate::models::account::ApiKey;
use crate::models::ids::{AccountId, ApiKeyId};
use crate::models::timestamp::Timestamp;
use crate::services::auth::NewSecret;
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

pub async fn run(command: Key, store: &dyn Store) -> anyhow::Result<()> {
    match command {
        Key::Create { account, name, models } => {
            let account = find(store, &account).await?;
            println!("{}", create(store, account.id, name, models).await?);
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
) -> anyhow::Result<String> {
    let secret = NewSecret::generate()?;
    let key = ApiKey {
        id: ApiKeyId::generate(),
        account_id,
        name,
        secret_hash: secret.hash,
        hint: secret.hint,
        models,
        created_at: Timestamp::now(),
        expires_at: None,
        revoked_at: None,
    };
    store.create_key(&key).await?;
    store.announce_change().await?;
    Ok(secret.text)
}

fn show(key: &ApiKey, output: Output) -> anyhow::Result<()> {
    print(key, output, || {
        let state = if key.is_usable(Timestamp::now()) { "active" } else { "ended" };
        let models = key.models.as_deref().unwrap_or("all models");
        format!("{}  {}  {}  {state}  {models}", key.id, key.hint, key.name)
    })
}
