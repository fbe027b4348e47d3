//! What handlers ask for: the request's id, who calls, and the body.
//!
//! Invariant: a handler that takes a [`Principal`] is only reached with a valid key or token, and a
//! [`JsonBody`] is whole, within its bound, and said to be JSON.

use crate::controllers::client;
use crate::error::Error;
use crate::models::ids::RequestId;
use crate::models::openai::request::Invalid;
use crate::services::auth::Principal;
use crate::services::bodies::Room;
use crate::services::trace::RequestTrace;
use crate::state::App;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// The request's trace, where anybody collects them.
pub struct Traced(pub Option<RequestTrace>);

/// A request body.
pub struct JsonBody(pub Bytes);

/// A body as it came, of whatever type it says it is.
pub struct RawBody(pub Bytes);

/// Who decides over the account, its keys and how it pays: its members, and whoever runs this
/// service.
pub struct Owner(pub Principal);

/// A body of this form.
pub struct Form<T>(pub T);

/// A caller who runs this service.
pub struct Operator(pub Principal);

/// The client's name for this request, under which it will not be billed twice.
pub struct IdempotencyKey(pub Option<String>);

/// As Stripe has it.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// A body that takes longer to arrive is given up.
const BODY_WAIT: Duration = Duration::from_secs(60);

/// The largest form is a price table of 1 MiB, with room for what is escaped in it.
const FORM_BYTES_MAX: usize = 4 << 20;
/// The largest event of Stripe seen is below 200 KB; none is worth more memory than this.
const RAW_BYTES_MAX: usize = 1 << 20;
/// Within the time that such a request has in all.
const FORM_WAIT: Duration = Duration::from_secs(10);

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let missing = || Error::Internal("a request without an id".to_owned());
        parts.extensions.get::<Self>().copied().ok_or_else(missing)
    }
}

impl<S: Sync> FromRequestParts<S> for Traced {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        Ok(Self(parts.extensions.get().cloned()))
    }
}

impl FromRequestParts<Arc<App>> for Principal {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Error> {
        let trusted = &app.config.identity.trusted_proxies;
        let from = client::address(&parts.extensions, &parts.headers, trusted);
        let principal = app.auth.principal(bearer(&parts.headers)?, from).await?;
        // Whose body it is that is read next.
        parts.extensions.insert(principal.account_id);
        Ok(principal)
    }
}

impl FromRequestParts<Arc<App>> for Operator {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Error> {
        let principal = Principal::from_request_parts(parts, app).await?;
        if principal.is_operator() { Ok(Self(principal)) } else { Err(Error::Forbidden) }
    }
}

impl FromRequestParts<Arc<App>> for Owner {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Error> {
        let principal = Principal::from_request_parts(parts, app).await?;
        if principal.is_owner() { Ok(Self(principal)) } else { Err(Error::Forbidden) }
    }
}

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Form<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Error> {
        let max = app.config.server.body_bytes_max.min(FORM_BYTES_MAX);
        let body = read_body(request, max, FORM_WAIT).await?;
        // serde would take an array for an object, its elements for members by their place.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(invalid("The body must be a JSON object.".to_owned()));
        }
        let mut reader = serde_json::Deserializer::from_slice(&body);
        let form = serde_path_to_error::deserialize(&mut reader).map_err(misfit)?;
        reader.end().map_err(|error| invalid(format!("The body does not fit: {error}.")))?;
        Ok(Self(form))
    }
}

/// Names the member at fault.
fn misfit(error: serde_path_to_error::Error<serde_json::Error>) -> Error {
    let member = error.path().to_string();
    let fault = error.into_inner();
    if member == "." {
        // The fault itself names a member that is missing.
        return invalid(format!("The body does not fit: {fault}."));
    }
    let message = format!("Invalid '{member}': {fault}.");
    Error::Invalid(Invalid { message, param: Some(member.into()) })
}

fn invalid(message: String) -> Error {
    Error::Invalid(Invalid { message, param: None })
}

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let mut values = parts.headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        // Whoever sends two means one of them, and we cannot know which.
        if values.next().is_some() {
            return Err(invalid("Idempotency-Key must be given once.".to_owned()));
        }
        match value.to_str() {
            Ok(key) if !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_BYTES_MAX => {
                Ok(Self(Some(key.to_owned())))
            }
            _ => Err(invalid("Idempotency-Key must be 1 to 255 printable characters.".to_owned())),
        }
    }
}

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Error> {
        check_type(request.headers())?;
        // The principal was extracted first: it leaves the account here.
        let account = request.extensions().get().copied().ok_or(Error::MissingKey)?;
        let (max, room) = (app.config.server.body_bytes_max, app.bodies.room(account));
        collect_large(request, max, room).await.map(Self)
    }
}

impl<S: Sync> FromRequest<S> for RawBody {
    type Rejection = Error;

    async fn from_request(request: Request, _: &S) -> Result<Self, Error> {
        collect(request, RAW_BYTES_MAX, FORM_WAIT).await.map(Self)
    }
}

async fn read_body(request: Request, max: usize, wait: Duration) -> Result<Bytes, Error> {
    check_type(request.headers())?;
    collect(request, max, wait).await
}

async fn collect(request: Request, max: usize, wait: Duration) -> Result<Bytes, Error> {
    check_length(request.headers(), max)?;
    let body = Limited::new(request.into_body(), max).collect();
    match tokio::time::timeout(wait, body).await.map_err(|_| Error::BodyIncomplete)? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(unread(error.as_ref(), max)),
    }
}

/// As [`collect`], for as long as there is room.
async fn collect_large(request: Request, max: usize, mut room: Room) -> Result<Bytes, Error> {
    check_length(request.headers(), max)?;
    let mut body = Limited::new(request.into_body(), max);
    let read = async {
        // The only frame as it is, or all of them in one piece: each keeps what it was read into.
        let (mut first, mut whole) = (Bytes::new(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| unread(error.as_ref(), max))?;
            if let Ok(data) = frame.into_data() {
                room.take(data.len())?;
                if first.is_empty() && whole.is_empty() {
                    first = data;
                } else {
                    whole.extend_from_slice(&std::mem::take(&mut first));
                    whole.extend_from_slice(&data);
                }
            }
        }
        Ok(if whole.is_empty() { first } else { whole.freeze() })
    };
    tokio::time::timeout(BODY_WAIT, read).await.unwrap_or(Err(Error::BodyIncomplete))
}

fn unread(error: &(dyn std::error::Error + Send + Sync + 'static), max: usize) -> Error {
    if error.is::<LengthLimitError>() { Error::BodyTooLarge { max } } else { Error::BodyIncomplete }
}

fn check_type(headers: &HeaderMap) -> Result<(), Error> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    let is_json = media_type.trim().eq_ignore_ascii_case("application/json");
    if is_json { Ok(()) } else { Err(Error::NotJson) }
}

fn check_length(headers: &HeaderMap, max: usize) -> Result<(), Error> {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let length = length.and_then(|value| value.parse::<usize>().ok());
    if length.is_some_and(|length| length > max) {
        Err(Error::BodyTooLarge { max })
    } else {
        Ok(())
    }
}

/// The one bearer token of the request.
fn bearer(headers: &HeaderMap) -> Result<&str, Error> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Error::MissingKey)?;
    if values.next().is_some() {
        return Err(Error::WrongKey);
    }
    let text = value.to_str().map_err(|_| Error::WrongKey)?;
    let (scheme, token) = text.split_once(' ').ok_or(Error::WrongKey)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        Ok(token)
    } else {
        Err(Error::WrongKey)
    }
}
