//! What cannot be answered is refused, in the envelope and by the name of what is wrong.

use super::{COSTS, CSV, USAGE, hours_from_now};
use crate::app::{Store, TestApp, both_stores};
use crate::bad_input::assert_refused;
use crate::client::Ask;

both_stores!(bad_parameters_are_named, a_key_and_a_get_are_needed);

/// Path, query and the parameter at fault; "" is none.
const CASES: [(&str, &str, &str); 40] = [
    (USAGE, "", "start_time"),
    (USAGE, "end_time=9", "start_time"),
    (USAGE, "start_time=", "start_time"),
    (USAGE, "start_time=-1", "start_time"),
    (USAGE, "start_time=%2B1", "start_time"),
    (USAGE, "start_time=1.5", "start_time"),
    (USAGE, "start_time=1e9", "start_time"),
    (USAGE, "start_time=2026-11-24", "start_time"),
    (USAGE, "start_time=99999999999999999999", "start_time"),
    (USAGE, "start_time=253402300800", "start_time"),
    (USAGE, "start_time=253402300799", "start_time"),
    (USAGE, "start_time=1&start_time=2", "start_time"),
    (USAGE, "start_time=9&end_time=9", "end_time"),
    (USAGE, "start_time=9&end_time=8", "end_time"),
    (USAGE, "start_time=9&end_time=x", "end_time"),
    (USAGE, "start_time=1&bucket_width=1w", "bucket_width"),
    (USAGE, "start_time=1&limit=0", "limit"),
    (USAGE, "start_time=1&limit=-1", "limit"),
    (USAGE, "start_time=1&limit=32", "limit"),
    (USAGE, "start_time=1&limit=169&bucket_width=1h", "limit"),
    (USAGE, "start_time=1&limit=1441&bucket_width=1m", "limit"),
    (USAGE, "start_time=1&limit=ten", "limit"),
    (USAGE, "start_time=1&group_by=line_item", "group_by"),
    (USAGE, "start_time=1&group_by[]=model&group_by[]=", "group_by"),
    (USAGE, "start_time=1&batch=1", "batch"),
    (USAGE, "start_time=1&page=", "page"),
    (USAGE, "start_time=1&page=page_1_2", "page"),
    (USAGE, "start_time=1&page=page_9223372036854775807_9223372036854775807", "page"),
    (USAGE, "start_time=1&end_time=99&page=page_60_120", "page"),
    (USAGE, "start_time=1&model=x", ""),
    (USAGE, "start_time=1&line_items=x", ""),
    (COSTS, "start_time=1&bucket_width=1h", "bucket_width"),
    (COSTS, "start_time=1&limit=181", "limit"),
    (COSTS, "start_time=1&group_by=model", "group_by"),
    (COSTS, "start_time=1&models=x", ""),
    (CSV, "", "start_time"),
    (CSV, "start_time=9&end_time=9", "end_time"),
    (CSV, "start_time=0", "end_time"),
    (CSV, "start_time=253402300799", "start_time"),
    (CSV, "start_time=1&account_id=x", ""),
];

async fn bad_parameters_are_named(store: Store) {
    let app = TestApp::start(store).await;
    for (path, query, param) in CASES {
        let path = format!("{path}?{query}");
        let got = app.get(&path).await;
        assert_refused(&got, &path, 400, "", param);
    }
    let path = format!("{USAGE}?start_time=1{}", "&models=x".repeat(101));
    assert_refused(&app.get(&path).await, "101 models", 400, "", "models");
    // Bytes that are no text are no name of a model; the rest of the query counts.
    let path = format!("{USAGE}?start_time={}&models=%ff%00&limit=2", hours_from_now(-1));
    app.get(&path).await.ok();
    app.finish().await;
}

async fn a_key_and_a_get_are_needed(store: Store) {
    let app = TestApp::start(store).await;
    for path in [USAGE, COSTS, CSV, "/v1/key", "/v1/credits"] {
        let path = format!("{path}?start_time={}", hours_from_now(-1));
        assert_refused(&app.ask(&Ask::get(&path)).await, &path, 401, "", "");
        let wrong = Ask::get(&path).bearer("sk-tg-wrong");
        assert_refused(&app.ask(&wrong).await, &path, 401, "invalid_api_key", "");
        let post = Ask::post_json(&path, "{}").bearer(&app.key);
        assert_refused(&app.ask(&post).await, &path, 405, "method_not_allowed", "");
        app.get(&path).await.ok();
    }
    app.finish().await;
}
