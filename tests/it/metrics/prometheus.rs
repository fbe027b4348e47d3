//! A real Prometheus scrapes a real Tollgate: the rules and the dashboard under `deploy/` load
//! there, ask only for what exists, and an alert is seen firing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use form_urlencoded::byte_serialize;
use serde_json::Value;

use super::scrape::{Scrape, address, scrape, watched};
use super::use_all;
use crate::app::process::{Environment, Process};
use crate::app::programs::{folder_of, free_port};
use crate::app::{Setup, Store, eventually, question};
use crate::billing::with_openmeter;
use crate::client::{Ask, Exchange};
use crate::sinks::openmeter::OpenMeter;
use crate::source::{read, root};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;

const RULES: &str = "deploy/prometheus/alerts.yaml";

struct Prometheus {
    /// Ends with it.
    process: Process,
    address: SocketAddr,
}

/// Somebody else may take the port between its choice and its use.
const ATTEMPTS: usize = 5;

impl Prometheus {
    /// Scrapes that address every second, with the rules of this text.
    async fn start(folder: &Path, target: SocketAddr, rules: &str) -> Self {
        let write = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).expect("the test's own folder");
        };
        write("alerts.yaml", rules);
        write(
            "prometheus.yml",
            &format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
                 rule_files: [alerts.yaml]\n\
                 scrape_configs: [{{job_name: tollgate, static_configs: \
                 [{{targets: ['{target}']}}]}}]\n"
            ),
        );
        for _ in 0..ATTEMPTS {
            let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let mut started = Self { process: Self::spawn(folder, address), address };
            if started.is_ready().await {
                return started;
            }
        }
        panic!("Prometheus does not start");
    }

    fn spawn(folder: &Path, address: SocketAddr) -> Process {
        let program = program("prometheus");
        let program = program.to_str().expect("a path of text");
        let arguments = [
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            &format!("--web.listen-address={address}"),
        ];
        Process::spawn(program, &arguments, &Environment::new(), folder)
    }

    /// Whether it is ready, rather than at its end.
    async fn is_ready(&mut self) -> bool {
        let address = self.address;
        eventually("Prometheus is ready, or ends", async || {
            if self.process.status().is_some() {
                eprintln!("{}", self.process.stderr());
                return Some(false);
            }
            let asked = tokio::net::TcpStream::connect(address).await.is_ok();
            (asked && get(address, "/-/ready").await.0 == 200).then_some(true)
        })
        .await
    }

    async fn ask(&self, path: &str) -> Value {
        let (status, text) = get(self.address, path).await;
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!((status, answer["status"].as_str()), (200, Some("success")), "{path}: {text}");
        answer["data"].clone()
    }

    /// The rows of an expression's result.
    async fn query(&self, expression: &str) -> Vec<Value> {
        let encoded: String = byte_serialize(expression.as_bytes()).collect();
        let data = self.ask(&format!("/api/v1/query?query={encoded}")).await;
        data["result"].as_array().expect("a vector").clone()
    }
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let got = Exchange::open(address, &Ask::get(path).bytes()).await.finish().await;
    (got.status, got.text())
}

fn program(name: &str) -> PathBuf {
    folder_of(vec![PathBuf::from("/usr/bin")], &[name]).join(name)
}

#[track_caller]
fn promtool(arguments: &[&str]) {
    let output = Command::new(program("promtool")).args(arguments).output().expect("promtool");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), {
        String::from_utf8_lossy(&output.stderr)
    });
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

/// The expressions of the panels, as Grafana would send them.
fn shown() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboard.json"))
        .expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expression = |target: &Value| target["expr"].as_str().expect("an expression").to_string();
    targets.map(expression).map(|text| text.replace("$__rate_interval", "1m")).collect()
}

/// The expressions of the rules.
fn alerts() -> Vec<String> {
    let rules: serde_yaml_ng::Value = serde_yaml_ng::from_str(&read(RULES)).expect("YAML");
    let rules = rules["groups"][0]["rules"].as_sequence().expect("rules").clone();
    rules.iter().map(|rule| rule["expr"].as_str().expect("an expression").to_string()).collect()
}

/// The names of ours in an expression.
fn names(expression: &str) -> BTreeSet<String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = expression.split(|letter: char| !is_part(letter));
    words.filter(|word| word.starts_with("tollgate_")).map(str::to_string).collect()
}

#[test]
fn the_rules_are_rules_and_each_fires_when_it_should() {
    let rules = root().join(RULES);
    let rules = rules.to_str().expect("a path of text");
    promtool(&["check", "rules", rules]);
    let count = alerts().len();
    assert!(count > 10, "{count}");
    let test = read("tests/it/metrics/alerts.test.yaml");
    let test = test.replace("RULES", rules).replace("COUNT", &count.to_string());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("test.yaml");
    std::fs::write(&file, test).expect("the test's own folder");
    promtool(&["test", "rules", file.to_str().expect("a path of text")]);
}

#[test]
fn the_dashboard_is_one() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboard.json"))
        .expect("the dashboard is JSON");
    assert!(dashboard["schemaVersion"].as_i64() >= Some(39), "of a current Grafana");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_i64()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has its own id");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert!(!panel["title"].as_str().unwrap_or_default().is_empty(), "{panel}");
        assert!(!panel["description"].as_str().unwrap_or_default().is_empty(), "{panel}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        let place = &panel["gridPos"];
        let right = place["x"].as_i64().zip(place["w"].as_i64()).map(|(x, w)| x + w);
        assert!(right.is_some_and(|right| right <= 24), "{panel}");
    }
}

#[tokio::test]
async fn dashboard_and_alerts_ask_for_what_there_is() {
    let openmeter = OpenMeter::start().await;
    let app = watched(with_openmeter(Setup::new(Store::Sqlite), &openmeter)).policy("count");
    let app = app.start().await;
    use_all(&app).await;
    app.records(5).await;
    let told = eventually("the books were looked at", async || {
        let told = scrape(&app).await;
        (told.sum("tollgate_books_checked_total", &[("check", "usage")]) > 0).then_some(told)
    })
    .await;
    let there = sample_names(&told);
    for expression in shown().iter().chain(&alerts()) {
        let missing: Vec<_> = names(expression).difference(&there).cloned().collect();
        assert!(missing.is_empty(), "{missing:?} in {expression}: {}", told.text);
    }

    let folder = tempfile::tempdir().expect("a temporary folder");
    let prometheus = Prometheus::start(folder.path(), address(&app).await, &read(RULES)).await;
    // Rates take two scrapes.
    eventually("Prometheus has scraped twice", async || {
        let rate = prometheus.query("sum(rate(tollgate_holds_total[1m]))").await;
        (!rate.is_empty()).then_some(())
    })
    .await;
    for expression in shown() {
        let rows = prometheus.query(&expression).await;
        assert!(!rows.is_empty(), "nothing is shown for {expression}");
    }
    for expression in alerts() {
        prometheus.query(&expression).await;
    }
    let groups = prometheus.ask("/api/v1/rules").await;
    let rules = groups["groups"][0]["rules"].as_array().expect("rules").clone();
    assert_eq!(rules.len(), alerts().len());
    app.finish().await;
}

fn sample_names(told: &Scrape) -> BTreeSet<String> {
    let name = |line: &str| line.split(['{', ' ']).next().unwrap_or_default().to_string();
    told.samples().map(name).collect()
}

#[tokio::test]
async fn an_alert_is_seen_firing() {
    let app = watched(Setup::new(Store::Sqlite)).start().await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    // As they are, but for the patience.
    let rules = read(RULES).replace("for: 2m", "for: 1s");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let prometheus = Prometheus::start(folder.path(), address(&app).await, &rules).await;
    let firing = r#"ALERTS{alertname="TollgateUpstreamDown",alertstate="firing"}"#;
    eventually("Prometheus has scraped", async || {
        (!prometheus.query("tollgate_upstream_up == 1").await.is_empty()).then_some(())
    })
    .await;
    assert!(prometheus.query(firing).await.is_empty());
    app.upstream.stop().await;
    for _ in 0..3 {
        assert_eq!(app.chat(&question(MODEL)).await.status, 502);
    }
    let alert = eventually("the alert fires", async || prometheus.query(firing).await.pop()).await;
    assert_eq!(alert["metric"]["upstream"], "openrouter");
    assert_eq!(alert["metric"]["severity"], "page");
    app.records(4).await;
    app.finish().await;
}
