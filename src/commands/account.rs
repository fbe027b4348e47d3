//! `tollgate account …` and `tollgate credit …`.

use super::{Output, Rates, print};
use crate::models::account::{self, AccountKind, AccountStatus, NewAccount};
use crate::models::ledger::EntryKind;
use crate::models::money::NanoUsd;
use crate::services::catalog::OperatorTable;
use crate::services::directory::{self, AccountPatch, OPERATOR};
use crate::store::{Entry, Store};
use anyhow::{Context, bail};
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Account {
    /// Make an account; prints its id.
    Create {
        #[arg(long)]
        name: String,
        /// Pays later, up to a limit a month.
        #[arg(long)]
        postpaid: bool,
        /// Most to spend in a calendar month, in USD; for postpaid accounts.
        #[arg(long, value_parser = usd, requires = "postpaid")]
        limit: Option<NanoUsd>,
        /// Credit to begin with, in USD.
        #[arg(long, value_parser = usd)]
        credit: Option<NanoUsd>,
        /// A plan of the operator's table: its kind, limit and keys' budgets.
        #[arg(long, conflicts_with_all = ["postpaid", "limit"])]
        plan: Option<String>,
        #[arg(long)]
        stripe_customer: Option<String>,
        #[command(flatten)]
        rates: Rates,
    },
    /// Change an account's settings.
    Update {
        /// Name or id.
        #[arg(long)]
        account: String,
        #[arg(long)]
        name: Option<String>,
        /// A plan of the operator's table; "none" takes it away.
        #[arg(long)]
        plan: Option<String>,
        /// Most to spend in a calendar month, in USD; for postpaid accounts.
        #[arg(long, value_parser = usd)]
        limit: Option<NanoUsd>,
        /// It may spend nothing until it is resumed.
        #[arg(long, conflicts_with = "resume")]
        suspend: bool,
        #[arg(long)]
        resume: bool,
        /// Who it is at Stripe: its events are sent there from now on.
        #[arg(long)]
        stripe_customer: Option<String>,
    },
    /// Show one account.
    Show {
        /// Name or id.
        #[arg(long)]
        account: String,
        #[command(flatten)]
        output: Output,
    },
    /// List accounts.
    List {
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Subcommand)]
pub enum Credit {
    /// Add credit; prints the balance after it.
    Grant {
        /// Name or id.
        #[arg(long)]
        account: String,
        #[arg(long, value_parser = usd)]
        usd: NanoUsd,
        #[arg(long)]
        reason: String,
    },
}

pub async fn run_account(
    command: Account,
    store: &dyn Store,
    table: &OperatorTable,
) -> anyhow::Result<()> {
    match command {
        Account::Create { name, postpaid, limit, credit, plan, stripe_customer, rates } => {
            let (kind, limit_nusd) = match &plan {
                Some(name) => {
                    let plan = table.plan(name);
                    let plan = plan.with_context(|| format!("there is no plan '{name}'"))?;
                    (plan.kind, plan.limit_nusd)
                }
                None if postpaid => (AccountKind::Postpaid, limit),
                None => (AccountKind::Prepaid, None),
            };
            let stripe_customer_id = stripe_customer;
            let rates = rates.into();
            let new = NewAccount { name, kind, plan, limit_nusd, stripe_customer_id, rates };
            let account = directory::create_account(store, OPERATOR, new, credit).await?;
            store.announce_change().await?;
            say!("{}", account.id);
            Ok(())
        }
        Account::Update { account, name, plan, limit, suspend, resume, stripe_customer } => {
            let plan = match plan.as_deref() {
                Some("none") => Some(None),
                Some(name) if table.plan(name).is_none() => bail!("there is no plan '{name}'"),
                other => other.map(|name| Some(name.to_owned())),
            };
            let patch = AccountPatch {
                name,
                status: match (suspend, resume) {
                    (true, _) => Some(AccountStatus::Suspended),
                    (_, true) => Some(AccountStatus::Active),
                    _ => None,
                },
                plan,
                limit_nusd: limit.map(Some),
                stripe_customer_id: stripe_customer.map(Some),
                ..AccountPatch::default()
            };
            let account = find(store, &account).await?;
            directory::update_account(store, OPERATOR, account.id, &patch).await?;
            Ok(store.announce_change().await?)
        }
        Account::Show { account, output } => show(&find(store, &account).await?, output),
        Account::List { output } => list(store, output).await,
    }
}

pub async fn run_credit(command: Credit, store: &dyn Store) -> anyhow::Result<()> {
    let Credit::Grant { account, usd, reason } = command;
    if usd <= NanoUsd::ZERO {
        bail!("a credit is more than zero");
    }
    let account = find(store, &account).await?;
    let entry = Entry {
        account_id: account.id,
        kind: EntryKind::Credit,
        amount_nusd: usd,
        reason,
        reference: None,
        audit: None,
    };
    let balance = directory::enter(store, OPERATOR, entry).await?;
    store.announce_change().await?;
    say!("{}", balance.context("the credit was entered before")?);
    Ok(())
}

/// The account of a name or id.
pub async fn find(store: &dyn Store, name_or_id: &str) -> anyhow::Result<account::Account> {
    let by_name = store.account_by_name(name_or_id).await?;
    let found = match (by_name, name_or_id.parse()) {
        (None, Ok(id)) => store.account(id).await?,
        (found, _) => found,
    };
    found.with_context(|| format!("there is no account '{name_or_id}'"))
}

async fn list(store: &dyn Store, output: Output) -> anyhow::Result<()> {
    let mut after = None;
    loop {
        let page = store.accounts_after(after).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.id);
        for account in &page {
            show(account, output)?;
        }
    }
}

fn show(account: &account::Account, output: Output) -> anyhow::Result<()> {
    print(account, output, || {
        let kind = match account.kind {
            AccountKind::Prepaid => "prepaid",
            AccountKind::Postpaid => "postpaid",
        };
        format!(
            "{}  {}  {kind}  balance {} USD  held {} USD",
            account.id, account.name, account.balance_nusd, account.held_nusd
        )
    })
}

/// Dollars on the command line.
pub fn usd(text: &str) -> Result<NanoUsd, String> {
    NanoUsd::parse_typed(text)
        .filter(|amount| *amount >= NanoUsd::ZERO)
        .ok_or_else(|| "not an amount of dollars like 12.50".to_owned())
}
