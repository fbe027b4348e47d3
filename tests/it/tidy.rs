//! The shape of the source, as tests: what a reader may rely on in every file.
//!
//! The same rules hold for these tests, but for `expect`, which is how a test fails.

use std::collections::BTreeSet;

use crate::source::{Source, root, sources};

const LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

/// Fails with every finding at once.
#[track_caller]
fn assert_none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

fn all() -> Vec<Source> {
    [sources("src"), sources("tests")].into_iter().flatten().collect()
}

/// Lines of code under `src` that hold one of the texts.
fn lines_with(texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in sources("src") {
        for (number, line) in file.code_lines() {
            if texts.iter().any(|text| line.contains(text)) {
                found.push(format!("{}:{number}: {}", file.path, line.trim()));
            }
        }
    }
    found
}

/// The same, but for the files and folders where they belong.
fn outside(homes: &[&str], texts: &[&str]) -> Vec<String> {
    let elsewhere = |line: &String| !homes.iter().any(|home| line.starts_with(home));
    lines_with(texts).into_iter().filter(elsewhere).collect()
}

#[test]
fn every_file_opens_with_its_purpose() {
    let bare = all().into_iter().filter(|file| !file.text.starts_with("//! "));
    assert_none("no //! at the top", &bare.map(|file| file.path).collect::<Vec<_>>());
}

#[test]
fn files_functions_and_lines_are_short() {
    let mut found = Vec::new();
    for file in all() {
        // Unit tests stand at the end of the file that they test, and are not part of its story.
        let lines = file.code().lines().count();
        if lines > LINES_MAX {
            found.push(format!("{}: {lines} lines", file.path));
        }
        for (number, line) in file.text.lines().enumerate() {
            let columns = line.chars().count();
            // Nothing can be done about a long literal.
            if columns > COLUMNS_MAX && !line.contains('"') {
                found.push(format!("{}:{}: {columns} columns", file.path, number + 1));
            }
        }
        for (name, lines) in functions(&file.text) {
            if lines > FUNCTION_LINES_MAX {
                found.push(format!("{}: fn {name}: {lines} lines", file.path));
            }
        }
    }
    assert_none("too long", &found);
}

/// Each function's name and its lines of code, as rustfmt lays them out: a function ends at the
/// first closing brace of its own indentation. Comments and blank lines do not count.
fn functions(text: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let Some(name) = function_name(trimmed) else {
            continue;
        };
        let indent = &line[..line.len() - trimmed.len()];
        let end = format!("{indent}}}");
        let body = lines[start..].iter().take_while(|line| **line != end);
        let counts = |line: &&&str| !line.trim().is_empty() && !line.trim().starts_with("//");
        // A declaration without a body, and one on a single line, end where they start.
        let single = trimmed.ends_with(';') || trimmed.ends_with('}');
        let length = if single { 1 } else { body.filter(counts).count() + 1 };
        found.push((name.to_string(), length));
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    const QUALIFIERS: [&str; 6] = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe"];
    let mut words = line.split(' ').skip_while(|word| QUALIFIERS.contains(word));
    (words.next() == Some("fn")).then(|| words.next()).flatten()?.split(['(', '<']).next()
}

#[test]
fn functions_are_measured() {
    let text = "impl X {\n    pub async fn long(\n        a: u8,\n    ) {\n        // why\n\n        one();\n    }\n\n    fn short() {}\n}\n";
    let expected = [("long".to_string(), 5), ("short".to_string(), 1)];
    assert_eq!(functions(text), expected);
}

#[test]
fn nothing_that_ships_can_panic_on_a_whim() {
    assert_none(
        "no unwrap, no expect",
        &lines_with(&[".unwrap()", ".expect(", "panic!(", "todo!("]),
    );
    assert_none("no print for debugging", &lines_with(&["dbg!("]));
}

#[test]
fn lints_are_expected_with_a_reason_never_allowed() {
    assert_none("#[expect(…, reason = …)] instead", &lines_with(&["#[allow", "#![allow"]));
    let bare = lines_with(&["#[expect("]).into_iter().filter(|line| !line.contains("reason"));
    // An attribute that spans lines carries its reason on one of its own.
    let bare = bare.filter(|line| line.contains(")]")).collect::<Vec<_>>();
    assert_none("an expected lint without a reason", &bare);
}

#[test]
fn money_is_never_a_float() {
    // What serde hands a float, in order to refuse it.
    let visitors = [
        "src/models/openai/lenient.rs",
        "src/store/encode.rs",
        "src/store/sqlite/native/decode.rs",
        // What the metrics' library takes for seconds.
        "src/services/metrics/times.rs",
    ];
    assert_none("no floats", &outside(&visitors, &["f32", "f64"]));
}

#[test]
fn there_is_one_table_of_routes() {
    // The demo is a server of its own, on the other side of the gateway.
    let homes = ["src/routes.rs", "src/demo.rs"];
    assert_none("routes elsewhere", &outside(&homes, &[".route("]));
}

#[test]
fn queues_are_bounded() {
    assert_none(
        "a queue without a limit",
        &lines_with(&["unbounded_channel", "channel::unbounded"]),
    );
}

#[test]
fn sql_stays_in_the_store() {
    // Errors of the store are mapped in error.rs.
    let homes = ["src/store", "src/error.rs"];
    assert_none("sqlx outside the store", &outside(&homes, &["sqlx::"]));
}

#[test]
fn both_stores_have_the_same_migrations() {
    let names = |store: &str| -> BTreeSet<String> {
        let folder = root().join("migrations").join(store);
        let entries = std::fs::read_dir(folder).expect("a folder of migrations");
        entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .collect()
    };
    assert!(!names("sqlite").is_empty());
    assert_eq!(names("sqlite"), names("postgres"));
}

/// Design §10, lowest first; modules of one rank do not name each other, but for their own parts.
const RANKS: [&[&str]; 10] = [
    &["models"],
    &["config", "error"],
    &["store"],
    &["services"],
    &["services::billing"],
    &["services::reconcile"],
    &["state"],
    &["controllers"],
    &["routes"],
    &["server", "commands", "demo", "log", "main", "lib"],
];

fn rank(module: &str) -> Option<usize> {
    RANKS.iter().position(|names| names.contains(&module))
}

/// The module a file or a path of imports belongs to.
fn module_of(path: &[&str]) -> String {
    match path {
        ["services", part @ ("billing" | "reconcile"), ..] => format!("services::{part}"),
        [first, ..] => (*first).to_string(),
        [] => String::new(),
    }
}

#[test]
fn imports_point_one_way() {
    let mut found = Vec::new();
    for file in sources("src") {
        let path = file.path.trim_start_matches("src/").trim_end_matches(".rs");
        let own = module_of(&path.split('/').collect::<Vec<_>>());
        let Some(own_rank) = rank(&own) else {
            found.push(format!("{}: {own} has no rank: say where it stands", file.path));
            continue;
        };
        for (number, line) in file.code_lines() {
            for named in named_modules(&line) {
                let allowed = own == named || rank(&named).is_some_and(|rank| rank < own_rank);
                // The trunk's top may name its peers: main calls server, server calls commands.
                let top = own_rank == RANKS.len() - 1;
                if !allowed && !top && rank(&named).is_some() {
                    found.push(format!("{}:{number}: {own} names {named}", file.path));
                }
            }
        }
    }
    assert_none("imports that point upwards", &found);
}

/// The order of `services.rs` is the order of what stands on what.
#[test]
fn services_use_those_above_them() {
    let list = std::fs::read_to_string(root().join("src/services.rs")).expect("it is there");
    let order: Vec<&str> =
        list.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let place = |name: &str| order.iter().position(|module| *module == name);
    let mut found = Vec::new();
    for file in sources("src/services") {
        let path = file.path.trim_start_matches("src/services/").trim_end_matches(".rs");
        let Some(own) = path.split('/').next().and_then(place) else { continue };
        for (number, line) in file.code_lines() {
            for named in line.split("crate::services::").skip(1) {
                let end = named.find(|c: char| !(c.is_alphanumeric() || c == '_'));
                let named = &named[..end.unwrap_or(named.len())];
                if place(named).is_none_or(|named| named > own) {
                    found.push(format!("{}:{number}: {} names {named}", file.path, order[own]));
                }
            }
        }
    }
    assert!(order.len() > 30 && place("ledger") < place("admission"), "{order:?}");
    assert_none("services that use one below", &found);
}

/// The modules that a line names by `crate::…` or, in the binary, by `tollgate::…`.
fn named_modules(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for after in line.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(list) => {
                let names = list.split('}').next().unwrap_or_default().split(',').map(str::trim);
                found.extend(names.filter(|name| !name.is_empty()).map(module_of_text));
            }
            None => found.push(module_of_text(after)),
        }
    }
    found
}

fn module_of_text(text: &str) -> String {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let path = &text[..end.unwrap_or(text.len())];
    module_of(&path.split("::").collect::<Vec<_>>())
}

#[test]
fn named_modules_are_found() {
    assert_eq!(named_modules("use crate::services::billing::worker;"), ["services::billing"]);
    assert_eq!(named_modules("use crate::{error::Error, models::money};"), ["error", "models"]);
    assert_eq!(named_modules("fn f(x: crate::state::State) {}"), ["state"]);
    assert!(rank("services") < rank("controllers"));
}
