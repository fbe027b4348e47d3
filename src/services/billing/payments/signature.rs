//! Stripe's signature of an event.
//!
//! Invariants: nothing of a body is looked at before it; what is signed is the bytes as they came;
//! the comparison takes the same time whatever differs. `v1` only: `v0` is for tests at Stripe.
//! <https://docs.stripe.com/webhooks#verify-manually>

use crate::error::Error;
use crate::models::timestamp::Timestamp;
use aws_lc_rs::hmac;
use secrecy::{ExposeSecret, SecretString};

/// How old an event's signature may be, and how far ahead Stripe's clock: Stripe's own libraries
/// have the same five minutes.
const TOLERANCE_SECONDS: i64 = 300;
/// Signatures looked at: one for each secret of the endpoint, of which there are two at most.
const SIGNATURES_MAX: usize = 8;
/// A header longer than this is none of Stripe's.
const HEADER_BYTES_MAX: usize = 2_048;
const HEX_BYTES: usize = 64;

pub struct Secrets(Vec<hmac::Key>);

impl Secrets {
    /// The whole text of a secret is the key, its prefix too.
    #[must_use]
    pub fn new(secrets: &[SecretString]) -> Self {
        let key = |secret: &SecretString| {
            hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes())
        };
        Self(secrets.iter().map(key).collect())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of the secrets has signed this body a short time ago.
    ///
    /// # Errors
    /// [`Error::WrongSignature`].
    pub fn verify(&self, header: &str, body: &[u8], now: Timestamp) -> Result<(), Error> {
        let signed = Signed::read(header).map_err(Error::WrongSignature)?;
        let age = now.unix_seconds().saturating_sub(signed.at);
        if !(-TOLERANCE_SECONDS..=TOLERANCE_SECONDS).contains(&age) {
            return Err(Error::WrongSignature("its time is too far from ours"));
        }
        let text = [signed.at_text.as_bytes(), b".", body].concat();
        let is_right =
            |tag: &Vec<u8>| self.0.iter().any(|secret| hmac::verify(secret, &text, tag).is_ok());
        if signed.tags.iter().any(is_right) {
            Ok(())
        } else {
            Err(Error::WrongSignature("no secret of ours has made it"))
        }
    }
}

/// What the header says.
struct Signed<'a> {
    at: i64,
    /// As it stands there: it is a part of what is signed.
    at_text: &'a str,
    tags: Vec<Vec<u8>>,
}

impl<'a> Signed<'a> {
    fn read(header: &'a str) -> Result<Self, &'static str> {
        if header.len() > HEADER_BYTES_MAX {
            return Err("the header is too long");
        }
        let mut times = Vec::new();
        let mut tags = Vec::new();
        for part in header.split(',') {
            match part.trim().split_once('=') {
                Some(("t", at)) => times.push(at),
                Some(("v1", hex)) if tags.len() < SIGNATURES_MAX => tags.extend(bytes_of(hex)),
                // Other schemes, now or later.
                _ => {}
            }
        }
        let [at_text] = times[..] else { return Err("the header has not one time") };
        let is_digits = at_text.bytes().all(|byte| byte.is_ascii_digit());
        let at = at_text.parse().ok().filter(|_| is_digits);
        let at = at.ok_or("the header's time is no number")?;
        if tags.is_empty() {
            return Err("the header has no signature of the scheme v1");
        }
        Ok(Self { at, at_text, tags })
    }
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let is_hex = hex.len() == HEX_BYTES && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let pairs = (0..hex.len()).step_by(2).filter(|_| is_hex);
    let bytes: Option<Vec<u8>> =
        pairs.map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect();
    bytes.filter(|bytes| !bytes.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"id": "evt_1"}"#;
    /// Made with OpenSSL: `printf '1614265330.{"id": "evt_1"}' | openssl dgst -sha256 -hmac …`
    const TAG: &str = "07780e18af0565f29c3fbe84245ad30f9b77aa9611212e63ad101ffc42d7b1ae";

    fn verified(header: &str, body: &[u8], seconds_later: i64) -> bool {
        let secrets = ["whsec_new", "whsec_old"].map(|text| SecretString::from(text.to_owned()));
        let now = Timestamp::from_unix_seconds(AT + seconds_later);
        Secrets::new(&secrets).verify(header, body, now).is_ok()
    }

    #[test]
    fn a_signature_of_either_secret_counts_for_five_minutes() {
        let header = format!("t={AT},v1={TAG}");
        for later in [-300, 0, 300] {
            assert!(verified(&header, BODY, later), "{later}");
        }
        for later in [-301, 301, 86_400] {
            assert!(!verified(&header, BODY, later), "{later}");
        }
        let other = "0".repeat(64);
        assert!(verified(&format!("t={AT},v1={other},v0={TAG},v1={TAG}"), BODY, 0));
        assert!(verified(&format!("v1={}, t={AT}", TAG.to_uppercase()), BODY, 0));
    }

    #[test]
    fn everything_else_is_refused() {
        let many = format!("{},v1={TAG}", vec![format!("v1={}", "0".repeat(64)); 8].join(","));
        for header in [
            String::new(),
            "t".to_owned(),
            format!("t={AT}"),
            format!("v1={TAG}"),
            format!("t={AT},v0={TAG}"),
            format!("t={AT},v1={}", &TAG[..62]),
            format!("t={AT},v1={TAG}00"),
            format!("t={AT},v1=0x{}", &TAG[2..]),
            format!("t={AT},v1={}", "é".repeat(32)),
            format!("t=+{AT},v1={TAG}"),
            format!("t={AT}.0,v1={TAG}"),
            format!("t=99999999999999999999,v1={TAG}"),
            format!("t={AT},t={AT},v1={TAG}"),
            format!("t=0,t={AT},v1={TAG}"),
            format!("t={},v1={TAG}", AT + 1),
            format!("t={AT},{many}"),
            format!("t={AT},v1={TAG},{}", "x".repeat(HEADER_BYTES_MAX)),
        ] {
            assert!(!verified(&header, BODY, 0), "{header}");
        }
        let header = format!("t={AT},v1={TAG}");
        assert!(!verified(&header, br#"{"id": "evt_2"}"#, 0), "another body");
        assert!(!verified(&header, b"", 0));
    }
}
