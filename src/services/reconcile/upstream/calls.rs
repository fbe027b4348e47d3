//! LiteLLM's list of calls against our records, one by one.
//!
//! Invariants: a call is judged on the day that its list says; records are looked for an hour
//! around it, because a call arrives later than its hold was placed. What the list has and no
//! record is of is named by its id: the process was killed before the hold was committed, or
//! somebody else uses the key. In memory are the calls of one day, a limited number of them.

use super::{Source, is_same_cost};
use crate::error::Error;
use crate::models::reconcile::{Call, Day};
use crate::models::report::Span;
use crate::services::reconcile::{Figure, Finding, Kind, Report, Terms};
use crate::services::upstream::{LOG_ROWS, Logged, Upstream};
use crate::store::Store;
use std::collections::HashMap;
use std::time::Duration;

/// About 150 MB.
const CALLS_MAX: usize = 500_000;
/// How far a call's times here and there may lie apart: retries, and clocks.
const APART: Duration = Duration::from_secs(3_600);
/// The list is read hour by hour: far into a long list each page takes longer than the one before.
const HOUR: Duration = Duration::from_secs(3_600);

pub async fn check(
    store: &dyn Store,
    source: &Source<'_>,
    terms: &Terms,
    report: &mut Report,
) -> Result<(), Error> {
    for day in &terms.days {
        match list(source, *day, terms, report).await {
            Ok(listed) => check_day(store, source, (*day, listed), report).await?,
            Err(because) => {
                report.unread(&source.name, Some(*day), because);
                // The other days would fare no better.
                break;
            }
        }
    }
    Ok(())
}

/// What the list has of a call.
struct Entry {
    logged: Logged,
    is_recorded: bool,
}

type List = HashMap<String, Entry>;

async fn list(
    source: &Source<'_>,
    day: Day,
    terms: &Terms,
    report: &mut Report,
) -> Result<List, String> {
    let mut listed = List::new();
    let until = day.end().plus(APART).min(terms.now);
    let mut from = day.start().minus(APART);
    while from < until {
        let hour = Span { from, until: from.plus(HOUR) };
        for upstream in source.askers() {
            list_hour(upstream, hour, &mut |logged| {
                if let Some(finding) = add(&mut listed, logged, (&source.name, day)) {
                    report.add(finding);
                }
                listed.len() <= CALLS_MAX
            })
            .await?;
        }
        from = hour.until;
    }
    Ok(listed)
}

/// Reads an hour's pages until `take` has had enough.
async fn list_hour(
    upstream: &Upstream,
    hour: Span,
    take: &mut (dyn FnMut(Logged) -> bool + Send),
) -> Result<(), String> {
    for page in 1.. {
        let rows = upstream.spend_logs(hour, page).await.map_err(|error| error.to_string())?;
        let is_last = rows.len() < LOG_ROWS;
        for logged in rows {
            if !take(logged) {
                return Err(format!("more than {CALLS_MAX} calls a day are not compared"));
            }
        }
        if is_last {
            break;
        }
    }
    Ok(())
}

/// A row may come twice, at the edge of an hour or of a page; two that differ are two calls.
fn add(listed: &mut List, logged: Logged, (against, day): (&str, Day)) -> Option<Finding> {
    let known = listed.get(&logged.id).filter(|entry| entry.logged != logged);
    let twice = known.filter(|entry| Day::of(entry.logged.at) == day).map(|entry| {
        let because = "it is in the list twice, with different words".to_owned();
        finding((against, day), &entry.logged, vec![], because)
    });
    let id = logged.id.clone();
    listed.entry(id).or_insert(Entry { logged, is_recorded: false });
    twice
}

async fn check_day(
    store: &dyn Store,
    source: &Source<'_>,
    (day, mut listed): (Day, List),
    report: &mut Report,
) -> Result<(), Error> {
    let span = Span { from: day.start().minus(APART), until: day.end().plus(APART) };
    let against = source.name.as_str();
    let mut nameless = 0_u64;
    let take = |call: Call| {
        let is_of_day = Day::of(call.started_at) == day;
        nameless += u64::from(is_of_day && call.generation_id.is_none() && is_used(&call));
        if let Some(finding) = check_call(&call, (against, day), &mut listed) {
            report.add(finding);
        }
    };
    source.each_call(store, span, take).await?;
    let of_day = listed.into_values().filter(|entry| Day::of(entry.logged.at) == day);
    let of_day: Vec<Entry> = of_day.collect();
    report.compared(against, of_day.len());
    let mut unrecorded: Vec<Logged> = of_day
        .into_iter()
        .filter(|entry| !entry.is_recorded && is_costly(&entry.logged))
        .map(|entry| entry.logged)
        .collect();
    unrecorded.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
    if nameless > 0 && !unrecorded.is_empty() {
        let because = format!(
            "{nameless} records have no id of the upstream's: as many calls without a record may \
             be theirs"
        );
        report.add(Finding { day: Some(day), ..Finding::new(Kind::Note, against, because) });
    }
    for logged in unrecorded {
        let because = "the upstream answered this call, and no record is of it".to_owned();
        let figures = vec![
            ("prompt_tokens", 0, i128::from(logged.prompt_tokens)),
            ("completion_tokens", 0, i128::from(logged.completion_tokens)),
            ("cost_pusd", 0, logged.cost_pico.unwrap_or_default()),
        ];
        report.add(finding((against, day), &logged, Figure::differing(&figures), because));
    }
    Ok(())
}

fn check_call(call: &Call, (against, day): (&str, Day), listed: &mut List) -> Option<Finding> {
    let id = call.generation_id.as_ref()?;
    let Some(entry) = listed.get_mut(id) else {
        let is_missing = Day::of(call.started_at) == day && is_used(call);
        return is_missing.then(|| missing(call, (against, day)));
    };
    let is_twice = std::mem::replace(&mut entry.is_recorded, true);
    if Day::of(entry.logged.at) != day {
        // Told on the day that the list says.
        return None;
    }
    let (figures, others) = compare(call, &entry.logged);
    if is_twice {
        let because = "two records are of this call".to_owned();
        return Some(finding((against, day), &entry.logged, figures, because));
    }
    let differs = !figures.is_empty() || !others.is_empty();
    let because = if others.is_empty() { "the upstream says otherwise".to_owned() } else { others };
    differs.then(|| Finding {
        account: Some(call.account_id.to_string()),
        ..finding((against, day), &entry.logged, figures, because)
    })
}

/// What differs: numbers, and names in words.
fn compare(call: &Call, logged: &Logged) -> (Vec<Figure>, String) {
    let mut figures = vec![
        ("prompt_tokens", call.prompt_tokens.0.into(), logged.prompt_tokens.into()),
        ("completion_tokens", call.completion_tokens.0.into(), logged.completion_tokens.into()),
    ];
    if let (Some(here), Some(there)) = (call.cost_pusd.map(i128::from), logged.cost_pico)
        && !is_same_cost(here, there, 1)
    {
        figures.push(("cost_pusd", here, there));
    }
    let mut others = Vec::new();
    let names = [call.model.as_str(), call.model_served.as_deref().unwrap_or_default()];
    let is_named = |name: &String| names.contains(&name.as_str());
    if !is_named(&logged.model) && !is_named(&logged.group) {
        others.push(format!("the model is {} here, {} there", call.model, logged.group));
    }
    // The proxy's own clients have other names for who asked.
    let there = logged.end_user.parse().ok();
    if there.is_some_and(|account| call.account_id != account) {
        others.push(format!("the account is {} there", logged.end_user));
    }
    (Figure::differing(&figures), others.join("; "))
}

fn is_used(call: &Call) -> bool {
    call.prompt_tokens.0 > 0 || call.completion_tokens.0 > 0
}

/// A failed call is in the list too.
fn is_costly(logged: &Logged) -> bool {
    let tokens = logged.prompt_tokens.saturating_add(logged.completion_tokens);
    tokens > 0 || logged.cost_pico.is_some_and(|cost| cost > 0)
}

fn finding(
    (against, day): (&str, Day),
    logged: &Logged,
    figures: Vec<Figure>,
    because: String,
) -> Finding {
    let model = if logged.group.is_empty() { &logged.model } else { &logged.group };
    Finding {
        day: Some(day),
        model: Some(model.clone()),
        call: Some(logged.id.clone()),
        figures,
        ..Finding::new(Kind::Difference, against, because)
    }
}

fn missing(call: &Call, (against, day): (&str, Day)) -> Finding {
    let because = "the upstream's list does not have this call".to_owned();
    Finding {
        day: Some(day),
        model: Some(call.model.clone()),
        account: Some(call.account_id.to_string()),
        call: call.generation_id.clone(),
        ..Finding::new(Kind::Difference, against, because)
    }
}
