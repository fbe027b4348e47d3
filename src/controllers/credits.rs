//! `GET /v1/key` and `GET /v1/credits`, as OpenRouter has them: what a key may still spend, and
//! what its account was credited and has used.

use crate::error::Error;
use crate::models::identity::Role;
use crate::models::ids::UserId;
use crate::models::key::{ApiKey, KeyBudget, Window};
use crate::models::money::{NanoUsd, Usd};
use crate::models::openrouter::{Credits, Data, KeyInfo, RateLimit};
use crate::models::timestamp::Timestamp;
use crate::services::auth::Principal;
use crate::state::App;
use axum::Json;
use axum::extract::State;
use std::sync::Arc;

/// The key of this very request.
///
/// # Errors
/// [`Error::NotFound`] for a user, who has none; else those of the reports.
pub async fn key(
    State(app): State<Arc<App>>,
    principal: Principal,
) -> Result<Json<Data<KeyInfo>>, Error> {
    let id = principal.key_id().ok_or(Error::NotFound("API key"))?;
    let (key, budget) = app.reports.key(id, Timestamp::now()).await?;
    Ok(Json(Data { data: key_info(&key, &budget)? }))
}

/// The account's credits.
///
/// # Errors
/// Those of the reports.
pub async fn credits(
    State(app): State<Arc<App>>,
    principal: Principal,
) -> Result<Json<Data<Credits>>, Error> {
    let totals = app.reports.credits(principal.account_id).await?;
    // What is not there any more was used: charges, net of their corrections.
    let used = totals.credited_nusd.minus(totals.balance_nusd)?;
    let credits = Credits { total_credits: Usd(totals.credited_nusd), total_usage: Usd(used) };
    Ok(Json(Data { data: credits }))
}

/// A key may have several budgets here: the one that leaves least is shown.
fn key_info(key: &ApiKey, budget: &KeyBudget) -> Result<KeyInfo, Error> {
    let tightest = budget.tightest()?;
    let zero = Usd(NanoUsd::ZERO);
    Ok(KeyInfo {
        label: key.hint.clone(),
        limit: tightest.map(|window| Usd(window.limit)),
        limit_remaining: tightest.map(|window| Usd(window.left.max(NanoUsd::ZERO))),
        limit_reset: tightest.and_then(|window| reset(window.window)),
        usage: Usd(budget.total_nusd),
        usage_daily: Usd(budget.day_nusd),
        usage_weekly: Usd(budget.week_nusd),
        usage_monthly: Usd(budget.month_nusd),
        byok_usage: zero,
        byok_usage_daily: zero,
        byok_usage_weekly: zero,
        byok_usage_monthly: zero,
        include_byok_in_limit: false,
        is_free_tier: false,
        is_management_key: key.role != Role::User,
        is_provisioning_key: key.role != Role::User,
        creator_user_id: creator(&key.created_by),
        expires_at: key.expires_at,
        rate_limit: RateLimit {
            requests: key.rates.requests_per_minute.unwrap_or(-1),
            interval: "1m",
            note: "This field is deprecated and safe to ignore.",
        },
    })
}

fn reset(window: Window) -> Option<&'static str> {
    match window {
        Window::Day => Some("daily"),
        Window::Week => Some("weekly"),
        Window::Month => Some("monthly"),
        Window::Total => None,
    }
}

/// The user among the actors of the audit log; operators and keys are nobody's concern.
fn creator(actor: &str) -> Option<UserId> {
    actor.strip_prefix("user:").and_then(|id| id.parse().ok())
}
