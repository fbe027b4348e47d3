//! What users of Supabase see: the figures of their account, told apart by who asked.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{COSTS, CSV, USAGE, hours_from_now, nano, results, see};
use crate::app::{Store, both_stores, question};
use crate::client::Ask;
use crate::supabase::server::AuthServer;
use crate::supabase::sign::{Key, claims};
use crate::supabase::{add_member, chat, setup};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

both_stores!(users_are_told_apart);

async fn users_are_told_apart(store: Store) {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(store, &server).env("TOLLGATE_SIGNUP_CREDIT", "1").start().await;
    // Two of the account, and one of an account of its own.
    let users @ [one, two, stranger] = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];
    add_member(&app, one).await;
    add_member(&app, two).await;
    let tokens = users.map(|user| key.token(&claims(&server.issuer(), user)));
    for (token, prompt) in [(&tokens[0], 20), (&tokens[0], 30), (&tokens[1], 40), (&tokens[2], 50)]
    {
        app.upstream.script(Answer::openrouter().tokens(prompt, 7).plain());
        chat(&app, token).await.ok();
    }
    app.upstream.script(Answer::openrouter().tokens(60, 7).plain());
    app.chat(&question(MODEL)).await.ok();
    let records = app.records(5).await;

    let start = format!("start_time={}", hours_from_now(-2));
    let usage = format!("{USAGE}?{start}&group_by[]=user_id");
    let figures = async |token: &str, filter: &str| {
        let page = see(&app, token, &format!("{usage}{filter}")).await;
        let mut rows: Vec<_> = results(&page)
            .into_iter()
            .map(|(_, row)| (row["user_id"].clone(), row["input_tokens"].clone()))
            .collect();
        rows.sort_by_key(|(_, tokens)| tokens.as_i64());
        rows
    };
    let row = |user: Option<Uuid>, tokens: i64| {
        (user.map_or(Value::Null, |user| json!(user.to_string())), json!(tokens))
    };
    let whole = [row(Some(two), 40), row(Some(one), 50), row(None, 60)];
    // The account's members and its key see the same.
    for token in [&tokens[0], &tokens[1], &app.key] {
        assert_eq!(figures(token, "").await, whole);
    }
    assert_eq!(figures(&tokens[2], "").await, [row(Some(stranger), 50)]);
    assert_eq!(figures(&app.key, &format!("&user_ids[]={two}")).await, [row(Some(two), 40)]);
    for filter in [format!("&user_ids={stranger}"), "&user_ids=nobody".to_string()] {
        assert!(figures(&app.key, &filter).await.is_empty(), "{filter}");
    }
    let costs = see(&app, &tokens[1], &format!("{COSTS}?{start}&user_ids={one}")).await;
    let paid: i64 = results(&costs).iter().map(|(_, row)| nano(&row["amount"]["value"])).sum();
    assert_eq!(paid, records[0].charge_nusd + records[1].charge_nusd);

    let csv = app.ask(&Ask::get(&format!("{CSV}?{start}")).bearer(&tokens[1])).await.ok();
    let by = |user: Uuid| csv.lines().filter(|line| line.contains(&user.to_string())).count();
    assert_eq!((by(one), by(two), by(stranger), csv.lines().count()), (2, 1, 0, 5));
    // A user has no key to be told about, and the account's credits.
    let got = app.ask(&Ask::get("/v1/key").bearer(&tokens[0])).await;
    assert_eq!((got.status, &got.json()["error"]["code"]), (404, &json!("not_found")));
    let credits = see(&app, &tokens[2], "/v1/credits").await;
    assert_eq!(credits["data"]["total_credits"], json!(1));
    assert_eq!(nano(&credits["data"]["total_usage"]), records[3].charge_nusd);
    app.finish().await;
}
