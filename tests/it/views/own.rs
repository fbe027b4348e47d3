//! An account as its owner sees it: what there is, what is under way, how fast answers came, and
//! the keys that the owner makes and ends.

use std::time::Instant;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{copy, forget, id_at, nano, results, see};
use crate::app::{Store, TestApp, both_stores, question, streamed};
use crate::bad_input::assert_refused;
use crate::client::{Answered, Ask};
use crate::supabase::server::AuthServer;
use crate::supabase::sign::{Key, claims};
use crate::supabase::{add_member, setup};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use crate::upstream::script::Gate;

both_stores!(
    an_account_is_what_the_books_say,
    what_is_under_way_is_shown_and_ends,
    times_are_those_of_the_records,
    an_owner_makes_and_ends_keys,
    ending_a_key_again_and_again_is_little_news,
    nobody_gets_past_the_plan,
);

async fn an_account_is_what_the_books_say(store: Store) {
    let app = TestApp::start(store).await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    app.record().await;
    let seen = see(&app, &app.key, "/v1/account").await;
    let row = app.books.accounts().await.into_iter().find(|row| row.id == app.account);
    let row = row.expect("the account");
    assert_eq!(seen["id"], json!(app.account));
    assert!(row.balance_nusd < 10_000_000_000, "something was charged");
    assert_eq!(nano(&seen["balance_usd"]), row.balance_nusd);
    assert_eq!(nano(&seen["available_usd"]), row.balance_nusd);
    assert_eq!(nano(&seen["held_usd"]), 0);
    assert_eq!(seen["caller"]["is_owner"], json!(false), "a key of an application");
    assert_eq!(seen["caller"]["is_operator"], json!(false));

    app.create_account("later", &["--postpaid", "--limit", "3"]).await;
    let key = app.create_key("later", &["--role", "service"]).await;
    app.upstream.script(Answer::openrouter().plain());
    app.ask(&app.chat_ask(&question(MODEL)).bearer(&key)).await.ok();
    let charged = app.records(2).await[1].charge_nusd;
    let seen = see(&app, &key, "/v1/account").await;
    assert_eq!(nano(&seen["limit_usd"]), 3_000_000_000);
    assert_eq!(nano(&seen["charged_this_month_usd"]), charged);
    assert_eq!(nano(&seen["available_usd"]), 3_000_000_000 - charged);
    assert_eq!(seen["caller"]["is_operator"], json!(true));
    app.finish().await;
}

async fn what_is_under_way_is_shown_and_ends(store: Store) {
    let app = TestApp::start(store).await;
    let gate = Gate::new();
    let answer = Answer::openrouter();
    let mut events = answer.events();
    let rest = events.split_off(1);
    app.upstream.script(answer.head().chunks(events).wait(&gate).chunks(rest).end());
    let mut exchange = app.begin_chat(&streamed(MODEL)).await;
    exchange.until("data: ").await;
    let seen = see(&app, &app.key, "/v1/holds").await;
    let hold = app.books.holds().await.remove(0);
    let [shown] = seen["data"].as_array().expect("a list").as_slice() else { panic!("{seen}") };
    assert_eq!(shown["request_id"], json!(hold.request_id));
    assert_eq!(shown["model"], json!(MODEL));
    assert_eq!(nano(&shown["amount_usd"]), hold.amount_nusd);
    assert_eq!(nano(&see(&app, &app.key, "/v1/account").await["held_usd"]), hold.amount_nusd);
    app.create_account("other", &[]).await;
    let other = app.create_key("other", &[]).await;
    assert_eq!(see(&app, &other, "/v1/holds").await["data"], json!([]), "nobody else's");
    gate.open();
    exchange.finish().await.ok();
    app.settled().await;
    assert_eq!(see(&app, &app.key, "/v1/holds").await["data"], json!([]));
    app.finish().await;
}

/// Twenty calls that took 100, 200 … 2,000 milliseconds, and as many streams' first bytes.
async fn times_are_those_of_the_records(store: Store) {
    let app = TestApp::start(store).await;
    app.upstream.script(Answer::openrouter().stream());
    app.chat(&streamed(MODEL)).await.ok();
    let record = app.record().await;
    // 2025-03-10, twenty of them; and one on the day before.
    let day = 1_741_564_800_u64;
    let ids: Vec<String> = (0..20).map(|number| id_at(day * 1_000 + 5, number)).collect();
    let early = vec![id_at(day * 1_000 - 1, 0)];
    copy(&app, store, &record.id, &ids).await;
    copy(&app, store, &record.id, &early).await;
    for (number, id) in ids.iter().chain(&early).enumerate() {
        let tenths = number + 1;
        let at = |tenths: usize| format!("2025-03-10T00:00:0{}.{}00000Z", tenths / 10, tenths % 10);
        app.books
            .tamper(&format!(
                "UPDATE usage_records SET started_at = '{}', first_byte_at = '{}', \
                 ended_at = '{}' WHERE id = '{id}'",
                at(0),
                at(1),
                at(tenths)
            ))
            .await;
    }
    let query = format!("/v1/latency?start_time={}&end_time={}", day - 86_400, day + 86_400);
    let seen = results(&see(&app, &app.key, &query).await);
    let result = |timing: &str, requests: i64, p50: i64, p95: i64| {
        json!({"object": "latency.result", "timing": timing, "num_model_requests": requests,
               "p50_ms": p50, "p95_ms": p95})
    };
    let day = i64::try_from(day).expect("a time");
    let mut expected = vec![
        (day - 86_400, result("whole", 1, 2_100, 2_100)),
        (day - 86_400, result("first_byte", 1, 100, 100)),
        (day, result("whole", 20, 1_000, 1_900)),
        (day, result("first_byte", 20, 100, 100)),
    ];
    let order = |rows: &mut Vec<(i64, Value)>| {
        rows.sort_by_key(|(start, row)| (*start, row["timing"].to_string()));
    };
    let mut seen = seen;
    order(&mut seen);
    order(&mut expected);
    assert_eq!(seen, expected);
    for bad in ["", "?start_time=1&bucket_width=1m", "?start_time=1&models=x"] {
        let got = app.get(&format!("/v1/latency{bad}")).await;
        assert_eq!(got.status, 400, "{bad}: {}", got.text());
    }
    forget(&app, &ids).await;
    forget(&app, &early).await;
    app.finish().await;
}

async fn send(app: &TestApp, method: &str, path: &str, who: &str, body: Option<Value>) -> Answered {
    let ask = Ask::new(method, path).bearer(who);
    let ask = match body {
        Some(body) => ask.header("Content-Type", "application/json").body(body.to_string()),
        None => ask,
    };
    app.ask(&ask).await
}

async fn an_owner_makes_and_ends_keys(store: Store) {
    let signer = Key::es256("one");
    let server = AuthServer::with(&[&signer]).await;
    let app = setup(store, &server).start().await;
    let user = Uuid::new_v4();
    add_member(&app, user).await;
    let owner = signer.token(&claims(&server.issuer(), user));
    let stranger = signer.token(&claims(&server.issuer(), Uuid::new_v4()));

    let name = "\"><img src=x onerror=alert(1)>";
    let body = json!({"name": name, "models": "openai/*", "day_limit_nusd": 5});
    let got = send(&app, "POST", "/v1/keys", &owner, Some(body)).await;
    assert_eq!(got.status, 201, "{}", got.text());
    let key = got.json();
    let secret = key["secret"].as_str().expect("a secret").to_owned();
    assert_eq!((&key["name"], &key["role"]), (&json!(name), &json!("user")));
    assert_eq!(key["created_by"], json!(format!("user:{user}")));
    assert_eq!(key["budget"]["day_limit_nusd"], json!(5));
    assert_eq!(app.ask(&Ask::get("/v1/models").bearer(&secret)).await.status, 200);

    let list = see(&app, &owner, "/v1/keys").await;
    let shown = list["data"].as_array().expect("a list");
    assert_eq!(shown.len(), 2, "{list}");
    assert!(!list.to_string().contains(&secret) && !list.to_string().contains("hash"), "{list}");
    assert_eq!(shown[0].get("created_by"), None, "the operator is nobody's concern");

    let path = format!("/v1/keys/{}", key["id"].as_str().expect("an id"));
    for (who, status, code) in [
        (&app.key, 403, "insufficient_permissions"),
        (&secret, 403, "insufficient_permissions"),
        (&stranger, 404, "not_found"),
    ] {
        let got = send(&app, "DELETE", &path, who, None).await;
        assert_refused(&got, who, status, code, "");
    }
    for who in [&app.key, &secret] {
        let got = send(&app, "POST", "/v1/keys", who, Some(json!({"name": "x"}))).await;
        assert_refused(&got, "no key makes keys", 403, "insufficient_permissions", "");
        assert_eq!(send(&app, "GET", "/v1/keys", who, None).await.status, 403);
    }
    for (body, param) in [
        (json!({"name": "x", "role": "service"}), "role"),
        (json!({"name": "x", "requests_per_minute": 9}), "requests_per_minute"),
    ] {
        let got = send(&app, "POST", "/v1/keys", &owner, Some(body)).await;
        assert_refused(&got, "not an owner's to give", 400, "", param);
    }
    let ended = send(&app, "DELETE", &path, &owner, None).await;
    assert!(ended.json()["revoked_at"].is_string(), "{}", ended.text());
    assert_eq!(app.ask(&Ask::get("/v1/models").bearer(&secret)).await.status, 401);
    app.finish().await;
}

/// News makes every process ask after everybody again.
async fn ending_a_key_again_and_again_is_little_news(store: Store) {
    let app = TestApp::start(store).await;
    let owner = app.create_key("test", &["--role", "service"]).await;
    let key = send(&app, "POST", "/v1/keys", &owner, Some(json!({"name": "x"}))).await.json();
    let path = format!("/v1/keys/{}", key["id"].as_str().expect("an id"));
    let first = send(&app, "DELETE", &path, &owner, None).await.ok();
    let asked = async || {
        let text = send(&app, "GET", "/metrics", &owner, None).await.ok();
        let line = text.lines().find(|line| line.contains("identities") && line.contains("store"));
        let number = line.and_then(|line| line.rsplit(' ').next());
        number.and_then(|text| text.parse::<u64>().ok()).expect("a number")
    };
    let (before, begun) = (asked().await, Instant::now());
    for _ in 0..40 {
        assert_eq!(send(&app, "DELETE", &path, &owner, None).await.ok(), first);
    }
    let (asked, seconds) = (asked().await - before, begun.elapsed().as_secs());
    assert!(asked <= seconds + 3, "the owner was asked after {asked} times in {seconds} s");
    app.finish().await;
}

async fn nobody_gets_past_the_plan(store: Store) {
    let app = TestApp::start(store).await;
    let plan = "[[price]]\nmodel = \"*\"\nprompt_usd_per_mtok = \"1\"\n\
                completion_usd_per_mtok = \"2\"\n[[plan]]\nname = \"team\"\npostpaid = true\n\
                key_usd_per_day = \"0.5\"\n";
    app.create_account("house", &[]).await;
    let house = app.create_key("house", &["--role", "service"]).await;
    let body = json!({ "text": plan });
    let set = send(&app, "PUT", "/admin/v1/price-table", &house, Some(body)).await;
    assert_eq!(set.status, 200, "{}", set.text());
    app.create_account("own", &["--plan", "team"]).await;
    let owner = app.create_key("own", &["--role", "admin"]).await;
    let above = json!({"name": "x", "day_limit_nusd": 500_000_001});
    let got = send(&app, "POST", "/v1/keys", &owner, Some(above)).await;
    assert_refused(&got, "above the plan", 400, "", "day_limit_nusd");
    for (own, given) in [(json!(null), 500_000_000), (json!(400_000_000), 400_000_000)] {
        let body = json!({"name": "x", "day_limit_nusd": own});
        let got = send(&app, "POST", "/v1/keys", &owner, Some(body)).await;
        assert_eq!(got.json()["budget"]["day_limit_nusd"], json!(given), "{}", got.text());
    }

    // With the three that there are: one below what an owner may make.
    let account = see(&app, &owner, "/v1/account").await["id"].clone();
    let account = account.as_str().expect("an id");
    let filler = |number: u64| {
        let at = "2026-11-24T12:00:00.000000Z";
        format!("('{}', '{account}', 'filler', 'filler{number}', 'x', '{at}')", id_at(1, number))
    };
    let rows: Vec<String> = (0..496).map(filler).collect();
    let columns = "id, account_id, name, secret_hash, hint, created_at";
    let rows = format!("INSERT INTO api_keys ({columns}) VALUES {}", rows.join(", "));
    app.books.tamper(&rows).await;
    let ask = || send(&app, "POST", "/v1/keys", &owner, Some(json!({"name": "x"})));
    assert_eq!(ask().await.status, 201, "the five hundredth");
    assert_refused(&ask().await, "one too many", 400, "", "");
    app.books.tamper("DELETE FROM api_keys WHERE name = 'filler'").await;
    app.finish().await;
}
