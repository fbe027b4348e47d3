//! What the fuzz targets ask of any input, asked of their seeds: so that the targets keep up with
//! the program, and what a fuzzer once found stays found. The fuzzing itself is not done here.

use std::fs;

use crate::source::root;

#[path = "../../fuzz/cases/request.rs"]
mod request;
#[path = "../../fuzz/cases/tap.rs"]
mod tap;
#[path = "../../fuzz/cases/token.rs"]
mod token;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = root().join("fuzz/seeds").join(target);
    let entries = fs::read_dir(folder).expect("a folder");
    let seeds: Vec<Vec<u8>> =
        entries.map(|entry| fs::read(entry.expect("an entry").path()).expect("a file")).collect();
    assert!(!seeds.is_empty(), "no seeds of {target}");
    seeds
}

#[test]
fn the_seeds_of_the_tap_hold() {
    for seed in seeds("tap") {
        tap::case(&seed);
    }
}

#[test]
fn the_seeds_of_requests_hold() {
    for seed in seeds("request") {
        request::case(&seed);
    }
}

#[test]
fn the_seeds_of_tokens_hold() {
    for seed in seeds("token") {
        token::case(&seed);
    }
}
