//! Rows in and out of SQLite as bound values: for the ledger's batches, where JSON would be most of
//! the work (measured: 1.1 million instructions a request, two thirds of them SQLite's JSON).
//!
//! A statement costs two switches between threads, so what can go together does.
//!
//! Invariants: a struct is the only mapping of its table, by the names of its members; a column
//! without a member is NULL. What is neither in a batch nor looked at after it goes as JSON, by
//! `rows`.

mod decode;

use super::rows::classify;
use crate::store::StoreError;
use crate::store::encode::{self, Value};
use crate::store::table::{Table, on_conflict, readable};
use futures::TryStreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Either, Sqlite, SqliteConnection};
use std::sync::Arc;

/// Rows of one statement at most: 37 columns of 32 rows are far from SQLite's 32,766 parameters.
/// Texts are made for the powers of two up to it, so that each is prepared once; rows that are
/// missing to that are NULL, and left out.
const ROWS_MAX: usize = 32;

/// Updates of so few rows are a statement each: one for all has SQLite make a table of the rows
/// first, which costs more than these few do (measured).
const PLAIN_UPDATES_MAX: usize = 4;

/// Among a list of keys, which is a JSON array.
pub const LISTED: &str = "IN (SELECT value FROM json_each(?))";

/// A statement for many rows of the same columns.
pub struct ManyRows {
    columns: Vec<&'static str>,
    /// The place of the column that is never NULL.
    key: usize,
    /// For 1, 2, 4 … [`ROWS_MAX`] rows.
    texts: Vec<Text>,
}

/// One statement or several.
#[derive(Clone)]
struct Text {
    text: Arc<str>,
    statements: usize,
}

impl Text {
    fn one(text: impl Into<Arc<str>>) -> Self {
        Self { text: text.into(), statements: 1 }
    }

    fn joined<T: AsRef<str>>(texts: &[T]) -> Self {
        let texts: Vec<_> = texts.iter().map(AsRef::as_ref).collect();
        Self { text: texts.join("; ").into(), statements: texts.len() }
    }
}

impl ManyRows {
    pub fn insert(table: &Table) -> Self {
        Self::new(table.columns.to_vec(), 0, |size, rows| Text::one(insert(table, size, rows)))
    }

    /// Inserts; rows whose `key` is there already get `columns`.
    pub fn upsert(table: &Table, key: &str, columns: &[&str]) -> Self {
        let conflict = on_conflict(key, columns);
        Self::new(table.columns.to_vec(), 0, |size, rows| {
            Text::one(format!("{} {conflict}", insert(table, size, rows)))
        })
    }

    /// Sets `columns` of the rows with the same `key`.
    pub fn update(table: &Table, key: &'static str, columns: &[&'static str]) -> Self {
        let name = table.name;
        let set = |value: &dyn Fn(&str) -> String| -> String {
            let set: Vec<_> =
                columns.iter().map(|name| format!("{name} = {}", value(name))).collect();
            set.join(", ")
        };
        let joined = set(&|name| format!("r.{name}"));
        let one = format!("UPDATE {name} SET {} WHERE {key} = ?", set(&|_| "?".to_owned()));
        let columns: Vec<_> = columns.iter().copied().chain([key]).collect();
        let last = columns.len() - 1;
        Self::new(columns, last, |size, rows| match size {
            ..=PLAIN_UPDATES_MAX => Text::joined(&vec![&one; size]),
            _ => Text::one(format!(
                "{rows} UPDATE {name} SET {joined} FROM r WHERE {name}.{key} = r.{key}"
            )),
        })
    }

    /// `text` makes a statement for so many rows, which are called `r` in it; `key` is the place of
    /// the column that is never NULL in a row.
    fn new(columns: Vec<&'static str>, key: usize, text: impl Fn(usize, &str) -> Text) -> Self {
        let row = format!("({})", vec!["?"; columns.len()].join(", "));
        let named = columns.join(", ");
        let of =
            |rows| format!("WITH r ({named}) AS (VALUES {})", vec![row.as_str(); rows].join(", "));
        let texts = sizes(ROWS_MAX).map(|size| text(size, &of(size))).collect();
        Self { columns, key, texts }
    }
}

/// The powers of two up to this one.
fn sizes(largest: usize) -> impl Iterator<Item = usize> {
    (0..=largest.ilog2()).map(|power| 1 << power)
}

/// One row is inserted plainly: nothing is missing to it, and SQLite need not be able to take back
/// half of the statement. Nor for many: whoever began the transaction does not end it with COMMIT
/// after an error, so that the rows before a bad one go with the rest (`OR FAIL`).
/// <https://www.sqlite.org/lang_conflict.html>
fn insert(table: &Table, size: usize, rows: &str) -> String {
    let Table { name, columns } = table;
    let (named, key) = (columns.join(", "), columns[0]);
    if size == 1 {
        let values = vec!["?"; columns.len()].join(", ");
        return format!("INSERT INTO {name} ({named}) VALUES ({values})");
    }
    format!("{rows} INSERT OR FAIL INTO {name} ({named}) SELECT * FROM r WHERE {key} IS NOT NULL")
}

/// A statement that removes rows by their keys.
pub struct Deletion {
    one: Text,
    many: Text,
}

impl Deletion {
    pub fn new(table: &Table, key: &str) -> Self {
        let of = |condition: &str| format!("DELETE FROM {} WHERE {key} {condition}", table.name);
        Self { one: Text::one(of("= ?")), many: Text::one(of(LISTED)) }
    }
}

// === Writing ===

/// The writes of a batch, in order.
#[derive(Default)]
pub struct Script {
    steps: Vec<(Text, Vec<Value>)>,
}

/// Scripts of so few values go as one text: there are not many different ones, so they stay
/// prepared.
const JOINED_VALUES_MAX: usize = 2_048;

impl Script {
    /// Adds the rows.
    ///
    /// # Errors
    /// When a row has a member that no column can hold.
    pub fn rows<'a, T: Serialize + 'a>(
        &mut self,
        statement: &ManyRows,
        rows: impl Iterator<Item = &'a T>,
    ) -> Result<(), StoreError> {
        let rows: Vec<&T> = rows.collect();
        for rows in rows.chunks(ROWS_MAX) {
            let size = rows.len().next_power_of_two();
            let mut values = Vec::with_capacity(size * statement.columns.len());
            for row in rows {
                encode::row(row, &statement.columns, statement.key, &mut values)?;
            }
            values.resize(size * statement.columns.len(), Value::Null);
            self.steps.push((statement.texts[size.ilog2() as usize].clone(), values));
        }
        Ok(())
    }

    /// Adds the removal of the rows with these keys, if there are any.
    ///
    /// # Errors
    /// When a key is no text.
    pub fn delete(&mut self, from: &Deletion, keys: &[String]) -> Result<(), StoreError> {
        match keys {
            [] => {}
            [key] => self.steps.push((from.one.clone(), vec![Value::Text(key.clone())])),
            keys => {
                let keys = Value::Text(serde_json::to_string(keys)?);
                self.steps.push((from.many.clone(), vec![keys]));
            }
        }
        Ok(())
    }

    /// Adds a statement without parameters.
    pub fn last(&mut self, text: &'static str) {
        self.steps.push((Text::one(text), Vec::new()));
    }

    /// # Errors
    /// The database's.
    pub async fn run(self, conn: &mut SqliteConnection) -> Result<(), StoreError> {
        if self.steps.is_empty() {
            return Ok(());
        }
        let values = self.steps.iter().map(|(_, values)| values.len()).sum::<usize>();
        if values > JOINED_VALUES_MAX {
            for (text, values) in self.steps {
                run(conn, &text.text, text.statements, values).await?;
            }
            return Ok(());
        }
        let statements = self.steps.iter().map(|(text, _)| text.statements).sum();
        let (texts, values): (Vec<_>, Vec<_>) = self.steps.into_iter().unzip();
        let texts: Vec<_> = texts.iter().map(|text| text.text.as_ref()).collect();
        let values = values.into_iter().flatten();
        run(conn, &texts.join("; ").into(), statements, values).await?;
        Ok(())
    }
}

/// The rows that each statement of a text gives. When sqlx's thread dies the results end without a
/// word: what is missing then was not done.
async fn run(
    conn: &mut SqliteConnection,
    text: &Arc<str>,
    statements: usize,
    values: impl IntoIterator<Item = Value>,
) -> Result<Vec<Vec<SqliteRow>>, StoreError> {
    let (mut sets, mut set) = (Vec::with_capacity(statements), Vec::new());
    #[expect(deprecated, reason = "nothing else runs several statements at once and binds")]
    let mut results = bound(text, values)?.fetch_many(conn);
    while let Some(result) = results.try_next().await.map_err(classify)? {
        match result {
            Either::Left(_end_of_set) => sets.push(std::mem::take(&mut set)),
            Either::Right(row) => set.push(row),
        }
    }
    if sets.len() == statements { Ok(sets) } else { Err(died()) }
}

fn died() -> StoreError {
    classify(sqlx::Error::WorkerCrashed)
}

type Statement = Query<'static, Sqlite, SqliteArguments>;

/// All at once: bound one by one, each moves the whole statement.
fn bound(
    text: &Arc<str>,
    values: impl IntoIterator<Item = Value>,
) -> Result<Statement, StoreError> {
    let mut arguments = SqliteArguments::default();
    for value in values {
        let added = match value {
            Value::Null => arguments.add(None::<i64>),
            Value::Integer(number) => arguments.add(number),
            Value::Text(text) => arguments.add(text),
        };
        added.map_err(|error| classify(sqlx::Error::Encode(error)))?;
    }
    Ok(sqlx::query_with(AssertSqlSafe(text.clone()), arguments))
}

// === Reading ===

/// The text of a query for whole rows.
pub fn select(table: &Table, condition: &str) -> String {
    format!("SELECT {} FROM {} {condition}", table.columns.join(", "), table.name)
}

/// The rows that a text of [`select`] finds by its one parameter.
///
/// # Errors
/// The database's, or that a row is not what its struct says.
pub async fn read<T: DeserializeOwned>(
    conn: &mut SqliteConnection,
    text: &Arc<str>,
    key: String,
) -> Result<Vec<T>, StoreError> {
    parse(&found(conn, text, key).await?)
}

/// As [`read`], without the rows that are not what their struct says.
///
/// # Errors
/// The database's.
pub async fn read_readable<T: DeserializeOwned>(
    conn: &mut SqliteConnection,
    text: &Arc<str>,
    key: String,
) -> Result<Vec<T>, StoreError> {
    Ok(readable(found(conn, text, key).await?.iter().map(decode::row)))
}

async fn found(
    conn: &mut SqliteConnection,
    text: &Arc<str>,
    key: String,
) -> Result<Vec<SqliteRow>, StoreError> {
    bound(text, [Value::Text(key)])?.fetch_all(conn).await.map_err(classify)
}

/// Queries by lists of keys, in one text, so that they cost what one costs.
pub struct Queries<const N: usize> {
    /// How many statements are run before them.
    before: usize,
    /// For lists of 1, 2, 4 … [`KEYS_FEW`] keys; keys that are missing to that are NULL, which is
    /// the key of no row.
    few: Vec<Arc<str>>,
    many: Arc<str>,
}

/// So many keys are parameters each, which costs less than a list that SQLite has to read as JSON
/// (measured).
const KEYS_FEW: usize = 64;

impl<const N: usize> Queries<N> {
    /// `of`: each a table, the columns that are read, and the column of the keys. `before`: what is
    /// run before them.
    pub fn new(before: &[&str], of: &[(&Table, &[&str], &str); N]) -> Self {
        let text = |keys: &str, value: &str| {
            let queries = of.iter().map(|(table, columns, key)| {
                let name = table.name;
                let columns: Vec<_> = columns.iter().map(|it| format!("{name}.{it}")).collect();
                let columns = columns.join(", ");
                // Each key is looked up: neither is the table gone through, nor the list sorted.
                format!(
                    "SELECT {columns} FROM {keys} CROSS JOIN {name} ON {name}.{key} = k.{value}"
                )
            });
            let before = before.iter().map(|&text| text.to_owned());
            before.chain(queries).collect::<Vec<_>>().join("; ").into()
        };
        let few = |size| {
            let values = vec!["(?)"; size].join(", ");
            text(&format!("(VALUES {values}) AS k"), "column1")
        };
        Self {
            before: before.len(),
            few: sizes(KEYS_FEW).map(few).collect(),
            many: text("json_each(?) AS k", "value"),
        }
    }

    /// The rows of what is run before them, and those of each.
    ///
    /// # Errors
    /// The database's.
    pub async fn read(
        &self,
        conn: &mut SqliteConnection,
        keys: [Vec<String>; N],
    ) -> Result<(Vec<SqliteRow>, [Vec<SqliteRow>; N]), StoreError> {
        let longest = keys.iter().map(Vec::len).max().unwrap_or_default();
        let size = longest.next_power_of_two();
        let (text, values) = if let Some(text) = self.few.get(size.ilog2() as usize) {
            let padded = |keys: Vec<String>| {
                let missing = vec![Value::Null; size - keys.len()];
                keys.into_iter().map(Value::Text).chain(missing)
            };
            (text, keys.into_iter().flat_map(padded).collect())
        } else {
            let list = |keys: &Vec<String>| Ok(Value::Text(serde_json::to_string(keys)?));
            (&self.many, keys.iter().map(list).collect::<Result<Vec<_>, StoreError>>()?)
        };
        let mut before = run(conn, text, self.before + N, values).await?;
        let sets = before.split_off(self.before);
        Ok((before.into_iter().flatten().collect(), sets.try_into().map_err(|_| died())?))
    }
}

/// # Errors
/// When a row is not what its struct says.
pub fn parse<T: DeserializeOwned>(rows: &[SqliteRow]) -> Result<Vec<T>, StoreError> {
    rows.iter().map(|row| Ok(decode::row(row)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::hold::Hold;
    use crate::store::table::HOLDS;
    use serde_json::json;
    use sqlx::Connection;

    /// Without accounts, to which holds belong.
    async fn tables() -> SqliteConnection {
        let mut conn = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::migrate!("migrations/sqlite").run(&mut conn).await.unwrap();
        sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut conn).await.unwrap();
        conn
    }

    /// As many rows as need several statements come back as they went in.
    #[tokio::test]
    async fn rows_come_back_as_they_went_in() {
        let mut conn = tables().await;
        let holds: Vec<Hold> = (0..ROWS_MAX + 7).map(hold).collect();
        write(&mut conn, &ManyRows::insert(&HOLDS), &holds).await;
        let all = select(&HOLDS, "WHERE ? = '' ORDER BY request_id").into();
        let read_back: Vec<Hold> = read(&mut conn, &all, String::new()).await.unwrap();
        assert_eq!(read_back, holds);

        let mut changed = holds;
        for hold in &mut changed {
            hold.generation_id = Some("gen-1".to_owned());
            hold.model = "not among the columns".to_owned();
        }
        let update = ManyRows::update(&HOLDS, "request_id", &["generation_id"]);
        write(&mut conn, &update, &changed).await;
        let read_back: Vec<Hold> = read(&mut conn, &all, String::new()).await.unwrap();
        assert_eq!(read_back.len(), changed.len());
        for (read_back, changed) in read_back.iter().zip(&changed) {
            assert_eq!(read_back.generation_id, changed.generation_id);
            assert_eq!(read_back.model, "m");
        }
    }

    /// One, few and many keys have texts of their own.
    #[tokio::test]
    async fn any_number_of_keys_finds_and_removes_its_rows() {
        let mut conn = tables().await;
        let holds: Vec<Hold> = (0..KEYS_FEW + 3).map(hold).collect();
        let keys: Vec<String> = holds.iter().map(|hold| hold.request_id.to_string()).collect();
        let by_id = (&HOLDS, HOLDS.columns, "request_id");
        let queries = Queries::new(&["SELECT 1"], &[by_id, by_id]);
        let deletion = Deletion::new(&HOLDS, "request_id");
        for count in 0..=holds.len() {
            write(&mut conn, &ManyRows::insert(&HOLDS), &holds).await;
            let sought = [keys[..count].to_vec(), vec!["unknown".to_owned()]];
            let (before, [found, none]) = queries.read(&mut conn, sought).await.unwrap();
            assert_eq!(before.len(), 1);
            assert_eq!(parse::<Hold>(&found).unwrap(), holds[..count]);
            assert!(none.is_empty());

            let mut script = Script::default();
            script.delete(&deletion, &keys[..count]).unwrap();
            script.run(&mut conn).await.unwrap();
            let (_, [left, _]) = queries.read(&mut conn, [keys.clone(), Vec::new()]).await.unwrap();
            assert_eq!(parse::<Hold>(&left).unwrap(), holds[count..]);
            let mut script = Script::default();
            script.delete(&deletion, &keys).unwrap();
            script.run(&mut conn).await.unwrap();
        }
    }

    /// Such a row would be left out without a word, as those are that fill up a statement.
    #[test]
    fn a_row_without_its_key_is_refused() {
        let rows = [json!({ "model": "m" })];
        let added = Script::default().rows(&ManyRows::insert(&HOLDS), rows.iter());
        assert!(matches!(added, Err(StoreError::Inconsistent(_))), "{added:?}");
    }

    async fn write(conn: &mut SqliteConnection, statement: &ManyRows, holds: &[Hold]) {
        let mut script = Script::default();
        script.rows(statement, holds.iter()).unwrap();
        script.run(conn).await.unwrap();
    }

    /// With and without each member that may be missing.
    fn hold(number: usize) -> Hold {
        let is_odd = number % 2 == 1;
        let text = format!("00000000-0000-7000-8000-{number:012}");
        let mut row = json!({
            "request_id": text, "account_id": text, "api_key_id": is_odd.then_some(&text),
            "amount_nusd": number, "owner": text, "lease_expires_at": "2026-01-01T00:00:00Z",
            "upstream": "u", "model": "m", "price_id": "p", "prompt_tokens_estimate": 1,
            "completion_tokens_seen": 0, "generation_id": null, "idempotency_key": null,
            "streamed": is_odd, "placed_at": "2026-01-01T00:00:00Z",
            "counted_account": is_odd, "counted_key": 0, "counted_tokens": 0,
            "counted_at": is_odd.then_some("2026-01-01T00:00:00Z"),
        });
        if is_odd {
            row["user_id"] = json!(text);
        }
        serde_json::from_value(row).unwrap()
    }
}
