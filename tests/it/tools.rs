//! The tools of this suite against each other, without the program between them: what they report
//! of it is worth no more than what they report of themselves.

use std::net::SocketAddr;

use sqlx::{Connection, Executor, PgConnection};

use crate::app::audit::deadlocks;
use crate::app::books::Books;
use crate::app::store::Database;
use crate::app::{Store, eventually};
use crate::client::{Answered, Ask, Exchange};
use crate::upstream::answer::Answer;
use crate::upstream::script::{Gate, Script};
use crate::upstream::{CHAT, Upstream, catalog};

async fn upstream() -> (Upstream, SocketAddr) {
    let upstream = Upstream::start(catalog::openrouter_models()).await;
    let url = upstream.url();
    let address = url.trim_start_matches("http://").trim_end_matches("/v1").parse();
    (upstream, address.expect("an address"))
}

async fn ask(address: SocketAddr) -> Answered {
    Exchange::open(address, &Ask::post_json(CHAT, "{}").bytes()).await.finish().await
}

#[tokio::test]
async fn the_client_gets_what_the_upstream_sends() {
    let (upstream, address) = upstream().await;
    let answer = Answer::openrouter();
    upstream.script(answer.stream());
    upstream.script(answer.plain());
    let wire = [Ask::post_json(CHAT, "{}").bytes(), Ask::post_json(CHAT, "[]").bytes()].concat();
    let mut exchange = Exchange::open(address, &wire).await;
    assert_eq!(exchange.next().await.ok(), answer.events().concat());
    assert_eq!(exchange.next().await.ok(), answer.plain_body());
    let bodies: Vec<_> = upstream.chats().into_iter().map(|call| call.request.body).collect();
    assert_eq!(bodies, [b"{}", b"[]"]);
    assert_eq!(upstream.truth(&answer.id), answer.truth());
    assert_eq!(ask(address).await.status, 599, "a test that queues no script is told");
}

#[tokio::test]
async fn a_broken_answer_is_not_complete() {
    let (upstream, address) = upstream().await;
    let start = Script::stream().chunk("data: a\n\n");
    let length = [("Content-Length", "100")];
    let short = Script::new().head(200, &length).write("short").close();
    for script in [start.clone().rst(), start.clone().close(), short] {
        upstream.script(script);
        let got = ask(address).await;
        assert_eq!((got.status, got.complete), (200, false), "{got:?}");
    }
    upstream.script(Script::new().rst());
    assert_eq!(ask(address).await.status, 0, "no answer at all");
    upstream.script(start.end());
    assert!(ask(address).await.complete);
}

#[tokio::test]
async fn the_upstream_notices_a_hang_up() {
    let (upstream, address) = upstream().await;
    let ask = Ask::post_json(CHAT, "{}").bytes();
    for count in [1, 2] {
        upstream.script(Script::stream().chunk("data: a\n\n").wait(&Gate::new()));
        let mut exchange = Exchange::open(address, &ask).await;
        exchange.until("a\n\n").await;
        let gone = upstream.chats().iter().filter(|call| call.gone).count();
        assert_eq!(gone, count - 1, "not before it hangs up");
        if count == 1 {
            exchange.hang_up();
        } else {
            exchange.close();
        }
        upstream.wait_for_gone(count).await;
    }
}

#[tokio::test]
async fn a_gate_holds_the_bytes_back() {
    let (upstream, address) = upstream().await;
    let gate = Gate::new();
    upstream.script(Script::stream().chunk("before").wait(&gate).chunk("after").end());
    let mut exchange = Exchange::open(address, &Ask::post_json(CHAT, "{}").bytes()).await;
    exchange.until("before").await;
    assert_eq!(exchange.linger(30).await, b"before");
    gate.open();
    assert_eq!(exchange.finish().await.ok(), "beforeafter");
}

/// Two transactions that wait for each other: PostgreSQL ends one of them, and keeps count.
#[tokio::test]
async fn a_deadlock_is_noticed() {
    let database = Database::create(Store::Postgres, None).await;
    let books = Books::open(&database);
    books.tamper("CREATE TABLE pair AS SELECT 1 AS id UNION ALL SELECT 2").await;
    assert_eq!(deadlocks(&books).await, None);
    let mut one = PgConnection::connect(&database.url).await.expect("a connection");
    let mut other = PgConnection::connect(&database.url).await.expect("a connection");
    for (connection, lock) in [(&mut one, LOCK_1), (&mut other, LOCK_2)] {
        connection.execute("BEGIN").await.expect("a transaction");
        connection.execute(lock).await.expect("a row that is free");
    }
    let (first, second) = tokio::join!(one.execute(LOCK_2), other.execute(LOCK_1));
    assert_ne!(first.is_ok(), second.is_ok(), "one of them has its way");
    // What a connection has counted is told when it ends.
    drop((one, other));
    eventually("it is counted", async || deadlocks(&books).await).await;
    database.drop_database().await;
}

const LOCK_1: &str = "UPDATE pair SET id = id WHERE id = 1";
const LOCK_2: &str = "UPDATE pair SET id = id WHERE id = 2";
