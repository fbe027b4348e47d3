//! Usage, costs, key and credits against the records: groups, filters, bucket edges, pages,
//! corrections, and nobody else's.

use serde_json::{Value, json};

use super::{COSTS, Sums, USAGE, copy, expected, forget, hours_from_now, id_at, nano, results};
use super::{see, traffic};
use crate::app::{Setup, Store, TestApp, both_stores};
use crate::bad_input::assert_refused;
use crate::promises::corrected;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

both_stores!(
    usage_and_costs_are_what_the_records_say,
    a_record_is_in_the_bucket_of_its_instant,
    pages_follow_one_another_to_the_end,
    nobody_sees_anothers_figures,
    a_correction_is_in_the_figures,
    a_correction_by_hand_is_an_item_of_its_own,
    an_answer_is_bounded,
    a_key_and_its_account_are_shown,
);

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

/// The sums of a page that is grouped by model and key.
fn shown(page: &Value, model: &str) -> Sums {
    let mut sums = Sums::new();
    for (_, result) in results(page) {
        let sum = sums.entry((text(&result[model]), text(&result["api_key_id"]))).or_default();
        let number = |name: &str| result[name].as_i64().unwrap_or_default();
        sum[0] += number("num_model_requests");
        sum[1] += number("input_tokens");
        sum[2] += number("output_tokens");
        if result["amount"].is_object() {
            assert_eq!(result["amount"]["currency"], json!("usd"));
            sum[3] += nano(&result["amount"]["value"]);
        }
    }
    sums
}

async fn usage_and_costs_are_what_the_records_say(store: Store) {
    let app = TestApp::start(store).await;
    let second = app.create_key("test", &[]).await;
    traffic(&app, &app.key).await;
    traffic(&app, &second).await;
    let records = app.books.records().await;
    assert_eq!(records.iter().filter(|record| record.source == "none").count(), 2);
    let expected = expected(&records, &app.account);
    let start = hours_from_now(-25);

    let query = format!("start_time={start}&group_by[]=model&group_by[]=api_key_id");
    let usage = see(&app, &app.key, &format!("{USAGE}?{query}")).await;
    assert_eq!(usage["object"], json!("page"));
    assert_eq!((&usage["has_more"], &usage["next_page"]), (&json!(false), &Value::Null));
    let figures = expected.clone().into_iter().map(|(group, [a, b, c, _])| (group, [a, b, c, 0]));
    assert_eq!(shown(&usage, "model"), figures.collect());
    for (_, result) in results(&usage) {
        assert_eq!(result["object"], json!("organization.usage.completions.result"));
        let calls = result["num_model_requests"].as_i64().expect("a number");
        assert_eq!(result["input_cached_tokens"], json!(5 * calls / 2), "the plain half: {result}");
        let parts = ["input_cached_tokens", "input_cache_write_tokens", "input_uncached_tokens"];
        let sum: i64 = parts.iter().filter_map(|name| result[*name].as_i64()).sum();
        assert_eq!(json!(sum), result["input_tokens"]);
    }

    let query = format!("start_time={start}&group_by=line_item&group_by=api_key_id");
    let costs = see(&app, &second, &format!("{COSTS}?{query}")).await;
    let figures = expected.clone().into_iter().map(|(group, sum)| (group, [0, 0, 0, sum[3]]));
    assert_eq!(shown(&costs, "line_item"), figures.collect());
    let spent: i64 = records.iter().map(|record| record.charge_nusd).sum();
    let whole = see(&app, &app.key, &format!("{COSTS}?start_time={start}")).await;
    let amounts: i64 = results(&whole).iter().map(|(_, row)| nano(&row["amount"]["value"])).sum();
    assert_eq!(amounts, spent);
    assert!(results(&whole).iter().all(|(_, row)| row["line_item"].is_null()), "{whole}");

    filters_narrow(&app, start, &expected).await;
    app.finish().await;
}

async fn filters_narrow(app: &TestApp, start: i64, expected: &Sums) {
    let key = expected.keys().map(|(_, key)| key).max().expect("a key");
    let cases = [
        (format!("models[]={MODEL}"), 2, MODEL),
        (format!("models={MODEL}&api_key_ids={key}"), 1, MODEL),
        (format!("api_key_ids[]={key}"), 3, ""),
        ("batch=false".to_string(), 6, ""),
        ("batch=true".to_string(), 0, ""),
        ("models=nobody/has-it".to_string(), 0, ""),
        ("models=%00".to_string(), 0, ""),
        ("api_key_ids=key_abc".to_string(), 0, ""),
        ("user_ids=user-1".to_string(), 0, ""),
        ("project_ids=proj_1".to_string(), 0, ""),
    ];
    for (filter, groups, model) in cases {
        let query = format!("start_time={start}&group_by=model&group_by=api_key_id&{filter}");
        let page = see(app, &app.key, &format!("{USAGE}?{query}")).await;
        assert!(!page["data"].as_array().expect("buckets").is_empty(), "{filter}: {page}");
        let seen = shown(&page, "model");
        assert_eq!(seen.len(), groups, "{filter}: {page}");
        assert!(model.is_empty() || seen.keys().all(|(name, _)| name == model), "{filter}");
    }
    let costs = format!("{COSTS}?start_time={start}&line_items={MODEL}&api_key_ids={key}");
    let costs = see(app, &app.key, &costs).await;
    let amount: i64 = results(&costs).iter().map(|(_, row)| nano(&row["amount"]["value"])).sum();
    assert_eq!(amount, expected[&(MODEL.to_string(), key.clone())][3]);
    // What Tollgate does not tell apart is null, as where it was not asked for.
    let names = "group_by=project_id&group_by=user_id&group_by=service_tier&group_by=batch";
    let page = see(app, &app.key, &format!("{USAGE}?start_time={start}&{names}")).await;
    for (_, result) in results(&page) {
        assert_eq!(result["batch"], json!(false));
        for name in ["project_id", "user_id", "service_tier", "model", "api_key_id"] {
            assert!(result[name].is_null(), "{result}");
        }
    }
}

/// 2025-03-10T00:00:00Z.
const DAY: u64 = 1_741_564_800;

async fn one_record(app: &TestApp) -> String {
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&crate::app::question(MODEL)).await.ok();
    app.record().await.id
}

async fn a_record_is_in_the_bucket_of_its_instant(store: Store) {
    let app = TestApp::start(store).await;
    let record = one_record(&app).await;
    let millis = DAY * 1_000;
    let ids = [millis - 1, millis, millis + 59_999, millis + 60_000, millis + 86_399_999]
        .map(|at| id_at(at, 1));
    copy(&app, store, &record, &ids).await;
    let day = i64::try_from(DAY).expect("a time");
    let cases = [
        ("1d", day - 86_400, day + 86_400, vec![(day - 86_400, 1), (day, 4)]),
        ("1d", day, day + 86_400, vec![(day, 4)]),
        ("1h", day - 3_600, day + 86_400, vec![(day - 3_600, 1), (day, 3), (day + 82_800, 1)]),
        ("1m", day - 60, day + 120, vec![(day - 60, 1), (day, 2), (day + 60, 1)]),
        // A span that begins and ends beside the boundaries has what is in it, and no more.
        ("1d", day + 60, day + 86_399, vec![(day + 60, 1)]),
        ("1d", day + 1, day + 60, vec![(day + 1, 1)]),
    ];
    for (width, start, end, expected) in cases {
        let query = format!("start_time={start}&end_time={end}&bucket_width={width}&limit=31");
        let page = see(&app, &app.key, &format!("{USAGE}?{query}")).await;
        let seen: Vec<_> = results(&page)
            .iter()
            .map(|(start, row)| (*start, row["num_model_requests"].as_i64().expect("a number")))
            .collect();
        assert_eq!(seen, expected, "{query}: {page}");
        let first = &page["data"][0];
        assert_eq!(first["start_time"], json!(start), "{query}: {page}");
    }
    forget(&app, &ids).await;
    app.finish().await;
}

async fn pages_follow_one_another_to_the_end(store: Store) {
    let app = TestApp::start(store).await;
    let record = one_record(&app).await;
    // A call every 40 seconds, for an hour and a bit.
    let ids: Vec<_> = (0..100).map(|step| id_at((DAY + step * 40) * 1_000, step)).collect();
    copy(&app, store, &record, &ids).await;
    let (start, end) = (DAY + 30, DAY + 4_000);
    let query = format!("{USAGE}?start_time={start}&end_time={end}&bucket_width=1m&group_by=model");
    let whole = see(&app, &app.key, &format!("{query}&limit=1440")).await;
    assert_eq!(whole["has_more"], json!(false));
    let (mut buckets, mut pages, mut page) = (Vec::new(), 0, String::new());
    loop {
        let answer = see(&app, &app.key, &format!("{query}&limit=7{page}")).await;
        buckets.extend(answer["data"].as_array().expect("buckets").clone());
        pages += 1;
        assert_eq!(answer["has_more"], json!(answer["next_page"].is_string()));
        let Some(next) = answer["next_page"].as_str() else { break };
        assert!(pages < 20, "the pages have no end");
        page = format!("&page={next}");
    }
    assert_eq!(pages, 10);
    assert_eq!(json!(buckets), whole["data"], "the pages are the whole");
    assert_eq!(buckets[0]["start_time"], json!(start));
    assert_eq!(buckets[buckets.len() - 1]["end_time"], json!(end));
    for pair in buckets.windows(2) {
        assert_eq!(pair[0]["end_time"], pair[1]["start_time"], "no gap and no overlap");
    }
    let whole = results(&whole);
    let calls = whole.iter().map(|(_, row)| row["num_model_requests"].as_i64());
    // Those at 0 and after 3,999 seconds are not in the span.
    assert_eq!(calls.map(Option::unwrap_or_default).sum::<i64>(), 99);
    // Without an end the last bucket is the one that is not over.
    let open = format!("{USAGE}?start_time={}", hours_from_now(-30));
    let first = see(&app, &app.key, &format!("{open}&limit=1")).await;
    let next = first["next_page"].as_str().expect("there is more");
    let second = see(&app, &app.key, &format!("{open}&page={next}")).await;
    assert_eq!(second["has_more"], json!(false), "{second}");
    assert_eq!(results(&second).len(), 1, "{second}");
    forget(&app, &ids).await;
    app.finish().await;
}

async fn nobody_sees_anothers_figures(store: Store) {
    let app = TestApp::start(store).await;
    app.create_account("neighbour", &["--credit", "3"]).await;
    let theirs = app.create_key("neighbour", &["--name", "their key"]).await;
    traffic(&app, &app.key).await;
    let keys = app.list(&["key", "list", "--account", "test"]).await;
    let own_id = text(&keys[0]["id"]);
    let query = format!("start_time={}", hours_from_now(-2));
    for path in [USAGE, COSTS] {
        for filter in ["", &format!("&api_key_ids={own_id}"), &format!("&api_key_ids[]={own_id}")] {
            let page = see(&app, &theirs, &format!("{path}?{query}{filter}")).await;
            assert!(results(&page).is_empty(), "{filter}: {page}");
            let own = see(&app, &app.key, &format!("{path}?{query}{filter}")).await;
            assert!(!results(&own).is_empty(), "{filter}: {own}");
        }
        let stranger = app.account.clone();
        let ask = format!("{path}?{query}&account_id={stranger}");
        let got = app.ask(&crate::client::Ask::get(&ask).bearer(&theirs)).await;
        assert_eq!(got.status, 400, "{}", got.text());
    }
    let ask = crate::client::Ask::get(&format!("/v1/usage.csv?{query}")).bearer(&theirs);
    assert_eq!(app.ask(&ask).await.ok().lines().count(), 1, "the header only");
    let credits = see(&app, &theirs, "/v1/credits").await;
    assert_eq!(credits.to_string(), r#"{"data":{"total_credits":3,"total_usage":0}}"#);
    assert_eq!(see(&app, &theirs, "/v1/key").await["data"]["usage"], json!(0));
    app.finish().await;
}

async fn a_correction_is_in_the_figures(store: Store) {
    let app = Setup::new(store).env("TOLLGATE_SLOW_LOOKUP_EVERY_SECONDS", "1").start().await;
    let record = corrected(&app).await;
    let net = 1_200;
    assert_ne!(record.charge_nusd, net);
    let query = format!("start_time={}", hours_from_now(-2));
    let costs = see(&app, &app.key, &format!("{COSTS}?{query}")).await;
    assert_eq!(nano(&results(&costs)[0].1["amount"]["value"]), net, "{costs}");
    let usage = see(&app, &app.key, &format!("{USAGE}?{query}&group_by=model")).await;
    let seen = &results(&usage)[0].1;
    let figures = ["num_model_requests", "input_tokens", "output_tokens"].map(|name| &seen[name]);
    assert_eq!(figures, [&json!(1), &json!(12), &json!(5)]);
    let credits = see(&app, &app.key, "/v1/credits").await;
    assert_eq!(nano(&credits["data"]["total_usage"]), net);
    let csv = app.get(&format!("/v1/usage.csv?{query}")).await.ok();
    let line = csv.lines().nth(1).expect("a record");
    assert!(line.contains(",lookup,12,"), "where its numbers are from now: {line}");
    assert!(line.contains(",0.0000012,20"), "the net charge and when it was corrected: {line}");
    app.finish().await;
}

/// At chosen instants, which nobody can enter: written behind the program's back, and taken away.
async fn a_correction_by_hand_is_an_item_of_its_own(store: Store) {
    let app = TestApp::start(store).await;
    traffic(&app, &app.key).await;
    let spent: i64 = app.books.records().await.iter().map(|record| record.charge_nusd).sum();
    let entry = |seq: i64, amount: i64, at: &str| {
        format!(
            "INSERT INTO ledger_entries (account_id, seq, kind, amount_nusd, balance_nusd, \
             reason, created_at, previous_hash, hash) VALUES \
             ('{}', {seq}, 'correction', {amount}, 0, 'x', '{at}', '', '')",
            app.account
        )
    };
    // The last microsecond of one day, and the first two of the next.
    for (seq, amount, at) in [
        (901, 5_000, "2025-03-09T23:59:59.999999Z"),
        (902, -700, "2025-03-10T00:00:00.000000Z"),
        (903, -20, "2025-03-10T00:00:00.000001Z"),
    ] {
        app.books.tamper(&entry(seq, amount, at)).await;
    }
    let day = i64::try_from(DAY).expect("a time");
    let query = format!("{COSTS}?start_time={}&end_time={}", day - 86_400, day + 86_400);
    let costs = see(&app, &app.key, &format!("{query}&group_by=line_item")).await;
    let seen: Vec<_> = results(&costs)
        .into_iter()
        .map(|(at, row)| (at, text(&row["line_item"]), nano(&row["amount"]["value"])))
        .collect();
    let item = || "ledger correction".to_string();
    assert_eq!(seen, [(day - 86_400, item(), -5_000), (day, item(), 720)], "{costs}");
    for (filter, count) in [("line_items=ledger+correction", 2), ("line_items=x", 0)] {
        let costs = see(&app, &app.key, &format!("{query}&{filter}")).await;
        assert_eq!(results(&costs).len(), count, "{costs}");
    }
    // Without groups it is part of the day.
    app.books.tamper(&entry(904, -40, "2999-01-01T00:00:00.000000Z")).await;
    let moved =
        "UPDATE ledger_entries SET created_at = (SELECT MAX(started_at) FROM usage_records)";
    app.books.tamper(&format!("{moved} WHERE seq = 904")).await;
    let path = format!("{COSTS}?start_time={}", hours_from_now(-2));
    let costs = see(&app, &app.key, &path).await;
    let amounts = results(&costs).into_iter().map(|(_, row)| nano(&row["amount"]["value"]));
    assert_eq!(amounts.sum::<i64>(), spent + 40, "{costs}");
    app.books.tamper("DELETE FROM ledger_entries WHERE seq > 900").await;
    app.finish().await;
}

async fn an_answer_is_bounded(store: Store) {
    let app = TestApp::start(store).await;
    let record = one_record(&app).await;
    let ids: Vec<_> = (0..10_001).map(|number| id_at(DAY * 1_000, number)).collect();
    copy(&app, store, &record, &ids).await;
    let name = if store == Store::Sqlite { "id" } else { "id::text" };
    app.books
        .tamper(&format!("UPDATE usage_records SET model = {name} WHERE id <> '{record}'"))
        .await;
    let query = format!("{USAGE}?start_time={DAY}&end_time={}&group_by=model", DAY + 60);
    let refused = app.get(&query).await;
    assert_refused(&refused, "10,001 models", 400, "", "group_by");
    // One fewer fits.
    forget(&app, &ids[..1]).await;
    assert_eq!(results(&see(&app, &app.key, &query).await).len(), 10_000);
    forget(&app, &ids).await;
    app.finish().await;
}

/// OpenRouter's members, as its schema requires them.
const KEY_MEMBERS: [&str; 19] = [
    "byok_usage",
    "byok_usage_daily",
    "byok_usage_monthly",
    "byok_usage_weekly",
    "creator_user_id",
    "expires_at",
    "include_byok_in_limit",
    "is_free_tier",
    "is_management_key",
    "is_provisioning_key",
    "label",
    "limit",
    "limit_remaining",
    "limit_reset",
    "rate_limit",
    "usage",
    "usage_daily",
    "usage_monthly",
    "usage_weekly",
];

async fn a_key_and_its_account_are_shown(store: Store) {
    let app = TestApp::start(store).await;
    let budgets = ["--budget", "5", "--budget-day", "0.5", "--budget-month", "2"];
    let key = app.create_key("test", &budgets).await;
    traffic(&app, &app.key).await;
    traffic(&app, &key).await;
    let records = app.books.records().await;
    let keys = app.list(&["key", "list", "--account", "test"]).await;
    let limited = keys.iter().map(|row| text(&row["id"])).max().expect("the newer key");
    let own = records.iter().filter(|record| record.api_key_id.as_ref() == Some(&limited));
    let spent: i64 = own.map(|record| record.charge_nusd).sum();
    assert!(spent > 0);

    let shown = see(&app, &key, "/v1/key").await["data"].clone();
    let members: Vec<_> = shown.as_object().expect("an object").keys().collect();
    assert_eq!(members, KEY_MEMBERS);
    for name in ["usage", "usage_daily", "usage_weekly", "usage_monthly"] {
        assert_eq!(nano(&shown[name]), spent, "{name}: {shown}");
    }
    // The day's budget leaves least.
    assert_eq!((&shown["limit"], &shown["limit_reset"]), (&json!(0.5), &json!("daily")));
    assert_eq!(nano(&shown["limit_remaining"]), 500_000_000 - spent);
    let label = text(&shown["label"]);
    assert!(label.starts_with("sk-tg-") && !key.contains(&label), "a hint only: {label}");
    assert_eq!(shown["is_management_key"], json!(false));

    let free = see(&app, &app.key, "/v1/key").await["data"].clone();
    for name in ["limit", "limit_remaining", "limit_reset", "expires_at", "creator_user_id"] {
        assert!(free[name].is_null(), "{free}");
    }
    app.cli(&["credit", "grant", "--account", "test", "--usd", "1.5", "--reason", "thanks"]).await;
    let all: i64 = records.iter().map(|record| record.charge_nusd).sum();
    let credits = see(&app, &key, "/v1/credits").await["data"].clone();
    assert_eq!(credits["total_credits"].to_string(), "11.5");
    assert_eq!(nano(&credits["total_usage"]), all);
    app.finish().await;
}
