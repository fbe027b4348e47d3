//! Who is asked for a model, and after whom.
//!
//! Invariant: the order of [`ranked`] names each candidate once, so that a request is never refused
//! without a try: those in trouble come last, the least of them first. Pure, but for the health of
//! upstreams that [`in_order`] reads; knows nothing of what becomes of the calls.

use crate::config::UpstreamKind;
use crate::models::attempt::ATTEMPTS_MAX;
use crate::models::money::Tokens;
use crate::models::openai::tools::FileEngine;
use crate::models::price::Price;
use crate::services::breaker::Leave;
use crate::services::random::Random;
use crate::services::upstream::Upstream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An upstream that serves a model at a known price.
#[derive(Clone)]
pub struct Candidate {
    pub upstream: Arc<Upstream>,
    /// Its own name for the model, where that is another than the client's.
    pub model: Option<Arc<str>>,
    pub price: Arc<Price>,
    /// The longest answer that it gives, where it says so.
    pub completion_tokens_max: Option<Tokens>,
    /// The model is given files as they are.
    pub reads_files: bool,
}

/// What the order is made of.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub order: u32,
    pub weight: u32,
    /// How long it is to be left alone.
    pub out: Option<Duration>,
}

/// The places of the candidates in the order in which they are to be tried: by `order`, and within
/// one by chance, as their weights are. `seed` is the chance.
#[must_use]
pub fn ranked(standings: &[Standing], seed: u64) -> Vec<usize> {
    let mut chance = Random::new(seed);
    let mut places: Vec<usize> = (0..standings.len()).collect();
    places.sort_by_key(|place| match standings[*place] {
        Standing { out: None, order, .. } => (Duration::ZERO, order),
        Standing { out: Some(out), order, .. } => (out.max(Duration::from_nanos(1)), order),
    });
    let well = places.partition_point(|place| standings[*place].out.is_none());
    let mut rest = &mut places[..well];
    while let Some(first) = rest.first() {
        let order = standings[*first].order;
        let same = rest.partition_point(|place| standings[*place].order == order);
        let (tied, others) = rest.split_at_mut(same);
        shuffle(&mut chance, tied, standings);
        rest = others;
    }
    places
}

/// Each place is drawn from those that are left, as their weights are.
fn shuffle(chance: &mut Random, places: &mut [usize], standings: &[Standing]) {
    let weight = |place: usize| u64::from(standings[place].weight);
    for from in 0..places.len().saturating_sub(1) {
        let rest = &places[from..];
        let whole: u64 = rest.iter().map(|place| weight(*place)).sum();
        let mut drawn = chance.draw().checked_rem(whole).unwrap_or(0);
        let found = rest.iter().position(|place| match drawn.checked_sub(weight(*place)) {
            Some(left) => {
                drawn = left;
                false
            }
            None => true,
        });
        places.swap(from, from + found.unwrap_or(0));
    }
}

/// The candidates in the order in which they are to be tried. One that comes back from trouble is
/// tried first by one request only.
#[must_use]
pub fn in_order(candidates: Vec<Candidate>, model: &str, seed: u64) -> Vec<Candidate> {
    if candidates.len() < 2 {
        return candidates;
    }
    let now = Instant::now();
    let mut standings: Vec<Standing> =
        candidates.iter().map(|candidate| candidate.standing(model, now)).collect();
    let mut places = ranked(&standings, seed);
    // At most once for each candidate: those whose call another request has got go to the end.
    for _ in 0..candidates.len() {
        let Some(first) = places.first().copied() else { break };
        let upstream = &candidates[first].upstream;
        let comes_back = upstream.health.leave(model, now) == Leave::One;
        if !comes_back || upstream.health.probe(model, now) {
            break;
        }
        standings[first].out = Some(Duration::ZERO);
        places = ranked(&standings, seed);
        if standings.iter().all(|standing| standing.out.is_some()) {
            break;
        }
    }
    let mut candidates: Vec<_> = candidates.into_iter().map(Some).collect();
    places.into_iter().take(ATTEMPTS_MAX).filter_map(|place| candidates[place].take()).collect()
}

impl Candidate {
    /// Whether a file in the prompt is read for a fee, by an engine of this kind.
    #[must_use]
    pub fn charges_for_files(&self, engine: FileEngine) -> bool {
        self.upstream.kind == UpstreamKind::OpenRouter
            && match engine {
                FileEngine::Free => false,
                FileEngine::Usual => !self.reads_files,
                FileEngine::Paid => true,
            }
    }

    /// This variant of its route to the model; `None`: it has no such thing.
    #[must_use]
    pub fn variant(mut self, variant: &str) -> Option<Self> {
        // A model that keeps its name is asked for as the client has asked.
        self.model = self.model.map(|model| format!("{model}{variant}").into());
        (self.upstream.kind == UpstreamKind::OpenRouter).then_some(self)
    }

    fn standing(&self, model: &str, now: Instant) -> Standing {
        let out = match self.upstream.health.leave(model, now) {
            Leave::Nothing(wait) => Some(wait),
            Leave::All | Leave::One => None,
        };
        Standing { order: self.upstream.offer.order, weight: self.upstream.offer.weight, out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn standing(order: u32, weight: u32) -> Standing {
        Standing { order, weight, out: None }
    }

    fn standings() -> impl Strategy<Value = Vec<Standing>> {
        let out = proptest::option::of((0..90_u64).prop_map(Duration::from_secs));
        let one = (1..4_u32, 1..1_001_u32, out);
        let one = one.prop_map(|(order, weight, out)| Standing { order, weight, out });
        proptest::collection::vec(one, 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn everyone_is_tried_once_and_trouble_comes_last(
            standings in standings(),
            seed in any::<u64>(),
        ) {
            let places = ranked(&standings, seed);
            let mut sorted = places.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..standings.len()).collect::<Vec<_>>());
            for pair in places.windows(2) {
                let (one, next) = (standings[pair[0]], standings[pair[1]]);
                match (one.out, next.out) {
                    (None, None) => prop_assert!(one.order <= next.order),
                    (None, Some(_)) => {}
                    (Some(_), None) => prop_assert!(false, "one in trouble before one that is well"),
                    (Some(one), Some(next)) => prop_assert!(one <= next, "the least bad first"),
                }
            }
            prop_assert_eq!(&places, &ranked(&standings, seed), "chance is the seed's alone");
        }
    }

    #[test]
    fn shares_are_as_the_weights() {
        let standings = [standing(1, 1), standing(1, 3), standing(1, 6), standing(2, 1_000)];
        let mut firsts = [0_u32; 4];
        for seed in 0..10_000 {
            firsts[ranked(&standings, seed)[0]] += 1;
        }
        let near = |count: u32, share: u32| count.abs_diff(share) < 150;
        assert!(near(firsts[0], 1_000) && near(firsts[1], 3_000) && near(firsts[2], 6_000));
        assert_eq!(firsts[3], 0, "its order comes later, whatever its weight");
    }

    #[test]
    fn who_is_left_alone_is_passed_over() {
        let mut standings = [standing(1, 1), standing(2, 1), standing(3, 1)];
        standings[0].out = Some(Duration::from_secs(9));
        assert_eq!(ranked(&standings, 7), [1, 2, 0]);
        standings[1].out = Some(Duration::from_secs(3));
        assert_eq!(ranked(&standings, 7), [2, 1, 0]);
        standings[2].out = Some(Duration::from_secs(60));
        assert_eq!(ranked(&standings, 7), [1, 0, 2], "the least bad is tried");
    }
}
