//! `POST /webhooks/stripe`: what Stripe says.
//!
//! Invariants: the bytes are verified as they came, before they are read; a 2xx says that what
//! follows from the event is committed, anything else that Stripe should send it again.

use crate::controllers::extract::RawBody;
use crate::error::Error;
use crate::models::timestamp::Timestamp;
use crate::services::billing::payments::Change;
use crate::state::App;
use axum::Json;
use axum::extract::{FromRequest, Request, State};
use serde_json::{Value, json};
use std::sync::Arc;

const SIGNATURE: &str = "stripe-signature";

pub async fn stripe(State(app): State<Arc<App>>, request: Request) -> Result<Json<Value>, Error> {
    app.payments.check_on()?;
    let header = signature(&request)?;
    let RawBody(body) = RawBody::from_request(request, &()).await?;
    if app.payments.take(&header, &body, Timestamp::now()).await? == Change::Some {
        app.changed().await;
    }
    Ok(Json(json!({ "received": true })))
}

/// The one signature; without it the body is not waited for.
fn signature(request: &Request) -> Result<String, Error> {
    let mut values = request.headers().get_all(SIGNATURE).iter();
    let value = values.next().ok_or(Error::WrongSignature("there is none"))?;
    if values.next().is_some() {
        return Err(Error::WrongSignature("there are several headers"));
    }
    let text = value.to_str().map_err(|_| Error::WrongSignature("the header is not plain text"))?;
    Ok(text.to_owned())
}
