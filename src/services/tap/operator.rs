//! What tells of the operator in an upstream's texts: keys, addresses, ids of accounts.
//!
//! Invariants: a text with the upstream's own key in it is never shown, and no word with its host;
//! those of others are known by their forms. A word is judged as a whole, before anything is cut.

use secrecy::{ExposeSecret, SecretString};
use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What an upstream's texts may not tell of it.
#[derive(Debug, Default)]
pub struct Operator {
    key: Option<SecretString>,
    /// In lower case, without a port.
    host: Option<String>,
}

const MESSAGE_CHARS_MAX: usize = 1_000;
/// LiteLLM adds how it is set up behind this.
const SETUP_FOLLOWS: &str = "Received Model Group=";

/// A message that speaks of keys is about the operator's.
const OPERATORS_WORDS: &[&str] = &["api key", "api_key", "apikey", "bearer ", "authorization"];
/// How ids of accounts and keys begin, at OpenAI, OpenRouter, Stripe and their like.
const OPERATORS_IDS: &[&str] =
    &["sk-", "sk_", "pk_", "rk_", "org-", "org_", "proj_", "user_", "acct_", "team_", "key_"];
/// How keys begin at Google, xAI, Hugging Face, Groq, NVIDIA, Replicate and AWS, and signed tokens
/// everywhere. Hugging Face's have no digits.
const KEYS: &[&str] = &["AIza", "xai-", "hf_", "gsk_", "nvapi-", "r8_", "AKIA", "ASIA", "eyJ"];
/// No member's name that begins like a key is as long as one.
const KEY_CHARS_CLEAR: usize = 20;
/// A key shorter than this may be a placeholder, such as `EMPTY` or `ollama`, and part of other
/// words: only where it stands alone is it taken for the key …
const OWN_KEY_BYTES_CLEAR: usize = 8;
/// … and not at all where it is shorter than this.
const OWN_KEY_BYTES_MIN: usize = 4;
/// How names of servers end that no stranger can ask for, or that have the operator's name in them.
const HOSTS: &[&str] = &[
    ".internal",
    ".local",
    ".localdomain",
    ".lan",
    ".corp",
    ".intranet",
    ".svc",
    ".azure.com",
    ".azure-api.net",
    ".amazonaws.com",
    ".windows.net",
    ".run.app",
];
const LOCALHOST: &str = "localhost";
/// Amazon's names of things, which have the account's number in them.
const ARN: &str = "arn:aws";

impl Operator {
    /// `host`: as in the upstream's address. One that is a mere word (`litellm`, `ollama`, as in a
    /// container's network) stands for other things in most texts, LiteLLM's own among them: with
    /// its port behind it, it is known by its form.
    #[must_use]
    pub fn new(key: Option<SecretString>, host: Option<&str>) -> Self {
        let host = host.map(|host| host.trim_matches(['[', ']', '.']).to_ascii_lowercase());
        let is_word = |host: &String| host.bytes().all(|byte| byte.is_ascii_alphabetic());
        let key = key.filter(|key| key.expose_secret().len() >= OWN_KEY_BYTES_MIN);
        Self { key, host: host.filter(|host| !is_word(host)) }
    }

    /// The upstream's text as a client may read it.
    #[must_use]
    pub fn shown(&self, message: &str) -> String {
        let message = message.split(SETUP_FOLLOWS).next().unwrap_or_default();
        let message = without_class(message).trim();
        if message.is_empty() || speaks_of_keys(message) || self.has_key(message) {
            return "The model's provider rejected the request.".to_owned();
        }
        let mut shown = String::new();
        for word in message.split_inclusive(char::is_whitespace) {
            shown.push_str(&self.masked(word));
            // Bytes are at least as many as characters: no word beyond those is looked at.
            if shown.len() > MESSAGE_CHARS_MAX * char::MAX.len_utf8() {
                break;
            }
        }
        shown.chars().take(MESSAGE_CHARS_MAX).collect()
    }

    /// Whether a text that is no answer (a comment, a line of a log) tells of the operator.
    #[must_use]
    pub fn is_told_of(&self, text: &[u8]) -> bool {
        let text = String::from_utf8_lossy(text);
        let mut words = text.split_whitespace();
        speaks_of_keys(&text) || self.has_key(&text) || words.any(|word| self.is_operators(word))
    }

    /// Whether the upstream's own key is in a text.
    #[must_use]
    pub fn has_key(&self, text: &str) -> bool {
        let Some(key) = &self.key else { return false };
        let key = key.expose_secret();
        if key.len() >= OWN_KEY_BYTES_CLEAR { text.contains(key) } else { has_alone(text, key) }
    }

    /// A word as it is, or a mark in its place; the space behind it stays.
    fn masked<'a>(&self, word: &'a str) -> Cow<'a, str> {
        let bare = word.trim_end();
        let is_shown = !self.is_operators(bare);
        if is_shown { Cow::Borrowed(word) } else { Cow::Owned(word.replacen(bare, "***", 1)) }
    }

    fn is_operators(&self, word: &str) -> bool {
        has_id(word)
            || word.contains("://")
            || word.contains('@')
            || word.contains(ARN)
            || has_address(word)
            || self.has_host(word)
    }

    fn has_host(&self, word: &str) -> bool {
        self.host.as_ref().is_some_and(|host| has_alone(&word.to_ascii_lowercase(), host))
    }
}

fn speaks_of_keys(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    OPERATORS_WORDS.iter().any(|word| lower.contains(word))
}

/// LiteLLM puts the name of its exception before the message.
pub(super) fn split_class(message: &str) -> Option<(&str, &str)> {
    message.strip_prefix("litellm.")?.split_once(": ")
}

fn without_class(message: &str) -> &str {
    split_class(message).map_or(message, |(_, message)| message)
}

/// Whether a part stands in a text without a letter or a digit right beside it.
fn has_alone(text: &str, part: &str) -> bool {
    text.match_indices(part).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + part.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

fn has_id(word: &str) -> bool {
    let is_name = |character: char| character.is_ascii_alphanumeric() || "_-".contains(character);
    let begins = |name: &str, starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
    word.split(|character| !is_name(character)).any(|name| {
        let has_digit = name.bytes().any(|byte| byte.is_ascii_digit());
        let is_key = has_digit || name.len() >= KEY_CHARS_CLEAR;
        (has_digit && begins(name, OPERATORS_IDS)) || (is_key && begins(name, KEYS))
    })
}

/// Whether something in the word is a host with a port, an IP address, or the name of a server that
/// is the operator's.
fn has_address(word: &str) -> bool {
    let is_part = |character: char| character.is_ascii_alphanumeric() || ".-:".contains(character);
    word.split(|character| !is_part(character)).any(|part| {
        let (host, port) = part.split_once(':').unwrap_or((part, ""));
        let is_port = port.len() >= 2 && port.bytes().all(|byte| byte.is_ascii_digit());
        let is_host = host.bytes().any(|byte| byte.is_ascii_alphabetic());
        host.parse::<Ipv4Addr>().is_ok()
            || (is_host && is_port)
            || is_internal(host)
            || is_ipv6(part)
    })
}

fn is_internal(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == LOCALHOST || HOSTS.iter().any(|end| host.ends_with(end) && host.len() > end.len())
}

/// `a::b` is a path in some languages: an address has digits.
fn is_ipv6(part: &str) -> bool {
    let part = part.trim_end_matches('.');
    part.bytes().any(|byte| byte.is_ascii_digit()) && part.parse::<Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(message: &str) -> String {
        Operator::default().shown(message)
    }

    #[test]
    fn what_tells_of_the_operator_is_masked() {
        for (said, shown_as) in [
            (
                "'temperature' must be below 2.0: got 3.5",
                "'temperature' must be below 2.0: got 3.5",
            ),
            ("see https://docs.example/x for more", "see *** for more"),
            ("refused by 10.0.0.7, (10.0.0.7:4000)", "refused by *** ***"),
            ("no route to litellm.internal:4000!", "no route to ***"),
            ("in organization org-A1b2C3 on tokens", "in organization *** on tokens"),
            ("user 'user_2abc9' is unknown", "user *** is unknown"),
            (
                "use 'user_location', not gpt-4o-mini:free",
                "use 'user_location', not gpt-4o-mini:free",
            ),
            ("at 12:30 in line 3:14", "at 12:30 in line 3:14"),
            ("refused by [fd00::7]:4000, fd00::7 and ::1.", "refused by *** *** and ***"),
            ("not in std::vector or a::b", "not in std::vector or a::b"),
            ("no route to litellm.internal, localhost", "no route to *** ***"),
            ("at My-Resource.openai.azure.com.", "at ***"),
            (
                "'messages.0.content' and 'x.local' are wrong",
                "'messages.0.content' and *** are wrong",
            ),
            ("by AIzaSyD4x or xai-a1 or hf_abcdefghijklmnopqrst", "by *** or *** or ***"),
            ("by eyJhbGci1.eyJz.x", "by ***"),
            ("'hf_token' and 'xai-like' pass", "'hf_token' and 'xai-like' pass"),
            ("on arn:aws:bedrock:us-east-1:123:x", "on ***"),
            ("litellm.BadRequestError: no such tool: x", "no such tool: x"),
            ("too long\nReceived Model Group=house/x\nFallbacks=None", "too long"),
        ] {
            assert_eq!(shown(said), shown_as);
        }
        let ours = shown("");
        assert_eq!(shown("Incorrect API key provided: hunter2"), ours);
        assert_eq!(shown("bad header 'Authorization'"), ours);
    }

    #[test]
    fn the_upstreams_own_key_and_host_are_known() {
        let operator =
            |key: &str, host: &str| Operator::new(Some(key.to_owned().into()), Some(host));
        let ours = shown("");
        let of = |key, host, message: &str| operator(key, host).shown(message);
        assert_eq!(of("hunter2hunter2", "h", "Token hunter2hunter2x is bad"), ours);
        assert_eq!(of("EMPTY", "h", "is 'EMPTY' a key?"), ours);
        assert_eq!(of("EMPTY", "h", "NONEMPTY list"), "NONEMPTY list");
        assert_eq!(of("x", "h", "no such tool: x"), "no such tool: x");
        for host in ["gpu-7.example.org", "GPU-7.example.org", "gpu-7", "[fd00::7]", "10.0.0.7"] {
            let name = host.trim_matches(['[', ']']);
            let message = format!("x: at {name}, eu.{name}:4000 and ({name}/v1)");
            assert_eq!(of("k", host, &message), "x: at *** *** and ***", "{host}");
        }
        assert_eq!(of("k", "gpu-7", "on gpu-70 only"), "on gpu-70 only");
        let words = "litellm says: no such tool";
        assert_eq!(of("k", "litellm", words), words, "a word like any other");
        assert_eq!(of("k", "litellm", "at litellm:4000"), "at ***");
        assert!(operator("hunter2hunter2", "h").is_told_of(b": hunter2hunter2"));
        assert!(operator("k", "gpu-7").is_told_of(b": at gpu-7"));
        assert!(!operator("hunter2hunter2", "gpu-7").is_told_of(b": OPENROUTER PROCESSING"));
    }

    #[test]
    fn a_word_is_judged_before_it_is_cut() {
        let message = format!("{} at http://host/path", "x".repeat(MESSAGE_CHARS_MAX - 8));
        assert!(shown(&message).ends_with(" at ***"), "{}", shown(&message));
        let long = "é ".repeat(MESSAGE_CHARS_MAX);
        assert_eq!(shown(&long).chars().count(), MESSAGE_CHARS_MAX);
    }
}
