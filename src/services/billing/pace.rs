//! How fast a sink is called: what its answers tell its circuit breaker, how long a parcel that is
//! tried again waits, and by which clock a pause ends. Pure.

use super::exporter::{Trouble, Verdict};
use crate::models::timestamp::Timestamp;
use crate::services::breaker::{Heard, Patience, doubled};
use std::time::{Duration, Instant};

pub const PATIENCE: Patience = Patience {
    failures_max: 3,
    pause_first: PAUSE_FIRST,
    pause_max: Duration::from_secs(60),
    asked_max: RETRY_AFTER_MAX,
};

const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// No sink is believed when it asks for more.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// The clock of pauses and leases within a process. The monotonic one stands still while the
/// machine sleeps or is moved; there, and where the wall clock is set on, this one goes on with
/// that. It never goes back, whatever the wall clock does.
#[derive(Debug)]
pub struct Waking {
    seen: (Instant, Timestamp),
    slept: Duration,
}

/// Less than that is no sleep: the two clocks are not read at one instant.
const SLEEP_MIN: Duration = Duration::from_secs(1);

impl Waking {
    pub fn new(now: Instant, wall: Timestamp) -> Self {
        Self { seen: (now, wall), slept: Duration::ZERO }
    }

    pub fn now(&mut self, now: Instant, wall: Timestamp) -> Instant {
        let (seen, seen_wall) = self.seen;
        let lost = wall.since(seen_wall).saturating_sub(now.saturating_duration_since(seen));
        if lost >= SLEEP_MIN {
            self.slept = self.slept.saturating_add(lost);
        }
        self.seen = (now, wall);
        now.checked_add(self.slept).unwrap_or(now)
    }
}

/// What a call says of the sink; `None`: nothing. A parcel's own trouble is not the sink's.
pub fn heard(verdicts: &[Verdict]) -> Option<Heard> {
    let troubles = verdicts.iter().find_map(|verdict| match verdict {
        Verdict::Later(Trouble { is_sinks: true, after, .. }) => Some(*after),
        _ => None,
    });
    match troubles {
        Some(after) => Some(Heard::Bad { after }),
        None => {
            verdicts.iter().any(|verdict| *verdict != Verdict::Untouched).then_some(Heard::Good)
        }
    }
}

/// How long a parcel waits after its `attempts`-th try: doubled each time, up to five minutes, and
/// from half to all of that, so that many do not come back at once. `random` is any byte.
pub fn backoff(attempts: i64, after: Option<Duration>, random: u8) -> Duration {
    if let Some(after) = after {
        return after.min(RETRY_AFTER_MAX);
    }
    let times = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0);
    let whole = doubled(PAUSE_FIRST, times).min(BACKOFF_MAX);
    whole / 2 + whole / 2 * u32::from(random) / 255
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::http::Silence;

    #[test]
    fn a_parcels_own_trouble_is_not_the_sinks() {
        let busy = || Verdict::Later(Trouble::of_parcel("lock_timeout".to_owned(), None));
        let silence = || Verdict::Later(Trouble::silence(Silence::unknown("no answer")));
        assert_eq!(heard(&[busy()]), Some(Heard::Good));
        assert_eq!(heard(&[Verdict::Delivered, silence()]), Some(Heard::Bad { after: None }));
        assert_eq!(heard(&[Verdict::Untouched]), None, "it was not called");
        let hour = Some(Duration::from_secs(3_600));
        let asked = Verdict::Later(Trouble::of_sink("429".to_owned(), hour));
        assert_eq!(heard(&[asked]), Some(Heard::Bad { after: hour }));
    }

    #[test]
    fn a_pause_goes_on_while_the_machine_sleeps_and_never_backwards() {
        let (start, wall) = (Instant::now(), Timestamp::from_unix_seconds(1_800_000_000));
        let hour = Duration::from_secs(3_600);
        let after = |seconds| Duration::from_secs(seconds);
        let mut clock = Waking::new(start, wall);
        assert_eq!(clock.now(start + after(2), wall.plus(after(2))), start + after(2));
        let slept = clock.now(start + after(3), wall.plus(hour));
        assert_eq!(slept, start + hour, "what was asked for an hour is due");
        // Set back, and right again: that was no sleep, but harms nobody either.
        assert_eq!(clock.now(start + after(4), wall), start + hour + after(1));
        let again = clock.now(start + after(5), wall.plus(after(1)));
        assert_eq!(again, start + hour + after(2));
        // The clocks are not read at one instant.
        let jitter = Duration::from_millis(300);
        let last = clock.now(start + after(6), wall.plus(after(2) + jitter));
        assert_eq!(last, start + hour + after(3));
    }

    #[test]
    fn pauses_double_and_are_spread() {
        assert_eq!(backoff(1, None, 255), Duration::from_secs(1));
        assert_eq!(backoff(1, None, 0), Duration::from_millis(500));
        assert!(backoff(5, None, 0) >= Duration::from_secs(8));
        assert!(backoff(i64::MAX, None, 255) <= BACKOFF_MAX);
        assert_eq!(backoff(9, Some(Duration::from_secs(3)), 9), Duration::from_secs(3));
    }
}
