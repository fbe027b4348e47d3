//! Random cases that can be run again: the seed is in every failure's message, and is taken from
//! `TEST_SEED` when that is set.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

pub struct Random {
    seed: u64,
    state: AtomicU64,
}

impl Random {
    pub fn from_environment() -> Self {
        let given = std::env::var("TEST_SEED").ok().and_then(|text| text.parse().ok());
        let clock =
            || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_micros());
        let seed: u64 = given.unwrap_or_else(|| u64::try_from(clock()).unwrap_or(1));
        println!("TEST_SEED={seed}");
        Self::new(seed)
    }

    pub fn new(seed: u64) -> Self {
        // The state of xorshift must not be zero.
        Self { seed, state: AtomicU64::new(mixed(seed).max(1)) }
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    fn next(&self) -> u64 {
        let mut state = self.state.load(Ordering::Relaxed);
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.state.store(state, Ordering::Relaxed);
        state
    }

    /// A number below `limit`.
    pub fn below(&self, limit: usize) -> usize {
        usize::try_from(self.next() >> 16).expect("48 bits") % limit
    }

    pub fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Cuts into pieces of 1 to `longest` bytes.
    pub fn chunks(&self, mut bytes: &[u8], longest: usize) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        while !bytes.is_empty() {
            let (chunk, rest) = bytes.split_at(bytes.len().min(1 + self.below(longest)));
            chunks.push(chunk.to_vec());
            bytes = rest;
        }
        chunks
    }

    /// Cuts between characters, into pieces of 1 to `longest` characters.
    pub fn pieces(&self, text: &str, longest: usize) -> Vec<String> {
        let mut characters = text.chars().peekable();
        let mut pieces = Vec::new();
        while characters.peek().is_some() {
            let length = 1 + self.below(longest);
            pieces.push(characters.by_ref().take(length).collect());
        }
        pieces
    }
}

/// Splitmix64, which makes neighbours strangers and no two seeds the same.
fn mixed(seed: u64) -> u64 {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

impl fmt::Display for Random {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TEST_SEED={}", self.seed)
    }
}

#[test]
fn neighbouring_seeds_are_different_cases() {
    let begin = |seed| {
        let random = Random::new(seed);
        [random.below(1 << 20), random.below(1 << 20), random.below(1 << 20)]
    };
    let begins: std::collections::BTreeSet<_> = (0..1_000).map(begin).collect();
    assert_eq!(begins.len(), 1_000);
}
