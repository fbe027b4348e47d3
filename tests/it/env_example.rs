//! `.env.example` and the configuration name the same variables.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{read, sources, strings};

#[test]
fn the_example_and_the_configuration_name_the_same_variables() {
    let (shown, read) = (example(), configured());
    assert!(read.len() > 15, "the configuration was not understood: {read:?}");
    let shown_names: BTreeSet<_> = shown.keys().cloned().collect();
    let missing: Vec<_> = read.difference(&shown_names).collect();
    assert!(missing.is_empty(), "not in .env.example: {missing:?}");
    let stale: Vec<_> = shown_names.difference(&read).collect();
    assert!(stale.is_empty(), "in .env.example, but never read: {stale:?}");
}

#[test]
fn every_variable_is_explained() {
    for (name, comment) in example() {
        assert!(comment.split_whitespace().count() >= 3, "{name} is not explained: {comment:?}");
    }
}

#[test]
fn the_example_holds_no_real_secret() {
    for line in read(".env.example").lines() {
        let value = line.split_once('=').map_or("", |(_, value)| value);
        assert!(value.len() < 60, "is this a real secret? {line}");
    }
}

/// Each variable with the comment above it; a variable that is off by default is commented out.
fn example() -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let mut comment = String::new();
    let mut after_variable = false;
    for line in read(".env.example").lines() {
        if let Some(name) = variable(line) {
            variables.insert(name.to_string(), comment.clone());
            after_variable = true;
        } else if let Some(text) = line.strip_prefix('#') {
            // A comment may stand above several variables in a row, but not over the next comment.
            if after_variable {
                comment.clear();
            }
            comment.push_str(text);
            after_variable = false;
        } else if line.trim().is_empty() {
            comment.clear();
            after_variable = false;
        }
    }
    variables
}

fn variable(line: &str) -> Option<&str> {
    let line = line.strip_prefix('#').unwrap_or(line).trim_start();
    let (name, _) = line.split_once('=')?;
    is_variable(name).then_some(name)
}

/// Every string in the configuration's source that has the form of a variable's name.
fn configured() -> BTreeSet<String> {
    let files = sources("src")
        .into_iter()
        .filter(|file| file.path == "src/config.rs" || file.path.starts_with("src/config/"));
    let names = files.flat_map(|file| strings(&file.code()));
    names.filter(|text| is_variable(text) && text != "TOLLGATE_").collect()
}

fn is_variable(text: &str) -> bool {
    let capitals = !text.is_empty()
        && text
            .chars()
            .all(|letter| letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_');
    capitals
        && (text.contains('_') || text == "PORT")
        && text.starts_with(|c: char| c.is_ascii_uppercase())
}
