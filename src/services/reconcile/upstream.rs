//! The books against the upstream: OpenRouter's sums by day and single calls, LiteLLM's list.
//!
//! OpenRouter has no list of calls, so that there a difference has a day, a model and a size; which
//! calls it is made of, its own log has to say. LiteLLM's calls are named one by one.

mod activity;
mod calls;
mod samples;

use super::{Finding, Kind, Report, Terms};
use crate::config::UpstreamKind;
use crate::error::Error;
use crate::models::reconcile::{Call, CallSum, FailedSum};
use crate::models::report::Span;
use crate::services::upstream::Upstream;
use crate::services::upstreams::Upstreams;
use crate::store::Store;
use secrecy::SecretString;
use std::sync::Arc;

/// The upstreams of one address: what is said there is said of all of them.
struct Source<'a> {
    /// As findings name it.
    name: String,
    /// Never none.
    upstreams: Vec<&'a Upstream>,
}

pub async fn check(
    store: &dyn Store,
    upstreams: &Upstreams,
    management_key: Option<&SecretString>,
    terms: &Terms,
    report: &mut Report,
) -> Result<(), Error> {
    let all = upstreams.all();
    for source in sources(&all) {
        let name = &source.name;
        match source.kind() {
            UpstreamKind::OpenRouter => {
                match management_key {
                    Some(key) => activity::check(store, &source, key, terms, report).await?,
                    None => report.note(
                        name,
                        "its sums by day are not compared: that needs OPENROUTER_MANAGEMENT_KEY",
                    ),
                }
                for upstream in &source.upstreams {
                    samples::check(store, upstream, terms, report).await?;
                }
            }
            UpstreamKind::LiteLlm => calls::check(store, &source, terms, report).await?,
            UpstreamKind::OpenAi => {
                report.note(name, "this kind of upstream has no list to compare with");
            }
        }
        for upstream in &source.upstreams {
            let failed = store.failed_sums(&upstream.name, terms.span()).await?;
            for sum in &failed {
                report.add(failed_calls(&upstream.name, sum));
            }
        }
    }
    Ok(())
}

fn sources(all: &[Arc<Upstream>]) -> Vec<Source<'_>> {
    let mut sources: Vec<Source<'_>> = Vec::new();
    for upstream in all {
        match sources.iter_mut().find(|source| source.upstreams[0].is_same_server(upstream)) {
            Some(source) => {
                source.name = format!("{}+{}", source.name, upstream.name);
                source.upstreams.push(upstream);
            }
            None => {
                sources.push(Source { name: upstream.name.clone(), upstreams: vec![upstream] });
            }
        }
    }
    sources
}

/// Calls that failed here and that the upstream may have billed all the same: no record is of them.
fn failed_calls(upstream: &str, sum: &FailedSum) -> Finding {
    let FailedSum { day, calls, without_cost, cost_pusd } = sum;
    let because = format!(
        "{calls} calls that failed may have cost something there, and are in no record: what \
         {without_cost} cost was not said, the others {cost_pusd} pico-USD"
    );
    Finding { day: Some(*day), ..Finding::new(Kind::Note, upstream, because) }
}

impl Source<'_> {
    fn kind(&self) -> UpstreamKind {
        self.upstreams[0].kind
    }

    /// One for each key: what it may see of the others' calls is its server's to say.
    fn askers(&self) -> Vec<&Upstream> {
        let mut askers: Vec<&Upstream> = Vec::new();
        for upstream in &self.upstreams {
            if !askers.iter().any(|asker| asker.has_same_key(upstream)) {
                askers.push(upstream);
            }
        }
        askers
    }

    /// The sums of a span, with the upstream's names for models.
    async fn call_sums(&self, store: &dyn Store, span: Span) -> Result<Vec<CallSum>, Error> {
        let mut sums = Vec::new();
        for upstream in &self.upstreams {
            for sum in store.call_sums(&upstream.name, span).await? {
                sums.push(CallSum { model: upstream.own_name(&sum.model).to_owned(), ..sum });
            }
        }
        Ok(sums)
    }

    /// The calls of a span one by one, with the upstream's names for models.
    async fn each_call(
        &self,
        store: &dyn Store,
        span: Span,
        mut take: impl FnMut(Call) + Send,
    ) -> Result<(), Error> {
        for upstream in &self.upstreams {
            let mut after = None;
            loop {
                let calls = store.calls(&upstream.name, span, after).await?;
                let Some(last) = calls.last() else { break };
                after = Some(last.id);
                for call in calls {
                    take(Call { model: upstream.own_name(&call.model).to_owned(), ..call });
                }
            }
        }
        Ok(())
    }
}

/// A cost that both sides have computed in their own way.
fn is_same_cost(here: i128, there: i128, calls: i64) -> bool {
    (here - there).abs() <= rounding(there, calls)
}

/// How far two sums of a cost may lie apart: OpenRouter and LiteLLM sum floats, and each of our
/// costs is rounded to the pico-USD. A float has 53 bits; 17 of them may go in summing.
fn rounding(cost_pico: i128, calls: i64) -> i128 {
    i128::from(calls.max(1)) + (cost_pico.abs() >> 36)
}

#[cfg(test)]
mod tests {
    use super::is_same_cost;

    #[test]
    fn the_noise_of_floats_is_no_difference_and_a_nano_usd_is() {
        assert!(is_same_cost(1_000_000, 1_000_003, 3));
        assert!(!is_same_cost(1_000_000, 1_001_000, 3), "a nano-USD");
        // Ten thousand dollars in a million calls.
        assert!(is_same_cost(10_i128.pow(16), 10_i128.pow(16) + 100_000, 1_000_000));
        assert!(!is_same_cost(10_i128.pow(16), 10_i128.pow(16) + 10_000_000, 1_000_000));
    }
}
