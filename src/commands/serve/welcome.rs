//! What is printed when the server is ready, and the account of a first run.
//!
//! Invariant: a key is made only for a fresh SQLite file, and shown once.

use crate::config::DatabaseKind;
use crate::models::account::{AccountKind, NewAccount};
use crate::models::key::KeyLimits;
use crate::models::limits::RateLimits;
use crate::models::money::NanoUsd;
use crate::services::directory::{self, NewKey, OPERATOR};
use crate::state::App;
use std::net::{Ipv4Addr, SocketAddr};

/// Credit of the account that a first run makes.
const FIRST_CREDIT: NanoUsd = NanoUsd(10_000_000_000);

pub async fn print(app: &App, address: SocketAddr) -> anyhow::Result<()> {
    let base = base(address);
    say!("Tollgate listening on {base}");
    match first_key(app).await? {
        Some(key) => print_first_steps(&base, &key, &app.catalog.example()),
        None => Ok(()),
    }
}

/// Where a client on this machine reaches us: nobody can call the address "any".
fn base(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    format!("http://{address}/v1")
}

/// A key for a file that has no account yet.
async fn first_key(app: &App) -> anyhow::Result<Option<String>> {
    let store = app.store.as_ref();
    if app.config.database.kind != DatabaseKind::Sqlite
        || !store.accounts_after(None).await?.is_empty()
    {
        return Ok(None);
    }
    let new = NewAccount {
        name: "default".to_owned(),
        kind: AccountKind::Prepaid,
        plan: None,
        limit_nusd: None,
        stripe_customer_id: None,
        rates: RateLimits::default(),
    };
    let account = directory::create_account(store, OPERATOR, new, Some(FIRST_CREDIT)).await?;
    let new = NewKey::plain(account.id, "first", KeyLimits::default());
    let (_, secret) = directory::create_key(store, OPERATOR, new).await?;
    Ok(Some(secret.text))
}

fn print_first_steps(base: &str, key: &str, model: &str) -> anyhow::Result<()> {
    say!(
        r#"
API key (shown once): {key}
It belongs to the account "default", which has {FIRST_CREDIT} USD of credit. Try it:

curl -N {base}/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" -d '{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"Hello"}}]}}'

python3 -c 'from openai import OpenAI; print(OpenAI(base_url="{base}", api_key="{key}").chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello"}}]).choices[0].message.content)'
"#
    );
    Ok(())
}
