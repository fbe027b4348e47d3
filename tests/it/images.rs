//! Pictures in the prompt, where the price has a fee for each: set aside, charged, told to the
//! client, and recomputed by `verify`.

use serde_json::{Value, json};

use crate::app::{Setup, Store, TestApp, both_stores, question, streamed};
use crate::bad_input::assert_refused;
use crate::client::Answered;
use crate::upstream::answer::{Answer, nano_usd};
use crate::upstream::catalog::MODEL;
use crate::upstream::script::Gate;

both_stores!(
    pictures_are_charged_each,
    who_cannot_pay_for_the_pictures_is_refused,
    a_killed_process_charges_for_pictures_too,
    without_a_fee_nothing_is_counted,
);

/// A dollar and two for a million tokens, and two tenths of a cent for a picture.
const PRICES: &str = r#"
[[price]]
model = "*"
prompt_usd_per_mtok = "1"
completion_usd_per_mtok = "2"
input_image_usd = "0.002"
"#;
const FEE: i64 = 2_000_000;
const TOKENS: i64 = 12 * 1_000 + 7 * 2_000;

fn with_pictures(mut body: Value, pictures: usize) -> Value {
    let picture = json!({"type": "image_url", "image_url": {"url": "https://a.example/b.png"}});
    let mut parts = vec![json!({"type": "text", "text": "What is \"image_url\" here?"})];
    parts.extend(std::iter::repeat_n(picture, pictures));
    body["messages"] = json!([{"role": "user", "content": parts}]);
    body
}

/// What the books have counted, in the order of requests.
async fn counted(app: &TestApp) -> Vec<Value> {
    let rows = app.books.rows("SELECT input_images FROM usage_records ORDER BY id").await;
    rows.into_iter().map(|row| row["input_images"].clone()).collect()
}

fn told(got: &Answered) -> Option<i64> {
    nano_usd(&got.json()["usage"]["cost"].to_string())
}

async fn pictures_are_charged_each(store: Store) {
    let app = Setup::new(store).prices(PRICES).start().await;
    for pictures in [0, 1, 3] {
        app.upstream.script(Answer::openrouter().plain());
        let got = app.chat(&with_pictures(question(MODEL), pictures)).await;
        got.ok();
        let record = app.record_of(&got).await;
        let charge = TOKENS + FEE * i64::try_from(pictures).expect("few");
        assert_eq!(record.charge_nusd, charge, "{pictures} pictures");
        assert_eq!(told(&got), Some(charge), "{}", got.text());
        assert!(record.hold_nusd >= charge, "{record:?}");
    }
    app.upstream.script(Answer::openrouter().stream());
    let got = app.chat(&with_pictures(streamed(MODEL), 2)).await;
    got.ok();
    assert_eq!(app.record_of(&got).await.charge_nusd, TOKENS + 2 * FEE);
    assert_eq!(counted(&app).await, [json!(null), json!(1), json!(3), json!(2)]);
    app.cli(&["verify"]).await;
    // A picture less would make the charge too high, and cannot be taken away unseen.
    app.books.tamper("UPDATE usage_records SET input_images = 2 WHERE input_images = 3").await;
    let verified = app.try_cli(&["verify"]).await;
    assert!(verified.stdout.contains("its price says"), "{}", verified.stdout);
    assert!(verified.stdout.contains("differs from the charge"), "{}", verified.stdout);
    let back = format!("charge_nusd = {}", TOKENS + 3 * FEE);
    app.books.tamper(&format!("UPDATE usage_records SET input_images = 3 WHERE {back}")).await;
    app.finish().await;
}

async fn who_cannot_pay_for_the_pictures_is_refused(store: Store) {
    let app = Setup::new(store).prices(PRICES).start().await;
    // Enough for many tokens, and for two pictures.
    app.create_account("small", &["--credit", "0.0055"]).await;
    let key = app.create_key("small", &[]).await;
    let ask = |pictures| app.chat_ask(&with_pictures(question(MODEL), pictures)).bearer(&key);
    let got = app.ask(&ask(3)).await;
    assert_refused(&got, "three pictures", 429, "insufficient_quota", "");
    assert_eq!(app.upstream.chats().len(), 0, "the upstream was not called");
    app.upstream.script(Answer::openrouter().plain());
    let got = app.ask(&ask(1)).await;
    got.ok();
    assert_eq!(app.record_of(&got).await.charge_nusd, TOKENS + FEE);
    app.finish().await;
}

async fn a_killed_process_charges_for_pictures_too(store: Store) {
    let mut app = Setup::new(store)
        .prices(PRICES)
        .env("TOLLGATE_LEASE_SECONDS", "1")
        .env("TOLLGATE_LOOKUP_SECONDS", "20")
        .start()
        .await;
    let answer = Answer::openrouter();
    app.upstream.generation(0, answer.generation(12, 7, 0.5));
    let gate = Gate::new();
    app.upstream.script(answer.head().chunks(answer.content_events()).wait(&gate).end());
    let mut exchange = app.begin_chat(&with_pictures(streamed(MODEL), 2)).await;
    exchange.until("data:").await;
    app.kill9();
    app.restart().await;
    app.settled().await;
    let record = app.record().await;
    assert_eq!((record.ending.as_str(), record.source.as_str()), ("killed", "lookup"));
    assert_eq!(record.charge_nusd, TOKENS + 2 * FEE);
    app.finish().await;
}

async fn without_a_fee_nothing_is_counted(store: Store) {
    let app = TestApp::start(store).await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&with_pictures(question(MODEL), 2)).await.ok();
    app.records(1).await;
    assert_eq!(counted(&app).await, [json!(null)]);
    app.finish().await;
}
