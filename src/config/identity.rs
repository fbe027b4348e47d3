//! Whose access tokens are accepted, what a first login gets, and how far callers are trusted.
//!
//! Invariant: keys are fetched over TLS or from this machine only, and HS256 is accepted only where
//! its secret was set.

use super::ConfigError;
use super::is_safe;
use super::reader::{Reader, listed};
use crate::models::money::NanoUsd;
use hyper::Uri;
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use std::net::IpAddr;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// `None`: API keys only.
    pub tokens: Option<TokenConfig>,
    /// Where users get their tokens, for the console. `None`: it asks for keys only.
    pub sign_in: Option<SignInConfig>,
    pub signup: SignupConfig,
    /// How long a known caller goes on when the database cannot be asked.
    pub stale: Duration,
    /// Wrong keys and tokens from one address in a minute. Zero: no limit.
    pub failures_per_minute: u32,
    /// Whose word on a client's address is taken.
    pub trusted_proxies: Vec<IpNet>,
}

/// What a user's access token has to be.
#[derive(Clone, Debug)]
pub struct TokenConfig {
    pub issuer: String,
    pub audience: String,
    /// Where the public keys are: for ES256 and RS256.
    pub jwks_url: Option<String>,
    /// For HS256.
    pub secret: Option<SecretString>,
    /// Users who have not said who they are.
    pub anonymous: bool,
}

/// The auth server as a browser calls it.
#[derive(Clone, Debug)]
pub struct SignInConfig {
    /// Scheme, host and port.
    pub origin: String,
    /// Below it, without a slash at its end.
    pub url: String,
    /// The project's public key. Supabase makes it for browsers.
    pub anon_key: String,
}

/// What a user without an account gets.
#[derive(Clone, Debug)]
pub struct SignupConfig {
    /// Off: nothing.
    pub is_open: bool,
    /// Of the operator's table.
    pub plan: Option<String>,
    pub credit: NanoUsd,
}

/// Where Supabase's auth server is, below the project's URL, and its keys below that.
/// <https://supabase.com/docs/guides/auth/signing-keys>
const AUTH_PATH: &str = "/auth/v1";
const JWKS_PATH: &str = "/.well-known/jwks.json";
/// A shorter secret can be guessed, and who has it can be anybody.
/// <https://www.rfc-editor.org/rfc/rfc7518#section-3.2>
const SECRET_BYTES_MIN: usize = 32;

impl IdentityConfig {
    pub(super) fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let project = env.address("SUPABASE_URL");
        let project = project.map(|url| checked("SUPABASE_URL", &url)).transpose()?;
        let server = project.map(|url| format!("{url}{AUTH_PATH}"));
        Ok(Self {
            sign_in: SignInConfig::read(env, server.as_deref())?,
            tokens: TokenConfig::read(env, server)?,
            signup: SignupConfig::read(env)?,
            stale: env.seconds("TOLLGATE_STALE_IDENTITY_SECONDS", "600")?,
            failures_per_minute: env.parsed("TOLLGATE_AUTH_FAILURES_PER_MINUTE", "20")?,
            trusted_proxies: trusted_proxies(env)?,
        })
    }
}

impl TokenConfig {
    fn read(env: &mut Reader, server: Option<String>) -> Result<Option<Self>, ConfigError> {
        let jwks_url = env.address("SUPABASE_JWKS_URL");
        let jwks_url = jwks_url.map(|url| checked("SUPABASE_JWKS_URL", &url)).transpose()?;
        let jwks_url = jwks_url.or_else(|| Some(format!("{}{JWKS_PATH}", server.as_ref()?)));
        let secret = env.secret("SUPABASE_JWT_SECRET");
        let is_short = |secret: &SecretString| secret.expose_secret().len() < SECRET_BYTES_MIN;
        if secret.as_ref().is_some_and(is_short) {
            let message = format!("SUPABASE_JWT_SECRET is shorter than {SECRET_BYTES_MIN} bytes");
            return Err(ConfigError(message));
        }
        let issuer = env.address("SUPABASE_ISSUER").or(server);
        let audience = env.text("SUPABASE_AUDIENCE", "authenticated");
        let anonymous = env.switch("TOLLGATE_ANONYMOUS_USERS", "off")?;
        match issuer {
            Some(_) if jwks_url.is_none() && secret.is_none() => {
                let message = "SUPABASE_ISSUER needs SUPABASE_URL, SUPABASE_JWKS_URL or \
                     SUPABASE_JWT_SECRET";
                Err(ConfigError(message.to_owned()))
            }
            Some(issuer) => Ok(Some(Self { issuer, audience, jwks_url, secret, anonymous })),
            None if jwks_url.is_none() && secret.is_none() => Ok(None),
            None => {
                let message = "whose tokens? Set SUPABASE_URL or SUPABASE_ISSUER beside \
                     SUPABASE_JWKS_URL or SUPABASE_JWT_SECRET";
                Err(ConfigError(message.to_owned()))
            }
        }
    }
}

impl SignInConfig {
    fn read(env: &mut Reader, server: Option<&str>) -> Result<Option<Self>, ConfigError> {
        let Some(anon_key) = env.optional("SUPABASE_ANON_KEY") else { return Ok(None) };
        let Some(url) = server else {
            return Err(ConfigError("SUPABASE_ANON_KEY needs SUPABASE_URL".to_owned()));
        };
        let origin = origin(url).ok_or_else(|| {
            ConfigError("SUPABASE_URL: a browser cannot be told to call this address".to_owned())
        })?;
        Ok(Some(Self { origin, url: url.to_owned(), anon_key }))
    }
}

/// The part of an address that a content security policy names. Its own separators are not in it.
fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?.as_str());
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    authority.bytes().all(is_plain).then(|| format!("{scheme}://{authority}"))
}

impl SignupConfig {
    fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let credit = env.text("TOLLGATE_SIGNUP_CREDIT", "0");
        let credit = NanoUsd::parse_typed(&credit).filter(|credit| *credit >= NanoUsd::ZERO);
        Ok(Self {
            is_open: env.switch("TOLLGATE_SIGNUP", "on")?,
            plan: env.optional("TOLLGATE_SIGNUP_PLAN"),
            credit: credit.ok_or_else(|| {
                ConfigError("TOLLGATE_SIGNUP_CREDIT is not an amount of dollars like 1.50".into())
            })?,
        })
    }
}

/// An address that keys may come from, without the slash at its end.
fn checked(name: &str, url: &str) -> Result<String, ConfigError> {
    if url.parse().is_ok_and(|uri| is_safe(&uri)) {
        Ok(url.trim_end_matches('/').to_owned())
    } else {
        // Who can change the keys on their way can be anybody.
        Err(ConfigError(format!("{name} must be an https:// address, or one on this machine")))
    }
}

fn trusted_proxies(env: &mut Reader) -> Result<Vec<IpNet>, ConfigError> {
    let list = env.text("TOLLGATE_TRUSTED_PROXIES", "");
    listed(&list).map(network).collect()
}

/// A network like 10.0.0.0/8, or one address.
fn network(text: &str) -> Result<IpNet, ConfigError> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).map_err(|_| {
        let message = format!("TOLLGATE_TRUSTED_PROXIES: '{text}' is no network like 10.0.0.0/8");
        ConfigError(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_over_tls_or_from_this_machine() {
        for good in [
            "https://ref.supabase.co",
            "https://ref.supabase.co/",
            "http://127.0.0.1:54321",
            "http://localhost:54321",
            "http://[::1]:54321",
        ] {
            assert_eq!(checked("X", good).unwrap(), good.trim_end_matches('/'), "{good}");
        }
        for bad in [
            "http://ref.supabase.co",
            "http://127.0.0.1.evil.example",
            "http://localhost@evil.example",
            "http://10.0.0.1",
            "ftp://localhost",
            "ref.supabase.co",
            "https://",
            "/auth/v1",
            "",
        ] {
            assert!(checked("X", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_origin_ends_before_the_path_and_separates_nothing() {
        assert_eq!(origin("https://a.b:1/auth/v1").as_deref(), Some("https://a.b:1"));
        assert_eq!(origin("http://[::1]:5/").as_deref(), Some("http://[::1]:5"));
        for bad in ["https://a;script-src", "https://a,b", "https://u@a", "/auth", "https://a'b"] {
            assert_eq!(origin(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_proxy_is_a_network_or_an_address() {
        assert!(network("10.0.0.0/8").unwrap().contains(&"10.1.2.3".parse::<IpAddr>().unwrap()));
        assert!(network("::1").unwrap().contains(&"::1".parse::<IpAddr>().unwrap()));
        assert!(network("10.0.0.0/33").is_err());
        assert!(network("two").is_err());
    }
}
