//! How fast a sink is called: what its answers tell its circuit breaker, and how long a parcel that
//! is tried again waits. Pure.

use super::exporter::{Trouble, Verdict};
use crate::services::breaker::{Heard, Patience, doubled};
use std::time::Duration;

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

    #[test]
    fn a_parcels_own_trouble_is_not_the_sinks() {
        let busy = || Verdict::Later(Trouble::of_parcel("lock_timeout".to_owned(), None));
        let silence = || Verdict::Later(Trouble::silence("no answer".to_owned()));
        assert_eq!(heard(&[busy()]), Some(Heard::Good));
        assert_eq!(heard(&[Verdict::Delivered, silence()]), Some(Heard::Bad { after: None }));
        assert_eq!(heard(&[Verdict::Untouched]), None, "it was not called");
        let hour = Some(Duration::from_secs(3_600));
        let asked = Verdict::Later(Trouble::of_sink("429".to_owned(), hour));
        assert_eq!(heard(&[asked]), Some(Heard::Bad { after: hour }));
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
