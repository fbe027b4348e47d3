//! `tollgate payments …`: what was paid through Stripe, and what Stripe said.

use super::{Output, print};
use crate::models::payment::{EventState, Payment, PaymentEvent};
use crate::store::Store;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Payments {
    /// List top-ups that were credited, and what is kept of each.
    List {
        #[command(flatten)]
        output: Output,
    },
    /// List events of Stripe that concerned us.
    Events {
        /// Only those that changed nothing and should have; send them again from Stripe's
        /// dashboard when their cause is gone.
        #[arg(long)]
        refused: bool,
        #[command(flatten)]
        output: Output,
    },
}

pub async fn run(command: Payments, store: &dyn Store) -> anyhow::Result<()> {
    match command {
        Payments::List { output } => list(store, output).await,
        Payments::Events { refused, output } => events(store, refused, output).await,
    }
}

async fn list(store: &dyn Store, output: Output) -> anyhow::Result<()> {
    let mut after = String::new();
    loop {
        let payments = store.payments_after(&after).await?;
        let Some(last) = payments.last() else { return Ok(()) };
        after.clone_from(&last.id);
        for payment in &payments {
            print(payment, output, || payment_words(payment))?;
        }
    }
}

async fn events(store: &dyn Store, refused: bool, output: Output) -> anyhow::Result<()> {
    let mut after = String::new();
    loop {
        let events = store.payment_events_after(&after).await?;
        let Some(last) = events.last() else { return Ok(()) };
        after.clone_from(&last.id);
        let is_wanted = |event: &&PaymentEvent| !refused || event.state == EventState::Refused;
        for event in events.iter().filter(is_wanted) {
            print(event, output, || event_words(event))?;
        }
    }
}

fn payment_words(payment: &Payment) -> String {
    let Payment { id, account_id, credited_nusd, kept_nusd, created_at, .. } = payment;
    format!("{created_at}  {account_id}  credited {credited_nusd} USD, keeps {kept_nusd}  {id}")
}

fn event_words(event: &PaymentEvent) -> String {
    let PaymentEvent { id, kind, object, created_at, .. } = event;
    let end = event.reason.as_deref().map_or(String::new(), |why| format!("  refused: {why}"));
    format!("{created_at}  {id}  {kind}  {object}{end}")
}
