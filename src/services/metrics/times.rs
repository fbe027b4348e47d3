//! Times as histograms of seconds.
//!
//! The one place where a float is made: the library observes in floats, and no money is near.

use prometheus_client::metrics::histogram::Histogram;
use std::time::Duration;

/// What upstreams take: models think for seconds, or for minutes.
const ANSWERS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// What we and the database take.
const OURS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

#[derive(Clone, Debug)]
pub struct Times(pub(super) Histogram);

impl Times {
    pub fn of_answers() -> Histogram {
        Histogram::new(ANSWERS)
    }

    pub fn ours() -> Histogram {
        Histogram::new(OURS)
    }

    pub fn observe(&self, time: Duration) {
        self.0.observe(time.as_secs_f64());
    }
}

/// A number of things, in powers of two up to 256.
#[derive(Clone, Debug)]
pub struct Sizes(pub(super) Histogram);

impl Sizes {
    pub fn histogram() -> Histogram {
        Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
    }

    pub fn observe(&self, number: usize) {
        // Exact: the numbers are small.
        self.0.observe(f64::from(u32::try_from(number).unwrap_or(u32::MAX)));
    }
}
