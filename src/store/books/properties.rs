//! Any order and repetition of operations keeps the books.

use super::*;
use crate::models::account::{AccountKind, NewAccount};
use crate::models::attempt::{Attempt, Attempts, Failure};
use crate::models::ids::{InstanceId, UserId};
use crate::models::key::KeyLimits;
use crate::models::limits::{Counted, RateLimits};
use crate::models::money::Tokens;
use crate::models::openai::answer::Reported;
use crate::models::usage::{Ending, TokenUsage, UsageSource};
use crate::store::Moved;
use proptest::prelude::*;
use uuid::Uuid;

const REQUESTS: u128 = 6;
const MONTH_LIMIT: i64 = 1_000;

#[derive(Clone, Debug)]
pub enum Step {
    Place {
        request: u128,
        amount: i64,
        floor: i64,
        key: Option<u8>,
    },
    Extend {
        request: u128,
        add: i64,
    },
    Settle {
        request: u128,
        charge: i64,
        is_void: bool,
    },
    Correct {
        request: u128,
        charge: i64,
    },
    Credit {
        amount: i64,
    },
    /// A refund, or a correction by hand.
    Take {
        amount: i64,
    },
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let request = 0..REQUESTS;
    let step = prop_oneof![
        (request.clone(), 0..500_i64, 0..500_i64, proptest::option::of(0..2_u8)).prop_map(
            |(request, amount, floor, key)| Step::Place {
                request,
                amount,
                floor: floor.min(amount),
                key
            }
        ),
        (request.clone(), 0..300_i64).prop_map(|(request, add)| Step::Extend { request, add }),
        (request.clone(), 0..900_i64, any::<bool>())
            .prop_map(|(request, charge, is_void)| Step::Settle { request, charge, is_void }),
        (request, 0..900_i64).prop_map(|(request, charge)| Step::Correct { request, charge }),
        (0..400_i64).prop_map(|amount| Step::Credit { amount }),
        (1..400_i64).prop_map(|amount| Step::Take { amount }),
    ];
    proptest::collection::vec(step, 0..60)
}

/// The books between batches: what a database would hold.
pub struct World {
    pub books: Books,
    pub account: AccountId,
    pub key: ApiKeyId,
    entries: Vec<LedgerEntry>,
    records: Vec<UsageRecord>,
    pub events: Vec<BillingEvent>,
}

pub fn now() -> Timestamp {
    Timestamp::parse("2026-11-24T12:00:00Z").unwrap()
}

pub fn request_id(request: u128) -> RequestId {
    RequestId(Uuid::from_u128(RequestId::floor(now()).0.as_u128() + request + 1))
}

impl World {
    pub fn new(kind: AccountKind, day_limit: i64) -> Self {
        let limit_nusd = (kind == AccountKind::Postpaid).then_some(NanoUsd(MONTH_LIMIT));
        let (name, plan, stripe_customer_id) = ("a".to_owned(), None, None);
        let rates = RateLimits::default();
        let new = NewAccount { name, kind, plan, limit_nusd, stripe_customer_id, rates };
        let account = Account::open(new, now());
        let key = ApiKeyId::generate();
        let limits = KeyLimits { day: Some(NanoUsd(day_limit)), ..KeyLimits::default() };
        let budget = KeyBudget::open(key, limits, now());
        let id = account.id;
        let books = Books {
            accounts: [(id, account)].into(),
            budgets: [(key, budget)].into(),
            events: Arc::new(warnings::terms()),
            ..Books::default()
        };
        Self { books, account: id, key, entries: vec![], records: vec![], events: vec![] }
    }

    pub fn op(&self, step: &Step) -> LedgerOp {
        let (account_id, api_key_id) = (self.account, Some(self.key));
        match *step {
            Step::Place { request, amount, floor, key } => LedgerOp::Place(Placement {
                hold: hold(account_id, api_key_id, request_id(request), amount, key),
                floor_nusd: NanoUsd(floor),
                demand: None,
                funds: None,
                is_granted: amount % 3 == 0,
            }),
            Step::Extend { request, add } => LedgerOp::Extend(Extension {
                request_id: request_id(request),
                account_id,
                api_key_id,
                held_nusd: NanoUsd::ZERO,
                add_nusd: NanoUsd(add),
                floor_nusd: NanoUsd(1),
            }),
            Step::Settle { request, charge, is_void } => LedgerOp::Settle(Box::new(Settlement {
                record: record(account_id, api_key_id, request_id(request), charge, is_void),
                look_up: None,
            })),
            Step::Correct { request, charge } => {
                let id = request_id(request);
                let settled = self.records.iter().find(|record| record.id == id);
                LedgerOp::Correct(Box::new(Correction {
                    api_key_id,
                    charged_nusd: settled.map(|record| record.charge_nusd).unwrap_or_default(),
                    correction: correction(account_id, id, charge),
                }))
            }
            Step::Credit { amount } => LedgerOp::Enter(self.entry(EntryKind::Credit, amount)),
            Step::Take { amount } => LedgerOp::Enter(self.entry(EntryKind::Correction, -amount)),
        }
    }

    fn entry(&self, kind: EntryKind, amount: i64) -> Entry {
        Entry {
            account_id: self.account,
            kind,
            amount_nusd: NanoUsd(amount),
            reason: "test".to_owned(),
            reference: None,
            audit: None,
        }
    }

    /// One batch: decided, and its changes written down.
    fn commit(&mut self, batch: &[LedgerOp]) {
        for op in batch {
            self.books.decide(op, now()).unwrap();
        }
        let changes = self.books.take_changes();
        self.entries.extend(changes.ledger_entries);
        self.records.extend(changes.usage_records);
        self.events.extend(changes.billing_events);
    }

    pub fn credit(&mut self, amount: i64) {
        self.commit(&[self.op(&Step::Credit { amount })]);
    }

    /// A request from its beginning to its end.
    pub fn use_up(&mut self, request: u128, charge: i64) {
        let place = Step::Place { request, amount: 0, floor: 0, key: None };
        let settle = Step::Settle { request, charge, is_void: false };
        self.commit(&[self.op(&place), self.op(&settle)]);
    }

    fn check(&self) {
        let account = &self.books.accounts[&self.account];
        let budget = &self.books.budgets[&self.key];
        let sum = |amounts: &mut dyn Iterator<Item = NanoUsd>| amounts.map(|a| a.0).sum::<i64>();
        let held = sum(&mut self.books.holds.values().map(|hold| hold.amount_nusd));
        assert_eq!(account.held_nusd.0, held, "held = open holds");
        assert_eq!(budget.held_nusd.0, held, "the key's held = its open holds");
        let posted = sum(&mut self.entries.iter().map(|entry| entry.amount_nusd));
        assert_eq!(account.balance_nusd.0, posted, "balance = entries");
        assert!(account.held_nusd.0 >= 0);
        if account.kind == AccountKind::Prepaid {
            self.check_debts();
        } else {
            assert!(account.period_charged_nusd.0 <= MONTH_LIMIT, "within the month's limit");
        }
        let mut charged: Vec<_> = self.records.iter().map(|record| record.id).collect();
        charged.sort_unstable();
        charged.dedup();
        assert_eq!(charged.len(), self.records.len(), "one usage record a request");
        let mut hash = String::new();
        for (seq, entry) in (1..).zip(&self.entries) {
            assert_eq!((entry.seq, &entry.previous_hash), (seq, &hash), "an unbroken chain");
            assert_eq!(entry.hash, entry.computed_hash());
            hash.clone_from(&entry.hash);
        }
        assert_eq!(account.ledger_hash, hash);
        let day_limit = budget.day_limit_nusd.unwrap_or_default().0;
        let due = warnings::due(&self.entries, account.kind, MONTH_LIMIT, day_limit);
        assert_eq!(warnings::written(&self.events), due, "each crossing is told once");
        let mut names: Vec<_> = self.events.iter().map(|event| &event.id).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), self.events.len(), "no event twice");
    }

    /// Only an entry takes more than there is; a request does not, nor does it add to a debt.
    fn check_debts(&self) {
        for entry in self.entries.iter().filter(|entry| entry.request_id.is_some()) {
            let is_taken = entry.amount_nusd.0 < 0;
            assert!(!is_taken || entry.balance_nusd.0 >= 0, "never more than there is: {entry:?}");
        }
        let is_indebted = |entry: &LedgerEntry| entry.balance_nusd.0 < 0;
        for pair in self.entries.windows(2).filter(|pair| !is_indebted(&pair[0])) {
            let by_hand = pair[1].request_id.is_none();
            assert!(!is_indebted(&pair[1]) || by_hand, "a debt by a request: {:?}", pair[1]);
        }
    }
}

fn hold(
    account_id: AccountId,
    api_key_id: Option<ApiKeyId>,
    request_id: RequestId,
    amount: i64,
    key: Option<u8>,
) -> Hold {
    Hold {
        request_id,
        account_id,
        api_key_id,
        user_id: Some(UserId::generate()),
        amount_nusd: NanoUsd(amount),
        owner: InstanceId::generate(),
        lease_expires_at: now(),
        upstream: "openai".to_owned(),
        model: "m".to_owned(),
        price_id: "p".to_owned(),
        prompt_tokens_estimate: Tokens(1),
        input_images: Some(1),
        completion_tokens_seen: Tokens(0),
        generation_id: None,
        idempotency_key: key.map(|key| key.to_string()),
        streamed: true,
        placed_at: now(),
        counted: Counted::default(),
        tried: tried(),
    }
}

fn tried() -> Attempts {
    let failed = Attempt {
        upstream: "first".to_owned(),
        status: Some(503),
        failure: Some(Failure::Failed),
        ms: 12,
        generation_id: None,
        cost_pusd: None,
    };
    Attempts(vec![failed])
}

fn record(
    account_id: AccountId,
    api_key_id: Option<ApiKeyId>,
    id: RequestId,
    charge: i64,
    is_void: bool,
) -> UsageRecord {
    let source = if is_void { UsageSource::None } else { UsageSource::Upstream };
    let tokens = TokenUsage { prompt: Tokens(1), completion: Tokens(1), ..TokenUsage::default() };
    let reported = Reported { tokens, cost_pico: None };
    let hold = hold(account_id, api_key_id, id, 0, None);
    UsageRecord {
        charge_nusd: NanoUsd(if is_void { 0 } else { charge }),
        ..hold.closed(Ending::Completed, source, reported, now())
    }
}

fn correction(account_id: AccountId, request_id: RequestId, charge: i64) -> UsageCorrection {
    UsageCorrection {
        request_id,
        account_id,
        generation_id: "g".to_owned(),
        prompt_tokens: Tokens(1),
        completion_tokens: Tokens(1),
        upstream_cost_pusd: None,
        charge_nusd: NanoUsd(charge),
        difference_nusd: NanoUsd::ZERO,
        created_at: now(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn any_order_and_repetition_keeps_the_books(
        steps in steps(),
        batch in 1..8_usize,
        repeats in proptest::collection::vec(any::<bool>(), 60),
        postpaid in any::<bool>(),
        day_limit in 0..3_000_i64,
    ) {
        let kind = if postpaid { AccountKind::Postpaid } else { AccountKind::Prepaid };
        let mut world = World::new(kind, day_limit);
        for (batch, repeat) in steps.chunks(batch).zip(repeats) {
            let ops: Vec<_> = batch.iter().map(|step| world.op(step)).collect();
            world.commit(&ops);
            world.check();
            // As after a commit whose answer was lost.
            if repeat {
                let is_done = |op: &LedgerOp| match op {
                    LedgerOp::Settle(op) => world.books.settled.contains(&op.record.id),
                    LedgerOp::Correct(op) => {
                        world.books.corrected.contains(&op.correction.request_id)
                    }
                    _ => false,
                };
                let again: Vec<_> = ops.into_iter().filter(is_done).collect();
                let (balance, entries) =
                    (world.books.accounts[&world.account].balance_nusd, world.entries.len());
                world.commit(&again);
                world.check();
                prop_assert_eq!(world.books.accounts[&world.account].balance_nusd, balance);
                prop_assert_eq!(world.entries.len(), entries, "nothing was posted twice");
            }
        }
    }
}

#[test]
fn an_idempotency_key_is_free_again_when_nothing_was_used() {
    let mut world = World::new(AccountKind::Prepaid, 10_000);
    world.commit(&[world.op(&Step::Credit { amount: 1_000 })]);
    let place = |request| Step::Place { request, amount: 100, floor: 100, key: Some(1) };
    let mut decide = |step: &Step| {
        let op = world.op(step);
        world.books.decide(&op, now()).unwrap()
    };
    assert!(matches!(decide(&place(0)), Outcome::Placed { .. }));
    assert_eq!(decide(&place(1)), Outcome::Repeated, "while the first runs");
    decide(&Step::Settle { request: 0, charge: 0, is_void: true });
    assert!(matches!(decide(&place(2)), Outcome::Placed { .. }), "the first was voided");
    decide(&Step::Settle { request: 2, charge: 50, is_void: false });
    assert_eq!(decide(&place(3)), Outcome::Repeated, "the second was charged");
}

#[test]
fn a_reference_is_entered_once() {
    let mut world = World::new(AccountKind::Prepaid, 10_000);
    let LedgerOp::Enter(entry) = world.op(&Step::Credit { amount: 1_000 }) else { unreachable!() };
    let payment = Entry { reference: Some("payment:1".to_owned()), ..entry };
    let mut enter =
        |entry: &Entry| world.books.decide(&LedgerOp::Enter(entry.clone()), now()).unwrap();
    assert_eq!(enter(&payment), Outcome::Entered { balance: NanoUsd(1_000) });
    assert_eq!(enter(&payment), Outcome::AlreadyEntered);
    let other = Entry { reference: Some("payment:2".to_owned()), ..payment };
    assert_eq!(enter(&other), Outcome::Entered { balance: NanoUsd(2_000) });
}

#[test]
fn a_record_without_a_user_has_the_hash_it_had_before_there_were_users() {
    let mut record = record(AccountId::generate(), None, request_id(0), 1, false);
    let with_user = record_hash(&record);
    record.user_id = None;
    assert!(!serde_json::to_string(&record).unwrap().contains("user_id"));
    assert_ne!(record_hash(&record), with_user, "a user cannot be changed unseen");
    let null: UsageRecord = serde_json::from_value({
        let mut row = serde_json::to_value(&record).unwrap();
        row["user_id"] = serde_json::Value::Null;
        row
    })
    .unwrap();
    assert_eq!(record_hash(&null), record_hash(&record), "as either database gives it back");
}

#[test]
fn a_record_without_pictures_has_the_hash_it_had_before_they_were_counted() {
    let mut record = record(AccountId::generate(), None, request_id(0), 1, false);
    let with_picture = record_hash(&record);
    record.input_images = None;
    assert!(!serde_json::to_string(&record).unwrap().contains("input_images"));
    assert_ne!(record_hash(&record), with_picture, "their number cannot be changed unseen");
}

#[test]
fn a_record_of_one_answer_has_the_hash_it_had_before_attempts_were_listed() {
    let mut record = record(AccountId::generate(), None, request_id(0), 1, false);
    let listed = record_hash(&record);
    let row = serde_json::to_value(&record).unwrap();
    let text = "[{\"upstream\":\"first\",\"status\":503,\"failure\":\"failed\",\"ms\":12}]";
    assert_eq!(row["tried"], text, "a text, as it stands in the table");
    assert_eq!(serde_json::from_value::<UsageRecord>(row).unwrap(), record);
    record.tried = Attempts::default();
    assert!(!serde_json::to_string(&record).unwrap().contains("tried"));
    assert_ne!(record_hash(&record), listed, "a list cannot be changed unseen");
    let mut row = serde_json::to_value(&record).unwrap();
    row["tried"] = serde_json::Value::Null;
    let null: UsageRecord = serde_json::from_value(row).unwrap();
    assert_eq!(record_hash(&null), record_hash(&record), "as either database gives it back");
}

#[test]
fn a_request_that_moved_on_is_looked_up_where_it_is() {
    let mut world = World::new(AccountKind::Prepaid, 10_000);
    world.commit(&[world.op(&Step::Credit { amount: 1_000 })]);
    world.commit(&[world.op(&Step::Place { request: 0, amount: 100, floor: 100, key: None })]);
    let note = |moved, id: Option<&str>, seen| {
        LedgerOp::Note(Note {
            request_id: request_id(0),
            account_id: world.account,
            moved,
            generation_id: id.map(str::to_owned),
            completion_tokens_seen: Tokens(seen),
        })
    };
    let moved = || {
        let (upstream, price_id) = ("second".to_owned(), "p2".to_owned());
        Some(Moved { upstream, price_id, tried: tried() })
    };
    world.books.decide(&note(None, Some("gen-1"), 7), now()).unwrap();
    world.books.decide(&note(moved(), None, 0), now()).unwrap();
    let hold = world.books.holds[&request_id(0)].clone();
    assert_eq!((hold.upstream.as_str(), hold.price_id.as_str()), ("second", "p2"));
    assert_eq!((hold.generation_id, hold.completion_tokens_seen), (None, Tokens(0)));
    world.books.decide(&note(moved(), Some("gen-2"), 3), now()).unwrap();
    world.books.decide(&note(moved(), None, 5), now()).unwrap();
    let hold = &world.books.holds[&request_id(0)];
    assert_eq!(hold.generation_id.as_deref(), Some("gen-2"), "it is still there");
    assert_eq!(hold.completion_tokens_seen, Tokens(5));
}

#[test]
fn columns_are_the_members_of_their_structs_in_their_order() {
    use crate::models::billing::{Export, Lane, SinkWindow};
    use crate::models::identity::Member;
    use crate::models::ids::UserId;
    use crate::models::price::PriceTable;
    use crate::store::table;
    let world = World::new(AccountKind::Prepaid, 1);
    let (account, key, id) = (world.account, Some(world.key), request_id(0));
    let record = record(account, key, id, 1, false);
    let lookup = PendingLookup {
        request_id: id,
        account_id: account,
        generation_id: "g".to_owned(),
        attempts: 0,
        next_attempt_at: now(),
        give_up_at: now(),
    };
    let idempotency = IdempotencyKey { id: "k".to_owned(), request_id: id, expires_at: now() };
    let mut chained = world.books.accounts[&account].clone();
    let posting = Posting {
        kind: EntryKind::Credit,
        amount: NanoUsd(1),
        request: None,
        record_hash: None,
        reason: "r".to_owned(),
        reference: Some("of a payment".to_owned()),
    };
    let entry = post(&mut chained, posting, now()).unwrap();
    let audit = AuditEntry::new("a", "b", &1, now());
    let sink = SinkWindow { name: "s".to_owned(), since: now(), until: None };
    let member = Member { user_id: UserId::generate(), account_id: account, created_at: now() };
    let prices =
        PriceTable { version: 1, text: "t".to_owned(), actor: "a".to_owned(), created_at: now() };
    for (table, members) in [
        (&table::PRICE_TABLES, members(&prices)),
        (&table::AUDIT_LOG, members(&audit)),
        (&table::MEMBERS, members(&member)),
        (&table::ACCOUNTS, members(&chained)),
        (&table::KEY_BUDGETS, members(&world.books.budgets[&world.key])),
        (&table::HOLDS, members(&hold(account, key, id, 1, Some(1)))),
        (&table::USAGE_RECORDS, members(&record)),
        (&crate::store::verify::OUTLINES, members(&record.outline())),
        (&table::LEDGER_ENTRIES, members(&entry)),
        (&table::BILLING_SINKS, members(&sink)),
        (&table::EXPORTS, members(&Export::sample(now()))),
        (&table::EXPORT_LANES, members(&Lane::new("s", "c"))),
        (&table::BILLING_EVENTS, members(&BillingEvent::usage(&record.outline(), "s"))),
        (&table::USAGE_CORRECTIONS, members(&correction(account, id, 1))),
        (&table::LOOKUPS, members(&lookup)),
        (&table::RATE_WINDOWS, members(&RateWindow::open(account.into(), now()))),
        (&table::IDEMPOTENCY_KEYS, members(&idempotency)),
    ] {
        assert_eq!(members, table.columns, "{}", table.name);
    }
}

#[test]
fn columns_of_payments_are_the_members_of_their_structs() {
    use crate::models::payment::{
        EventState, Payment, PaymentEvent, Reversal, ReversalKind, ReversalState, Subscription,
        SubscriptionStatus,
    };
    use crate::store::payments;
    let account = AccountId::generate();
    let text = || "t".to_owned();
    let event = PaymentEvent {
        id: text(),
        kind: text(),
        object: text(),
        state: EventState::Handled,
        reason: None,
        account_id: None,
        created_at: now(),
        handled_at: now(),
    };
    let payment = Payment {
        id: text(),
        account_id: account,
        payment_intent: text(),
        paid_cents: 1,
        credited_nusd: NanoUsd(1),
        kept_nusd: NanoUsd(1),
        created_at: now(),
    };
    let reversal = Reversal {
        id: text(),
        payment_intent: text(),
        kind: ReversalKind::Refund,
        amount_cents: 1,
        state: ReversalState::Taken,
        as_of: now(),
    };
    let subscription = Subscription {
        id: text(),
        account_id: account,
        status: SubscriptionStatus::Active,
        plan: None,
        as_of: now(),
    };
    for (table, members) in [
        (&payments::PAYMENT_EVENTS, members(&event)),
        (&payments::PAYMENTS, members(&payment)),
        (&payments::REVERSALS, members(&reversal)),
        (&payments::SUBSCRIPTIONS, members(&subscription)),
    ] {
        assert_eq!(members, table.columns, "{}", table.name);
    }
}

/// In their order, in which a plain map would not keep them.
fn members<T: serde::Serialize>(row: &T) -> Vec<String> {
    let text = serde_json::to_string(row).unwrap();
    let names = text.trim_matches(['{', '}']).split(",\"");
    names
        .map(|member| member.split('"').find(|part| !part.is_empty()).unwrap().to_owned())
        .collect()
}
