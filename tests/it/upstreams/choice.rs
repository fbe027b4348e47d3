//! Who is asked: by model and its names, by order and weight, and by how it has been of late.

use std::time::{Duration, Instant};

use super::{FIRST_NUSD, SECOND_NUSD, Two, answer, dear_models, entry, outline};
use serde_json::json;

use crate::app::{Setup, Store, TestApp, both_stores, eventually, question, streamed};
use crate::upstream::Upstream;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::{self, MODEL};
use crate::upstream::script::Script;

both_stores!(
    models_have_their_names_at_each_upstream,
    who_fails_is_left_alone_and_comes_back,
    the_dearest_is_held_for,
    each_is_sent_a_cap_that_it_takes,
);

/// A retail price for what clients call it; whoever answers, it is charged.
const TABLE: &str = r#"
[[price]]
model = "openai/*"
prompt_usd_per_mtok = "1"
completion_usd_per_mtok = "2"
"#;

async fn models_have_their_names_at_each_upstream(store: Store) {
    let direct = Upstream::start(catalog::openai_models()).await;
    let second = Upstream::start(catalog::openrouter_models()).await;
    let file = format!(
        "[[upstream]]\nname = \"direct\"\nkind = \"openai\"\nbase_url = \"{}\"\nprefix = \"openai/\"\n\
         models = [\"openai/gpt-4o-*\"]\n",
        direct.url()
    ) + &entry(
        "second",
        &second,
        &format!(
            "order = 2\nmodels = [\"openai/gpt-4*\", \"house\"]\n[upstream.rename]\nhouse = \"{}\"",
            catalog::FOREIGN_MODEL
        ),
    );
    let app = Setup::new(store).upstreams(file).prices(TABLE).start_with(direct).await;
    let list = app.get("/v1/models").await.json();
    let mut ids: Vec<_> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|it| it["id"].as_str())
        .collect();
    ids.sort_unstable();
    assert_eq!(
        ids,
        ["house", "openai/gpt-4", "openai/gpt-4o-mini"],
        "each once, by clients' names"
    );

    let whole = Answer::openai();
    app.upstream.script(whole.stream());
    let mut body = streamed(MODEL);
    body["max_tokens"] = serde_json::Value::Null;
    let got = app.chat(&body).await;
    assert_eq!(got.text(), whole.events_without_usage(), "its own name for it stays in the answer");
    assert_eq!(app.upstream.last_chat().json()["model"], "gpt-4o-mini", "there it is called so");
    let record = app.record().await;
    assert_eq!((record.model.as_str(), record.upstream.as_str()), (MODEL, "direct"));
    assert_eq!(record.charge_nusd, 12 * 1_000 + 7 * 2_000, "the table's price");

    app.upstream.script(Script::json(500, "{}"));
    second.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    assert_eq!(second.last_chat().json()["model"], MODEL, "here it has the same name");
    let record = app.records(2).await.remove(1);
    assert_eq!((record.upstream.as_str(), record.charge_nusd), ("second", 26_000));

    second.script(answer().plain());
    app.chat(&question("house")).await.ok();
    assert_eq!(second.last_chat().json()["model"], catalog::FOREIGN_MODEL);
    let record = app.records(3).await.remove(2);
    assert_eq!((record.model.as_str(), record.attempts), ("house", 1));
    for model in ["gpt-4o-mini", "openai/local/own-tokens", catalog::FOREIGN_MODEL] {
        assert_eq!(app.chat(&question(model)).await.status, 404, "{model} is not served");
    }
    app.finish().await;
}

async fn who_fails_is_left_alone_and_comes_back(store: Store) {
    let two = Two::start(store, "", |setup| setup).await;
    let app = &two.app;
    let mut count = left_alone(&two).await;
    assert!(app.process.stderr().contains("left alone"), "the operator is told");
    let (first, _) = two.calls();
    count += asked_again(&two, first + 1).await;
    let record = app.records(count).await.pop().expect("a record");
    assert_eq!((record.upstream.as_str(), record.charge_nusd), ("first", FIRST_NUSD));
    app.upstream.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    assert_eq!(two.calls().0, first + 2, "it is back");
    // What was left over while it was waited for.
    app.upstream.script(Script::json(500, "{}"));
    app.chat(&question(MODEL)).await.ok();
    // Both left alone, and nobody else: they are tried all the same.
    for status in [500, 500, 500, 500] {
        two.second.script(Script::json(status, "{}"));
        app.upstream.script(Script::json(status, "{}"));
        assert_eq!(app.chat(&question(MODEL)).await.status, 502);
    }
    let before = two.calls();
    app.upstream.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    assert!(two.calls().0 > before.0, "never a refusal without a try");
    two.finish().await;
}

/// Three failures, and a call that does not go there; how many calls that has taken. The pause is a
/// second, of which a slow machine may leave nothing: then it is tried once more.
async fn left_alone(two: &Two) -> usize {
    const ROUNDS: usize = 10;
    let (app, mut count) = (&two.app, 0);
    for _ in 0..ROUNDS {
        let (first, second) = two.calls();
        let mut third = Instant::now();
        for _ in 0..3 {
            third = Instant::now();
            app.upstream.script(Script::json(500, "{}"));
            two.second.script(answer().plain());
            app.chat(&question(MODEL)).await.ok();
        }
        assert_eq!(two.calls(), (first + 3, second + 3));
        // From here on it would answer, but it is not asked.
        app.upstream.script(answer().plain());
        two.second.script(answer().plain());
        app.chat(&question(MODEL)).await.ok();
        count += 4;
        if third.elapsed() < Duration::from_secs(1) {
            assert_eq!(two.calls(), (first + 3, second + 4), "it is left alone");
            return count;
        }
        count += asked_again(two, first + 4).await;
        app.upstream.forget_scripts();
        two.second.forget_scripts();
    }
    panic!("none of {ROUNDS} rounds was quick enough");
}

/// Until the first one has had so many calls; how many that has taken.
async fn asked_again(two: &Two, calls: usize) -> usize {
    let mut count = 0;
    eventually("it is asked again", async || {
        if two.calls().0 < calls {
            two.second.script(answer().plain());
            two.app.chat(&question(MODEL)).await.ok();
            count += 1;
        }
        (two.calls().0 == calls).then_some(())
    })
    .await;
    count
}

async fn hold_of(app: &TestApp) -> i64 {
    app.upstream.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    let record = app.record().await;
    assert_eq!(record.charge_nusd, FIRST_NUSD, "it is charged what the one that answered costs");
    record.hold_nusd
}

async fn the_dearest_is_held_for(store: Store) {
    let one = Upstream::start(catalog::openrouter_models()).await;
    let alone = Setup::new(store).upstreams(entry("first", &one, "")).start_with(one).await;
    let two = Two::start(store, "", |setup| setup).await;
    assert_eq!(hold_of(&two.app).await, 2 * hold_of(&alone).await);
    alone.finish().await;
    two.finish().await;
    // An account that can pay for less than that gets an answer that it can pay for, wherever.
    let poor = Two::start(store, "", |setup| setup.credit("0.0001")).await;
    let app = &poor.app;
    app.upstream.script(Script::json(500, "{}"));
    poor.second.script(answer().tokens(12, 40).plain());
    let got = app.chat(&question(MODEL)).await;
    let told = got.header("x-tollgate-completion-tokens-max").and_then(|it| it.parse::<i64>().ok());
    got.ok();
    let cap = poor.second.last_chat().json()["max_tokens"].as_i64().expect("a cap");
    assert_eq!(Some(cap), told);
    let record = app.record().await;
    assert!(record.hold_nusd <= 100_000 && record.shortfall_nusd == 0, "{record:?}");
    assert!(cap * 1_440 <= record.hold_nusd, "its price and a fifth, {cap} times: {record:?}");
    assert_eq!(outline(&record).len(), 2);
    poor.finish().await;
}

#[tokio::test]
async fn shares_are_about_as_the_weights() {
    const CALLS: usize = 100;
    let one = Upstream::start(catalog::openrouter_models()).await;
    let other = Upstream::start(catalog::openrouter_models()).await;
    let file = entry("one", &one, "weight = 1") + &entry("other", &other, "weight = 4");
    let app = Setup::new(Store::Sqlite).upstreams(file).start_with(one).await;
    for _ in 0..CALLS {
        app.upstream.script(answer().plain());
        other.script(answer().plain());
        app.chat(&question(MODEL)).await.ok();
    }
    let (one, other) = (app.upstream.chats().len(), other.chats().len());
    assert_eq!(one + other, CALLS);
    // 20 are expected; so far from it is a chance of one in some ten thousand.
    assert!((4..=38).contains(&one), "{one} and {other}");
    assert_eq!(app.records(CALLS).await.iter().filter(|it| it.upstream == "one").count(), one);
    app.finish().await;
}

#[tokio::test]
async fn an_upstream_without_a_price_is_not_asked() {
    let unpriced = Upstream::start(catalog::openai_models()).await;
    let second = Upstream::start(dear_models(16_384)).await;
    let file = format!(
        "[[upstream]]\nname = \"unpriced\"\nkind = \"openai\"\nbase_url = \"{}\"\nprefix = \"openai/\"\n",
        unpriced.url()
    ) + &entry("second", &second, "order = 2");
    let app = Setup::new(Store::Sqlite).upstreams(file).start_with(unpriced).await;
    second.script(answer().plain());
    app.chat(&question(MODEL)).await.ok();
    assert_eq!(app.record().await.charge_nusd, SECOND_NUSD);
    let refused = app.chat(&question("openai/gpt-4")).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].as_str()),
        (400, Some("model_not_priced"))
    );
    app.finish().await;
}

/// The hold is for the longest answer that any of them gives; a cap beyond its own limit is refused
/// by each.
async fn each_is_sent_a_cap_that_it_takes(store: Store) {
    let brief = Upstream::start(dear_models(4_096)).await;
    let second = Upstream::start(dear_models(9_000)).await;
    let file = entry("first", &brief, "") + &entry("second", &second, "order = 2");
    let app = Setup::new(store).upstreams(file).start_with(brief).await;
    app.upstream.script(Script::json(500, "{}"));
    second.script(answer().plain());
    let mut body = question(MODEL);
    body["max_tokens"] = json!(null);
    app.chat(&body).await.ok();
    let cap = |upstream: &Upstream| upstream.last_chat().json()["max_tokens"].clone();
    assert_eq!((cap(&app.upstream), cap(&second)), (json!(4_096), json!(9_000)));
    app.record().await;
    app.finish().await;
}
