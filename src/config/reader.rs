//! Reads typed variables and remembers what was read, for `tollgate config` and for the check that
//! no `TOLLGATE_*` variable is left unread.

use super::ConfigError;
use secrecy::SecretString;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

pub struct Reader {
    variables: BTreeMap<String, String>,
    shown: Vec<(Name, String)>,
}

/// Of a variable, or of a member of a file that a variable names.
pub type Name = Cow<'static, str>;

/// Longest wait that can be set: a day. Larger numbers are typing errors.
pub const SECONDS_MAX: u64 = 86_400;

/// The parts of a list with commas.
pub fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// An address without its user and password, and without what its query and fragment say.
fn masked(address: &str) -> String {
    let (place, fragment) =
        address.split_once('#').map_or((address, ""), |(place, _)| (place, "#***"));
    let (place, query) = match place.split_once('?') {
        Some((place, query)) => (place, format!("?{}", masked_query(query))),
        None => (place, String::new()),
    };
    let (scheme, rest) = place.split_once("://").unwrap_or(("", place));
    let host_at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(host_at);
    let (user, host) = match authority.rsplit_once('@') {
        Some((_, host)) => ("***@", host),
        None => ("", authority),
    };
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}{user}{host}{path}{query}{fragment}")
}

/// The names stay: they say what is set.
fn masked_query(query: &str) -> String {
    let shown = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) => format!("{name}=***"),
        None => "***".to_owned(),
    });
    shown.collect::<Vec<_>>().join("&")
}

impl Reader {
    pub fn of_process() -> Result<Self, ConfigError> {
        let mut variables = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            // Variables of others may be anything; ours must be text.
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) if value.is_empty() => {}
                Ok(value) => drop(variables.insert(name, value)),
                Err(_) if name.starts_with("TOLLGATE_") => {
                    return Err(ConfigError(format!("{name} is not valid UTF-8")));
                }
                Err(_) => {}
            }
        }
        Ok(Self { variables, shown: Vec::new() })
    }

    /// What was read; an error when one of our variables was not.
    pub fn finish(self) -> Result<Vec<(Name, String)>, ConfigError> {
        let known = |name: &str| self.shown.iter().any(|(read, _)| *read == name);
        let ours = self.variables.keys().filter(|name| name.starts_with("TOLLGATE_"));
        // Variables of the test environment are not the program's.
        let unknown = ours.into_iter().find(|name| !known(name) && !name.contains("_TEST_"));
        match unknown {
            Some(name) => {
                Err(ConfigError(format!("unknown variable {name}; `.env.example` has them all")))
            }
            None => Ok(self.shown),
        }
    }

    pub fn optional(&mut self, name: &'static str) -> Option<String> {
        let value = self.variables.get(name).cloned();
        self.show(name, value.clone().unwrap_or_default());
        value
    }

    pub fn text(&mut self, name: &'static str, default: &str) -> String {
        let value = self.variables.get(name).cloned().unwrap_or_else(|| default.to_owned());
        self.show(name, value.clone());
        value
    }

    /// Somebody's address: what may be secret in it is masked.
    pub fn address(&mut self, name: &'static str) -> Option<String> {
        let value = self.variables.get(name).cloned();
        self.show(name, value.as_deref().map(masked).unwrap_or_default());
        value
    }

    pub fn address_or(&mut self, name: &'static str, default: &str) -> String {
        let value = self.variables.get(name).cloned().unwrap_or_else(|| default.to_owned());
        self.show(name, masked(&value));
        value
    }

    pub fn secret(&mut self, name: &'static str) -> Option<SecretString> {
        let value = self.variables.get(name).cloned();
        let shown = if value.is_some() { "***" } else { "" };
        self.show(name, shown.to_owned());
        value.map(SecretString::from)
    }

    /// Secrets, separated by commas.
    pub fn secrets(&mut self, name: &'static str) -> Vec<String> {
        let text = self.variables.get(name).cloned().unwrap_or_default();
        let secrets: Vec<String> = listed(&text).map(str::to_owned).collect();
        self.show(name, vec!["***"; secrets.len()].join(","));
        secrets
    }

    /// A secret whose variable is named in a file.
    pub fn secret_named(&mut self, name: &str) -> Option<SecretString> {
        let value = self.variables.get(name).cloned()?;
        if self.shown.iter().all(|(read, _)| read != name) {
            self.show(name.to_owned(), "***".to_owned());
        }
        Some(SecretString::from(value))
    }

    pub fn is_set(&self, name: &str) -> bool {
        self.variables.contains_key(name)
    }

    /// Remembers what is in force.
    pub fn show(&mut self, name: impl Into<Name>, value: String) {
        self.shown.push((name.into(), value));
    }

    /// A text that may hold a password: masked unless it is the default.
    pub fn secret_or(&mut self, name: &'static str, default: &str) -> SecretString {
        let given = self.variables.get(name).cloned();
        let shown = match &given {
            Some(value) => format!("{}:***", value.split(':').next().unwrap_or_default()),
            None => default.to_owned(),
        };
        self.show(name, shown);
        SecretString::from(given.unwrap_or_else(|| default.to_owned()))
    }

    pub fn parsed<T: FromStr>(
        &mut self,
        name: &'static str,
        default: &str,
    ) -> Result<T, ConfigError>
    where
        T::Err: Display,
    {
        let text = self.text(name, default);
        text.parse().map_err(|error| ConfigError(format!("{name}: {error}")))
    }

    pub fn seconds(&mut self, name: &'static str, default: &str) -> Result<Duration, ConfigError> {
        match self.parsed(name, default)? {
            seconds if seconds <= SECONDS_MAX => Ok(Duration::from_secs(seconds)),
            _ => Err(ConfigError(format!("{name}: more than a day"))),
        }
    }

    /// Seconds of something that must happen again and again.
    pub fn positive_seconds(
        &mut self,
        name: &'static str,
        default: &str,
    ) -> Result<Duration, ConfigError> {
        let seconds = self.seconds(name, default)?;
        if seconds.is_zero() {
            return Err(ConfigError(format!("{name} must be more than zero")));
        }
        Ok(seconds)
    }

    pub fn milliseconds(
        &mut self,
        name: &'static str,
        default: &str,
    ) -> Result<Duration, ConfigError> {
        match self.parsed(name, default)? {
            millis if millis <= SECONDS_MAX * 1_000 => Ok(Duration::from_millis(millis)),
            _ => Err(ConfigError(format!("{name}: more than a day"))),
        }
    }

    /// `on` or `off`.
    pub fn switch(&mut self, name: &'static str, default: &str) -> Result<bool, ConfigError> {
        self.one_of(name, default, &[("on", true), ("off", false)])
    }

    pub fn one_of<T: Copy>(
        &mut self,
        name: &'static str,
        default: &str,
        choices: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let text = self.text(name, default);
        let found = choices.iter().find(|(choice, _)| *choice == text);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
            ConfigError(format!("{name} must be one of {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_in_an_address_is_masked() {
        for (address, shown) in [
            ("https://api.example/v1", "https://api.example/v1"),
            ("http://[::1]:8080/v1/@cf/", "http://[::1]:8080/v1/@cf/"),
            ("http://user:pw@host:1/v1", "http://***@host:1/v1"),
            ("http://token@host", "http://***@host"),
            ("http://u:p@w@host/v1", "http://***@host/v1"),
            ("user:pw@host/v1", "***@host/v1"),
            ("http://host/v1?key=a&b=&c", "http://host/v1?key=***&b=***&***"),
            ("http://host?key=a@b#c", "http://host?key=***#***"),
            ("http://u:p@host?x", "http://***@host?***"),
            ("", ""),
        ] {
            assert_eq!(masked(address), shown, "{address}");
        }
    }
}
