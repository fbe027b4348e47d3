//! What is given for deploying fits the program: variables that it reads, files that are there, and
//! nothing open to others.

use std::collections::BTreeSet;

use serde_yaml_ng::{Mapping, Value};

use crate::source::{read, root};

/// The variables that `.env.example` has.
fn known() -> BTreeSet<String> {
    let text = read(".env.example");
    let lines = text.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    lines.map(|(name, _)| name.to_string()).collect()
}

fn yaml(path: &str) -> Vec<Value> {
    let text = read(path);
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    let values = documents.map(|it| serde::Deserialize::deserialize(it).expect("YAML"));
    values.collect()
}

fn names(mapping: &Value) -> BTreeSet<String> {
    let keys = mapping.as_mapping().into_iter().flat_map(Mapping::keys);
    keys.filter_map(Value::as_str).map(str::to_string).collect()
}

/// A list in YAML, or the mapping's keys.
fn texts(value: &Value) -> Vec<String> {
    let list = value.as_sequence().into_iter().flatten();
    let listed: Vec<String> = list.filter_map(Value::as_str).map(str::to_string).collect();
    if listed.is_empty() { names(value).into_iter().collect() } else { listed }
}

#[test]
fn variables_are_those_that_the_program_reads() {
    let known = known();
    assert!(known.contains("TOLLGATE_DRAIN_SECONDS") && known.contains("DATABASE_URL"));
    let compose = yaml("deploy/compose.yaml").remove(0);
    let mut used = names(&compose["services"]["tollgate"]["environment"]);
    let pod = &yaml("deploy/kubernetes.yaml")[0]["spec"]["template"]["spec"]["containers"][0];
    let pod = pod["env"].as_sequence().expect("variables").iter();
    used.extend(pod.filter_map(|it| Some(it["name"].as_str()?.to_string())));
    // In what is no YAML: words that can be nothing else.
    let qovery = ["main.tf", "README.md"].map(|name| read(&format!("deploy/qovery/{name}")));
    let guides = ["litellm", "openmeter", "openrouter", "stripe", "supabase"]
        .map(|name| read(&format!("deploy/guides/{name}.md")));
    for text in qovery.iter().chain(&guides).chain([&read("Dockerfile")]) {
        let words = text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_');
        let ours = ["TOLLGATE_", "UPSTREAM_", "SUPABASE_", "OPENMETER_", "STRIPE_"];
        let is_ours = |word: &&str| ours.iter().any(|start| word.starts_with(start));
        used.extend(words.filter(is_ours).map(str::to_string));
    }
    let unknown: Vec<_> = used.difference(&known).collect();
    assert!(unknown.is_empty(), "not in .env.example: {unknown:?}");
}

#[test]
fn compose_is_whole_and_open_to_this_machine_only() {
    let compose = yaml("deploy/compose.yaml").remove(0);
    let (services, volumes) = (names(&compose["services"]), names(&compose["volumes"]));
    for name in &services {
        let service = &compose["services"][name.as_str()];
        assert!(service["image"].is_string(), "{name} has no image");
        for other in texts(&service["depends_on"]) {
            assert!(services.contains(&other), "{name} needs {other}");
            let waits = &service["depends_on"][other.as_str()]["condition"];
            let has_check = !compose["services"][other.as_str()]["healthcheck"].is_null();
            assert!(has_check && waits == "service_healthy", "{name} waits for {other}");
        }
        for volume in texts(&service["volumes"]) {
            let (from, _) = volume.split_once(':').expect("from and to");
            let is_there = match from.strip_prefix("./") {
                Some(file) => root().join("deploy").join(file).exists(),
                None => volumes.contains(from),
            };
            assert!(is_there, "{name}: {volume}");
        }
        for port in texts(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port} is open to others");
        }
    }
    let tollgate = &compose["services"]["tollgate"];
    assert_eq!(tollgate["read_only"], Value::Bool(true));
    assert_eq!(texts(&tollgate["cap_drop"]), ["ALL"]);
}

/// Cargo refuses a manifest that names what is not there, so the first stage has a stub of each.
#[test]
fn the_image_has_every_target_of_the_manifest() {
    let (manifest, dockerfile) = (read("Cargo.toml"), read("Dockerfile"));
    let benches = manifest.split("[[bench]]").skip(1);
    let names = benches.filter_map(|it| it.split('"').nth(1));
    let missing: Vec<&str> =
        names.filter(|name| !dockerfile.contains(&format!("benches/{name}.rs"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for copied in [".cargo", "src", "migrations", "Cargo.toml", "Cargo.lock"] {
        assert!(read(".dockerignore").contains(&format!("!{copied}\n")), "{copied}");
    }
}
