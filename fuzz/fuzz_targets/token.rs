//! Access tokens: any text. It must not panic, and nothing that was not signed with the secret is
//! anybody.
#![no_main]

use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;
use tollgate::config::TokenConfig;
use tollgate::services::auth::tokens::Tokens;

fuzz_target!(|text: &str| {
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
});
