//! A database as an earlier version left it: the tables of its time, with rows in each.
//!
//! The rows are in `history.ndjson`, each with the first schema in which it could stand; they were
//! written by the program of 2026-11-28. They are history: a change of the program must not need a
//! change of them. A migration that makes a table adds a row of its own at the end.

use serde_json::{Map, Value};
use sqlx::migrate::{Migration, Migrator};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::books::{Books, Pool};
use super::store::{Database, Store};
use crate::source::root;

/// The columns of each table.
pub type Columns = BTreeMap<String, BTreeSet<String>>;

pub struct Row {
    /// Of the schema in which it could stand first.
    pub since: i64,
    pub table: String,
    members: Map<String, Value>,
}

/// The rows, in an order in which they can be inserted.
pub fn rows() -> Vec<Row> {
    include_str!("history.ndjson").lines().map(Row::read).collect()
}

/// The migrations of a store, in their order.
pub async fn migrations(store: Store) -> Vec<Migration> {
    let name = if store == Store::Sqlite { "sqlite" } else { "postgres" };
    let folder = root().join("migrations").join(name);
    let migrator = Migrator::new(folder).await.expect("the project's own migrations");
    migrator.migrations.into_owned()
}

/// Makes the tables as they were with this migration as the last.
pub async fn migrate(database: &Database, schema: i64) {
    let mut migrations = migrations(database.store).await;
    migrations.retain(|migration| migration.version <= schema);
    let migrator = Migrator { migrations: Cow::Owned(migrations), ..Migrator::DEFAULT };
    match Books::create(database).pool {
        Pool::Sqlite(pool) => {
            migrator.run(&pool).await.expect("migrations of SQLite");
            pool.close().await;
        }
        Pool::Postgres(pool) => {
            migrator.run(&pool).await.expect("migrations of PostgreSQL");
            // As each version does after them; this is the month of the rows.
            let partitions = "SELECT tollgate_ensure_partitions('2026-11-28T00:00:00Z')";
            sqlx::query(partitions).execute(&pool).await.expect("partitions");
            pool.close().await;
        }
    }
}

/// What the version with this migration as its last has left.
pub async fn leave(database: &Database, schema: i64) {
    migrate(database, schema).await;
    let books = Books::open(database);
    let columns = columns(&books).await;
    fill(&books, schema, &columns).await;
    books.close().await;
}

/// Inserts the rows that could stand in this schema, in these columns and no others.
pub async fn fill(books: &Books, schema: i64, columns: &Columns) {
    for row in rows().iter().filter(|row| row.since <= schema) {
        books.tamper(&row.insert(&columns[&row.table])).await;
    }
}

pub async fn columns(books: &Books) -> Columns {
    let query = match books.pool {
        Pool::Sqlite(_) => {
            "SELECT t.name AS tab, c.name AS col FROM sqlite_master t \
             JOIN pragma_table_info(t.name) c WHERE t.type = 'table'"
        }
        Pool::Postgres(_) => {
            "SELECT table_name AS tab, column_name AS col FROM information_schema.columns \
             WHERE table_schema = 'public'"
        }
    };
    let text = |value: &Value| value.as_str().expect("a name").to_string();
    let mut columns = Columns::new();
    for row in books.rows(query).await {
        columns.entry(text(&row["tab"])).or_default().insert(text(&row["col"]));
    }
    columns
}

impl Row {
    fn read(line: &str) -> Self {
        let mut value: Value = serde_json::from_str(line).expect("a row as JSON");
        let Value::Object(members) = value["row"].take() else { panic!("no members: {line}") };
        let table = value["table"].as_str().expect("a table").to_string();
        Self { since: value["since"].as_i64().expect("a number"), table, members }
    }

    /// Values as texts, which both databases read as what the column is.
    fn insert(&self, columns: &BTreeSet<String>) -> String {
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for (name, value) in &self.members {
            if !columns.contains(name) {
                assert!(self.may_lack(name, value), "{}.{name} is not {value} then", self.table);
                continue;
            }
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            names.push(name.as_str());
            values.push(format!("'{}'", text.replace('\'', "''")));
        }
        let (names, values) = (names.join(", "), values.join(", "));
        format!("INSERT INTO {} ({names}) VALUES ({values})", self.table)
    }

    /// What the schema before had no column for was like this in it: a default. Only that an event
    /// is merged could not be, and then it was waiting by itself.
    fn may_lack(&self, name: &str, value: &Value) -> bool {
        let defaults = ["0", "\"\"", "\"user\"", "\"operator\"", "\"usage\""];
        let is_merged = self.table == "billing_events" && name == "export_group";
        is_merged || defaults.contains(&value.to_string().as_str())
    }
}
