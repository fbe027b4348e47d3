//! Keys of an auth server, and the tokens that they sign: good ones and forged ones.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::crypto::sign;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

pub struct Key {
    pub id: String,
    pub algorithm: Algorithm,
    pub encoding: EncodingKey,
    /// As it is published.
    pub jwk: Value,
}

/// What PKCS#8 puts before a 2048 bit RSA key.
const PKCS8_HEAD_BYTES: usize = 26;
/// What SPKI puts before a point of P-256.
const SPKI_HEAD: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE";

impl Key {
    pub fn es256(id: &str) -> Self {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
        let encoding = EncodingKey::from_ec_der(pair.expect("a key").as_ref());
        Self::new(id, Algorithm::ES256, encoding)
    }

    pub fn rs256(id: &str) -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key");
        let der = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair).expect("its form");
        let encoding = EncodingKey::from_rsa_der(&der.as_ref()[PKCS8_HEAD_BYTES..]);
        Self::new(id, Algorithm::RS256, encoding)
    }

    pub fn hs256(secret: &str) -> Self {
        let encoding = EncodingKey::from_secret(secret.as_bytes());
        Self::new("legacy", Algorithm::HS256, encoding)
    }

    fn new(id: &str, algorithm: Algorithm, encoding: EncodingKey) -> Self {
        let jwk = Jwk::from_encoding_key(&encoding, algorithm).expect("a public key");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["kid"] = json!(id);
        jwk["use"] = json!("sig");
        jwk["key_ops"] = json!(["verify"]);
        jwk["ext"] = json!(true);
        Self { id: id.to_string(), algorithm, encoding, jwk }
    }

    pub fn header(&self) -> Value {
        json!({"alg": format!("{:?}", self.algorithm), "kid": self.id, "typ": "JWT"})
    }

    /// As the auth server does it.
    pub fn token(&self, claims: &Value) -> String {
        self.signed(&self.header(), &claims.to_string())
    }

    /// With any header and claims.
    pub fn signed(&self, header: &Value, claims: &str) -> String {
        signed_with(&self.encoding, self.algorithm, header, claims)
    }

    /// The public key as its owner shows it to the world.
    pub fn pem(&self) -> String {
        let part = |name: &str| {
            let text = self.jwk[name].as_str().expect("a key of P-256");
            URL_SAFE_NO_PAD.decode(text).expect("base64")
        };
        let point = STANDARD.encode([part("x"), part("y")].concat());
        let body = format!("{SPKI_HEAD}{point}");
        let lines: Vec<&str> = [body.get(..64), body.get(64..)].into_iter().flatten().collect();
        let body = lines.join("\n");
        format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
    }
}

pub fn signed_with(
    key: &EncodingKey,
    algorithm: Algorithm,
    header: &Value,
    claims: &str,
) -> String {
    let message = format!("{}.{}", encoded(&header.to_string()), encoded(claims));
    let signature = sign(message.as_bytes(), key, algorithm).expect("a signature");
    format!("{message}.{signature}")
}

pub fn encoded(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// Seconds since 1970, and some.
pub fn seconds(more: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    i64::try_from(now).expect("a time") + more
}

/// A signed-in user's claims. <https://supabase.com/docs/guides/auth/jwt-fields>
pub fn claims(issuer: &str, user: Uuid) -> Value {
    json!({
        "iss": issuer,
        "aud": "authenticated",
        "exp": seconds(3_600),
        "iat": seconds(0),
        "sub": user,
        "email": "user@example.com",
        "phone": "",
        "role": "authenticated",
        "aal": "aal1",
        "session_id": Uuid::now_v7(),
        "is_anonymous": false,
        "amr": [{"method": "password", "timestamp": seconds(0)}],
        "app_metadata": {"provider": "email", "providers": ["email"]},
        "user_metadata": {"role": "admin"},
    })
}

/// The same with some members changed; null takes one away.
pub fn with(mut claims: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().expect("changes") {
        match value {
            Value::Null => drop(claims.as_object_mut().expect("claims").remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}
