//! Single calls, drawn at random, against what OpenRouter keeps of them: `GET /generation`.
//!
//! Invariant: no more questions in a second than a few, and each has a deadline.

use super::is_same_cost;
use crate::error::Error;
use crate::models::reconcile::{Call, Day};
use crate::models::usage::UsageSource;
use crate::services::random::Random;
use crate::services::reconcile::{FAILURES_MAX, Figure, Finding, Kind, Report, Terms};
use crate::services::upstream::{Found, Upstream};
use crate::store::Store;
use std::time::Duration;

/// Between two questions: five a second.
const PAUSE: Duration = Duration::from_millis(200);

pub async fn check(
    store: &dyn Store,
    upstream: &Upstream,
    terms: &Terms,
    report: &mut Report,
) -> Result<(), Error> {
    let against = upstream.name.as_str();
    let compared = format!("{against} /generation");
    let span = terms.span();
    let named = store.named_calls(against, span).await?;
    let places = Random::new(terms.seed).places(named, terms.samples);
    let mut failures = 0;
    for call in store.calls_at(against, span, &places).await? {
        let Some(id) = &call.generation_id else { continue };
        match upstream.look_up_once(id).await {
            Ok(found) => {
                failures = 0;
                report.compared(&compared, 1);
                if let Some(finding) = compare(against, &call, found.as_ref()) {
                    report.add(finding);
                }
            }
            Err(error) => {
                failures += 1;
                report.unread(against, Some(Day::of(call.started_at)), error.to_string());
            }
        }
        if failures == FAILURES_MAX {
            report.unread(against, None, "the other samples were not asked about".to_owned());
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// What differs; `None`: nothing.
fn compare(against: &str, call: &Call, found: Option<&Found>) -> Option<Finding> {
    let (prompt, completion) =
        (i128::from(call.prompt_tokens.0), i128::from(call.completion_tokens.0));
    let (figures, because) = match found {
        None if (prompt, completion) == (0, 0) => return None,
        None => (vec![], "the upstream does not know this call".to_owned()),
        Some(Found { reported, .. }) => {
            let mut figures = vec![
                ("prompt_tokens", prompt, i128::from(reported.tokens.prompt.0)),
                ("completion_tokens", completion, i128::from(reported.tokens.completion.0)),
            ];
            if let (Some(here), Some(there)) = (call.cost_pusd, reported.cost_pico)
                && !is_same_cost(i128::from(here), there, 1)
            {
                figures.push(("cost_pusd", i128::from(here), there));
            }
            (Figure::differing(&figures), because(call.source))
        }
    };
    if found.is_some() && figures.is_empty() {
        return None;
    }
    let finding = Finding::new(Kind::Difference, against, because);
    Some(Finding {
        day: Some(Day::of(call.started_at)),
        model: Some(call.model.clone()),
        account: Some(call.account_id.to_string()),
        call: call.generation_id.clone(),
        figures,
        ..finding
    })
}

fn because(source: UsageSource) -> String {
    match source {
        UsageSource::Upstream | UsageSource::Lookup => "the upstream says otherwise now",
        UsageSource::Counted | UsageSource::Estimated | UsageSource::None => {
            "the upstream had not said when this was recorded"
        }
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ids::{AccountId, RequestId};
    use crate::models::money::Tokens;
    use crate::models::openai::answer::Reported;
    use crate::models::timestamp::Timestamp;
    use crate::models::usage::TokenUsage;

    fn call() -> Call {
        let at = Timestamp::parse("2026-11-23T10:00:00Z").unwrap();
        Call {
            id: RequestId::floor(at),
            account_id: AccountId::generate(),
            generation_id: Some("gen-1".into()),
            model: "m".into(),
            model_served: None,
            source: UsageSource::Upstream,
            prompt_tokens: Tokens(12),
            completion_tokens: Tokens(5),
            cost_pusd: Some(1_000_000),
            started_at: at,
            ended_at: at,
        }
    }

    fn found(prompt: i64, cost_pico: Option<i128>) -> Found {
        let tokens =
            TokenUsage { prompt: Tokens(prompt), completion: Tokens(5), ..TokenUsage::default() };
        let reported = Reported { tokens, cost_pico };
        Found { reported, model: None, provider: None, finish_reason: None }
    }

    #[test]
    fn a_sample_is_compared_by_tokens_and_cost() {
        assert_eq!(compare("openrouter", &call(), Some(&found(12, Some(1_000_001)))), None);
        assert_eq!(
            compare("openrouter", &call(), Some(&found(12, None))),
            None,
            "nothing to compare with"
        );
        let names = |found: &Found| {
            let finding = compare("openrouter", &call(), Some(found)).unwrap();
            finding.figures.iter().map(|figure| figure.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&found(13, Some(1_000_000))), ["prompt_tokens"]);
        assert_eq!(names(&found(12, Some(2_000_000))), ["cost_pusd"]);
        assert!(compare("openrouter", &call(), None).is_some(), "unknown there");
        let nothing = Call { prompt_tokens: Tokens(0), completion_tokens: Tokens(0), ..call() };
        assert_eq!(compare("openrouter", &nothing, None), None);
    }
}
