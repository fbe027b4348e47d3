//! `openapi.yaml` and the table of routes describe the same paths and methods.

use std::collections::BTreeSet;

use crate::source::read;

/// A method and a path, its parameters without their names.
pub type Operation = (String, String);

const METHODS: [&str; 7] = ["get", "post", "put", "patch", "delete", "head", "options"];

#[test]
fn the_document_and_the_routes_agree() {
    let (documented, routed) = (documented(), routed(&read("src/routes.rs")));
    assert!(routed.len() >= 5, "the table of routes was not understood: {routed:?}");
    let missing: Vec<_> = routed.difference(&documented).collect();
    assert!(missing.is_empty(), "routes that openapi.yaml does not describe: {missing:?}");
    let stale: Vec<_> = documented.difference(&routed).collect();
    assert!(stale.is_empty(), "openapi.yaml describes what is no route: {stale:?}");
}

#[test]
fn every_operation_says_what_it_answers() {
    let document = document();
    for (path, methods) in document["paths"].as_mapping().expect("paths") {
        for (method, operation) in methods.as_mapping().expect("methods") {
            let Some(method) = method.as_str().filter(|name| METHODS.contains(name)) else {
                continue;
            };
            let summary = operation["summary"].as_str().unwrap_or_default();
            assert!(!summary.is_empty(), "{method} {path:?} has no summary");
            let answers =
                operation["responses"].as_mapping().map_or(0, serde_yaml_ng::Mapping::len);
            assert!(answers > 0, "{method} {path:?} has no responses");
        }
    }
}

/// What programs tell errors apart by: documented as it is in the source.
#[test]
fn every_type_and_code_of_an_error_is_documented() {
    let source = read("src/error.rs");
    let document = document();
    let error = &document["components"]["schemas"]["Error"]["properties"]["error"]["properties"];
    for (member, start) in [("type", "fn kind("), ("code", "pub fn code(")] {
        let function = source.split(start).nth(1).and_then(|rest| rest.split("\n    }\n").next());
        let words = function.expect("the function").split('"').skip(1).step_by(2);
        let used: BTreeSet<_> = words.collect();
        let listed = error[member]["enum"].as_sequence().expect("a list of words");
        let listed: BTreeSet<_> = listed.iter().filter_map(serde_yaml_ng::Value::as_str).collect();
        assert_eq!(listed, used, "{member}");
    }
}

fn document() -> serde_yaml_ng::Value {
    serde_yaml_ng::from_str(&read("openapi.yaml")).expect("openapi.yaml is YAML")
}

fn documented() -> BTreeSet<Operation> {
    let document = document();
    let mut operations = BTreeSet::new();
    for (path, methods) in document["paths"].as_mapping().expect("paths") {
        let path = path.as_str().expect("a path");
        for method in methods.as_mapping().expect("methods").keys() {
            let method = method.as_str().expect("a method");
            if METHODS.contains(&method) {
                operations.insert((method.to_string(), nameless(path)));
            }
        }
    }
    operations
}

/// Reads `.route("path", get(…).post(…))`, over as many lines as it takes.
pub fn routed(source: &str) -> BTreeSet<Operation> {
    assert!(!source.contains(".nest("), "a nested table hides its paths from this test");
    let mut operations = BTreeSet::new();
    for call in source.split(".route(").skip(1) {
        let call = arguments(call);
        let path = call.split('"').nth(1).unwrap_or_else(|| panic!("no literal path: {call}"));
        let handlers = call.splitn(3, '"').nth(2).unwrap_or_default();
        let methods = METHODS.iter().filter(|method| handlers.contains(&format!("{method}(")));
        let before = operations.len();
        operations.extend(methods.map(|method| (method.to_string(), nameless(path))));
        assert!(operations.len() > before, "no method: {call}");
    }
    operations
}

/// The text up to the parenthesis that closes the call.
fn arguments(call: &str) -> &str {
    let mut depth = 1;
    for (at, character) in call.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &call[..at];
        }
    }
    panic!("an open parenthesis: {call}");
}

/// A parameter's name and axum's mark for "the rest of the path" do not matter.
fn nameless(path: &str) -> String {
    let segments = path.split('/').map(|one| if one.starts_with('{') { "{}" } else { one });
    segments.collect::<Vec<_>>().join("/")
}

#[test]
fn routes_are_read_over_several_lines() {
    let source = r#"
        Router::new()
            .route("/healthz", get(health::live))
            .route(
                "/v1/models/{*id}",
                get(models::show).delete(models::forget),
            )
    "#;
    let expected = [("delete", "/v1/models/{}"), ("get", "/healthz"), ("get", "/v1/models/{}")];
    let expected = expected.map(|(method, path)| (method.to_string(), path.to_string()));
    assert_eq!(routed(source), BTreeSet::from(expected));
}
