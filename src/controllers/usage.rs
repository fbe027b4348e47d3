//! `GET /v1/organization/usage/completions` and `GET /v1/organization/costs`, as OpenAI has them,
//! over the caller's account.
//!
//! Invariant: the first bucket begins at `start_time` and the last one ends at `end_time`; pages
//! follow one another without a gap. What Tollgate does not tell apart (projects, service
//! tiers, batches) is null, and a filter on it finds nothing.
//! <https://platform.openai.com/docs/api-reference/usage>

use crate::controllers::parameters::{Parameters, invalid, not_among};
use crate::error::Error;
use crate::models::money::{Tokens, Usd};
use crate::models::openai::usage::{Amount, Bucket, CompletionsResult, CostsResult, Page};
use crate::models::report::{Cost, CostItem, Question, Span, UsageSum, Width};
use crate::models::timestamp::Timestamp;
use crate::services::auth::Principal;
use crate::services::reports::Items;
use crate::state::App;
use axum::Json;
use axum::extract::State;
use std::str::FromStr;
use std::sync::Arc;

/// The line item of corrections that an operator entered by hand.
const ADJUSTMENT: &str = "ledger correction";
/// A cursor is this, the beginning of the next page and the end of the last, in seconds.
const CURSOR: &str = "page";

/// What `completions` understands.
const COMPLETIONS: &[&str] = &[
    "start_time",
    "end_time",
    "bucket_width",
    "limit",
    "page",
    "group_by",
    "models",
    "api_key_ids",
    "user_ids",
    "project_ids",
    "batch",
];
const COMPLETIONS_GROUPS: &[&str] =
    &["model", "api_key_id", "project_id", "user_id", "batch", "service_tier", "api_source"];

/// What `costs` understands.
const COSTS: &[&str] = &[
    "start_time",
    "end_time",
    "bucket_width",
    "limit",
    "page",
    "group_by",
    "line_items",
    "api_key_ids",
    "user_ids",
    "project_ids",
];
const COSTS_GROUPS: &[&str] = &["line_item", "api_key_id", "project_id", "user_id", "api_source"];

/// What was used, in buckets.
///
/// # Errors
/// [`Error::Invalid`], and those of the reports.
pub async fn completions(
    State(app): State<Arc<App>>,
    principal: Principal,
    parameters: Parameters,
) -> Result<Json<Page<CompletionsResult>>, Error> {
    parameters.only(COMPLETIONS)?;
    let window = completions_window(&parameters)?;
    let group = Groups::read(&parameters, COMPLETIONS_GROUPS)?;
    let question = Question {
        account_id: principal.account_id,
        buckets: window.buckets.clone(),
        by_model: group.has("model"),
        by_key: group.has("api_key_id"),
        by_user: group.has("user_id"),
        models: parameters.many("models")?.map(possible),
        keys: parameters.many("api_key_ids")?.map(|ids| parsed(&ids)),
        users: parameters.many("user_ids")?.map(|ids| parsed(&ids)),
    };
    let is_batch = parameters.flag("batch")? == Some(true);
    let sums = if is_batch || is_of_projects(&parameters)? {
        Vec::new()
    } else {
        app.reports.usage(question).await?
    };
    let results = sums.into_iter().map(|sum| (sum.bucket, completions_result(sum, &group)));
    Ok(Json(window.page(results)))
}

fn completions_window(parameters: &Parameters) -> Result<Window, Error> {
    let (width, limit_default, limit_max) = match parameters.one("bucket_width")? {
        None | Some("1d") => (Width::Day, 7, 31),
        Some("1h") => (Width::Hour, 24, 168),
        Some("1m") => (Width::Minute, 60, 1_440),
        Some(_) => return Err(not_among("bucket_width", &["1m", "1h", "1d"])),
    };
    let limit = parameters.number("limit", limit_default, limit_max)?;
    Window::read(parameters, width, limit)
}

/// What was paid, in days.
///
/// # Errors
/// [`Error::Invalid`], and those of the reports.
pub async fn costs(
    State(app): State<Arc<App>>,
    principal: Principal,
    parameters: Parameters,
) -> Result<Json<Page<CostsResult>>, Error> {
    parameters.only(COSTS)?;
    if parameters.one("bucket_width")?.is_some_and(|width| width != "1d") {
        return Err(not_among("bucket_width", &["1d"]));
    }
    let limit = parameters.number("limit", 7, 180)?;
    let window = Window::read(&parameters, Width::Day, limit)?;
    let group = Groups::read(&parameters, COSTS_GROUPS)?;
    let line_items = parameters.many("line_items")?;
    let has_adjustments = |items: &Vec<String>| items.iter().any(|item| item == ADJUSTMENT);
    let items = Items { adjustments: line_items.as_ref().is_none_or(has_adjustments) };
    let question = Question {
        account_id: principal.account_id,
        buckets: window.buckets.clone(),
        by_model: group.has("line_item"),
        by_key: group.has("api_key_id"),
        by_user: group.has("user_id"),
        models: line_items.map(possible),
        keys: parameters.many("api_key_ids")?.map(|ids| parsed(&ids)),
        users: parameters.many("user_ids")?.map(|ids| parsed(&ids)),
    };
    let costs = if is_of_projects(&parameters)? {
        Vec::new()
    } else {
        app.reports.costs(question, items).await?
    };
    let results = costs.into_iter().map(|cost| (cost.bucket, costs_result(cost, &group)));
    Ok(Json(window.page(results)))
}

/// The buckets of one page, and where the next page begins.
pub(super) struct Window {
    pub(super) buckets: Vec<Span>,
    next_page: Option<String>,
}

impl Window {
    pub(super) fn read(parameters: &Parameters, width: Width, limit: usize) -> Result<Self, Error> {
        let start = parameters.seconds("start_time")?;
        let start = start
            .ok_or_else(|| invalid("start_time", "Missing required parameter: 'start_time'."))?;
        let end = parameters.seconds("end_time")?;
        // The bucket that is not over yet is shown as far as it is.
        let until = end.unwrap_or_else(|| width.next_boundary(Timestamp::now()));
        let whole = Span { from: start, until };
        let span = match parameters.one("page")? {
            None => whole,
            Some(cursor) => continued(cursor, whole, end.is_some())
                .ok_or_else(|| invalid("page", "'page' is not a cursor of this query."))?,
        };
        if span.from >= span.until {
            let param = if end.is_some() { "end_time" } else { "start_time" };
            return Err(invalid(param, "'end_time' must be after 'start_time'."));
        }
        let buckets = span.buckets(width, limit);
        let next = buckets.last().map(|last| last.until).filter(|next| *next < span.until);
        let next_page = next.map(|from| cursor(Span { from, ..span }));
        Ok(Self { buckets, next_page })
    }

    /// The page, each result in its bucket.
    pub(super) fn page<T>(self, results: impl Iterator<Item = (usize, T)>) -> Page<T> {
        let bucket = |span: &Span| Bucket {
            object: "bucket",
            start_time: span.from.unix_seconds(),
            end_time: span.until.unix_seconds(),
            results: Vec::new(),
        };
        let mut data: Vec<Bucket<T>> = self.buckets.iter().map(bucket).collect();
        for (place, result) in results {
            if let Some(bucket) = data.get_mut(place) {
                bucket.results.push(result);
            }
        }
        let has_more = self.next_page.is_some();
        Page { object: "page", data, has_more, next_page: self.next_page }
    }
}

fn cursor(rest: Span) -> String {
    format!("{CURSOR}_{}_{}", rest.from.unix_seconds(), rest.until.unix_seconds())
}

/// What a cursor says is left of the whole; `None` when it is of something else.
fn continued(cursor: &str, whole: Span, has_end: bool) -> Option<Span> {
    let (from, until) = cursor.strip_prefix(CURSOR)?.strip_prefix('_')?.split_once('_')?;
    let at = |text: &str| text.parse().ok().map(Timestamp::from_unix_seconds);
    let rest = Span { from: at(from)?, until: at(until)? };
    // Without an end of its own the whole has grown since the first page.
    let same_end = if has_end { rest.until == whole.until } else { rest.until <= whole.until };
    (same_end && whole.from < rest.from && rest.from < rest.until).then_some(rest)
}

/// The members that results are told apart by.
struct Groups(Vec<String>);

impl Groups {
    fn read(parameters: &Parameters, supported: &[&str]) -> Result<Self, Error> {
        let groups = parameters.many("group_by")?.unwrap_or_default();
        if groups.iter().all(|group| supported.contains(&group.as_str())) {
            Ok(Self(groups))
        } else {
            Err(not_among("group_by", supported))
        }
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|group| group == name)
    }

    /// OpenAI's word for what did not come from its agents.
    fn api_source(&self) -> Option<&'static str> {
        self.has("api_source").then_some("unlabeled")
    }
}

/// Whether only some projects are asked for: there are none here.
fn is_of_projects(parameters: &Parameters) -> Result<bool, Error> {
    Ok(parameters.many("project_ids")?.is_some())
}

/// Names that a model can have. A database refuses others instead of not finding them.
fn possible(names: Vec<String>) -> Vec<String> {
    names.into_iter().filter(|name| !name.contains(char::is_control)).collect()
}

/// The ids among the texts; others are of nothing.
fn parsed<T: FromStr>(ids: &[String]) -> Vec<T> {
    ids.iter().filter_map(|id| id.parse().ok()).collect()
}

fn completions_result(sum: UsageSum, group: &Groups) -> CompletionsResult {
    let less = |whole: Tokens, parts: [Tokens; 2]| {
        let parts = parts[0].0.saturating_add(parts[1].0);
        Tokens(whole.0.saturating_sub(parts).max(0))
    };
    CompletionsResult {
        object: "organization.usage.completions.result",
        input_tokens: sum.prompt_tokens,
        output_tokens: sum.completion_tokens,
        input_cached_tokens: sum.cached_tokens,
        input_cache_write_tokens: sum.cache_write_tokens,
        input_uncached_tokens: less(sum.prompt_tokens, [sum.cached_tokens, sum.cache_write_tokens]),
        input_audio_tokens: sum.audio_prompt_tokens,
        output_text_tokens: less(
            sum.completion_tokens,
            [sum.audio_completion_tokens, sum.image_completion_tokens],
        ),
        output_audio_tokens: sum.audio_completion_tokens,
        output_image_tokens: sum.image_completion_tokens,
        num_model_requests: sum.requests,
        project_id: None,
        user_id: sum.user_id,
        api_key_id: sum.api_key_id,
        model: sum.model,
        batch: group.has("batch").then_some(false),
        service_tier: None,
        api_source: group.api_source(),
    }
}

fn costs_result(cost: Cost, group: &Groups) -> CostsResult {
    let (line_item, quantity) = match cost.item {
        CostItem::Any => (None, None),
        CostItem::Model(model) => (Some(model), cost.tokens),
        CostItem::Adjustment => (Some(ADJUSTMENT.to_owned()), None),
    };
    CostsResult {
        object: "organization.costs.result",
        amount: Amount { value: Usd(cost.amount_nusd), currency: "usd" },
        quantity,
        quantity_unit: quantity.map(|_| "tokens"),
        line_item,
        project_id: None,
        user_id: cost.user_id,
        api_key_id: cost.api_key_id,
        api_source: group.api_source(),
    }
}
