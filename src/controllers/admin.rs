//! `/admin/v1`: what whoever runs this service does over HTTP. For admins and service keys.
//!
//! Invariant: every handler takes an [`Operator`](super::extract::Operator), and every change names
//! it in the audit log. Lists are pages: `after` is the id of the last row seen.

pub mod accounts;
pub mod credits;
pub mod events;
pub mod exports;
pub mod keys;
pub mod members;
pub mod overview;
pub mod prices;
pub mod records;

use crate::controllers::parameters::{Parameters, not_among};
use crate::error::Error;
use crate::models::billing::DeliveryState;
use crate::services::directory::shown;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use std::str::FromStr;

/// What a list is asked for.
#[derive(Debug)]
pub struct Page {
    /// The id of the last row seen.
    after: Option<String>,
    limit: usize,
}

/// What a page is asked for with.
const PARAMETERS: [&str; 2] = ["after", "limit"];

const LIMIT_USUAL: usize = 20;
const LIMIT_MAX: usize = 100;

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let parameters = Parameters::from_request_parts(parts, state).await?;
        parameters.only(&PARAMETERS)?;
        Self::read(&parameters)
    }
}

impl Page {
    fn read(parameters: &Parameters) -> Result<Self, Error> {
        Ok(Self {
            after: parameters.one("after")?.map(str::to_owned),
            limit: parameters.number("limit", LIMIT_USUAL, LIMIT_MAX)?,
        })
    }

    pub(super) fn after<T: FromStr>(&self) -> Result<Option<T>, Error> {
        let after = self.after.as_deref();
        after.map(|text| text.parse().map_err(|_| unreadable("after"))).transpose()
    }

    /// The answer from rows that are at least one more than asked for, where there are.
    fn of<T: Serialize>(&self, rows: &[T], id: impl Fn(&T) -> String) -> Response {
        self.told(rows, shown, id)
    }

    pub(super) fn told<T>(
        &self,
        rows: &[T],
        tell: impl Fn(&T) -> Value,
        id: impl Fn(&T) -> String,
    ) -> Response {
        let page = &rows[..rows.len().min(self.limit)];
        let data: Vec<Value> = page.iter().map(tell).collect();
        Json(json!({
            "object": "list",
            "data": data,
            "first_id": page.first().map(&id),
            "last_id": page.last().map(&id),
            "has_more": rows.len() > self.limit,
        }))
        .into_response()
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

/// One of these states, where one is asked for.
fn state(
    parameters: &Parameters,
    supported: &[DeliveryState],
) -> Result<Option<DeliveryState>, Error> {
    let Some(name) = parameters.one("state")? else { return Ok(None) };
    if let Some(state) = supported.iter().find(|state| state.to_string() == name) {
        return Ok(Some(*state));
    }
    let names: Vec<String> = supported.iter().map(DeliveryState::to_string).collect();
    Err(not_among("state", &names.iter().map(String::as_str).collect::<Vec<_>>()))
}

fn unreadable(param: &'static str) -> Error {
    Error::invalid(param, "it does not read as what it should be")
}
