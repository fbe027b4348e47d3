//! Limits of rate: a request is counted in the windows of its account and its key, or refused.
//!
//! Invariants: a request is counted in all of its windows or in none, once, whatever is repeated;
//! when it ends it leaves those that it was counted in. What a window is and when something leaves
//! it is in `models::window`.

use super::Books;
use crate::models::hold::Hold;
use crate::models::limits::{Counted, Gauge, Limit, Limited, Rate, RateLimits, Room, Subject};
use crate::models::timestamp::Timestamp;
use crate::models::usage::UsageRecord;
use crate::models::window::{RateWindow, Slot};
use crate::store::Demand;
use std::time::Duration;

/// When a request ends nobody knows: who waits for one asks again after this.
const CONCURRENT_WAIT: Duration = Duration::from_secs(1);

const REQUESTS: fn(&Slot) -> i64 = |slot| slot.requests;
const TOKENS: fn(&Slot) -> i64 = |slot| slot.tokens;

/// A window at work, and the limits that it is held to.
struct Limiting {
    by: Limit,
    limits: RateLimits,
    window: RateWindow,
}

impl Books {
    /// Counts a request that is about to be placed, or says why there is no room for it.
    ///
    /// # Errors
    /// The limit that stands in the way.
    pub fn count(
        &mut self,
        hold: &Hold,
        demand: Option<Demand>,
        now: Timestamp,
    ) -> Result<(Counted, Room), Box<Limited>> {
        let Some(demand) = demand else { return Ok(Default::default()) };
        let mut limiting = self.limiting(hold, demand, now);
        let tokens = demand.tokens.0;
        let refusals = limiting.iter().filter_map(|one| one.refusal(tokens));
        // The one that lasts longest: none of the others is worth coming back for.
        if let Some(refusal) = refusals.max_by_key(|one| one.wait.unwrap_or(Duration::MAX)) {
            return Err(Box::new(Limited { room: room(&limiting), ..refusal }));
        }
        let mut counted = Counted { counted_tokens: demand.tokens, ..Counted::default() };
        for Limiting { by, window, .. } in &mut limiting {
            window.begin(tokens);
            match by {
                Limit::Account => counted.counted_account = true,
                Limit::Key => counted.counted_key = true,
            }
            counted.counted_at = Some(window.seen_at);
        }
        let room = room(&limiting);
        for Limiting { window, .. } in limiting {
            self.keep_window(window);
        }
        Ok((counted, room))
    }

    /// What is left to a request that was counted before.
    pub(super) fn room_of(&self, hold: &Hold, demand: Option<Demand>, now: Timestamp) -> Room {
        demand.map(|demand| room(&self.limiting(hold, demand, now))).unwrap_or_default()
    }

    /// A request has ended: it runs no more, and it used what its record says.
    pub fn discount(&mut self, hold: &Hold, record: &UsageRecord, now: Timestamp) {
        let Counted { counted_tokens, counted_at: Some(at), .. } = hold.counted else { return };
        let used = record.prompt_tokens.0.saturating_add(record.completion_tokens.0);
        for subject in hold.counted_in() {
            let mut window = self.window(subject, now);
            window.end(at, counted_tokens.0, used);
            self.keep_window(window);
        }
    }

    fn limiting(&self, hold: &Hold, demand: Demand, now: Timestamp) -> Vec<Limiting> {
        let Demand { limits, .. } = demand;
        let account = Some((Limit::Account, limits.account, hold.account_id.into()));
        let key = hold.api_key_id.map(|key| (Limit::Key, limits.key, key.into()));
        let limited = account.into_iter().chain(key).filter(|(_, limits, _)| !limits.is_none());
        let mut limiting: Vec<_> = limited
            .map(|(by, limits, subject)| {
                let window = self.window(subject, now);
                Limiting { by, limits, window }
            })
            .collect();
        // One clock for both, the later one: a hold remembers one time.
        if let Some(clock) = limiting.iter().map(|one| one.window.seen_at).max() {
            for one in &mut limiting {
                one.window.roll(clock);
            }
        }
        limiting
    }

    fn window(&self, subject: Subject, now: Timestamp) -> RateWindow {
        let now = self.clock.unwrap_or(now);
        let known = self.windows.get(&subject).cloned();
        let mut window = known.unwrap_or_else(|| RateWindow::open(subject, now));
        window.roll(now);
        window
    }

    fn keep_window(&mut self, window: RateWindow) {
        self.touched.windows.insert(window.subject);
        self.windows.insert(window.subject, window);
    }
}

impl Limiting {
    /// What stands in the way of one more request, longest.
    fn refusal(&self, tokens: i64) -> Option<Limited> {
        let RateLimits { requests_per_minute, tokens_per_minute, concurrent_requests } =
            self.limits;
        let window = &self.window;
        let requests = requests_per_minute.and_then(|limit| {
            self.over(Rate::Requests, limit, window.used(REQUESTS), 1, |amount| {
                window.until_left(amount, REQUESTS)
            })
        });
        let tokens = tokens_per_minute.and_then(|limit| {
            self.over(Rate::Tokens, limit, window.used(TOKENS), tokens, |amount| {
                window.until_left(amount, TOKENS)
            })
        });
        let concurrent = concurrent_requests.and_then(|limit| {
            self.over(Rate::Concurrent, limit, window.open_requests, 1, |_| CONCURRENT_WAIT)
        });
        let refusals = [requests, tokens, concurrent].into_iter().flatten();
        refusals.max_by_key(|one| one.wait.unwrap_or(Duration::MAX))
    }

    fn over(
        &self,
        rate: Rate,
        limit: i64,
        used: i64,
        requested: i64,
        until_left: impl FnOnce(i64) -> Duration,
    ) -> Option<Limited> {
        let excess = used.saturating_add(requested).saturating_sub(limit);
        if excess <= 0 {
            return None;
        }
        let wait = (requested <= limit).then(|| until_left(excess));
        Some(Limited { by: self.by, rate, limit, used, requested, wait, room: Room::default() })
    }

    fn gauge(&self, limit: Option<i64>, of: fn(&Slot) -> i64) -> Option<Gauge> {
        let limit = limit?;
        let remaining = limit.saturating_sub(self.window.used(of)).max(0);
        Some(Gauge { limit, remaining, reset: self.window.until_empty(of) })
    }
}

/// Of account and key, what has less left.
fn room(limiting: &[Limiting]) -> Room {
    let tightest = |gauge: fn(&Limiting) -> Option<Gauge>| {
        limiting.iter().filter_map(gauge).min_by_key(|gauge| gauge.remaining)
    };
    Room {
        requests: tightest(|one| one.gauge(one.limits.requests_per_minute, REQUESTS)),
        tokens: tightest(|one| one.gauge(one.limits.tokens_per_minute, TOKENS)),
    }
}

#[cfg(test)]
mod properties;
