//! The file of several upstreams (`TOLLGATE_UPSTREAMS`).
//!
//! Invariant: a key is never in the file, only the name of the variable that holds it, and no
//! message repeats what stands where a key might have been put. Each fault names its line.

use super::{
    CAP_MEMBERS, ConfigError, KINDS, OPENROUTER, OfferConfig, POLICIES, Reader, USERS,
    UpstreamConfig, UpstreamKind, UpstreamTerms,
};
use crate::config::reader::SECONDS_MAX;
use hyper::Uri;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;
use toml::Spanned;

/// A list by hand is far shorter.
const FILE_BYTES_MAX: usize = 1 << 20;
/// Each is asked for its list of models every few minutes, and may be tried for one call.
const UPSTREAMS_MAX: usize = 32;
const NAME_BYTES_MAX: usize = 64;
/// Shares are told apart well enough by a thousand.
const WEIGHT_MAX: u32 = 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    upstream: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    kind: Spanned<String>,
    base_url: Option<Spanned<String>>,
    api_key_env: Option<Spanned<String>>,
    /// Read in order to be refused without being shown.
    api_key: Option<Spanned<IgnoredAny>>,
    #[serde(default)]
    models: Vec<Spanned<String>>,
    #[serde(default)]
    rename: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    prefix: String,
    order: Option<u32>,
    weight: Option<Spanned<u32>>,
    disconnect: Option<Spanned<String>>,
    connect_seconds: Option<Spanned<u64>>,
    head_seconds: Option<Spanned<u64>>,
    idle_seconds: Option<Spanned<u64>>,
    cap_member: Option<Spanned<String>>,
    user: Option<Spanned<String>>,
    retries: Option<u32>,
}

/// What is wrong, and where: a byte of the file.
struct Fault(usize, String);

/// Reads the file; the variables that it names are read from `env`.
pub fn read(
    env: &mut Reader,
    path: &str,
    terms: UpstreamTerms,
) -> Result<Vec<UpstreamConfig>, ConfigError> {
    let named = |what: String| ConfigError(format!("TOLLGATE_UPSTREAMS: {what}"));
    let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
    if text.len() > FILE_BYTES_MAX {
        return Err(named(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    let list = parse(&text, terms, &mut |name| env.secret_named(name)).map_err(|fault| {
        let Fault(at, what) = fault;
        let line = text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        named(format!("line {line}: {what}"))
    })?;
    for upstream in &list {
        upstream.show(env);
    }
    Ok(list)
}

/// Gives the value of a variable, where it is set.
type Keys<'a> = &'a mut dyn FnMut(&str) -> Option<secrecy::SecretString>;

fn parse(text: &str, terms: UpstreamTerms, keys: Keys<'_>) -> Result<Vec<UpstreamConfig>, Fault> {
    // Its own words for a fault show the line, and what is on it may be a key.
    let file: File = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let message = error.message();
        // `invalid type: string "sk-…", expected …`: the value is not for a log.
        let what = if message.contains("invalid type") || message.contains("invalid value") {
            message.split_once(", expected").map_or("a value of another type", |(_, rest)| rest)
        } else {
            message
        };
        Fault(at, what.trim().to_owned())
    })?;
    let mut names = BTreeSet::new();
    let mut list = Vec::new();
    for entry in file.upstream {
        let at = entry.span().start;
        let upstream = entry.into_inner().read(terms, keys)?;
        if list.len() == UPSTREAMS_MAX {
            return Err(Fault(at, format!("more than {UPSTREAMS_MAX} upstreams")));
        }
        if !names.insert(upstream.name.clone()) {
            return Err(Fault(at, format!("there are two upstreams '{}'", upstream.name)));
        }
        list.push(upstream);
    }
    if list.is_empty() {
        return Err(Fault(0, "there is no [[upstream]] in it".to_owned()));
    }
    Ok(list)
}

impl Entry {
    fn read(self, terms: UpstreamTerms, keys: Keys<'_>) -> Result<UpstreamConfig, Fault> {
        if let Some(key) = &self.api_key {
            let what = "a key does not stand in the file: `api_key_env` names the variable that \
                        holds it";
            return Err(fault(&key.span(), what));
        }
        let kind = one_of(&self.kind, "kind", &KINDS)?;
        let api_key = match &self.api_key_env {
            Some(name) => Some(key(name, keys)?),
            None => None,
        };
        Ok(UpstreamConfig {
            name: name(&self.name)?,
            kind,
            base_url: base_url(self.base_url.as_ref(), kind, &self.name)?,
            api_key,
            terms: self.terms(terms)?,
            offer: self.offer()?,
        })
    }

    fn terms(&self, terms: UpstreamTerms) -> Result<UpstreamTerms, Fault> {
        let disconnect = self.disconnect.as_ref();
        Ok(UpstreamTerms {
            connect: seconds(self.connect_seconds.as_ref(), terms.connect)?,
            head: seconds(self.head_seconds.as_ref(), terms.head)?,
            idle: seconds(self.idle_seconds.as_ref(), terms.idle)?,
            cap_member: match &self.cap_member {
                Some(member) => one_of(member, "cap_member", &CAP_MEMBERS)?,
                None => terms.cap_member,
            },
            takes_user: match &self.user {
                Some(user) => one_of(user, "user", &USERS)?,
                None => terms.takes_user,
            },
            retries: self.retries.unwrap_or(terms.retries),
            disconnect: match disconnect {
                Some(policy) => one_of(policy, "disconnect", &POLICIES)?,
                None => terms.disconnect,
            },
            ..terms
        })
    }

    fn offer(self) -> Result<OfferConfig, Fault> {
        for pattern in &self.models {
            let text = pattern.get_ref();
            // As in a key's list of models: a star stands for a rest.
            if text.is_empty() || text.strip_suffix('*').unwrap_or(text).contains('*') {
                return Err(fault(&pattern.span(), "a pattern is a name, or ends in one `*`"));
            }
        }
        for (client, upstream) in &self.rename {
            if client.is_empty() || upstream.get_ref().is_empty() {
                return Err(fault(&upstream.span(), "a name of a model is empty"));
            }
        }
        let weight = match &self.weight {
            Some(weight) if !(1..=WEIGHT_MAX).contains(weight.get_ref()) => {
                let what = format!("a weight is from 1 to {WEIGHT_MAX}");
                return Err(Fault(weight.span().start, what));
            }
            weight => weight.as_ref().map_or(1, |weight| *weight.get_ref()),
        };
        let rename = self.rename.into_iter().map(|(name, own)| (name, own.into_inner()));
        Ok(OfferConfig {
            models: self.models.into_iter().map(Spanned::into_inner).collect(),
            rename: rename.collect(),
            prefix: self.prefix,
            order: self.order.unwrap_or(1),
            weight,
            is_one_of_several: true,
        })
    }
}

fn fault(span: &Range<usize>, what: &str) -> Fault {
    Fault(span.start, what.to_owned())
}

/// It goes into tables, log lines and labels of metrics.
fn name(name: &Spanned<String>) -> Result<String, Fault> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let text = name.get_ref();
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(is_plain) {
        let what = format!("a name is up to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`");
        return Err(Fault(name.span().start, what));
    }
    Ok(text.clone())
}

/// The value of the variable. What is no variable's name may be the key itself.
fn key(name: &Spanned<String>, keys: Keys<'_>) -> Result<secrecy::SecretString, Fault> {
    let text = name.get_ref();
    let is_plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(is_plain) {
        let what = "`api_key_env` is the name of a variable, in capitals, and not the key";
        return Err(fault(&name.span(), what));
    }
    let unset = || Fault(name.span().start, format!("the variable {text} is not set"));
    keys(text).ok_or_else(unset)
}

fn base_url(
    given: Option<&Spanned<String>>,
    kind: UpstreamKind,
    name: &Spanned<String>,
) -> Result<String, Fault> {
    let Some(given) = given else {
        let is_known = kind == UpstreamKind::OpenRouter;
        let unknown = || fault(&name.span(), "`base_url` is missing; only openrouter's is known");
        return is_known.then(|| OPENROUTER.to_owned()).ok_or_else(unknown);
    };
    let url = given.get_ref().trim_end_matches('/');
    let uri: Option<Uri> = url.parse().ok();
    let is_plain = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
            && uri.query().is_none()
    });
    let what = "`base_url` is an http(s) URL up to and including /v1, without a user or a query";
    is_plain.then(|| url.to_owned()).ok_or_else(|| fault(&given.span(), what))
}

fn one_of<T: Copy>(given: &Spanned<String>, what: &str, choices: &[(&str, T)]) -> Result<T, Fault> {
    let found = choices.iter().find(|(choice, _)| *choice == given.get_ref());
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
        Fault(given.span().start, format!("`{what}` must be one of {}", names.join(", ")))
    })
}

fn seconds(given: Option<&Spanned<u64>>, default: Duration) -> Result<Duration, Fault> {
    let Some(given) = given else { return Ok(default) };
    if !(1..=SECONDS_MAX).contains(given.get_ref()) {
        return Err(fault(&given.span(), "a wait is from one second to a day"));
    }
    Ok(Duration::from_secs(*given.get_ref()))
}

impl UpstreamConfig {
    /// For `tollgate config`. The key was shown, masked, under its variable's name.
    fn show(&self, env: &mut Reader) {
        let Self { name, kind, base_url, terms, offer, .. } = self;
        let policy = POLICIES.iter().find(|(_, policy)| *policy == terms.disconnect);
        let renamed = offer.rename.iter().map(|(client, own)| format!("{client}={own}"));
        let members = [
            ("kind", kind.name().to_owned()),
            ("base_url", base_url.clone()),
            ("models", offer.models.join(" ")),
            ("rename", renamed.collect::<Vec<_>>().join(" ")),
            ("prefix", offer.prefix.clone()),
            ("order", offer.order.to_string()),
            ("weight", offer.weight.to_string()),
            ("disconnect", policy.map_or("", |(name, _)| name).to_owned()),
            ("connect_seconds", terms.connect.as_secs().to_string()),
            ("head_seconds", terms.head.as_secs().to_string()),
            ("idle_seconds", terms.idle.as_secs().to_string()),
            ("cap_member", terms.cap_member.unwrap_or("auto").to_owned()),
            ("user", if terms.takes_user { "account" } else { "none" }.to_owned()),
            ("retries", terms.retries.to_string()),
        ];
        for (member, value) in members {
            env.show(format!("upstream.{name}.{member}"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Disconnect;
    use secrecy::ExposeSecret;

    const TERMS: UpstreamTerms = UpstreamTerms {
        connect: Duration::from_secs(5),
        head: Duration::from_secs(300),
        idle: Duration::from_secs(120),
        whole: Duration::from_secs(3_600),
        cap_member: None,
        takes_user: true,
        retries: 2,
        disconnect: Disconnect::Auto,
        disconnect_drain: Duration::from_secs(120),
        lookup: Duration::from_secs(300),
        lookup_first: Duration::from_secs(1),
    };

    fn read(text: &str) -> Result<Vec<UpstreamConfig>, (usize, String)> {
        let mut keys = |name: &str| (name != "UNSET").then(|| format!("key of {name}").into());
        parse(text, TERMS, &mut keys)
            .map_err(|Fault(at, what)| (text[..at].matches('\n').count() + 1, what))
    }

    #[test]
    fn the_example_is_read() {
        let example = include_str!("../../../deploy/upstreams.example.toml");
        let list = read(example).unwrap();
        let names: Vec<&str> = list.iter().map(|upstream| upstream.name.as_str()).collect();
        assert_eq!(names, ["direct", "second", "openrouter"]);
        let [direct, second, openrouter] = &list[..] else { panic!("three") };
        let key = direct.api_key.as_ref().unwrap().expose_secret();
        assert_eq!(key, "key of OPENAI_API_KEY");
        assert_eq!(openrouter.base_url, OPENROUTER);
        assert_eq!(openrouter.terms.retries, TERMS.retries);
        assert_eq!((direct.offer.order, second.offer.order, openrouter.offer.order), (1, 1, 2));
        assert_eq!(direct.terms.head, Duration::from_secs(60));
        assert!(second.api_key.is_none());
    }

    #[test]
    fn a_fault_is_told_with_its_line_and_without_a_key() {
        const START: &str = "[[upstream]]\nname = \"a\"\nkind = \"openrouter\"\n";
        for (rest, line, words) in [
            ("api_key = \"sk-secret\"", 4, "api_key_env"),
            ("api_key_env = \"sk-secret\"", 4, "not the key"),
            ("apikey = \"sk-secret\"", 4, "unknown field `apikey`"),
            ("order = \"sk-secret\"", 4, "u32"),
            ("weight = 0", 4, "from 1 to"),
            ("api_key_env = \"UNSET\"", 4, "UNSET is not set"),
            ("base_url = \"ftp://x/v1\"", 4, "base_url"),
            ("base_url = \"https://user:sk-secret@x/v1\"", 4, "without a user"),
            ("models = [\n\"a/*\",\n\"*b\"]", 6, "pattern"),
            ("disconnect = \"maybe\"", 4, "must be one of"),
            ("head_seconds = 0", 4, "one second"),
            ("[upstream.rename]\n\"x\" = \"\"", 5, "empty"),
            ("[[upstream]]\nname = \"a\"\nkind = \"openrouter\"", 4, "two upstreams 'a'"),
            ("[[upstream]]\nname = \"b\"\nkind = \"openai\"", 5, "`base_url` is missing"),
            ("[[upstream]]\nname = \"b c\"\nkind = \"openrouter\"", 5, "a name is"),
            ("[[upstream]]\nname = \"b\"\nkind = \"other\"", 6, "`kind` must be one of"),
            ("weight = ", 4, ""),
        ] {
            let (at, what) = read(&format!("{START}{rest}")).expect_err(rest);
            assert_eq!(at, line, "{rest}: {what}");
            assert!(what.contains(words) && !what.contains("sk-secret"), "{rest}: {what}");
        }
        assert!(read("").is_err());
    }
}
