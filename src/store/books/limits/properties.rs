//! Any order and repetition of operations, at any times and by clocks that disagree, keeps every
//! minute within its limits, uses hardly less of them, and knows what runs.
//!
//! The judge keeps a list of every request with its time, and adds up.

use super::*;
use crate::models::account::{Account, AccountKind, NewAccount};
use crate::models::attempt::Attempts;
use crate::models::ids::{AccountId, ApiKeyId, InstanceId, RequestId};
use crate::models::key::{KeyBudget, KeyLimits};
use crate::models::limits::LimitsInForce;
use crate::models::money::{NanoUsd, Tokens};
use crate::models::openai::answer::Reported;
use crate::models::usage::{Ending, TokenUsage, UsageSource};
use crate::store::{LedgerOp, Outcome, Placement, Settlement};
use proptest::prelude::*;
use uuid::Uuid;

const MINUTE: Duration = Duration::from_secs(60);
/// How much longer than a minute something may be counted.
const LATER: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
enum Step {
    Place {
        key: Option<usize>,
        tokens: i64,
    },
    /// Places again what was placed, as after a commit whose answer was lost.
    Repeat {
        nth: usize,
    },
    /// Uses so many percent of what was reserved.
    Settle {
        nth: usize,
        percent: i64,
    },
    Pass {
        millis: u64,
    },
    /// A batch by a clock that is behind.
    Slow {
        millis: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (proptest::option::of(0..2_usize), 1..60_i64)
            .prop_map(|(key, tokens)| Step::Place { key, tokens }),
        1 => (0..200_usize).prop_map(|nth| Step::Repeat { nth }),
        3 => (0..200_usize, 0..=100_i64).prop_map(|(nth, percent)| Step::Settle { nth, percent }),
        2 => (0..3_000_u64).prop_map(|millis| Step::Pass { millis }),
        1 => (0..70_000_u64).prop_map(|millis| Step::Pass { millis }),
        1 => (0..20_000_u64).prop_map(|millis| Step::Slow { millis }),
    ];
    proptest::collection::vec(step, 0..200)
}

fn rates() -> impl Strategy<Value = RateLimits> {
    let limit = |most| proptest::option::of(1..most);
    (limit(8_i64), limit(200_i64), limit(6_i64)).prop_map(|(requests, tokens, concurrent)| {
        RateLimits {
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            concurrent_requests: concurrent,
        }
    })
}

/// A request that was let in, as the judge knows it.
#[derive(Clone, Debug)]
struct Admitted {
    op: Placement,
    at: Timestamp,
    /// What is counted of it: reserved, and when it has ended used.
    tokens: i64,
    is_open: bool,
}

struct World {
    books: Books,
    account: AccountId,
    keys: [ApiKeyId; 2],
    limits: LimitsInForce,
    admitted: Vec<Admitted>,
    now: Timestamp,
    /// How far behind the clock is by which the next batch is decided.
    behind: Duration,
}

impl World {
    fn new(limits: LimitsInForce) -> Self {
        let now = Timestamp::parse("2026-11-24T12:00:00Z").unwrap();
        let account = Account::open(
            NewAccount {
                name: "a".to_owned(),
                kind: AccountKind::Postpaid,
                plan: None,
                limit_nusd: None,
                stripe_customer_id: None,
                rates: RateLimits::default(),
            },
            now,
        );
        let keys = [ApiKeyId::generate(), ApiKeyId::generate()];
        let budget = |key| (key, KeyBudget::open(key, KeyLimits::default(), now));
        Self {
            account: account.id,
            keys,
            books: Books {
                accounts: [(account.id, account)].into(),
                budgets: keys.map(budget).into(),
                ..Books::default()
            },
            limits,
            admitted: vec![],
            now,
            behind: Duration::ZERO,
        }
    }

    fn placement(&self, key: Option<usize>, tokens: i64) -> Placement {
        let key = key.map(|key| self.keys[key]);
        let limits =
            LimitsInForce { key: key.map(|_| self.limits.key).unwrap_or_default(), ..self.limits };
        let hold = Hold {
            request_id: RequestId(Uuid::from_u128(self.admitted.len() as u128 + 1)),
            account_id: self.account,
            api_key_id: key,
            amount_nusd: NanoUsd(1),
            owner: InstanceId::generate(),
            lease_expires_at: self.now,
            upstream: "openai".to_owned(),
            model: "m".to_owned(),
            price_id: "p".to_owned(),
            prompt_tokens_estimate: Tokens(1),
            input_images: None,
            completion_tokens_seen: Tokens(0),
            generation_id: None,
            idempotency_key: None,
            streamed: true,
            placed_at: self.now,
            user_id: None,
            counted: Counted::default(),
            tried: Attempts::default(),
        };
        let demand = (!limits.is_none()).then_some(Demand { tokens: Tokens(tokens), limits });
        Placement { hold, floor_nusd: NanoUsd(1), demand, funds: None, is_granted: false }
    }

    fn decide(&mut self, op: &LedgerOp) -> Outcome {
        let outcome = self.books.decide(op, self.now.minus(self.behind)).unwrap();
        self.behind = Duration::ZERO;
        outcome
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Place { key, tokens } => {
                let op = self.placement(key, tokens);
                let clock = self.clock(&op);
                let outcome = self.decide(&LedgerOp::Place(op.clone()));
                self.judge(op, &outcome, clock);
            }
            Step::Repeat { nth } => {
                let Some(admitted) = self.nth(nth) else { return };
                let (op, is_open) = (admitted.op.clone(), admitted.is_open);
                let before = self.books.windows.clone();
                let outcome = self.decide(&LedgerOp::Place(op));
                assert_eq!(matches!(outcome, Outcome::Placed { .. }), is_open, "{outcome:?}");
                assert_eq!(self.books.windows, before, "counted twice");
            }
            Step::Settle { nth, percent } => {
                let Some(admitted) = self.nth(nth) else { return };
                let reserved = admitted.op.demand.map_or(0, |demand| demand.tokens.0);
                let used = reserved * percent / 100;
                if admitted.is_open {
                    (admitted.tokens, admitted.is_open) = (used, false);
                }
                let op = settlement(&admitted.op.hold, used);
                self.decide(&op);
            }
            Step::Pass { millis } => self.now = self.now.plus(Duration::from_millis(millis)),
            Step::Slow { millis } => self.behind = Duration::from_millis(millis),
        }
    }

    fn nth(&mut self, nth: usize) -> Option<&mut Admitted> {
        let count = self.admitted.len();
        (count > 0).then(|| &mut self.admitted[nth % count])
    }

    /// The requests of the account, or of the key.
    fn of(&self, key: Option<ApiKeyId>) -> impl Iterator<Item = &Admitted> {
        let of = move |one: &&Admitted| key.is_none() || one.op.hold.api_key_id == key;
        self.admitted.iter().filter(of)
    }

    /// What was counted in a span of time before `end`, and what runs: requests, tokens, open.
    fn used(&self, key: Option<ApiKeyId>, span: Duration, end: Timestamp) -> [i64; 3] {
        let mut used = [0; 3];
        for one in self.of(key) {
            if one.at.plus(span) > end {
                used[0] += 1;
                used[1] += one.tokens;
            }
            used[2] += i64::from(one.is_open);
        }
        used
    }

    /// The latest that any window of the request has seen.
    fn clock(&self, op: &Placement) -> Timestamp {
        let seen = |(key, _): (Option<ApiKeyId>, RateLimits)| {
            let id = key.map_or(Subject::from(self.account), Subject::from);
            self.books.windows.get(&id).map(|window| window.seen_at)
        };
        let seen = held_to(op).into_iter().filter_map(seen).max();
        self.now.minus(self.behind).max(seen.unwrap_or(self.now.minus(self.behind)))
    }

    fn judge(&mut self, op: Placement, outcome: &Outcome, clock: Timestamp) {
        let tokens = op.demand.map_or(0, |demand| demand.tokens.0);
        let wanted = [1, tokens, 1];
        match outcome {
            Outcome::Placed { .. } => {
                let counted = self.books.holds[&op.hold.request_id].counted;
                let at = counted.counted_at.unwrap_or(clock);
                assert_eq!(at, clock);
                for (key, limits) in held_to(&op) {
                    let used = self.used(key, MINUTE, at);
                    for ((limit, used), wanted) in members(limits).into_iter().zip(used).zip(wanted)
                    {
                        assert!(limit.is_none_or(|limit| used + wanted <= limit), "{op:?}");
                    }
                }
                self.admitted.push(Admitted { op, at, tokens, is_open: true });
            }
            Outcome::Limited(limited) => {
                let is_needed = held_to(&op).into_iter().any(|(key, limits)| {
                    let used = self.used(key, MINUTE + LATER, clock);
                    let mut all = members(limits).into_iter().zip(used).zip(wanted);
                    all.any(|((limit, used), wanted)| {
                        limit.is_some_and(|limit| used + wanted > limit)
                    })
                });
                assert!(is_needed, "refused with room: {limited:?}");
            }
            other => panic!("{other:?}"),
        }
    }

    fn check(&self) {
        for subject in [None, Some(self.keys[0]), Some(self.keys[1])] {
            let id = subject.map_or(Subject::from(self.account), Subject::from);
            let counted = |one: &&Hold| one.counted_in().any(|subject| subject == id);
            let open = self.books.holds.values().filter(counted).count();
            let window = self.books.windows.get(&id).map_or(0, |window| window.open_requests);
            assert_eq!(i64::try_from(open), Ok(window), "what runs = open holds");
        }
    }
}

/// Whose limits an operation is held to.
fn held_to(op: &Placement) -> Vec<(Option<ApiKeyId>, RateLimits)> {
    let limits = op.demand.map(|demand| demand.limits).unwrap_or_default();
    let mut all = vec![(None, limits.account)];
    all.extend(op.hold.api_key_id.map(|key| (Some(key), limits.key)));
    all
}

fn members(limits: RateLimits) -> [Option<i64>; 3] {
    [limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_requests]
}

fn settlement(hold: &Hold, used: i64) -> LedgerOp {
    let tokens = TokenUsage { prompt: Tokens(used), ..TokenUsage::default() };
    let reported = Reported { tokens, cost_pico: None };
    let record = hold.closed(Ending::Completed, UsageSource::Upstream, reported, hold.placed_at);
    LedgerOp::Settle(Box::new(Settlement { record, look_up: None }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn no_minute_has_more_than_its_limit_and_hardly_less(
        steps in steps(),
        account in rates(),
        key in rates(),
    ) {
        let mut world = World::new(LimitsInForce { account, key });
        for step in &steps {
            world.step(step);
            world.check();
        }
    }

    #[test]
    fn who_waits_as_long_as_told_is_let_in(
        steps in steps(),
        account in rates(),
        tokens in 1..60_i64,
    ) {
        let mut world = World::new(LimitsInForce { account, key: RateLimits::default() });
        for step in &steps {
            world.step(step);
        }
        world.behind = Duration::ZERO;
        let op = world.placement(None, tokens);
        let Outcome::Limited(limited) = world.decide(&LedgerOp::Place(op.clone())) else {
            return Ok(());
        };
        let Some(wait) = limited.wait else {
            prop_assert!(tokens > account.tokens_per_minute.unwrap_or(i64::MAX));
            return Ok(());
        };
        if limited.rate == Rate::Concurrent {
            return Ok(());
        }
        // A clock that was ahead stands still until the others have come there.
        let ahead = world.books.windows[&world.account.into()].seen_at.since(world.now);
        world.now = world.now.plus(ahead + wait).minus(Duration::from_micros(1));
        let early = world.decide(&LedgerOp::Place(op.clone()));
        prop_assert!(matches!(early, Outcome::Limited(_)), "{early:?}");
        world.now = world.now.plus(Duration::from_micros(1));
        let outcome = world.decide(&LedgerOp::Place(op));
        let is_let_in = match &outcome {
            Outcome::Placed { .. } => true,
            // Only what no time frees.
            Outcome::Limited(limited) => limited.rate == Rate::Concurrent,
            _ => false,
        };
        prop_assert!(is_let_in, "{outcome:?}");
    }
}

#[test]
fn nothing_is_loaded_or_written_for_who_has_no_limits() {
    let mut world = World::new(LimitsInForce::default());
    let op = world.placement(Some(0), 10);
    assert!(op.demand.is_none());
    let batch = [LedgerOp::Place(op)];
    assert!(super::super::Needs::of(&batch).windows.is_empty());
    world.decide(&batch[0]);
    assert!(world.books.windows.is_empty());
    assert_eq!(world.books.holds.values().next().unwrap().counted, Counted::default());
}

#[test]
fn a_limit_of_one_who_is_not_asked_counts_nothing() {
    let key = RateLimits { requests_per_minute: Some(2), ..RateLimits::default() };
    let mut world = World::new(LimitsInForce { account: RateLimits::default(), key });
    for key in [Some(0), Some(0), Some(1)] {
        world.step(&Step::Place { key, tokens: 10 });
    }
    let op = world.placement(Some(0), 10);
    let Outcome::Limited(limited) = world.decide(&LedgerOp::Place(op)) else { panic!("refused") };
    assert_eq!((limited.by, limited.rate), (Limit::Key, Rate::Requests));
    assert_eq!((limited.limit, limited.used, limited.requested), (2, 2, 1));
    assert_eq!(limited.wait, Some(MINUTE));
    assert_eq!(limited.room.requests.map(|gauge| gauge.remaining), Some(0));
    assert_eq!(limited.room.tokens, None, "there is no such limit");
    assert!(!world.books.windows.contains_key(&world.account.into()));
}
