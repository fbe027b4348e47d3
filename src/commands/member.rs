//! `tollgate member …` and `tollgate audit list`.

use super::account::find;
use super::{Output, print};
use crate::models::ids::{AccountId, UserId};
use crate::services::directory::{self, OPERATOR};
use crate::store::Store;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Member {
    /// Let a user act for an account, and for no other from now on.
    Add {
        /// Name or id of the account.
        #[arg(long)]
        account: String,
        /// The user's id at Supabase.
        #[arg(long)]
        user: UserId,
    },
    /// List who acts for an account.
    List {
        #[arg(long)]
        account: String,
        #[command(flatten)]
        output: Output,
    },
    /// End a user's acting for an account.
    Remove {
        #[arg(long)]
        account: String,
        #[arg(long)]
        user: UserId,
    },
}

#[derive(Subcommand)]
pub enum Audit {
    /// List who changed what, oldest first.
    List {
        #[command(flatten)]
        output: Output,
    },
}

pub async fn run(command: Member, store: &dyn Store) -> anyhow::Result<()> {
    match command {
        Member::Add { account, user } => {
            let account = find(store, &account).await?;
            directory::add_member(store, OPERATOR, account.id, user).await?;
            store.announce_change().await?;
        }
        Member::List { account, output } => {
            let account = find(store, &account).await?;
            list(store, account.id, output).await?;
        }
        Member::Remove { account, user } => {
            let account = find(store, &account).await?;
            directory::remove_member(store, OPERATOR, account.id, user).await?;
            store.announce_change().await?;
        }
    }
    Ok(())
}

async fn list(store: &dyn Store, account: AccountId, output: Output) -> anyhow::Result<()> {
    let mut after = None;
    loop {
        let page = store.members_of(account, after).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.user_id);
        for member in &page {
            print(member, output, || format!("{}  {}", member.user_id, member.created_at))?;
        }
    }
}

pub async fn run_audit(command: Audit, store: &dyn Store) -> anyhow::Result<()> {
    let Audit::List { output } = command;
    let mut after = None;
    loop {
        let page = store.audit_after(after).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.id);
        for entry in &page {
            print(entry, output, || {
                format!(
                    "{}  {}  {}  {}",
                    entry.created_at, entry.actor, entry.action, entry.subject
                )
            })?;
        }
    }
}
