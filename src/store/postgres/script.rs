//! Changes of several tables as one statement: a round trip for all of them instead of one each.
//!
//! Invariant: no part sees what another one changes, so no two parts may be about the same row.

use super::arrays::{Array, Insert};
use super::rows::classify;
use crate::store::StoreError;
use serde::Serialize;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres};
use uuid::Uuid;

/// The parts and their parameters.
#[derive(Default)]
pub struct Script {
    parts: Vec<String>,
    parameters: Vec<Parameter>,
}

enum Parameter {
    /// A JSON array.
    Rows(String),
    Ids(Vec<Uuid>),
    /// One of an [`Insert`]'s.
    Array(Array),
}

impl Script {
    /// Adds a statement for these rows as its `$1`, if there are any.
    ///
    /// # Errors
    /// When a row is not JSON.
    pub fn rows<'a, T: Serialize + 'a>(
        &mut self,
        statement: &str,
        rows: impl Iterator<Item = &'a T>,
    ) -> Result<(), StoreError> {
        let rows: Vec<&T> = rows.collect();
        if !rows.is_empty() {
            self.add(statement, Parameter::Rows(serde_json::to_string(&rows)?));
        }
        Ok(())
    }

    /// Adds an insert of these rows, if there are any.
    ///
    /// # Errors
    /// When a row is not what the columns hold.
    pub fn insert<'a, T: Serialize + 'a>(
        &mut self,
        insert: &Insert,
        rows: impl Iterator<Item = &'a T>,
    ) -> Result<(), StoreError> {
        let rows: Vec<&T> = rows.collect();
        if !rows.is_empty() {
            self.part(&insert.text(self.parameters.len() + 1));
            self.parameters.extend(insert.arrays(&rows)?.into_iter().map(Parameter::Array));
        }
        Ok(())
    }

    /// Adds a statement for these ids as its `$1`, if there are any.
    pub fn ids(&mut self, statement: &str, ids: Vec<Uuid>) {
        if !ids.is_empty() {
            self.add(statement, Parameter::Ids(ids));
        }
    }

    fn add(&mut self, statement: &str, parameter: Parameter) {
        self.parameters.push(parameter);
        self.part(&statement.replace("$1", &format!("${}", self.parameters.len())));
    }

    fn part(&mut self, statement: &str) {
        self.parts.push(format!("part{} AS ({statement})", self.parts.len()));
    }

    /// There are few sets of tables that change together: each text stays prepared.
    ///
    /// # Errors
    /// The database's.
    pub async fn run(self, conn: &mut PgConnection) -> Result<(), StoreError> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let text = format!("WITH {} SELECT", self.parts.join(", "));
        let statement: Query<'_, Postgres, _> = sqlx::query(AssertSqlSafe(text));
        let bound =
            self.parameters.into_iter().fold(statement, |statement, parameter| match parameter {
                Parameter::Rows(rows) => statement.bind(rows),
                Parameter::Ids(ids) => statement.bind(ids),
                Parameter::Array(array) => array.bind(statement),
            });
        bound.execute(conn).await.map_err(classify)?;
        Ok(())
    }
}
