//! Fills the books with calls of any time through the program's own store: hold, charge, entry and
//! events, as a running server would have written them.
//!
//! The benches use this file too.

use tollgate::models::attempt::Attempts;
use tollgate::models::billing::EventTerms;
use tollgate::models::hold::Hold;
use tollgate::models::ids::{AccountId, ApiKeyId, InstanceId, RequestId};
use tollgate::models::limits::Counted;
use tollgate::models::money::{NanoUsd, Tokens};
use tollgate::models::openai::answer::Reported;
use tollgate::models::price::Price;
use tollgate::models::timestamp::Timestamp;
use tollgate::models::usage::{Ending, TokenUsage, UsageSource};
use tollgate::services::pricing;
use tollgate::store::postgres::PostgresStore;
use tollgate::store::sqlite::SqliteStore;
use tollgate::store::{LedgerOp, Outcome, Placement, Settlement, Store};
use uuid::Uuid;

/// One call that the upstream answered.
#[derive(Clone, Debug)]
pub struct Call {
    pub account: AccountId,
    pub key: Option<ApiKeyId>,
    pub upstream: &'static str,
    pub generation_id: String,
    pub prompt: i64,
    pub completion: i64,
    pub cost_pico: i64,
    pub at: Timestamp,
    pub seconds: u64,
}

/// Operations in one transaction, as many as the server's own writer takes at most.
const BATCH: usize = 256;

/// The store of a database, as a process that has these sinks configured opens it.
pub async fn open(url: &str, sinks: &[&str]) -> Box<dyn Store> {
    let sinks = sinks.iter().map(|sink| (*sink).to_string()).collect();
    let events = EventTerms { sinks, alerts: None };
    if url.starts_with("sqlite:") {
        return Box::new(SqliteStore::open(url, events).await.expect("a SQLite file"));
    }
    Box::new(PostgresStore::open(url, events).expect("a PostgreSQL address"))
}

/// An id of that time; `number` tells it from others of the same millisecond.
pub fn request_id(at: Timestamp, number: u64) -> RequestId {
    let millis = u128::try_from(at.unix_millis()).expect("after 1970");
    RequestId(Uuid::from_u128(millis << 80 | 7 << 76 | 2 << 62 | u128::from(number)))
}

/// Writes the calls down, numbered from `first`.
pub async fn write(store: &dyn Store, price: &Price, calls: &[Call], first: u64) {
    write_at(store, price, calls, first, Timestamp::now()).await;
}

/// The same, entered in the ledger at `now`.
pub async fn write_at(
    store: &dyn Store,
    price: &Price,
    calls: &[Call],
    first: u64,
    now: Timestamp,
) {
    let mut number = first;
    for calls in calls.chunks(BATCH) {
        let mut places = Vec::new();
        let mut settles = Vec::new();
        for call in calls {
            let (place, settle) = request(price, call, number);
            number += 1;
            places.push(place);
            settles.push(settle);
        }
        let placed = store.commit(&places, now).await.expect("the store takes holds");
        assert!(
            placed.iter().all(|outcome| matches!(outcome, Outcome::Placed { .. })),
            "{placed:?}"
        );
        let settled = store.commit(&settles, now).await.expect("the store settles");
        let is_settled = |outcome: &Outcome| matches!(outcome, Outcome::Settled { .. });
        assert!(settled.iter().all(is_settled), "{settled:?}");
    }
}

/// What places a call's hold, and what settles it.
pub fn request(price: &Price, call: &Call, number: u64) -> (LedgerOp, LedgerOp) {
    let request_id = request_id(call.at, number);
    let mut hold = Hold {
        request_id,
        account_id: call.account,
        api_key_id: call.key,
        user_id: None,
        amount_nusd: NanoUsd(0),
        owner: InstanceId::generate(),
        lease_expires_at: Timestamp::now().plus(std::time::Duration::from_secs(3_600)),
        upstream: call.upstream.to_string(),
        model: price.terms.model.clone(),
        price_id: price.id.clone(),
        prompt_tokens_estimate: Tokens(call.prompt),
        input_images: None,
        completion_tokens_seen: Tokens(0),
        generation_id: Some(call.generation_id.clone()),
        idempotency_key: None,
        streamed: true,
        placed_at: call.at,
        tried: Attempts::default(),
        counted: Counted::default(),
    };
    let tokens = TokenUsage {
        prompt: Tokens(call.prompt),
        completion: Tokens(call.completion),
        ..TokenUsage::default()
    };
    let reported = Reported { tokens, cost_pico: Some(call.cost_pico.into()) };
    let ended_at = call.at.plus(std::time::Duration::from_secs(call.seconds));
    let mut record = hold.closed(Ending::Completed, UsageSource::Upstream, reported, ended_at);
    record.charge_nusd = pricing::charge(price, &record.used()).expect("a charge");
    (record.hold_nusd, hold.amount_nusd) = (record.charge_nusd, record.charge_nusd);
    (
        LedgerOp::Place(Placement {
            hold,
            floor_nusd: NanoUsd(0),
            demand: None,
            funds: None,
            is_granted: false,
        }),
        LedgerOp::Settle(Box::new(Settlement { record, look_up: None })),
    )
}
