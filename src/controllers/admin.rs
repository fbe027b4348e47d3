//! `/admin/v1`: what whoever runs this service does over HTTP. For admins and service keys.
//!
//! Invariant: every handler takes an [`Operator`](super::extract::Operator), and every change names
//! it in the audit log. Lists are pages: `after` is the id of the last row seen.

pub mod accounts;
pub mod credits;
pub mod events;
pub mod keys;
pub mod members;
pub mod overview;
pub mod prices;
pub mod records;

use crate::error::Error;
use crate::services::directory::shown;
use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::str::FromStr;

/// What a list is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// The id of the last row seen.
    #[serde(default)]
    after: Option<String>,
    #[serde(default)]
    limit: Option<usize>,
}

const LIMIT_USUAL: usize = 20;
const LIMIT_MAX: usize = 100;

impl Page {
    pub(super) fn after<T: FromStr>(&self) -> Result<Option<T>, Error> {
        let after = self.after.as_deref();
        after.map(|text| text.parse().map_err(|_| unreadable("after"))).transpose()
    }

    fn limit(&self) -> Result<usize, Error> {
        match self.limit.unwrap_or(LIMIT_USUAL) {
            limit if (1..=LIMIT_MAX).contains(&limit) => Ok(limit),
            _ => Err(Error::invalid("limit", "must be from 1 to 100")),
        }
    }

    /// The answer from rows that are at least one more than asked for, where there are.
    fn of<T: Serialize>(&self, rows: &[T], id: impl Fn(&T) -> String) -> Result<Response, Error> {
        self.told(rows, shown, id)
    }

    pub(super) fn told<T>(
        &self,
        rows: &[T],
        tell: impl Fn(&T) -> Value,
        id: impl Fn(&T) -> String,
    ) -> Result<Response, Error> {
        let limit = self.limit()?;
        let page = &rows[..rows.len().min(limit)];
        let data: Vec<Value> = page.iter().map(tell).collect();
        Ok(Json(json!({
            "object": "list",
            "data": data,
            "first_id": page.first().map(&id),
            "last_id": page.last().map(&id),
            "has_more": rows.len() > limit,
        }))
        .into_response())
    }
}

/// An id in the path; what is none is nobody's.
pub(super) fn id<T: FromStr>(
    path: Result<Path<String>, PathRejection>,
    what: &'static str,
) -> Result<T, Error> {
    let text = path.map_err(|_| Error::NotFound(what))?;
    text.parse().map_err(|_| Error::NotFound(what))
}

/// Members that are JSON in a row, as what they say.
fn unfolded(mut row: Value, members: &[&str]) -> Value {
    for member in members {
        let said = row[*member].as_str().and_then(|text| serde_json::from_str(text).ok());
        if let Some(said) = said {
            row[*member] = said;
        }
    }
    row
}

fn unreadable(param: &'static str) -> Error {
    Error::invalid(param, "it does not read as what it should be")
}
