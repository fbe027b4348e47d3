//! Fuzzes access tokens: see the case.
#![no_main]

#[path = "../cases/token.rs"]
mod token;

libfuzzer_sys::fuzz_target!(|input: &[u8]| token::case(input));
