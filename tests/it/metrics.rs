//! `/metrics`: what it says is what the books say, to the last nano-USD; who may read it; and that
//! no client can put a word of its own into it.

mod checks;
mod prometheus;
pub mod scrape;

use serde_json::json;

use crate::app::{Setup, Store, TestApp, UPSTREAM_KEY, both_stores, eventually};
use crate::app::{question, streamed, streamed_with_usage};
use crate::client::{Ask, Exchange};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{MODEL, OLD_MODEL};
use crate::upstream::script::Script;
use scrape::{Scrape, scrape, watched};

both_stores!(
    counters_are_the_sums_of_the_books,
    no_client_puts_a_word_into_a_label,
    only_operators_read_them_on_the_clients_port,
    they_tell_no_secret,
);

/// Requests of each kind: answered in both forms, of two models, failed, refused, hung up on.
async fn use_all(app: &TestApp) {
    let answer = Answer::openrouter;
    app.upstream.script(answer().parts(4, 2).plain());
    app.chat(&question(MODEL)).await.ok();
    app.upstream.script(answer().tokens(31, 17).stream());
    app.chat(&streamed_with_usage(MODEL)).await.ok();
    app.upstream.script(answer().model(OLD_MODEL).no_usage().stream());
    app.chat(&streamed(OLD_MODEL)).await.ok();
    app.upstream.script(Script::json(500, r#"{"error":{"message":"no"}}"#));
    assert_eq!(app.chat(&question(MODEL)).await.status, 502);
    app.upstream.script(answer().stream());
    let mut gone = app.begin_chat(&streamed(MODEL)).await;
    gone.until("data:").await;
    gone.hang_up();
    assert_eq!(app.chat(&question("no/such-model")).await.status, 404);
}

async fn counters_are_the_sums_of_the_books(store: Store) {
    let app = watched(Setup::new(store)).policy("count").start().await;
    use_all(&app).await;
    let records = app.records(5).await;
    // A record shows before the writer has counted it.
    let told = eventually("all records are counted", async || {
        let told = scrape(&app).await;
        (told.sum("tollgate_requests_total", &[]) == 5).then_some(told)
    })
    .await;
    for model in [MODEL, OLD_MODEL] {
        let of_model = || records.iter().filter(|record| record.model == model);
        let tokens = |kind| told.sum("tollgate_tokens_total", &[("model", model), ("kind", kind)]);
        let charged = told.sum("tollgate_charges_nusd_total", &[("model", model)]);
        assert_eq!(charged, of_model().map(|record| record.charge_nusd).sum::<i64>());
        assert_eq!(tokens("prompt"), of_model().map(|record| record.prompt_tokens).sum::<i64>());
        assert_eq!(tokens("cached"), of_model().map(|record| record.cached_tokens).sum::<i64>());
        let completion = of_model().map(|record| record.completion_tokens).sum::<i64>();
        assert_eq!(tokens("completion"), completion);
        let reasoning = of_model().map(|record| record.reasoning_tokens).sum::<i64>();
        assert_eq!(tokens("reasoning"), reasoning);
        let cost = of_model().filter_map(|record| record.upstream_cost_pusd).sum::<i64>();
        assert_eq!(told.sum("tollgate_upstream_cost_pusd_total", &[("model", model)]), cost);
    }
    let entries = app.books.entries().await;
    let charges = entries.iter().filter(|entry| entry.kind == "charge");
    let charges: i64 = charges.map(|entry| -entry.amount_nusd).sum();
    assert!(charges > 0);
    assert_eq!(told.sum("tollgate_charges_nusd_total", &[]), charges);
    for word in ["completed", "upstream_failed", "client_gone", "cut_off", "killed"] {
        let ended = records.iter().filter(|record| record.ending == word).count();
        let counted = told.sum("tollgate_requests_total", &[("ending", word)]);
        assert_eq!(counted, i64::try_from(ended).expect("few"), "{word}");
    }
    for word in ["upstream", "counted", "estimated", "none"] {
        let said = records.iter().filter(|record| record.source == word).count();
        let counted = told.sum("tollgate_usage_records_total", &[("source", word)]);
        assert_eq!(counted, i64::try_from(said).expect("few"), "{word}");
    }
    holds_and_calls(&told, &records);
    app.finish().await;
}

fn holds_and_calls(told: &Scrape, records: &[crate::app::books::UsageRecord]) {
    let holds = |state| told.sum("tollgate_holds_total", &[("state", state)]);
    let unused = records.iter().filter(|record| record.source == "none").count();
    assert_eq!(holds("placed"), 5);
    assert_eq!(holds("voided"), i64::try_from(unused).expect("few"));
    assert_eq!(holds("settled") + holds("voided"), 5);
    let calls = |result| told.sum("tollgate_upstream_calls_total", &[("result", result)]);
    assert_eq!((calls("answered"), calls("failed")), (4, 1));
    let compared =
        records.iter().filter(|record| record.source == "upstream" && record.ending == "completed");
    let compared: Vec<_> = compared.collect();
    let ours = compared.iter().filter_map(|record| record.counted_completion_tokens);
    assert_eq!(told.sum("tollgate_drift_counted_tokens_total", &[]), ours.sum::<i64>());
    let theirs = compared.iter().map(|record| {
        let (most, unseen) = (record.completion_tokens, record.reasoning_tokens);
        record.counted_completion_tokens.unwrap_or_default().clamp(most - unseen, most)
    });
    assert_eq!(told.sum("tollgate_drift_upstream_tokens_total", &[]), theirs.sum::<i64>());
    let answered = |status| {
        let labels = [("surface", "chat"), ("status", status)];
        told.sum("tollgate_http_requests_total", &labels)
    };
    assert_eq!((answered("200"), answered("502"), answered("404")), (4, 1, 1));
    assert_eq!(told.sum("tollgate_errors_total", &[("code", "model_not_found")]), 1);
    assert_eq!(told.sum("tollgate_errors_total", &[("code", "upstream_error")]), 1);
    let first_bytes = records.iter().filter(|record| record.first_byte_at.is_some()).count();
    let first_bytes = i64::try_from(first_bytes).expect("few");
    assert_eq!(told.sum("tollgate_time_to_first_byte_seconds_count", &[]), first_bytes);
    assert_eq!(told.sum("tollgate_request_seconds_count", &[]), 5);
    let batches = told.sum("tollgate_ledger_batch_ops_count", &[]);
    assert!(batches > 0 && told.sum("tollgate_ledger_commit_seconds_count", &[]) == batches);
    assert!(told.sum("tollgate_ledger_wait_seconds_count", &[]) >= 10, "five placed and settled");
}

async fn no_client_puts_a_word_into_a_label(store: Store) {
    let app = watched(Setup::new(store)).start().await;
    let before = scrape(&app).await.series();
    for number in 0..1_000 {
        let body = question(&format!("made-up/model-{number}"));
        assert_eq!(app.chat(&body).await.status, 404);
    }
    for path in ["/v1/models/made-up/other", "/made-up/path", "/v1/made-up"] {
        assert_eq!(app.get(path).await.status, 404);
    }
    let mut odd = question(MODEL);
    odd["user"] = json!("made-up-user");
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&odd).await.ok();
    app.records(1).await;
    let told = eventually("the one request is counted", async || {
        let told = scrape(&app).await;
        (told.sum("tollgate_requests_total", &[]) == 1).then_some(told)
    })
    .await;
    assert!(!told.text.contains("made-up"), "{}", told.text);
    assert_eq!(told.sum("tollgate_errors_total", &[("code", "model_not_found")]), 1_001);
    let more = told.series() - before;
    assert!(more < 100, "{more} more series: {}", told.text);
    app.finish().await;
}

async fn only_operators_read_them_on_the_clients_port(store: Store) {
    let app = Setup::new(store).start().await;
    let read = async |key: Option<&str>| {
        let ask = Ask::get("/metrics");
        app.ask(&key.into_iter().fold(ask, Ask::bearer)).await
    };
    assert_eq!(read(None).await.status, 401);
    assert_eq!(read(Some(&app.key)).await.status, 403);
    app.create_account("house", &[]).await;
    let service = app.create_key("house", &["--role", "service"]).await;
    let got = read(Some(&service)).await;
    assert_eq!(got.status, 200);
    assert!(got.header("content-type").is_some_and(|kind| kind.contains("openmetrics-text")));
    assert!(got.text().ends_with("# EOF\n"));
    app.finish().await;

    let app = watched(Setup::new(store)).start().await;
    app.create_account("house", &[]).await;
    let service = app.create_key("house", &["--role", "service"]).await;
    let got = app.ask(&Ask::get("/metrics").bearer(&service)).await;
    assert_eq!(got.status, 404, "they have a port of their own");
    scrape(&app).await;
    // Answers of that port have an id as all others.
    for (ask, status) in [
        (Ask::get("/metrics"), 200),
        (Ask::get("/healthz"), 404),
        (Ask::new("POST", "/metrics"), 405),
    ] {
        let got = Exchange::open(scrape::address(&app).await, &ask.bytes()).await.finish().await;
        assert_eq!(got.status, status, "{}", got.text());
        assert_eq!(got.request_id().len(), 36);
    }
    app.finish().await;
}

async fn they_tell_no_secret(store: Store) {
    let app = watched(Setup::new(store)).start().await;
    use_all(&app).await;
    app.records(5).await;
    let told = scrape(&app).await;
    let database = app.database_url();
    let upstream = app.upstream.url();
    let upstream = crate::app::address_of(&upstream).to_string();
    for secret in [UPSTREAM_KEY, &app.key, &app.account, &database, &upstream, "127.0.0.1"] {
        assert!(!told.text.contains(secret), "{secret}: {}", told.text);
    }
    app.finish().await;
}
