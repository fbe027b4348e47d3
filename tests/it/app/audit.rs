//! The invariants of the books, checked after every test. Independent of the program's own
//! `verify`: it shares no code with it.

use std::collections::{HashMap, HashSet};

use time::OffsetDateTime;
use uuid::Uuid;

use super::books::{Account, BillingEvent, Books, LedgerEntry, Pool, UsageRecord};

const ENDINGS: [&str; 5] = ["completed", "upstream_failed", "client_gone", "cut_off", "killed"];
const SOURCES: [&str; 5] = ["upstream", "lookup", "counted", "estimated", "none"];

/// Every difference found, in words; empty when the books add up. `sinks` are the configured ones.
pub async fn differences(books: &Books, sinks: &[&str]) -> Vec<String> {
    let (accounts, records) = (books.accounts().await, books.records().await);
    let (entries, events) = (books.entries().await, books.events().await);
    let mut found = Vec::new();
    for hold in books.holds().await {
        found.push(format!("an open hold: {hold:?}"));
    }
    for window in books.rows("SELECT * FROM rate_windows WHERE open_requests <> 0").await {
        found.push(format!("limits say that something runs: {window}"));
    }
    found.extend(deadlocks(books).await);
    for account in &accounts {
        let own: Vec<_> = entries.iter().filter(|entry| entry.account_id == account.id).collect();
        found.extend(chain(account, &own));
    }
    let (charges, told) = (charges(&entries), told(&events));
    for record in &records {
        let of = record.id.as_str();
        found.extend(sane(record));
        found.extend(charged_once(record, charges.get(of).map_or(&[], Vec::as_slice)));
        found.extend(sent_once(record, told.get(of).map_or(&[], Vec::as_slice), sinks));
    }
    let archived: Vec<String> = books
        .rows("SELECT month FROM archives")
        .await
        .iter()
        .map(|row| row["month"].as_str().expect("a month").to_string())
        .collect();
    let is_archived = |entry: &&LedgerEntry| {
        entry.request_id.as_deref().is_some_and(|id| archived.contains(&month(id)))
    };
    let known: HashSet<&str> = records.iter().map(|record| record.id.as_str()).collect();
    let is_known = |id: &str| known.contains(id);
    let charges = entries.iter().filter(|entry| entry.kind == "charge");
    for entry in charges.filter(|entry| !is_archived(entry)) {
        if !entry.request_id.as_deref().is_some_and(is_known) {
            found.push(format!("a charge without a usage record: {entry:?}"));
        }
    }
    for event in &events {
        if !is_known(&event.request_id) {
            found.push(format!("a billing event without a usage record: {event:?}"));
        }
    }
    found
}

/// PostgreSQL ends one of two transactions that wait for each other. It is tried again, so that
/// nobody would see it otherwise.
pub async fn deadlocks(books: &Books) -> Option<String> {
    let Pool::Postgres(_) = books.pool else { return None };
    let sql = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let count = books.rows(sql).await[0]["deadlocks"].as_i64().expect("a number");
    (count > 0).then(|| format!("{count} deadlocks"))
}

/// The month in which a request began, as its id says.
fn month(id: &str) -> String {
    let id: Uuid = id.parse().expect("an id");
    let seconds = i64::try_from(id.as_u128() >> 80).expect("a time") / 1_000;
    let at = OffsetDateTime::from_unix_timestamp(seconds).expect("a time");
    format!("{:04}-{:02}", at.year(), u8::from(at.month()))
}

/// The account is the sum of its entries, which follow one another without a gap.
fn chain(account: &Account, entries: &[&LedgerEntry]) -> Vec<String> {
    let mut found = Vec::new();
    if account.held_nusd != 0 {
        found.push(format!("money still held: {account:?}"));
    }
    let mut balance = 0;
    for (index, entry) in entries.iter().enumerate() {
        balance += entry.amount_nusd;
        if entry.balance_nusd != balance {
            found.push(format!("the running balance should be {balance}: {entry:?}"));
        }
        if index > 0 && entries[index - 1].hash != entry.previous_hash {
            found.push(format!("the chain is broken before {entry:?}"));
        }
        if index > 0 && entries[index - 1].seq + 1 != entry.seq {
            found.push(format!("a gap in the ledger before {entry:?}"));
        }
    }
    if account.balance_nusd != balance {
        found.push(format!("the ledger sums to {balance}: {account:?}"));
    }
    if let Some(last) = entries.last()
        && (last.seq, &last.hash) != (account.ledger_seq, &account.ledger_hash)
    {
        found.push(format!("the account does not name its last entry: {account:?} {last:?}"));
    }
    found
}

fn sane(record: &UsageRecord) -> Vec<String> {
    let charge_without_use = record.source == "none"
        && (record.charge_nusd, record.prompt_tokens, record.completion_tokens) != (0, 0, 0);
    let checks = [
        (ENDINGS.contains(&record.ending.as_str()), "an unknown ending"),
        (SOURCES.contains(&record.source.as_str()), "an unknown source"),
        (record.charge_nusd >= 0 && record.shortfall_nusd >= 0, "a negative amount"),
        (record.hold_nusd >= 0 && record.attempts >= 0, "a negative number"),
        (record.prompt_tokens >= 0 && record.completion_tokens >= 0, "negative tokens"),
        (
            record.cached_tokens + record.cache_write_tokens <= record.prompt_tokens,
            "more cached than prompt tokens",
        ),
        (record.reasoning_tokens <= record.completion_tokens, "more reasoning than completion"),
        (!charge_without_use, "a charge for nothing"),
        (record.started_at <= record.ended_at, "it ended before it started"),
    ];
    let failed = checks.iter().filter(|(passed, _)| !passed);
    failed.map(|(_, what)| format!("{what}: {record:?}")).collect()
}

/// What was charged, by request.
fn charges(entries: &[LedgerEntry]) -> HashMap<&str, Vec<i64>> {
    let mut charges: HashMap<&str, Vec<i64>> = HashMap::new();
    for entry in entries.iter().filter(|entry| entry.kind == "charge") {
        let request = entry.request_id.as_deref().unwrap_or_default();
        charges.entry(request).or_default().push(entry.amount_nusd);
    }
    charges
}

/// The events of usage, by request. One more may tell of a correction, and one that an event was
/// parked.
fn told(events: &[BillingEvent]) -> HashMap<&str, Vec<&BillingEvent>> {
    let mut told: HashMap<&str, Vec<&BillingEvent>> = HashMap::new();
    for event in events.iter().filter(|event| event.kind == "usage") {
        told.entry(&event.request_id).or_default().push(event);
    }
    told
}

fn charged_once(record: &UsageRecord, charges: &[i64]) -> Option<String> {
    let right = match *charges {
        [] => record.charge_nusd == 0,
        [amount] => amount == -record.charge_nusd,
        _ => false,
    };
    (!right).then(|| format!("charged {charges:?} in the ledger: {record:?}"))
}

fn sent_once(record: &UsageRecord, own: &[&BillingEvent], sinks: &[&str]) -> Vec<String> {
    let used = record.charge_nusd + record.prompt_tokens + record.completion_tokens > 0;
    let mut found = Vec::new();
    for sink in sinks {
        let count = own.iter().filter(|event| event.sink == *sink).count();
        if count != usize::from(used) {
            found.push(format!("{count} billing events for {sink}: {record:?}"));
        }
    }
    for event in own {
        if !sinks.contains(&event.sink.as_str()) || event.account_id != record.account_id {
            found.push(format!("a stray billing event {event:?}: {record:?}"));
        }
    }
    found
}
