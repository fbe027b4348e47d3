//! Upgrades: from every schema that was ever released, with rows in every table, and with the
//! version before still running beside.

use std::collections::BTreeSet;

use futures::future::join_all;

use crate::app::books::Books;
use crate::app::history::{self, Columns};
use crate::app::store::Database;
use crate::app::{Setup, Store, both_stores, question, streamed};
use crate::source::{read, root};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

both_stores!(
    every_schema_is_brought_up_to_date,
    the_version_before_works_beside,
    who_was_removed_before_stays_so,
);

async fn every_schema_is_brought_up_to_date(store: Store) {
    let migrations = history::migrations(store).await;
    // A few at a time: most of it is waiting.
    for some in migrations.chunks(4) {
        join_all(some.iter().map(|migration| upgraded(store, migration.version))).await;
    }
}

async fn upgraded(store: Store, schema: i64) {
    println!("from schema {schema}");
    // The sinks of the time, which nobody answers for now.
    let app = Setup::new(store)
        .env("STRIPE_SECRET_KEY", "sk_test_x")
        .env("STRIPE_API_BASE", "http://127.0.0.1:1")
        .env("STRIPE_CREATE_CUSTOMERS", "off")
        .env("OPENMETER_URL", "http://127.0.0.1:1/api/v1/events")
        .env("TOLLGATE_LEASE_SECONDS", "2")
        .schema(schema)
        .start()
        .await;
    let (old, before) = of_history(schema);
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    app.upstream.script(Answer::openrouter().stream());
    app.chat(&streamed(MODEL)).await.ok();
    // The hold that was open is settled too.
    app.settled().await;
    let records = app.records(before + 3).await;
    let killed = records.iter().find(|record| record.ending == "killed").expect("the old hold");
    assert!(killed.charge_nusd > 0, "{killed:?}");
    let names = app.list(&["account", "list"]).await;
    assert_eq!(names.len(), old + 1, "{names:?}");
    app.finish().await;
}

/// How many accounts and usage records history has in a schema.
fn of_history(schema: i64) -> (usize, usize) {
    let rows = history::rows();
    let count = |table| rows.iter().filter(|row| row.table == table && row.since <= schema).count();
    (count("accounts"), count("usage_records"))
}

/// While a new version is rolled out the one before writes and reads its own columns and no others.
async fn the_version_before_works_beside(store: Store) {
    let versions: Vec<i64> =
        history::migrations(store).await.iter().map(|migration| migration.version).collect();
    let [.., before, newest] = versions[..] else { panic!("two migrations at least") };
    assert!(before >= BEFORE_THE_RULE, "12 could not run beside 10");
    let old = Database::create(store, None).await;
    history::migrate(&old, before).await;
    let books = Books::open(&old);
    let columns = history::columns(&books).await;
    books.close().await;
    let new = Database::create(store, None).await;
    history::migrate(&new, newest).await;
    let books = Books::open(&new);
    history::fill(&books, before, &columns).await;
    for (table, columns) in of_the_program(&columns) {
        let names: Vec<&str> = columns.iter().map(String::as_str).collect();
        books.rows(&format!("SELECT {} FROM {table}", names.join(", "))).await;
        let set: Vec<String> = names.iter().map(|name| format!("{name} = {name}")).collect();
        books.tamper(&format!("UPDATE {table} SET {}", set.join(", "))).await;
    }
    books.close().await;
    old.drop_database().await;
    new.drop_database().await;
}

/// By what the audit log says, unless the user is a member again.
async fn who_was_removed_before_stays_so(store: Store) {
    let database = Database::create(store, None).await;
    history::leave(&database, 18).await;
    let books = Books::open(&database);
    let back = books.rows("SELECT user_id FROM members").await.remove(0)["user_id"].clone();
    let back = back.as_str().expect("an id").to_string();
    let gone = "0b2f7c4e-3f5c-4f7e-9a60-1f6f0a3c9d99";
    let acts = [
        ("a1", "member.remove", gone),
        ("a2", "member.remove", gone),
        ("a3", "member.remove", &back),
        ("a4", "account.create", "no id of a user"),
    ];
    for (id, action, subject) in acts {
        let sql = format!(
            "INSERT INTO audit_log (id, actor, action, subject, created_at) VALUES \
             ('01a221fc-4371-735a-8407-5ba7b31470{id}', 'operator', '{action}', '{subject}', \
              '2026-11-28T11:48:30.000000Z')"
        );
        books.tamper(&sql).await;
    }
    books.close().await;
    history::migrate(&database, 20).await;
    let books = Books::open(&database);
    let removed = books.rows("SELECT user_id FROM removed_members").await;
    let removed: Vec<_> = removed.iter().map(|row| row["user_id"].clone()).collect();
    assert_eq!(removed, [gone]);
    books.close().await;
    database.drop_database().await;
}

fn of_the_program(columns: &Columns) -> impl Iterator<Item = (&String, &BTreeSet<String>)> {
    let tables: BTreeSet<String> = history::rows().into_iter().map(|row| row.table).collect();
    columns.iter().filter(move |(table, _)| tables.contains(*table))
}

#[tokio::test]
async fn every_table_has_rows_in_history() {
    let database = Database::create(Store::Sqlite, None).await;
    history::migrate(&database, i64::MAX).await;
    let books = Books::open(&database);
    let tables: BTreeSet<String> = history::columns(&books).await.into_keys().collect();
    books.close().await;
    let filled: BTreeSet<String> = history::rows().into_iter().map(|row| row.table).collect();
    let bare: Vec<_> = tables.difference(&filled).filter(|name| !name.starts_with('_')).collect();
    assert_eq!(bare, Vec::<&String>::new(), "tables without a row in history.ndjson");
}

/// These were released before there was a rule, and are what they are.
const BEFORE_THE_RULE: i64 = 12;
/// What a statement that would be refused has before it, with the reason why it does no harm.
const NOTE: &str = "-- beside the version before:";
/// A lock on these for as long as a scan takes would stop every request.
const LARGE: [&str; 5] =
    ["usage_records", "ledger_entries", "billing_events", "usage_corrections", "audit_log"];

#[test]
fn migrations_let_the_version_before_run_beside() {
    let mut found = Vec::new();
    for folder in ["migrations/postgres", "migrations/sqlite"] {
        for entry in std::fs::read_dir(root().join(folder)).expect("a folder") {
            let name = entry.expect("a file").file_name().into_string().expect("a name");
            let number: i64 = name[..4].parse().expect("it begins with its number");
            if number > BEFORE_THE_RULE {
                let path = format!("{folder}/{name}");
                found.extend(refused(&read(&path)).iter().map(|what| format!("{path}: {what}")));
            }
        }
    }
    assert!(found.is_empty(), "without '{NOTE} …':\n{}", found.join("\n"));
}

/// The statements that need a note and have none.
fn refused(sql: &str) -> Vec<String> {
    let mut found = Vec::new();
    for statement in sql.split(";\n") {
        let is_comment = |line: &&str| line.trim_start().starts_with("--");
        let code: Vec<&str> = statement.lines().filter(|line| !is_comment(line)).collect();
        let code = code.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
        if is_harmful(&code.to_uppercase()) && !statement.contains(NOTE) {
            found.push(code);
        }
    }
    found
}

fn is_harmful(code: &str) -> bool {
    let has = |text: &str| code.contains(text);
    let on_large = LARGE.iter().any(|table| has(&format!(" {} ", table.to_uppercase())));
    let adds_without_default = has("ADD COLUMN") && has("NOT NULL") && !has("DEFAULT");
    let takes_away = code.starts_with("DROP TABLE")
        || code.starts_with("ALTER TABLE")
            && [" DROP ", " RENAME ", " TYPE ", " SET NOT NULL"].into_iter().any(has);
    let scans = code.starts_with("ALTER TABLE") && has("ADD CONSTRAINT") && !has("NOT VALID")
        || has("ADD PRIMARY KEY");
    let locks = on_large
        && (code.starts_with("CREATE INDEX")
            || code.starts_with("CREATE UNIQUE INDEX")
            || code.starts_with("UPDATE"));
    adds_without_default || takes_away || scans || locks
}

#[test]
fn harmful_statements_are_told() {
    for harmful in [
        "ALTER TABLE a ADD COLUMN b TEXT NOT NULL",
        "ALTER TABLE a DROP COLUMN b",
        "ALTER TABLE a RENAME COLUMN b TO c",
        "ALTER TABLE a ALTER COLUMN b TYPE BIGINT",
        "ALTER TABLE a\n    ALTER COLUMN b DROP DEFAULT",
        "DROP TABLE a",
        "CREATE INDEX a ON usage_records (b)",
    ] {
        assert_eq!(refused(harmful).len(), 1, "{harmful}");
        assert!(refused(&format!("{NOTE} nobody reads it.\n{harmful}")).is_empty());
    }
    for harmless in [
        "ALTER TABLE a ADD COLUMN b TEXT",
        "ALTER TABLE a ADD COLUMN b TEXT NOT NULL DEFAULT ''",
        "CREATE TABLE a (b TEXT NOT NULL)",
        "CREATE INDEX a ON small (b)",
        "-- DROP TABLE a",
    ] {
        assert!(refused(harmless).is_empty(), "{harmless}");
    }
}
