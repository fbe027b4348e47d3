//! What an upstream says of past calls: OpenRouter's sums by day and single generations, LiteLLM's
//! list. Strict about questions, as the real ones are.

use std::collections::BTreeMap;

use serde_json::json;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime, PrimitiveDateTime};

use super::http::Request;

/// A key that may see activity and run nothing.
pub const MANAGEMENT_KEY: &str = "sk-management-secret-0451";

/// One call as the upstream has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub id: String,
    pub at: OffsetDateTime,
    pub model: String,
    /// What the request's `user` said.
    pub user: String,
    pub prompt: i64,
    pub completion: i64,
    pub cost_pico: i64,
}

pub type Answer = (u16, String);

fn refused(status: u16, message: &str) -> Answer {
    (status, json!({"error": {"code": status, "message": message}}).to_string())
}

fn usd(pico: i64) -> String {
    format!("{}.{:012}", pico / 1_000_000_000_000, pico % 1_000_000_000_000)
}

fn query(request: &Request) -> BTreeMap<String, String> {
    let query = request.target.split_once('?').map(|(_, query)| query).unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// `GET /activity`: the days that are over, by model; two endpoints for each model.
pub fn activity(rows: &[Listed], request: &Request) -> Answer {
    if request.header("authorization") != Some(&format!("Bearer {MANAGEMENT_KEY}")) {
        return refused(403, "Only management keys can perform this operation");
    }
    let today = OffsetDateTime::now_utc().date();
    let date = query(request).get("date").cloned();
    let mut sums: BTreeMap<(Date, &str, bool), [i64; 4]> = BTreeMap::new();
    for row in rows {
        let day = row.at.date();
        let is_kept = day < today && day >= today - Duration::days(30);
        if is_kept && date.as_ref().is_none_or(|date| day.to_string() == *date) {
            let sum = sums.entry((day, &row.model, row.prompt % 2 == 0)).or_default();
            let added = [1, row.prompt, row.completion, row.cost_pico];
            sum.iter_mut().zip(added).for_each(|(sum, more)| *sum += more);
        }
    }
    let rows: Vec<String> = sums
        .into_iter()
        .map(|((day, model, endpoint), [requests, prompt, completion, cost])| {
            format!(
                r#"{{"date":"{day}","model":"{model}","model_permaslug":"{model}-2026-01-01","endpoint_id":"{endpoint}","provider_name":"P","usage":{},"byok_usage_inference":0,"requests":{requests},"prompt_tokens":{prompt},"completion_tokens":{completion},"reasoning_tokens":0}}"#,
                usd(cost)
            )
        })
        .collect();
    (200, format!(r#"{{"data":[{}]}}"#, rows.join(",")))
}

/// `GET /generation`.
pub fn generation(rows: &[Listed], id: &str) -> Option<Answer> {
    let row = rows.iter().find(|row| row.id == id)?;
    let Listed { prompt, completion, model, .. } = row;
    let text = format!(
        r#"{{"data":{{"id":"{id}","model":"{model}","is_byok":false,"tokens_prompt":1,"tokens_completion":1,"native_tokens_prompt":{prompt},"native_tokens_completion":{completion},"total_cost":{}}}}}"#,
        usd(row.cost_pico)
    );
    Some((200, text))
}

/// `GET /spend/logs/v2`: a page of a span, both of its ends in it, the newest first.
pub fn spend_logs(rows: &[Listed], request: &Request) -> Answer {
    let query = query(request);
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    let time = |name: &str| {
        let text = query.get(name)?;
        Some(PrimitiveDateTime::parse(text, &format).ok()?.assume_utc())
    };
    let number = |name: &str| query.get(name).and_then(|text| text.parse::<usize>().ok());
    let (Some(from), Some(to)) = (time("start_date"), time("end_date")) else {
        return refused(400, "Invalid date format");
    };
    let (Some(page @ 1..), Some(size @ 1..=100)) = (number("page"), number("page_size")) else {
        return refused(422, "page and page_size");
    };
    let mut found: Vec<&Listed> = rows.iter().filter(|row| (from..=to).contains(&row.at)).collect();
    found.sort_by(|a, b| (b.at, &b.id).cmp(&(a.at, &a.id)));
    let total = found.len();
    let of_page = found.into_iter().skip((page - 1) * size).take(size);
    let data: Vec<String> = of_page.map(log_row).collect();
    let text = format!(
        r#"{{"data":[{}],"total":{total},"page":{page},"page_size":{size},"total_pages":{}}}"#,
        data.join(","),
        total.div_ceil(size)
    );
    (200, text)
}

fn log_row(row: &Listed) -> String {
    let Listed { id, model, user, prompt, completion, .. } = row;
    let at = row.at.format(&time::format_description::well_known::Rfc3339).expect("a time");
    let text = json!({
        "request_id": id, "call_type": "acompletion", "spend": "SPEND",
        "prompt_tokens": prompt, "completion_tokens": completion,
        "total_tokens": prompt + completion, "startTime": at, "endTime": at,
        "model": format!("provider/{model}"), "model_group": model, "end_user": user,
        "status": "success",
    });
    // As digits, so that nothing is rounded.
    text.to_string().replace(r#""SPEND""#, &usd(row.cost_pico))
}
