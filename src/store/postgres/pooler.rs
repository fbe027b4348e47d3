//! Tells whether a connection is a session: whether the server's process behind it stays its own.
//!
//! Behind a pooler in transaction or statement mode it does not: prepared statements are mixed up
//! between clients (an answer may be that of another's statement, without any error), session locks
//! are not held and notifications do not come. Books kept over one would be wrong.
//!
//! Invariant: nothing is prepared here, and nothing is changed but when a server lets go of who has
//! gone, so that asking is safe behind any pooler. It cannot see one that never shares a server
//! between our clients while we ask.

use super::rows::classify;
use crate::store::StoreError;
use futures::future::try_join_all;
use sqlx::pool::PoolConnection;
use sqlx::{Executor, PgPool, Postgres, Row};
use std::collections::BTreeMap;
use std::time::Duration;

/// Connections that are asked: one more than two poolers that share a port could keep apart. Few,
/// because a session pooler counts them, and commands ask as well.
const CLIENTS: usize = 3;
/// Whose turn it is. A pooler that gives out the server used last shows itself in the second turn,
/// one that goes round in the fourth, and one under the load of others by not being lucky six
/// times.
const TURNS: [usize; 9] = [0, 1, 2, 2, 1, 0, 1, 2, 0];
/// For all the turns: a database that takes longer is away.
const TURNS_TIMEOUT: Duration = Duration::from_secs(5);

const REFUSAL: &str = "DATABASE_URL leads to a pooler in transaction or statement mode, which \
    mixes up the statements of its clients, so that the books would be wrong. Use the database's \
    direct address, or a pooler in session mode (PgBouncer: pool_mode = session; Supabase: port \
    5432 instead of 6543)";

/// A turn: the client and the server's process that answered it.
type Answer = (usize, i32);

/// # Errors
/// [`StoreError::Setup`] behind a pooler that does not keep sessions; [`StoreError::Unavailable`]
/// when the database cannot be asked.
pub async fn refuse_shared_sessions(pools: [&PgPool; CLIENTS]) -> Result<(), StoreError> {
    let clients = try_join_all(pools.map(PgPool::acquire)).await.map_err(classify)?;
    let answers = tokio::time::timeout(TURNS_TIMEOUT, ask(clients)).await;
    let answers = answers.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map_err(classify)?;
    if are_sessions(&answers) { Ok(()) } else { Err(StoreError::Setup(REFUSAL.to_owned())) }
}

async fn ask(mut clients: Vec<PoolConnection<Postgres>>) -> Result<Vec<Answer>, sqlx::Error> {
    let mut answers = Vec::with_capacity(TURNS.len());
    for client in TURNS {
        // As plain text: a prepared statement is what such a pooler loses.
        let question = sqlx::raw_sql("SELECT pg_backend_pid()");
        let row = clients[client].fetch_one(question).await?;
        answers.push((client, row.try_get(0)?));
    }
    Ok(answers)
}

/// Each client has always had the same process, and no two have had the same.
fn are_sessions(answers: &[Answer]) -> bool {
    let (mut process_of, mut client_of) = (BTreeMap::new(), BTreeMap::new());
    answers.iter().all(|(client, process)| {
        process_of.entry(client).or_insert(process) == &process
            && client_of.entry(process).or_insert(client) == &client
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a pooler answers whose turn `number` goes to the server that `choose` names.
    fn pooled(choose: impl Fn(usize) -> usize) -> Vec<Answer> {
        let process = |number| i32::try_from(choose(number)).unwrap_or_default();
        TURNS.into_iter().enumerate().map(|(number, client)| (client, process(number))).collect()
    }

    #[test]
    fn sessions_are_sessions() {
        assert!(are_sessions(&pooled(|number| TURNS[number] + 100)));
    }

    #[test]
    fn every_client_has_its_turns() {
        for client in 0..CLIENTS {
            assert!(TURNS.iter().filter(|turn| **turn == client).count() >= 3);
        }
    }

    #[test]
    fn one_server_for_all_is_none() {
        assert!(!are_sessions(&pooled(|_| 100)));
    }

    #[test]
    fn servers_that_go_round_are_none() {
        for servers in 1..20 {
            assert!(!are_sessions(&pooled(|number| number % servers)), "{servers}");
        }
    }

    #[test]
    fn one_turn_elsewhere_is_enough() {
        for other in 0..TURNS.len() {
            let stray = |number: usize| if number == other { 7 } else { TURNS[number] + 100 };
            assert!(!are_sessions(&pooled(stray)), "turn {other}");
        }
    }

    /// PgBouncer with `so_reuseport`: each has a pool of its own, and two clients meet in one.
    #[test]
    fn two_poolers_side_by_side_are_none() {
        for lone in 0..CLIENTS {
            let answers = pooled(|number| usize::from(TURNS[number] == lone));
            assert!(!are_sessions(&answers), "client {lone} alone");
        }
    }
}
