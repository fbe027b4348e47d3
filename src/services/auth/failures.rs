//! Counts failed attempts by address, and says when there were too many.
//!
//! Invariant: what is remembered is bounded in number and time. Who is known already is not asked:
//! a neighbour behind the same address goes on.

use crate::error::Error;
use moka::sync::Cache;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub struct Failures {
    /// `None`: no limit.
    max: Option<u32>,
    addresses: Cache<IpAddr, Arc<Window>>,
}

/// The failures of one address since the first of them.
struct Window {
    began: Instant,
    count: AtomicU32,
}

const WINDOW: Duration = Duration::from_secs(60);
/// About 10 MB. When there are more, some are forgotten early.
const ADDRESSES_MAX: u64 = 100_000;
/// One customer of a provider has at least this much of IPv6.
const IPV6_PREFIX_BITS: u32 = 64;

impl Failures {
    /// At most `max` a minute from one address; zero: any number.
    #[must_use]
    pub fn new(max: u32) -> Self {
        let addresses = Cache::builder().max_capacity(ADDRESSES_MAX).time_to_live(WINDOW).build();
        Self { max: (max > 0).then_some(max), addresses }
    }

    /// # Errors
    /// [`Error::TooManyFailures`].
    pub fn check(&self, from: IpAddr) -> Result<(), Error> {
        let Some(max) = self.max else { return Ok(()) };
        match self.addresses.get(&network(from)) {
            Some(window) if window.count.load(Ordering::Relaxed) >= max => {
                let retry_after = WINDOW.saturating_sub(window.began.elapsed());
                Err(Error::TooManyFailures { retry_after })
            }
            _ => Ok(()),
        }
    }

    pub fn count(&self, from: IpAddr) {
        if self.max.is_some() {
            let first = || Arc::new(Window { began: Instant::now(), count: AtomicU32::new(0) });
            self.addresses.get_with(network(from), first).count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The part of an address that its owner cannot change at will.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let mask = u128::MAX << (u128::BITS - IPV6_PREFIX_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_refused_after_its_failures_and_no_other_is() {
        let failures = Failures::new(2);
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        for _ in 0..2 {
            assert!(failures.check(at("2001:db8::1")).is_ok());
            failures.count(at("2001:db8::1"));
        }
        let refused = failures.check(at("2001:db8::2:3"));
        assert!(
            matches!(refused, Err(Error::TooManyFailures { retry_after })
                if retry_after > Duration::ZERO && retry_after <= WINDOW),
            "the same /64"
        );
        assert!(failures.check(at("2001:db8:0:1::1")).is_ok());
        assert!(failures.check(at("192.0.2.1")).is_ok());
        failures.count(at("::ffff:192.0.2.1"));
        failures.count(at("192.0.2.1"));
        assert!(failures.check(at("::ffff:192.0.2.1")).is_err(), "one address in two forms");
    }

    #[test]
    fn zero_is_no_limit() {
        let failures = Failures::new(0);
        let at = "192.0.2.1".parse().unwrap();
        (0..1_000).for_each(|_| failures.count(at));
        assert!(failures.check(at).is_ok());
    }
}
