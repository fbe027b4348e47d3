//! Ledger entries: append-only, chained per account by hash.
//!
//! Invariant: an entry's hash covers its every member and the hash of the entry before it, so that
//! no entry can be changed, dropped or put in without breaking the chain.

use super::ids::{AccountId, RequestId};
use super::money::NanoUsd;
use super::timestamp::Timestamp;
use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    pub account_id: AccountId,
    /// 1, 2, 3 … without gaps.
    pub seq: i64,
    pub kind: EntryKind,
    /// What it adds to the balance: negative for a charge.
    pub amount_nusd: NanoUsd,
    pub balance_nusd: NanoUsd,
    pub request_id: Option<RequestId>,
    pub record_hash: Option<String>,
    pub reason: String,
    /// What it is for outside the books; no two entries have the same. Not there in older entries,
    /// whose hashes must stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    pub created_at: Timestamp,
    pub previous_hash: String,
    pub hash: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    Credit,
    Charge,
    Correction,
}

impl LedgerEntry {
    /// The hash that belongs to this entry's members.
    #[must_use]
    pub fn computed_hash(&self) -> String {
        let unsealed = Self { hash: String::new(), ..self.clone() };
        hash_of(&unsealed)
    }

    /// The entry with its hash filled in.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.hash.clear();
        self.hash = hash_of(&self);
        self
    }
}

/// The hash that an entry keeps of the row it is for: a usage record or a correction.
#[must_use]
pub fn record_hash<T: Serialize>(record: &T) -> String {
    hash_of(record)
}

/// SHA-256 in hex of a row as JSON, whose members always come in the order of declaration.
fn hash_of<T: Serialize>(row: &T) -> String {
    let mut text = Vec::with_capacity(ROW_BYTES);
    // A row of plain members has no way to fail; half a text would be found by `verify`.
    let _ = serde_json::to_writer(&mut text, row);
    sha256_hex(&text)
}

/// As long as most rows are in JSON.
const ROW_BYTES: usize = 2_048;

/// SHA-256 in hex.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Two digits for each byte.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        hex.push(char::from(DIGITS[usize::from(byte >> 4)]));
        hex.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    hex
}
