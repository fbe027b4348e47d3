//! The parameters of a query, checked one by one.
//!
//! Invariant: a parameter that is unknown, given twice or out of its bounds is a 400 that names it:
//! a typing error in a filter must not show the figures of everything.

use crate::error::Error;
use crate::models::openai::request::Invalid;
use crate::models::timestamp::Timestamp;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;

pub struct Parameters(Vec<(String, String)>);

/// Values of one filter.
const VALUES_MAX: usize = 100;
/// The last second of the year 9999: later ones have no text of fixed width.
const SECONDS_MAX: i64 = 253_402_300_799;
/// Of an unknown name, shown to its sender.
const NAME_CHARS_SHOWN: usize = 64;

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let query: Result<Query<Vec<(String, String)>>, QueryRejection> =
            Query::from_request_parts(parts, state).await;
        let unreadable =
            |_| Invalid { message: "The query of the URL cannot be read.".to_owned(), param: None };
        let Query(pairs) = query.map_err(unreadable)?;
        Ok(Self(pairs))
    }
}

impl Parameters {
    /// Refuses what is not among `names`.
    pub fn only(&self, names: &[&str]) -> Result<(), Error> {
        let unknown = self.0.iter().find(|(name, _)| !names.contains(&bare(name)));
        let Some((name, _)) = unknown else { return Ok(()) };
        let name: String = name.chars().take(NAME_CHARS_SHOWN).collect();
        let message = format!("Unknown parameter: '{name}'.");
        Err(Invalid { message, param: None }.into())
    }

    /// The value of a parameter that is given once or not at all, also where it is written as a
    /// list.
    pub fn one(&self, name: &'static str) -> Result<Option<&str>, Error> {
        let mut values = self.0.iter().filter(|(key, _)| bare(key) == name);
        let value = values.next().map(|(_, value)| value.as_str());
        match values.next() {
            None => Ok(value),
            Some(_) => Err(invalid(name, &format!("'{name}' is given twice."))),
        }
    }

    /// The values of a list, written as `name=a&name=b` or, as OpenAI's SDKs do, `name[]=a`.
    pub fn many(&self, name: &'static str) -> Result<Option<Vec<String>>, Error> {
        let values = self.0.iter().filter(|(key, _)| bare(key) == name);
        let values: Vec<String> = values.map(|(_, value)| value.clone()).collect();
        match values.len() {
            0 => Ok(None),
            1..=VALUES_MAX => Ok(Some(values)),
            _ => Err(invalid(name, &format!("'{name}' has more than {VALUES_MAX} values."))),
        }
    }

    /// A time in seconds since 1970.
    pub fn seconds(&self, name: &'static str) -> Result<Option<Timestamp>, Error> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        match whole(text) {
            Some(seconds @ 0..=SECONDS_MAX) => Ok(Some(Timestamp::from_unix_seconds(seconds))),
            _ => Err(invalid(name, &format!("'{name}' must be seconds since 1970, in digits."))),
        }
    }

    /// A whole number from 1 to `max`.
    pub fn number(&self, name: &'static str, default: usize, max: usize) -> Result<usize, Error> {
        let Some(text) = self.one(name)? else { return Ok(default) };
        let number = whole(text).and_then(|number| usize::try_from(number).ok());
        number.filter(|number| (1..=max).contains(number)).ok_or_else(|| {
            invalid(name, &format!("'{name}' must be a whole number from 1 to {max}."))
        })
    }

    pub fn flag(&self, name: &'static str) -> Result<Option<bool>, Error> {
        match self.one(name)? {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(invalid(name, &format!("'{name}' must be true or false."))),
        }
    }
}

/// A 400 about one parameter.
pub fn invalid(param: &'static str, message: &str) -> Error {
    Invalid { message: message.to_owned(), param: Some(param.into()) }.into()
}

/// A 400 about the value of one parameter that has a fixed set of them.
pub fn not_among(param: &'static str, supported: &[&str]) -> Error {
    let supported = supported.join("', '");
    invalid(param, &format!("Invalid value of '{param}'. Supported values are: '{supported}'."))
}

fn bare(name: &str) -> &str {
    name.strip_suffix("[]").unwrap_or(name)
}

/// Digits only: a sign or a space is a typing error here.
fn whole(text: &str) -> Option<i64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}
