//! The text of an API key: made here, and told from a typing error here.
//!
//! Invariant: a key is known elsewhere by its SHA-256 only.

use crate::error::Error;
use crate::models::ledger::sha256_hex;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// A new key: the secret, shown once, and what is kept of it.
pub struct NewSecret {
    pub text: String,
    pub hash: String,
    pub hint: String,
}

/// Begins every key, so that a scanner can recognise a leaked one.
const PREFIX: &str = "sk-tg-";
const SECRET_BYTES: usize = 32;
/// No key is longer, by far.
const KEY_BYTES_MAX: usize = 128;

impl NewSecret {
    /// # Errors
    /// [`Error::Internal`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, Error> {
        let mut secret = [0_u8; SECRET_BYTES];
        SystemRandom::new()
            .fill(&mut secret)
            .map_err(|_| Error::Internal("no random bytes".to_owned()))?;
        let text = format!("{PREFIX}{}", bs58::encode(secret).with_check().into_string());
        let hash = sha256_hex(text.as_bytes());
        let hint = format!("{}…{}", &text[..PREFIX.len() + 4], &text[text.len() - 4..]);
        Ok(Self { text, hash, hint })
    }
}

/// Whether prefix, length and checksum fit: says nothing about whether the key exists.
pub fn is_well_formed(token: &str) -> bool {
    token.len() <= KEY_BYTES_MAX
        && token.strip_prefix(PREFIX).is_some_and(|encoded| {
            let decoded = bs58::decode(encoded).with_check(None).into_vec();
            decoded.is_ok_and(|secret| secret.len() == SECRET_BYTES)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_well_formed_and_a_typo_is_not() {
        let key = NewSecret::generate().unwrap();
        assert!(is_well_formed(&key.text), "{}", key.text);
        assert_eq!(key.hash, sha256_hex(key.text.as_bytes()));
        assert!(!key.hint.contains(&key.text[PREFIX.len()..]));
        for at in PREFIX.len()..key.text.len() {
            let mut typo = key.text.clone().into_bytes();
            typo[at] = if typo[at] == b'z' { b'y' } else { b'z' };
            assert!(!is_well_formed(std::str::from_utf8(&typo).unwrap()), "typo at {at}");
        }
        for odd in ["", "sk-tg-", "sk-", "sk-tg-l0OI", "sk-tg-\u{e9}"] {
            assert!(!is_well_formed(odd), "{odd}");
        }
    }
}
