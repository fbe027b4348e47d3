//! `GET /v1/account` and `GET /v1/holds`: the caller's account, what the caller may do there, and
//! what is under way.
//!
//! Invariant: the account is the caller's own. What the operator pays, to whom and by which price
//! is not here.

use crate::error::Error;
use crate::models::account::{Account, AccountKind, AccountStatus};
use crate::models::hold::Hold;
use crate::models::identity::Role;
use crate::models::ids::{AccountId, ApiKeyId, RequestId, UserId};
use crate::models::money::Usd;
use crate::models::timestamp::Timestamp;
use crate::services::auth::Principal;
use crate::state::App;
use crate::store::overview::HOLDS_MAX;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;

#[derive(Debug, Serialize)]
pub struct Own {
    object: &'static str,
    id: AccountId,
    name: String,
    kind: AccountKind,
    status: AccountStatus,
    plan: Option<String>,
    balance_usd: Usd,
    held_usd: Usd,
    /// What the next request may be set aside from; none: without a limit.
    available_usd: Option<Usd>,
    /// Postpaid: most to spend in a calendar month.
    limit_usd: Option<Usd>,
    charged_this_month_usd: Usd,
    caller: Caller,
}

#[derive(Debug, Serialize)]
struct Caller {
    api_key_id: Option<ApiKeyId>,
    user_id: Option<UserId>,
    role: Role,
    /// Makes and ends keys of the account, and pays.
    is_owner: bool,
    /// Runs this service.
    is_operator: bool,
}

/// # Errors
/// Those of the reports.
pub async fn account(
    State(app): State<Arc<App>>,
    principal: Principal,
) -> Result<Json<Own>, Error> {
    let account = app.reports.account(principal.account_id).await?;
    Ok(Json(own(account, &principal, Timestamp::now())?))
}

fn own(mut account: Account, principal: &Principal, now: Timestamp) -> Result<Own, Error> {
    account.roll_period(now);
    let has_limit = account.kind == AccountKind::Prepaid || account.limit_nusd.is_some();
    let available = has_limit.then(|| account.available(now)).transpose()?;
    Ok(Own {
        object: "account",
        id: account.id,
        name: account.name,
        kind: account.kind,
        status: account.status,
        plan: account.plan,
        balance_usd: Usd(account.balance_nusd),
        held_usd: Usd(account.held_nusd),
        available_usd: available.map(Usd),
        limit_usd: account.limit_nusd.map(Usd),
        charged_this_month_usd: Usd(account.period_charged_nusd),
        caller: Caller {
            api_key_id: principal.key_id(),
            user_id: principal.user_id(),
            role: principal.role,
            is_owner: principal.is_owner(),
            is_operator: principal.is_operator(),
        },
    })
}

#[derive(Debug, Serialize)]
pub struct OpenHolds {
    object: &'static str,
    data: Vec<OpenHold>,
    /// There are more than are shown.
    has_more: bool,
}

#[derive(Debug, Serialize)]
struct OpenHold {
    request_id: RequestId,
    model: String,
    api_key_id: Option<ApiKeyId>,
    user_id: Option<UserId>,
    streamed: bool,
    placed_at: Timestamp,
    /// What is set aside.
    amount_usd: Usd,
}

/// What is under way, the oldest first.
///
/// # Errors
/// Those of the reports.
pub async fn holds(
    State(app): State<Arc<App>>,
    principal: Principal,
) -> Result<Json<OpenHolds>, Error> {
    let holds = app.reports.open_holds(principal.account_id).await?;
    let has_more = holds.len() > HOLDS_MAX;
    let data = holds.into_iter().take(HOLDS_MAX).map(under_way).collect();
    Ok(Json(OpenHolds { object: "list", data, has_more }))
}

fn under_way(hold: Hold) -> OpenHold {
    OpenHold {
        request_id: hold.request_id,
        model: hold.model,
        api_key_id: hold.api_key_id,
        user_id: hold.user_id,
        streamed: hold.streamed,
        placed_at: hold.placed_at,
        amount_usd: Usd(hold.amount_nusd),
    }
}
