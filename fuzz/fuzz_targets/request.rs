//! Fuzzes the view of a request: see the case.
#![no_main]

#[path = "../cases/request.rs"]
mod request;

libfuzzer_sys::fuzz_target!(|input: &[u8]| request::case(input));
