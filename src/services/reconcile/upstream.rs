//! The books against the upstream: OpenRouter's sums by day and single calls, LiteLLM's list.
//!
//! OpenRouter has no list of calls, so that there a difference has a day, a model and a size; which
//! calls it is made of, its own log has to say. LiteLLM's calls are named one by one.

mod activity;
mod calls;
mod samples;

use super::{Report, Terms};
use crate::config::{UpstreamConfig, UpstreamKind};
use crate::error::Error;
use crate::services::upstream::Upstream;
use crate::store::Store;

pub async fn check(
    store: &dyn Store,
    upstream: &Upstream,
    config: &UpstreamConfig,
    terms: &Terms,
    report: &mut Report,
) -> Result<(), Error> {
    let name = config.kind.name();
    match config.kind {
        UpstreamKind::OpenRouter => {
            match &config.management_key {
                Some(key) => activity::check(store, upstream, key, terms, report).await?,
                None => report.note(
                    name,
                    "its sums by day are not compared: that needs OPENROUTER_MANAGEMENT_KEY",
                ),
            }
            samples::check(store, upstream, terms, report).await
        }
        UpstreamKind::LiteLlm => calls::check(store, upstream, terms, report).await,
        UpstreamKind::OpenAi => {
            report.note(name, "this kind of upstream has no list to compare with");
            Ok(())
        }
    }
}

/// A cost that both sides have computed in their own way: OpenRouter and LiteLLM sum floats, and
/// each of our costs is rounded to the pico-USD. A float has 53 bits; 17 of them may go in summing.
fn is_same_cost(here: i128, there: i128, calls: i64) -> bool {
    let rounding = i128::from(calls.max(1)) + (there.abs() >> 36);
    (here - there).abs() <= rounding
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
