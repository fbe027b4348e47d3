//! Random numbers that a seed gives again: to share calls out, and to draw samples.
//!
//! Invariant: the same seed gives the same numbers. Not for secrets.

use std::collections::BTreeSet;

/// SplitMix64. <https://prng.di.unimi.it/splitmix64.c>
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Distinct places from 1 to `limit`: `count` of them, or all there are.
    pub fn places(&mut self, limit: i64, count: usize) -> Vec<i64> {
        let Some(limit) = u64::try_from(limit).ok().filter(|limit| *limit > 0) else {
            return vec![];
        };
        let count = u64::try_from(count).unwrap_or(u64::MAX).min(limit);
        let mut chosen = BTreeSet::new();
        // Floyd's: each round adds one that is not chosen yet.
        for last in limit - count..limit {
            let drawn = self.draw() % (last + 1);
            chosen.insert(if chosen.contains(&drawn) { last } else { drawn });
        }
        chosen.into_iter().filter_map(|place| i64::try_from(place + 1).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_distinct_within_reach_and_come_again() {
        let places = Random::new(7).places(1_000_000, 20);
        assert_eq!(places.len(), 20);
        assert!(places.iter().all(|place| (1..=1_000_000).contains(place)));
        assert_eq!(places, Random::new(7).places(1_000_000, 20));
        assert_ne!(places, Random::new(8).places(1_000_000, 20));
        assert_eq!(Random::new(1).places(3, 20), [1, 2, 3]);
        assert!(Random::new(1).places(0, 20).is_empty());
    }
}
