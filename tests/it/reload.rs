//! SIGHUP: prices, plans and upstreams change while requests run; a fault changes nothing.

use serde_json::json;

use crate::app::process::{Environment, Process};
use crate::app::{Kind, Setup, Store, UPSTREAM_KEY, both_stores, eventually, question, streamed};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{self, MODEL, PRICES_TOML};
use crate::upstream::script::{Gate, Script};
use crate::upstream::{Listing, Upstream};

both_stores!(
    a_price_counts_from_the_next_request_on,
    the_limits_of_a_plan_count_at_once,
    upstreams_come_and_go,
    a_fault_changes_nothing,
    many_reloads_under_load_lose_nothing,
);

const OTHER: &str = "gpt-4o-mini";

/// What 12 and 7 tokens come to at 1 and 2 dollars for a million.
const NEW_NUSD: i64 = 12 * 1_000 + 7 * 2_000;

/// One entry of the file of upstreams.
fn entry(name: &str, upstream: &Upstream, order: u32) -> String {
    let url = upstream.url();
    format!(
        "[[upstream]]\nname = \"{name}\"\nkind = \"openrouter\"\nbase_url = \"{url}\"\n\
         api_key_env = \"UPSTREAM_API_KEY\"\norder = {order}\n"
    )
}

fn prices(more: &str) -> String {
    format!(
        "[[price]]\nmodel = \"*\"\nprompt_usd_per_mtok = \"1\"\n\
         completion_usd_per_mtok = \"2\"\n{more}"
    )
}

fn answer() -> Answer {
    Answer::openrouter().model(MODEL).no_cost()
}

async fn a_price_counts_from_the_next_request_on(store: Store) {
    let app = Setup::new(store).kind(Kind::OpenAi).start().await;
    let (under_way, gate) = (Answer::openai(), Gate::new());
    let mut events = under_way.events();
    let first = events.remove(0);
    let script = under_way.head().chunk(first).wait(&gate).chunks(events).end();
    app.upstream.script(script);
    let mut stream = app.begin_chat(&streamed(OTHER)).await;
    stream.until("data: ").await;
    app.rewrite("TOLLGATE_PRICES", &prices(""));
    let said = app.reload().await;
    assert!(said.contains("files were read again"), "{said}");
    app.upstream.script(Answer::openai().plain());
    app.chat(&question(OTHER)).await.ok();
    gate.open();
    stream.finish().await.ok();
    let records = app.records(2).await;
    assert_eq!(records[0].charge_nusd, 12 * 150 + 7 * 600, "it keeps the price it began with");
    assert_eq!(records[1].charge_nusd, NEW_NUSD);
    assert_ne!(records[0].price_id, records[1].price_id);
    // Back again: the version of before is the version of now.
    app.rewrite("TOLLGATE_PRICES", PRICES_TOML);
    app.reload().await;
    app.upstream.script(Answer::openai().plain());
    app.chat(&question(OTHER)).await.ok();
    let records = app.records(3).await;
    assert_eq!(records[0].price_id, records[2].price_id);
    app.finish().await;
}

async fn the_limits_of_a_plan_count_at_once(store: Store) {
    let plan = "[[plan]]\nname = \"team\"\nrequests_per_minute = 1000\n";
    let app = Setup::new(store).kind(Kind::OpenAi).start().await;
    app.rewrite("TOLLGATE_PRICES", &prices(plan));
    app.reload().await;
    app.cli(&["account", "update", "--account", "test", "--plan", "team"]).await;
    eventually("its plan is known", async || {
        app.upstream.forget_scripts();
        app.upstream.script(Answer::openai().plain());
        let got = app.chat(&question(OTHER)).await;
        (got.header("x-ratelimit-limit-requests") == Some("1000")).then_some(())
    })
    .await;
    app.rewrite("TOLLGATE_PRICES", &prices(&plan.replace("1000", "1")));
    app.reload().await;
    let refused = app.chat(&question(OTHER)).await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    app.finish().await;
}

async fn upstreams_come_and_go(store: Store) {
    let one = Upstream::start(catalog::openrouter_models()).await;
    let other = Upstream::start(catalog::openrouter_models()).await;
    let file = entry("one", &one, 1);
    let app = Setup::new(store).upstreams(file.clone()).start_with(one).await;
    // It is left alone for a while, whatever is reloaded meanwhile: with each failure after the
    // third for twice as long, at last for longer than a reload and a call take.
    for _ in 0..6 {
        app.upstream.script(Script::json(500, "{}"));
        assert_eq!(app.chat(&question(MODEL)).await.status, 502);
    }
    app.rewrite("TOLLGATE_UPSTREAMS", &(file.clone() + &entry("other", &other, 2)));
    app.reload().await;
    other.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    assert_eq!(app.upstream.chats().len(), 6, "what is known of it stays known");

    let (under_way, gate) = (answer(), Gate::new());
    let mut events = under_way.events();
    let first = events.remove(0);
    other.script(under_way.head().chunk(first).wait(&gate).chunks(events).end());
    // It may have come back meanwhile.
    app.upstream.script(Script::json(500, "{}"));
    let mut stream = app.begin_chat(&streamed(MODEL)).await;
    stream.until("data: ").await;
    app.rewrite("TOLLGATE_UPSTREAMS", &file);
    app.reload().await;
    app.upstream.forget_scripts();
    app.upstream.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    gate.open();
    let got = stream.finish().await;
    assert_eq!(got.ok(), under_way.events_without_usage(), "what is under way is finished");
    assert_eq!(other.chats().len(), 2, "who has left is not asked any more");
    let served: Vec<_> =
        app.records(9).await.into_iter().skip(6).map(|record| record.upstream).collect();
    assert_eq!(served, ["other", "other", "one"]);
    // The other's address under the first one's name is another upstream.
    app.rewrite("TOLLGATE_UPSTREAMS", &entry("one", &other, 1));
    app.reload().await;
    other.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    assert_eq!(other.chats().len(), 3);
    app.records(10).await;
    app.finish().await;
}

async fn a_fault_changes_nothing(store: Store) {
    let one = Upstream::start(catalog::openrouter_models()).await;
    let gone = Upstream::start(catalog::openrouter_models()).await;
    gone.stop().await;
    let file = entry("one", &one, 1);
    let setup = Setup::new(store).upstreams(file.clone()).prices("");
    let app = setup.start_with(one).await;
    let listed = app.get("/v1/models").await.ok();
    // Each pair has a good half, of which nothing may be taken either.
    for (upstreams, table, words) in [
        (file.clone(), "[[price]]\nmodel = \"*\"\n".to_string(), "prompt_usd_per_mtok"),
        (file.clone() + "api_key = \"sk-secret\"\n", prices(""), "line 7: a key does not stand"),
        (file.clone() + "[[upstream", prices(""), "TOLLGATE_UPSTREAMS"),
        (String::new(), prices(""), "no [[upstream]]"),
        (entry("two", &gone, 1), prices(""), "none of the upstreams gives a list"),
    ] {
        app.rewrite("TOLLGATE_UPSTREAMS", &upstreams);
        app.rewrite("TOLLGATE_PRICES", &table);
        let said = app.reload().await;
        // What is asked for its list may have a line of its own.
        let faults = said.lines().filter(|line| !line.contains("WARN"));
        assert_eq!(faults.count(), 1, "one line: {said}");
        assert!(said.contains(words) && !said.contains("sk-secret"), "{words}: {said}");
        app.upstream.script(answer().plain());
        app.chat(&question(MODEL)).await.ok();
        assert_eq!(app.get("/v1/models").await.ok(), listed);
    }
    std::fs::remove_file(&app.environment["TOLLGATE_PRICES"]).expect("the test's own file");
    assert!(app.reload().await.contains("TOLLGATE_PRICES"));
    // The commands read them too.
    app.rewrite("TOLLGATE_PRICES", "");
    app.rewrite("TOLLGATE_UPSTREAMS", &file);
    let charges = app.records(5).await.into_iter().map(|record| record.charge_nusd);
    assert_eq!(charges.collect::<Vec<_>>(), [7_200; 5], "the old price, and a fifth");
    assert!(!app.process.stderr().contains(UPSTREAM_KEY));
    app.finish().await;
}

async fn many_reloads_under_load_lose_nothing(store: Store) {
    const RELOADS: u32 = 20;
    let one = Upstream::start(catalog::openrouter_models()).await;
    let other = Upstream::start(catalog::openrouter_models()).await;
    let file = |first| entry("one", &one, first) + &entry("other", &other, 2);
    let files = [file(1), file(3), entry("other", &other, 1)];
    let app = Setup::new(store).upstreams(files[0].clone()).prices("").start_with(one).await;
    let table = prices("");
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let ask = async || {
        let mut asked = 0;
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            // Whoever is asked; what is not called for is left over.
            app.upstream.script(answer().stream());
            other.script(answer().stream());
            let got = app.chat(&streamed(MODEL)).await;
            assert!(got.ok().ends_with("data: [DONE]\n\n"), "{}", got.text());
            asked += 1;
        }
        asked
    };
    let reload = async {
        for round in 0..RELOADS {
            app.rewrite("TOLLGATE_UPSTREAMS", &files[(round % 3) as usize]);
            app.rewrite("TOLLGATE_PRICES", if round % 2 == 0 { "" } else { &table });
            let said = app.reload().await;
            assert!(said.contains("files were read again"), "{said}");
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (one, two, three, ()) = tokio::join!(ask(), ask(), ask(), reload);
    let records = app.records(one + two + three).await;
    assert!(records.iter().all(|record| [7_200, NEW_NUSD].contains(&record.charge_nusd)));
    for charge in [7_200, NEW_NUSD] {
        assert!(records.iter().any(|record| record.charge_nusd == charge), "{charge}: {records:?}");
    }
    let calls = app.upstream.chats().len() + other.chats().len();
    assert_eq!(calls, records.len(), "each was called once");
    app.finish().await;
}

#[tokio::test]
async fn a_signal_before_the_start_is_over_waits_for_it() {
    let (upstream, gate) = (Upstream::start(json!({"data": []})).await, Gate::new());
    upstream.set_models(Listing::Hangs(gate.clone()));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut environment = Environment::new();
    for (name, value) in
        [("TOLLGATE_LISTEN", "127.0.0.1:0"), ("UPSTREAM_BASE_URL", &upstream.url())]
    {
        environment.insert(name.to_string(), value.to_string());
    }
    let mut process = Process::serve(&environment, folder.path());
    eventually("the start waits for a list", async || {
        (!upstream.calls("/v1/models").is_empty()).then_some(())
    })
    .await;
    process.hang_up();
    process.hang_up();
    upstream.set_models(Listing::Json(catalog::openrouter_models()));
    gate.open();
    process.base_url().await;
    eventually("the signal is not lost", async || {
        process.stderr().contains("files were read again").then_some(())
    })
    .await;
    process.terminate();
    assert_eq!(process.wait().await.code(), Some(0));
}

#[tokio::test]
async fn the_demo_has_nothing_to_reload() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let environment =
        Environment::from([("TOLLGATE_LISTEN".to_string(), "127.0.0.1:0".to_string())]);
    let mut process = Process::serve(&environment, folder.path());
    process.base_url().await;
    process.hang_up();
    eventually("it says so", async || {
        process.stderr().contains("files were read again").then_some(())
    })
    .await;
    assert_eq!(process.status(), None);
}
