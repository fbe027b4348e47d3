//! What must not grow for ever: rows that nobody needs any more, and memory.

use std::time::Instant;

use crate::app::{Setup, Store, TestApp, both_stores, eventually, in_its_time, question, streamed};
use crate::client::Ask;
use crate::sinks::openmeter::{OpenMeter, TOKEN};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use crate::upstream::script::Gate;

both_stores!(what_has_expired_is_swept);

const LONG_AGO: &str = "2026-01-01T00:00:00.000000Z";
/// Of each prompt, so that one that is kept is felt.
const PROMPT_BYTES: usize = 64 << 10;
const WARM_UP: usize = 40;
const REQUESTS: usize = 240;
/// The prompts of a third of the requests.
const GROWTH_BYTES_MAX: usize = REQUESTS * PROMPT_BYTES / 3;

async fn what_has_expired_is_swept(store: Store) {
    let mut app = TestApp::start(store).await;
    let key = app.create_key("test", &["--rpm", "60"]).await;
    let ask =
        |name: &str| app.chat_ask(&question(MODEL)).bearer(&key).header("Idempotency-Key", name);
    let (first, second) = (ask("first"), ask("second"));
    for ask in [&first, &second] {
        app.upstream.script(Answer::openrouter().plain());
        app.ask(ask).await.ok();
    }
    let old = app.records(2).await[0].id.clone();
    let expire =
        format!("UPDATE idempotency_keys SET expires_at = '{LONG_AGO}' WHERE request_id = '{old}'");
    app.books.tamper(&expire).await;
    app.kill9();
    app.books.tamper(&format!("UPDATE rate_windows SET seen_at = '{LONG_AGO}'")).await;
    app.restart().await;
    eventually("what has expired is gone", async || {
        let keys = app.books.rows("SELECT request_id FROM idempotency_keys").await;
        let windows = app.books.rows("SELECT subject FROM rate_windows").await;
        (keys.len() == 1 && windows.is_empty()).then_some(())
    })
    .await;
    assert_eq!(app.ask(&second).await.status, 409, "a day is not over for this one");
    app.upstream.script(Answer::openrouter().plain());
    app.ask(&first).await.ok();
    app.records(3).await;
    app.finish().await;
}

/// A table that is new, as each month's is, has no statistics: without being told, the database
/// reads all of it whenever it looks for a row.
#[tokio::test]
async fn a_row_is_found_without_reading_its_table() {
    let meter = OpenMeter::start().await;
    let setup = Setup::new(Store::Postgres).credit("1000").env("OPENMETER_TOKEN", TOKEN);
    let app = setup.env("OPENMETER_URL", &meter.url()).start().await;
    let began = Instant::now();
    for _ in 0..REQUESTS {
        app.upstream.script(Answer::openrouter().plain());
        app.chat(&question(MODEL)).await.ok();
    }
    let read = in_its_time("all is exported, and the database has counted", async || {
        let sql = "SELECT SUM(n_tup_ins)::bigint AS written, SUM(n_tup_upd)::bigint AS updated, \
                   SUM(seq_tup_read)::bigint AS read FROM pg_stat_user_tables \
                   WHERE relname = 'billing_events' OR relname LIKE 'usage\\_records\\_%'";
        let counted = app.books.rows(sql).await.remove(0);
        let number = |name: &str| counted[name].as_u64().expect("a number");
        // A record and an event, which is claimed and then done.
        let is_all = number("written").min(number("updated")) >= 2 * REQUESTS as u64;
        is_all.then(|| number("read"))
    })
    .await;
    // The server's look at what waits may read both tables, every five seconds.
    let looks = began.elapsed().as_secs() / 5;
    let most = (20 + 2 * looks) * REQUESTS as u64;
    assert!(read < most, "{read} rows read for {REQUESTS} requests and {looks} looks");
    app.finish().await;
}

/// Prompts, answers whose clients leave, keys and models that are nobody's: all of it once.
#[tokio::test]
async fn requests_leave_no_memory_behind() {
    let setup = Setup::new(Store::Sqlite).policy("count").credit("1000");
    let app = setup.env("TOLLGATE_AUTH_FAILURES_PER_MINUTE", "0").start().await;
    requests(&app, 0, WARM_UP).await;
    let before = app.process.resident_bytes();
    requests(&app, WARM_UP, REQUESTS).await;
    let after = app.process.resident_bytes();
    println!("{before} bytes after {WARM_UP} requests, {after} after {REQUESTS} more");
    let grown = after.saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes for {REQUESTS} requests");
    app.finish().await;
}

async fn requests(app: &TestApp, first: usize, count: usize) {
    let whole = Answer::openrouter();
    for number in first..first + count {
        let prompt = format!("{number} ").repeat(PROMPT_BYTES / 2);
        let mut body = if number % 2 == 0 { question(MODEL) } else { streamed(MODEL) };
        body["messages"][0]["content"] = prompt[..PROMPT_BYTES].into();
        if number % 2 == 0 {
            app.upstream.script(whole.plain());
            app.chat(&body).await.ok();
        } else {
            let gate = Gate::new();
            app.upstream.script(whole.head().chunk(whole.content_event("The ")).wait(&gate));
            let mut exchange = app.begin_chat(&body).await;
            exchange.until("The ").await;
            exchange.hang_up();
        }
        let stranger = Ask::get("/v1/models").bearer(&format!("sk-tg-nobodys-{number}"));
        assert_eq!(app.ask(&stranger).await.status, 401);
        let unknown = app.get(&format!("/v1/models/nobodys-{number}")).await;
        assert_eq!(unknown.status, 404);
    }
    app.records(first + count).await;
}
