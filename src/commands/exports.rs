//! `tollgate exports …`: merged events, as they go to Stripe.

use super::{Output, print, said};
use crate::models::billing::DeliveryState;
use crate::models::reconcile::Day;
use crate::services::directory::{self, OPERATOR};
use crate::store::Store;
use crate::store::exports::ExportFilter;
use crate::store::exports::corrected::Word;
use clap::{Args, Subcommand, ValueEnum};

#[derive(Subcommand)]
pub enum Exports {
    /// List merged events.
    List(List),
    /// Say of exports that may have arrived that the sink does not count them: they are sent again,
    /// under other identifiers. Of the last hour nobody knows yet. Prints their number.
    Missing {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Say of parked exports that may have arrived that the sink counts them. Prints their number.
    Counted {
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Args)]
pub struct List {
    /// Only those of this customer, by its id at the sink.
    #[arg(long)]
    customer: Option<String>,
    /// Only those for this meter, by its event name.
    #[arg(long)]
    meter: Option<String>,
    /// Only what was used on this day of UTC, as 2026-11-24, or later.
    #[arg(long)]
    from: Option<Day>,
    /// Only what was used on this day or earlier.
    #[arg(long)]
    to: Option<Day>,
    #[arg(long)]
    state: Option<State>,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum State {
    Waiting,
    Exported,
    Parked,
    Void,
}

impl From<State> for DeliveryState {
    fn from(state: State) -> Self {
        match state {
            State::Waiting => Self::Waiting,
            State::Exported => Self::Exported,
            State::Parked => Self::Parked,
            State::Void => Self::Void,
        }
    }
}

pub async fn run(command: Exports, store: &dyn Store) -> anyhow::Result<()> {
    match command {
        Exports::List(command) => list(command, store).await,
        Exports::Missing { ids } => {
            let count = directory::correct_exports(store, OPERATOR, &ids, Word::Missing).await?;
            said(count, "exports", "at the sink, perhaps, for an hour and not more than 34 days")
        }
        Exports::Counted { ids } => {
            let count = directory::correct_exports(store, OPERATOR, &ids, Word::Counted).await?;
            said(count, "exports", "parked and perhaps at the sink")
        }
    }
}

async fn list(command: List, store: &dyn Store) -> anyhow::Result<()> {
    let List { customer, meter, from, to, state, output } = command;
    let wanted = ExportFilter {
        customer,
        meter,
        state: state.map(DeliveryState::from),
        from: from.map(Day::start),
        until: to.map(Day::end),
    };
    let mut after = String::new();
    loop {
        let page = store.exports_after(&wanted, &after).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after.clone_from(&last.id);
        for export in &page {
            print(export, output, || {
                let reason = export.reason.as_deref().unwrap_or_default();
                format!(
                    "{}  {}  {}  {}  {}  {}  {reason}",
                    export.id,
                    export.customer,
                    export.meter,
                    export.used_at,
                    export.value,
                    export.state
                )
            })?;
        }
    }
}
