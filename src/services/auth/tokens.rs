//! A user's access token: who it is for, once it is proven.
//!
//! Invariants: the algorithm is that of the key, never chosen by the token; HS256 is accepted only
//! with the operator's secret; nothing that a user can edit (`user_metadata`) and nothing that is
//! for PostgreSQL (`role`) makes a user more than one. No reason holds a part of the token.
//! <https://supabase.com/docs/guides/auth/jwt-fields>

use super::jwks::Jwks;
use crate::config::TokenConfig;
use crate::error::Error;
use crate::models::identity::Role;
use crate::models::ids::UserId;
use crate::models::timestamp::Timestamp;
use jsonwebtoken::errors::{Error as Fault, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode, decode_header};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Whose tokens, and the keys to prove them with.
pub struct Tokens {
    config: TokenConfig,
    pub jwks: Option<Arc<Jwks>>,
    secret: Option<DecodingKey>,
}

/// Who a token is for.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub id: UserId,
    pub role: Role,
    /// When the token ends, leeway included.
    pub until: Timestamp,
}

/// Real ones have one or two kilobytes.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Clocks differ.
const LEEWAY: Duration = Duration::from_secs(30);
/// PostgreSQL's role of a user who has signed in; `anon` and `service_role` are the project's keys.
const AUTHENTICATED: &str = "authenticated";

/// What is read of the claims; `iss`, `aud` and `nbf` are checked by the library beside it.
#[derive(Deserialize)]
struct Claims {
    sub: Uuid,
    exp: i64,
    /// The library would take a list of them too.
    #[serde(rename = "iss")]
    _issuer: String,
    role: String,
    #[serde(default)]
    is_anonymous: Value,
    /// Written by the server only.
    #[serde(default)]
    app_metadata: Value,
    /// By the project's hook.
    /// <https://supabase.com/docs/guides/auth/auth-hooks/custom-access-token-hook>
    #[serde(default)]
    user_role: Value,
}

impl Tokens {
    /// # Errors
    /// [`Error::Internal`] when the keys' URL is none.
    pub fn new(config: TokenConfig) -> Result<Self, Error> {
        let jwks = config.jwks_url.as_deref().map(Jwks::new).transpose()?;
        let secret = config.secret.as_ref();
        let secret = secret.map(|text| DecodingKey::from_secret(text.expose_secret().as_bytes()));
        Ok(Self { config, jwks, secret })
    }

    /// Whether the text has the form of a token: three parts.
    #[must_use]
    pub fn has_form(text: &str) -> bool {
        text.len() <= TOKEN_BYTES_MAX && text.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// # Errors
    /// [`Error::WrongToken`], [`Error::ExpiredToken`], or [`Error::AuthServer`] when it cannot be
    /// told.
    pub async fn verify(&self, token: &str) -> Result<User, Error> {
        let header = decode_header(token).map_err(|_| Error::WrongToken("its header"))?;
        if header.crit.is_some() {
            // <https://www.rfc-editor.org/rfc/rfc7515#section-4.1.11>
            return Err(Error::WrongToken("it asks for what is not understood"));
        }
        let key = self.key(&header).await?;
        let claims = decode::<Claims>(token, &key, &self.validation(header.alg));
        self.user(&claims.map_err(|fault| refusal(&fault))?.claims)
    }

    async fn key(&self, header: &Header) -> Result<DecodingKey, Error> {
        let unknown = || Error::WrongToken("an algorithm that is not accepted");
        match header.alg {
            Algorithm::HS256 => self.secret.clone().ok_or_else(unknown),
            Algorithm::ES256 | Algorithm::RS256 => {
                let jwks = self.jwks.as_ref().ok_or_else(unknown)?;
                jwks.key(header.kid.as_deref(), header.alg).await
            }
            _ => Err(unknown()),
        }
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&[&self.config.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation
    }

    fn user(&self, claims: &Claims) -> Result<User, Error> {
        if claims.role != AUTHENTICATED {
            return Err(Error::WrongToken("its role"));
        }
        if claims.sub.is_nil() {
            return Err(Error::WrongToken("its subject"));
        }
        let is_known = matches!(claims.is_anonymous, Value::Null | Value::Bool(false));
        if !is_known && !self.config.anonymous {
            return Err(Error::WrongToken("an anonymous user"));
        }
        Ok(User {
            id: UserId(claims.sub),
            role: claims.tollgate_role(),
            until: Timestamp::from_unix_seconds(claims.exp).plus(LEEWAY),
        })
    }
}

impl Claims {
    fn tollgate_role(&self) -> Role {
        let named = [self.app_metadata.get("role"), Some(&self.user_role)];
        let roles = named.into_iter().flatten().filter_map(|role| match role.as_str()? {
            "admin" => Some(Role::Admin),
            "service" => Some(Role::Service),
            _ => None,
        });
        roles.into_iter().next().unwrap_or(Role::User)
    }
}

/// The signature is checked before the claims, so that "expired" is only said of what was good.
fn refusal(fault: &Fault) -> Error {
    Error::WrongToken(match fault.kind() {
        ErrorKind::ExpiredSignature => return Error::ExpiredToken,
        ErrorKind::InvalidSignature => "its signature",
        ErrorKind::InvalidIssuer => "its issuer",
        ErrorKind::InvalidAudience => "its audience",
        ErrorKind::ImmatureSignature => "it is not valid yet",
        ErrorKind::MissingRequiredClaim(_) => "a claim is missing",
        ErrorKind::Json(_) => "its claims",
        _ => "its form",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SECRET: &str = "a secret of this test, long enough";

    fn role(claims: &Value) -> Role {
        let mut all = json!({
            "iss": "me", "aud": "authenticated", "role": "authenticated",
            "exp": 4_000_000_000_i64, "sub": Uuid::now_v7(),
        });
        for (name, value) in claims.as_object().unwrap() {
            all[name] = value.clone();
        }
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let token = jsonwebtoken::encode(&Header::default(), &all, &key).unwrap();
        let tokens = Tokens::new(TokenConfig {
            issuer: "me".to_owned(),
            audience: "authenticated".to_owned(),
            jwks_url: None,
            secret: Some(SECRET.into()),
            anonymous: false,
        });
        let user = futures::executor::block_on(tokens.unwrap().verify(&token));
        user.unwrap().role
    }

    #[test]
    fn a_role_is_what_the_server_wrote_and_never_what_the_user_did() {
        for (claims, expected) in [
            (json!({}), Role::User),
            (json!({"app_metadata": {"role": "admin"}}), Role::Admin),
            (json!({"app_metadata": {"role": "service"}}), Role::Service),
            (json!({"user_role": "admin"}), Role::Admin),
            (json!({"user_role": "service"}), Role::Service),
            (json!({"app_metadata": {"role": "member"}, "user_role": "admin"}), Role::Admin),
            (json!({"app_metadata": {"role": "service"}, "user_role": "admin"}), Role::Service),
            (json!({"user_metadata": {"role": "admin", "user_role": "admin"}}), Role::User),
            (json!({"app_metadata": {"role": ["admin"]}}), Role::User),
            (json!({"app_metadata": "admin", "user_role": {"admin": true}}), Role::User),
            (json!({"app_metadata": null, "user_role": null}), Role::User),
            (json!({"user_role": "Admin"}), Role::User),
            (json!({"roles": ["admin"], "is_admin": true}), Role::User),
        ] {
            assert_eq!(role(&claims), expected, "{claims}");
        }
    }
}
