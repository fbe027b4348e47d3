//! Access tokens: any text. It must not panic, and nothing that was not signed with the secret is
//! anybody.

use futures::executor::block_on;
use tollgate::config::TokenConfig;
use tollgate::services::auth::tokens::Tokens;

/// One token, where it is text.
pub fn case(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let config = TokenConfig {
        issuer: "https://project.supabase.co/auth/v1".to_owned(),
        audience: "authenticated".to_owned(),
        jwks_url: None,
        secret: Some("a-secret-that-no-fuzzer-finds-out-0451".to_owned().into()),
        anonymous: false,
    };
    let Ok(tokens) = Tokens::new(config) else { return };
    let _ = Tokens::has_form(text);
    assert!(block_on(tokens.verify(text)).is_err(), "a forged token: {text}");
}
