//! The CSV against the records: every one once, all that may be seen and nothing else, no formulas.

use std::collections::BTreeMap;

use super::{CSV, copy, forget, hours_from_now, id_at, traffic};
use crate::app::{Store, TestApp, both_stores, question};
use crate::client::Answered;
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

both_stores!(the_file_is_the_records, a_long_file_has_every_record_once, no_cell_is_a_formula,);

type Row = BTreeMap<String, String>;

/// The rows, by the names of the header.
fn rows(got: &Answered) -> Vec<Row> {
    let text = got.ok();
    assert_eq!(got.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
    let disposition = got.header("content-disposition").unwrap_or_default();
    assert!(disposition.starts_with("attachment"), "{disposition}");
    assert!(text.ends_with("\r\n"), "RFC 4180 ends lines with CRLF");
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let rows = reader.deserialize().collect::<Result<Vec<Row>, _>>();
    rows.unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What is the operator's business.
const SECRETS: [&str; 12] = [
    "upstream_cost_pusd",
    "upstream",
    "provider",
    "generation_id",
    "price_id",
    "shortfall_nusd",
    "hold_nusd",
    "attempts",
    "upstream_status",
    "counter",
    "counted_prompt_tokens",
    "account_id",
];

async fn the_file_is_the_records(store: Store) {
    let app = TestApp::start(store).await;
    traffic(&app, &app.key).await;
    let got = app.get(&format!("{CSV}?start_time={}", hours_from_now(-1))).await;
    let (rows, records) = (rows(&got), app.books.records().await);
    assert_eq!(rows.len(), records.len());
    for (row, record) in rows.iter().zip(&records) {
        let prompt = record.prompt_tokens.to_string();
        let completion = record.completion_tokens.to_string();
        let cached = record.cached_tokens.to_string();
        let expected = [
            ("request_id", record.id.as_str()),
            ("api_key_id", record.api_key_id.as_deref().unwrap_or_default()),
            ("model", &record.model),
            ("streamed", if record.streamed { "true" } else { "false" }),
            ("ending", &record.ending),
            ("source", &record.source),
            ("prompt_tokens", &prompt),
            ("completion_tokens", &completion),
            ("cached_tokens", &cached),
            ("corrected_at", ""),
        ];
        for (name, value) in expected {
            assert_eq!(row[name], value, "{name}: {row:?}");
        }
        let charge = crate::upstream::answer::nano_usd(&row["charge_usd"]);
        assert_eq!(charge, Some(record.charge_nusd), "{row:?}");
        for secret in SECRETS {
            assert!(!row.contains_key(secret), "{secret} is shown");
        }
    }
    let text = got.text();
    for record in &records {
        let secrets = [Some(&record.price_id), record.generation_id.as_ref()];
        for secret in secrets.into_iter().flatten() {
            assert!(!text.contains(secret.as_str()), "{secret} is shown");
        }
    }
    app.finish().await;
}

/// 2025-03-10T00:00:00Z.
const DAY: u64 = 1_741_564_800;

async fn a_long_file_has_every_record_once(store: Store) {
    let app = TestApp::start(store).await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    let record = app.record().await.id;
    // Over three pages, the last of which is full; several in one instant.
    let ids: Vec<_> = (0..3_000).map(|number| id_at(DAY * 1_000 + number / 7, number)).collect();
    copy(&app, store, &record, &ids).await;
    let span = format!("{CSV}?start_time={DAY}&end_time={}", DAY + 60);
    let rows = rows(&app.get(&span).await);
    let seen: Vec<_> = rows.iter().map(|row| row["request_id"].clone()).collect();
    assert_eq!(seen, ids);
    let empty = app.get(&format!("{CSV}?start_time=1000&end_time=2000")).await;
    assert_eq!(empty.ok().lines().count(), 1, "the header");
    forget(&app, &ids).await;
    app.finish().await;
}

async fn no_cell_is_a_formula(store: Store) {
    let app = TestApp::start(store).await;
    let names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "he said \"no\", then\r\nleft", "plain"];
    for name in names {
        let key = app.create_key("test", &["--name", "new"]).await;
        // Some of these are refused by now; rows are older than rules.
        let rename = format!("UPDATE api_keys SET name = '{name}' WHERE name = 'new'");
        app.books.tamper(&rename).await;
        app.upstream.script(Answer::openrouter().plain());
        app.ask(&app.chat_ask(&question(MODEL)).bearer(&key)).await.ok();
    }
    app.records(names.len()).await;
    let rows = rows(&app.get(&format!("{CSV}?start_time={}", hours_from_now(-1))).await);
    let seen: Vec<_> = rows.iter().map(|row| row["api_key_name"].as_str()).collect();
    let expected =
        ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "he said \"no\", then\r\nleft", "plain"];
    assert_eq!(seen, expected);
    app.finish().await;
}
