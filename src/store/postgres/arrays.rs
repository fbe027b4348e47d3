//! Rows as an array for each column, and the statements that insert them: for the tables of every
//! call. A usage record takes PostgreSQL half of what it takes as JSON (measured: 7 µs, not 14).
//!
//! Invariants: the type of a column is what the database says; a value that is not of it fails
//! before anything is sent; a column without a member is NULL. A table that is not as this program
//! knows it, before its migration say, is waited for: what is to be written is lost by no refusal.

use super::rows::classify;
use crate::models::timestamp::Timestamp;
use crate::store::StoreError;
use crate::store::encode::{self, Value};
use crate::store::table::{BILLING_EVENTS, HOLDS, LEDGER_ENTRIES, Table, USAGE_RECORDS};
use serde::Serialize;
use serde::de::Error as _;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres};
use std::collections::HashMap;
use time::OffsetDateTime;
use uuid::Uuid;

/// The inserts of a batch.
pub struct Inserts {
    pub holds: Insert,
    pub usage: Insert,
    pub ledger: Insert,
    pub events: Insert,
}

/// An insert of many rows.
pub struct Insert {
    table: &'static Table,
    types: Vec<Type>,
    /// Its text before its parameters, …
    before: String,
    /// … and behind them.
    after: String,
}

/// The types that these tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Uuid,
    Integer,
    Flag,
    Time,
    Text,
}

/// The values of a column.
pub enum Array {
    Uuids(Vec<Option<Uuid>>),
    Integers(Vec<Option<i64>>),
    Flags(Vec<Option<bool>>),
    Times(Vec<Option<OffsetDateTime>>),
    Texts(Vec<Option<String>>),
}

/// A lease is counted from the clock that all processes share: by that of one that is wrong, others
/// would take a living hold for a dead one, or leave it.
const LEASED: (&str, &str) =
    ("lease_expires_at", "clock_timestamp() + (lease_expires_at - placed_at)");

impl Inserts {
    /// Asks for the columns' types.
    ///
    /// # Errors
    /// The database's, or that a table has other columns than ours: both pass.
    pub async fn read(conn: &mut PgConnection) -> Result<Self, StoreError> {
        let tables = [&HOLDS, &USAGE_RECORDS, &LEDGER_ENTRIES, &BILLING_EVENTS];
        let names = tables.map(|table| table.name.to_owned()).to_vec();
        let columns: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT t.name, a.attname::text, format_type(a.atttypid, NULL) \
             FROM unnest($1::text[]) t (name) JOIN pg_attribute a ON a.attrelid = t.name::regclass \
             WHERE a.attnum > 0 AND NOT a.attisdropped",
        )
        .bind(names)
        .fetch_all(conn)
        .await
        .map_err(classify)?;
        let columns = columns.into_iter().map(|(table, name, is)| ((table, name), is)).collect();
        let [holds, usage, ledger, events] = tables.map(|table| Insert::new(table, &columns));
        Ok(Self { holds: holds?, usage: usage?, ledger: ledger?, events: events? })
    }
}

impl Insert {
    fn new(
        table: &'static Table,
        columns: &HashMap<(String, String), String>,
    ) -> Result<Self, StoreError> {
        let type_of = |column: &&str| {
            let known = columns.get(&(table.name.to_owned(), (*column).to_owned()));
            known.and_then(|name| Type::named(name)).ok_or_else(|| {
                let what = known.map_or("missing", String::as_str);
                let what = format!("the column {column} of {} is {what}", table.name);
                StoreError::Unavailable(sqlx::Error::Protocol(what))
            })
        };
        let types = table.columns.iter().map(type_of).collect::<Result<_, _>>()?;
        let value = |name: &&'static str| if *name == LEASED.0 { LEASED.1 } else { *name };
        // What the columns get, by what is in the rows.
        let values: Vec<&str> = table.columns.iter().map(value).collect();
        let (name, columns, values) = (table.name, table.columns.join(", "), values.join(", "));
        Ok(Self {
            table,
            types,
            before: format!("INSERT INTO {name} ({columns}) SELECT {values} FROM unnest("),
            after: format!(") r ({columns})"),
        })
    }

    /// The statement, with its parameters from the number `first` on.
    pub fn text(&self, first: usize) -> String {
        let arrays = self.types.iter().zip(first..);
        let arrays = arrays.map(|(kind, number)| format!("${number}::{}[]", kind.name()));
        let arrays = arrays.collect::<Vec<_>>().join(", ");
        format!("{}{arrays}{}", self.before, self.after)
    }

    /// Its parameters.
    ///
    /// # Errors
    /// When a row is not what the columns hold.
    pub fn arrays<T: Serialize>(&self, rows: &[&T]) -> Result<Vec<Array>, StoreError> {
        let mut arrays: Vec<Array> =
            self.types.iter().map(|kind| Array::new(*kind, rows.len())).collect();
        let mut values = Vec::with_capacity(arrays.len());
        for row in rows {
            encode::row(row, self.table.columns, 0, &mut values)?;
            for (array, value) in arrays.iter_mut().zip(values.drain(..)) {
                array.push(value)?;
            }
        }
        Ok(arrays)
    }
}

impl Type {
    /// By what `format_type` calls it.
    fn named(name: &str) -> Option<Self> {
        match name {
            "uuid" => Some(Self::Uuid),
            "bigint" => Some(Self::Integer),
            "boolean" => Some(Self::Flag),
            "timestamp with time zone" => Some(Self::Time),
            "text" => Some(Self::Text),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Integer => "bigint",
            Self::Flag => "boolean",
            Self::Time => "timestamptz",
            Self::Text => "text",
        }
    }
}

impl Array {
    fn new(kind: Type, rows: usize) -> Self {
        match kind {
            Type::Uuid => Self::Uuids(Vec::with_capacity(rows)),
            Type::Integer => Self::Integers(Vec::with_capacity(rows)),
            Type::Flag => Self::Flags(Vec::with_capacity(rows)),
            Type::Time => Self::Times(Vec::with_capacity(rows)),
            Type::Text => Self::Texts(Vec::with_capacity(rows)),
        }
    }

    fn push(&mut self, value: Value) -> Result<(), StoreError> {
        match (self, value) {
            (Self::Uuids(of), Value::Null) => of.push(None),
            (Self::Integers(of), Value::Null) => of.push(None),
            (Self::Flags(of), Value::Null) => of.push(None),
            (Self::Times(of), Value::Null) => of.push(None),
            (Self::Texts(of), Value::Null) => of.push(None),
            (Self::Uuids(of), Value::Text(text)) => {
                of.push(Some(Uuid::parse_str(&text).map_err(serde_json::Error::custom)?));
            }
            (Self::Integers(of), Value::Integer(number)) => of.push(Some(number)),
            (Self::Flags(of), Value::Integer(flag @ (0 | 1))) => of.push(Some(flag == 1)),
            (Self::Times(of), Value::Text(text)) => {
                let at = Timestamp::parse(&text);
                let at = at.ok_or_else(|| serde_json::Error::custom("a time that is none"))?;
                of.push(Some(at.datetime()));
            }
            (Self::Texts(of), Value::Text(text)) => of.push(Some(text)),
            (_, value) => {
                let what = format!("{value:?} is not of its column's type");
                return Err(serde_json::Error::custom(what).into());
            }
        }
        Ok(())
    }

    pub fn bind(self, to: Query<'_, Postgres, PgArguments>) -> Query<'_, Postgres, PgArguments> {
        match self {
            Self::Uuids(of) => to.bind(of),
            Self::Integers(of) => to.bind(of),
            Self::Flags(of) => to.bind(of),
            Self::Times(of) => to.bind(of),
            Self::Texts(of) => to.bind(of),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LEASES: Table = Table {
        name: "leases",
        columns: &["id", "amount", "streamed", "lease_expires_at", "model"],
    };

    fn leases(last: &str) -> Result<Insert, StoreError> {
        let types = ["uuid", "bigint", "boolean", "timestamp with time zone", last];
        let columns = LEASES.columns.iter().zip(types);
        let columns = columns
            .map(|(column, is)| ((LEASES.name.to_owned(), (*column).to_owned()), is.to_owned()));
        Insert::new(&LEASES, &columns.collect())
    }

    #[test]
    fn parameters_are_numbered_on_and_have_the_columns_types() {
        assert_eq!(
            leases("text").unwrap().text(3),
            "INSERT INTO leases (id, amount, streamed, lease_expires_at, model) \
             SELECT id, amount, streamed, \
             clock_timestamp() + (lease_expires_at - placed_at), model \
             FROM unnest($3::uuid[], $4::bigint[], $5::boolean[], $6::timestamptz[], $7::text[]) \
             r (id, amount, streamed, lease_expires_at, model)"
        );
    }

    #[test]
    fn a_column_that_is_none_of_ours_is_named() {
        let Err(error) = leases("jsonb") else { panic!("it was taken") };
        assert!(error.to_string().contains("the column model of leases is jsonb"), "{error}");
        assert!(error.is_transient(), "it may be mended while the operation waits");
        let Err(error) = Insert::new(&LEASES, &HashMap::new()) else { panic!("it was taken") };
        assert!(error.to_string().contains("the column id of leases is missing"), "{error}");
    }

    #[test]
    fn what_is_not_of_its_columns_type_is_refused() {
        let insert = leases("text").unwrap();
        let good = json!({
            "id": "00000000-0000-7000-8000-000000000001", "amount": 7, "streamed": true,
            "lease_expires_at": "2026-01-01T00:00:00Z", "model": "m",
        });
        let mut none = good.clone();
        none["amount"] = json!(null);
        assert_eq!(insert.arrays(&[&good, &none]).unwrap().len(), LEASES.columns.len());
        for (column, wrong) in [
            ("id", json!(null)),
            ("id", json!("1")),
            ("amount", json!("7")),
            ("amount", json!(0.5)),
            ("streamed", json!(2)),
            ("lease_expires_at", json!("tomorrow")),
            ("model", json!(7)),
        ] {
            let mut row = good.clone();
            row[column] = wrong.clone();
            assert!(insert.arrays(&[&good, &row]).is_err(), "{column}: {wrong}");
        }
    }
}
