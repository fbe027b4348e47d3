//! The fault table: everything that an upstream can do wrong, and for each fault what the client
//! sees, what is charged and what is logged. `tests/fault-table.md` is that table; the test drives
//! every row against the real program on both stores and holds it equal. After a change that is
//! meant: `UPDATE_FAULT_TABLE=1 cargo test --test it faults`, and read the difference.
//!
//! What must hold in every row whatever the table says is in `observe`.

mod bodies;
mod case;
mod cuts;
mod observe;
mod statuses;
mod streams;
mod table;
mod usage;
mod wire;

use case::Fault;
use observe::Seen;
use table::Table;

use crate::app::{Kind, Setup, Store, both_stores};

both_stores!(the_fault_table);

/// In the order of the table.
fn faults() -> Vec<Fault> {
    [statuses::all(), bodies::all(), streams::all(), usage::all(), wire::all(), cuts::all()]
        .into_iter()
        .flatten()
        .collect()
}

async fn the_fault_table(store: Store) {
    let table = Table::of(&faults(), Box::pin(all_seen(store)).await);
    println!("{table}");
    table.assert_is_the_one_checked_in();
}

/// What was seen of each fault, in their order, on OpenRouter and on LiteLLM.
async fn all_seen(store: Store) -> Vec<[Seen; 2]> {
    // Programs side by side: the patient ones take most rows, the others those that wait.
    let of = |kind| async move {
        let (patient, impatient) =
            tokio::join!(Box::pin(seen(store, kind, false)), Box::pin(seen(store, kind, true)),);
        let mut seen: Vec<_> = patient.into_iter().chain(impatient).collect();
        seen.sort_by_key(|(number, _)| *number);
        seen.into_iter().map(|(_, seen)| seen)
    };
    let (openrouter, litellm) = tokio::join!(of(Kind::OpenRouter), of(Kind::LiteLlm));
    openrouter.zip(litellm).map(|(a, b)| [a, b]).collect()
}

async fn seen(store: Store, kind: Kind, waits: bool) -> Vec<(usize, Seen)> {
    let mut setup = Setup::new(store).kind(kind).env("TOLLGATE_LOG_FORMAT", "json");
    setup = setup.env("TOLLGATE_LOG", "tollgate=debug,warn");
    // Every look-up has its answer, if only late on a loaded machine.
    setup = setup.env("TOLLGATE_LOOKUP_SECONDS", "30");
    if waits {
        for limit in ["UPSTREAM_HEAD", "UPSTREAM_IDLE"] {
            setup = setup.env(&format!("TOLLGATE_{limit}_SECONDS"), "3");
        }
        setup = setup.env("TOLLGATE_STREAM_SECONDS", "10");
    }
    let app = setup.start().await;
    let mut all = Vec::new();
    for (number, fault) in faults().iter().enumerate() {
        if fault.waits == waits {
            all.push((number, observe::play(&app, kind, fault).await));
        }
    }
    observe::add_log(&app, &mut all).await;
    let elsewhere = app.upstream.calls("/v1/elsewhere");
    assert!(elsewhere.is_empty(), "a redirect was followed: {elsewhere:?}");
    app.finish().await;
    all
}
