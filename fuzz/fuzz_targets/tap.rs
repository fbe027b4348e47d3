//! Fuzzes the tap: see the case.
#![no_main]

#[path = "../cases/tap.rs"]
mod tap;

libfuzzer_sys::fuzz_target!(|input: &[u8]| tap::case(input));
