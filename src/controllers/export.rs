//! `GET /v1/usage.csv`: the account's usage records as they are, for a spreadsheet.
//!
//! Invariants: one page of records is in memory, however many there are; an answer that cannot be
//! finished breaks off, and never ends as if it were whole; no cell is a formula. What the operator
//! pays, to whom and by which price is not in it.
//! RFC 4180: <https://www.rfc-editor.org/rfc/rfc4180>

use crate::controllers::parameters::{Parameters, invalid};
use crate::error::Error;
use crate::models::ids::{AccountId, ApiKeyId, RequestId, UserId};
use crate::models::report::{Span, UsageLine};
use crate::models::timestamp::Timestamp;
use crate::services::auth::Principal;
use crate::state::App;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use csv::{Terminator, WriterBuilder};
use futures::stream;
use serde::{Serialize, Serializer};
use std::sync::Arc;
use std::time::Duration;

/// Longest time that one file is about: a year, and a day for time zones.
const SPAN_MAX: Duration = Duration::from_secs(367 * 86_400);

/// The records of a span, oldest first.
///
/// # Errors
/// [`Error::Invalid`], and those of the reports for the first page. Later ones break the answer
/// off.
pub async fn usage(
    State(app): State<Arc<App>>,
    principal: Principal,
    parameters: Parameters,
) -> Result<Response, Error> {
    let span = span(&parameters)?;
    let account = principal.account_id;
    let first = app.reports.lines(account, span, None).await?;
    let export = Export { app, account, span, then: Then::Write(first), has_header: false };
    let headers = [
        (CONTENT_TYPE, "text/csv; charset=utf-8; header=present"),
        (CONTENT_DISPOSITION, "attachment; filename=\"usage.csv\""),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(stream::try_unfold(export, next))).into_response())
}

fn span(parameters: &Parameters) -> Result<Span, Error> {
    parameters.only(&["start_time", "end_time"])?;
    let from = parameters
        .seconds("start_time")?
        .ok_or_else(|| invalid("start_time", "Missing required parameter: 'start_time'."))?;
    let end = parameters.seconds("end_time")?;
    let until = end.unwrap_or_else(Timestamp::now);
    if from >= until {
        let param = if end.is_some() { "end_time" } else { "start_time" };
        return Err(invalid(param, "'end_time' must be after 'start_time'."));
    }
    if until.since(from) > SPAN_MAX {
        return Err(invalid("end_time", "'end_time' must be within 367 days of 'start_time'."));
    }
    Ok(Span { from, until })
}

/// An export on its way.
struct Export {
    app: Arc<App>,
    account: AccountId,
    span: Span,
    then: Then,
    has_header: bool,
}

/// What is to be done next.
enum Then {
    Write(Vec<UsageLine>),
    FetchAfter(RequestId),
    End,
}

/// The next page as text; `None` after the last.
async fn next(mut export: Export) -> Result<Option<(Bytes, Export)>, Error> {
    let page = match std::mem::replace(&mut export.then, Then::End) {
        Then::Write(page) => page,
        Then::FetchAfter(id) => export.fetch(id).await?,
        Then::End => return Ok(None),
    };
    if page.is_empty() && export.has_header {
        return Ok(None);
    }
    if let Some(last) = page.last() {
        export.then = Then::FetchAfter(last.id);
    }
    let text = text(&page, !export.has_header)?;
    export.has_header = true;
    Ok(Some((text, export)))
}

impl Export {
    async fn fetch(&self, after: RequestId) -> Result<Vec<UsageLine>, Error> {
        if self.app.stop.is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        let page = self.app.reports.lines(self.account, self.span, Some(after)).await;
        page.inspect_err(|error| tracing::warn!("an export breaks off: {error}"))
    }
}

fn text(page: &[UsageLine], has_header: bool) -> Result<Bytes, Error> {
    let failed = |error: String| Error::Internal(format!("writing CSV: {error}"));
    let mut writer = WriterBuilder::new()
        .terminator(Terminator::CRLF)
        .has_headers(false)
        .from_writer(Vec::new());
    if has_header {
        writer.write_record(HEADER).map_err(|error| failed(error.to_string()))?;
    }
    for line in page {
        writer.serialize(Row::of(line)).map_err(|error| failed(error.to_string()))?;
    }
    let text = writer.into_inner().map_err(|error| failed(error.to_string()))?;
    Ok(text.into())
}

const HEADER: [&str; 23] = [
    "request_id",
    "started_at",
    "ended_at",
    "api_key_id",
    "api_key_name",
    "user_id",
    "model",
    "model_served",
    "streamed",
    "ending",
    "finish_reason",
    "source",
    "prompt_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "audio_prompt_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "audio_completion_tokens",
    "image_completion_tokens",
    "web_searches",
    "charge_usd",
    "corrected_at",
];

/// One line; the members are the columns of `HEADER`, in its order.
#[derive(Serialize)]
struct Row<'a> {
    request_id: RequestId,
    started_at: Timestamp,
    ended_at: Timestamp,
    api_key_id: Option<ApiKeyId>,
    api_key_name: Option<Text<'a>>,
    user_id: Option<UserId>,
    model: Text<'a>,
    model_served: Option<Text<'a>>,
    streamed: bool,
    ending: Text<'a>,
    finish_reason: Option<Text<'a>>,
    source: Text<'a>,
    prompt_tokens: i64,
    cached_tokens: i64,
    cache_write_tokens: i64,
    audio_prompt_tokens: i64,
    completion_tokens: i64,
    reasoning_tokens: i64,
    audio_completion_tokens: i64,
    image_completion_tokens: i64,
    web_searches: i64,
    charge_usd: String,
    corrected_at: Option<Timestamp>,
}

impl<'a> Row<'a> {
    fn of(line: &'a UsageLine) -> Self {
        let text = |text: &'a Option<String>| text.as_deref().map(Text);
        Self {
            request_id: line.id,
            started_at: line.started_at,
            ended_at: line.ended_at,
            api_key_id: line.api_key_id,
            api_key_name: text(&line.api_key_name),
            user_id: line.user_id,
            model: Text(&line.model),
            model_served: text(&line.model_served),
            streamed: line.streamed,
            ending: Text(&line.ending),
            finish_reason: text(&line.finish_reason),
            source: Text(&line.source),
            prompt_tokens: line.prompt_tokens.0,
            cached_tokens: line.cached_tokens.0,
            cache_write_tokens: line.cache_write_tokens.0,
            audio_prompt_tokens: line.audio_prompt_tokens.0,
            completion_tokens: line.completion_tokens.0,
            reasoning_tokens: line.reasoning_tokens.0,
            audio_completion_tokens: line.audio_completion_tokens.0,
            image_completion_tokens: line.image_completion_tokens.0,
            web_searches: line.web_searches,
            charge_usd: line.charge_nusd.to_string(),
            corrected_at: line.corrected_at,
        }
    }
}

/// A text that somebody chose. A spreadsheet takes a cell for a formula that begins with one of
/// these; an apostrophe in front makes it a text.
/// <https://owasp.org/www-community/attacks/CSV_Injection>
struct Text<'a>(&'a str);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) {
            serializer.collect_str(&format_args!("'{}", self.0))
        } else {
            serializer.serialize_str(self.0)
        }
    }
}
