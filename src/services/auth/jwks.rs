//! The public keys of the auth server: fetched, kept, and found by their id.
//!
//! Invariants: one fetch at a time, bounded in time and size; a key is good for the one algorithm
//! that its own type says, whatever a token says; the last good set serves while the auth server is
//! away. Whether a key was never there can only be told while it is not.

use crate::error::Error;
use crate::services::http::{self, AGENT, HttpClient};
use axum::http::header::USER_AGENT;
use axum::http::{Request, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Below the ten minutes that the auth server and its edge allow for.
/// <https://supabase.com/docs/guides/auth/signing-keys>
const REFRESH_EVERY: Duration = Duration::from_secs(300);
/// After a failure. The set that is there serves on.
const RETRY_EVERY: Duration = Duration::from_secs(10);
/// For the whole of one fetch: requests may wait for it.
const FETCH_WAIT: Duration = Duration::from_secs(5);
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// A set of a few keys has 2 kB.
const SET_BYTES_MAX: usize = 64 << 10;
const KEYS_MAX: usize = 32;
/// Anybody can name a key that does not exist: that makes one fetch in this time.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(30);
/// Between fetches that requests ask for while there is no set at all.
const NO_SET_PAUSE: Duration = Duration::from_secs(1);

pub struct Jwks {
    url: Uri,
    client: HttpClient,
    state: RwLock<State>,
    /// Held while fetching. Until when requests may not ask for another fetch.
    fetching: Mutex<Option<Instant>>,
}

#[derive(Clone, Default)]
struct State {
    set: Option<Arc<KeySet>>,
    /// How many fetches have ended.
    fetches: u64,
    has_failed: bool,
}

#[derive(Debug, Default)]
pub struct KeySet(Vec<PublicKey>);

#[derive(Debug)]
struct PublicKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Jwks {
    /// # Errors
    /// [`Error::Internal`] when the URL is none.
    pub fn new(url: &str) -> Result<Arc<Self>, Error> {
        let url = url.parse().map_err(|_| Error::Internal("the keys' URL is none".to_owned()))?;
        Ok(Arc::new(Self {
            url,
            client: http::client(CONNECT_WAIT),
            state: RwLock::default(),
            fetching: Mutex::default(),
        }))
    }

    /// Keeps the set fresh until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            let is_fresh = {
                let _alone = self.fetching.lock().await;
                self.fetch_and_keep().await
            };
            let pause = if is_fresh { REFRESH_EVERY } else { RETRY_EVERY };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// The key of a token's header.
    ///
    /// # Errors
    /// [`Error::WrongToken`] when there is none, [`Error::AuthServer`] when that cannot be told.
    pub async fn key(
        self: &Arc<Self>,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<DecodingKey, Error> {
        let before = self.state();
        if let Some(key) = before.find(id, algorithm)? {
            return Ok(key);
        }
        // A task of its own: the fetch must not end with the client that happened to cause it.
        let refresh = tokio::spawn(self.clone().refresh(before.fetches));
        refresh.await.map_err(|error| Error::Internal(format!("fetching keys: {error}")))?;
        let after = self.state();
        match after.find(id, algorithm)? {
            Some(key) => Ok(key),
            None if after.has_failed || after.set.is_none() => Err(Error::AuthServer),
            None => Err(Error::WrongToken("an unknown key")),
        }
    }

    /// Fetches, unless somebody has since the `seen`th fetch, or it is too early.
    async fn refresh(self: Arc<Self>, seen: u64) {
        let mut not_before = self.fetching.lock().await;
        let state = self.state();
        let is_early = not_before.is_some_and(|at| Instant::now() < at);
        if state.fetches != seen || is_early {
            return;
        }
        let is_fresh = self.fetch_and_keep().await;
        let pause = match (state.set, is_fresh) {
            (Some(_), _) => Some(UNKNOWN_KEY_PAUSE),
            (None, false) => Some(NO_SET_PAUSE),
            (None, true) => None,
        };
        *not_before = pause.map(|pause| Instant::now() + pause);
    }

    /// Whether it went well; the old set stays when it did not.
    async fn fetch_and_keep(&self) -> bool {
        let fetched = tokio::time::timeout(FETCH_WAIT, self.fetch()).await;
        let fetched = fetched.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.fetches += 1;
        state.has_failed = fetched.is_err();
        match fetched {
            Ok(set) => state.set = Some(Arc::new(set)),
            Err(reason) => tracing::warn!("the auth server's keys were not fetched: {reason}"),
        }
        !state.has_failed
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let request = Request::get(self.url.clone())
            .header(USER_AGENT, AGENT)
            .body(Full::default())
            .map_err(|_| "no request can be made of the URL".to_owned())?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| http::cause(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("status {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), SET_BYTES_MAX).collect().await;
        let body = body.map_err(|_| "the body broke off or is too large".to_owned())?;
        KeySet::parse(&body.to_bytes()).ok_or_else(|| "not a set of keys".to_owned())
    }

    fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl State {
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Option<DecodingKey>, Error> {
        match &self.set {
            Some(set) => set.find(id, algorithm).map_err(Error::WrongToken),
            None => Ok(None),
        }
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// Keys that are not understood, or not for signatures, are passed over. A project that signs
    /// with a secret has an empty set.
    fn parse(body: &Bytes) -> Option<Self> {
        let document: Document = serde_json::from_slice(body).ok()?;
        let keys = document.keys.into_iter().take(KEYS_MAX).filter_map(PublicKey::parse);
        Some(Self(keys.collect()))
    }

    /// `None`: no key of this id. A token without an id has the only key, where it is one.
    fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Option<DecodingKey>, &'static str> {
        let mut named = self.0.iter().filter(|key| id.is_none() || key.id.as_deref() == id);
        if id.is_none() && self.0.len() > 1 {
            return Err("it names no key, and there are several");
        }
        let Some(first) = named.next() else { return Ok(None) };
        let mut all = std::iter::once(first).chain(named);
        match all.find(|key| key.algorithm == algorithm) {
            Some(key) => Ok(Some(key.key.clone())),
            None => Err("its algorithm is not that of its key"),
        }
    }
}

impl PublicKey {
    fn parse(key: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(key).ok()?;
        // Symmetric keys are secrets: one that is published proves nothing.
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            _ => return None,
        };
        let common = &jwk.common;
        let fits = common.key_algorithm.is_none_or(|own| own == algorithm.into());
        let signs =
            common.public_key_use.as_ref().is_none_or(|own| *own == PublicKeyUse::Signature);
        let operations = common.key_operations.as_ref();
        let verifies = operations.is_none_or(|own| own.contains(&KeyOperations::Verify));
        if !(fits && signs && verifies) {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { id: jwk.common.key_id, algorithm, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ec(id: &str) -> Value {
        let part = "A".repeat(43);
        json!({"kty": "EC", "crv": "P-256", "x": part, "y": part, "kid": id})
    }

    fn set(keys: &Value) -> KeySet {
        KeySet::parse(&Bytes::from(json!({ "keys": keys }).to_string())).unwrap()
    }

    #[test]
    fn a_key_is_good_for_its_own_algorithm_only() {
        let keys = set(&json!([ec("a"), ec("b")]));
        assert!(keys.find(Some("a"), Algorithm::ES256).unwrap().is_some());
        assert!(keys.find(Some("c"), Algorithm::ES256).unwrap().is_none());
        assert!(keys.find(Some("a"), Algorithm::RS256).is_err());
        assert!(keys.find(None, Algorithm::ES256).is_err(), "which of the two?");
        assert!(set(&json!([ec("a")])).find(None, Algorithm::ES256).unwrap().is_some());
        assert!(set(&json!([])).find(None, Algorithm::ES256).unwrap().is_none());
    }

    #[test]
    fn keys_for_other_ends_are_passed_over() {
        let with = |name: &str, value: Value| {
            let mut key = ec("a");
            key[name] = value;
            key
        };
        assert_eq!(set(&json!([with("use", json!("sig"))])).0.len(), 1);
        assert_eq!(set(&json!([with("key_ops", json!(["verify"]))])).0.len(), 1);
        assert_eq!(set(&json!([with("alg", json!("ES256"))])).0.len(), 1);
        let odd = json!([
            with("use", json!("enc")),
            with("key_ops", json!(["encrypt"])),
            with("alg", json!("RS256")),
            with("alg", json!("HS256")),
            with("crv", json!("P-384")),
            {"kty": "oct", "kid": "a", "alg": "HS256", "k": "c2VjcmV0"},
            {"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "AAAA"},
            {"kid": "a"},
            7,
        ]);
        assert_eq!(set(&odd).0.len(), 0);
    }

    #[test]
    fn what_is_no_set_is_none() {
        for body in ["", "null", "[]", "{}", "{\"keys\":{}}", "<html>"] {
            assert!(KeySet::parse(&Bytes::from(body)).is_none(), "{body}");
        }
    }
}
