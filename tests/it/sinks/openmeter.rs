//! OpenMeter's ingestion: batches of CloudEvents, checked member by member, deduplicated by source
//! and id, of which the first counts; it answers duplicates with success, as the real one does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::server::{Fault, Faults, Handler, Reply, Server};
use crate::upstream::http::Request;

pub const TOKEN: &str = "om_tollgate_0451";

#[derive(Default)]
struct State {
    /// By source and id.
    events: BTreeMap<(String, String), Value>,
    duplicates: usize,
    calls: usize,
    largest: usize,
    /// Ids that are refused whatever they are.
    bad: Vec<String>,
    /// What a caller should never have done.
    wrong: Vec<String>,
}

#[derive(Default)]
pub struct Books(Mutex<State>);

pub struct OpenMeter {
    pub server: Server,
    books: Arc<Books>,
    pub faults: Arc<Faults>,
}

impl OpenMeter {
    pub async fn start() -> Self {
        let (books, faults) = (Arc::new(Books::default()), Arc::new(Faults::default()));
        let server = Server::start(books.clone(), faults.clone()).await;
        Self { server, books, faults }
    }

    pub fn url(&self) -> String {
        format!("http://{}/api/v1/events", self.server.address)
    }

    pub fn events(&self) -> Vec<Value> {
        self.books.0.lock().expect("no panic").events.values().cloned().collect()
    }

    /// Makes what it has something else, behind everybody's back.
    pub fn tamper(&self, change: impl FnOnce(&mut BTreeMap<(String, String), Value>)) {
        change(&mut self.books.0.lock().expect("no panic").events);
    }

    pub fn calls(&self) -> usize {
        self.books.0.lock().expect("no panic").calls
    }

    /// The largest batch.
    pub fn largest(&self) -> usize {
        self.books.0.lock().expect("no panic").largest
    }

    pub fn wrong(&self) -> Vec<String> {
        self.books.0.lock().expect("no panic").wrong.clone()
    }

    /// Events that it was sent once more.
    pub fn duplicates(&self) -> usize {
        self.books.0.lock().expect("no panic").duplicates
    }

    pub fn refuse(&self, id: &str) {
        self.books.0.lock().expect("no panic").bad.push(id.to_string());
    }

    pub fn accept_all(&self) {
        self.books.0.lock().expect("no panic").bad.clear();
    }

    /// A SUM meter, by subject.
    pub fn sums(&self, member: &str) -> BTreeMap<String, i64> {
        let mut sums = BTreeMap::new();
        for event in self.events() {
            let subject = event["subject"].as_str().expect("checked").to_string();
            *sums.entry(subject).or_default() += event["data"][member].as_i64().expect("a number");
        }
        sums
    }
}

fn problem(detail: &str) -> Reply {
    Reply::json(400, &json!({"type": "about:blank", "title": "Bad Request", "detail": detail}))
}

impl Handler for Books {
    async fn handle(&self, request: &Request, fault: Fault) -> Reply {
        let mut state = self.0.lock().expect("no panic");
        state.calls += 1;
        if request.header("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return Reply::json(401, &json!({"title": "Unauthorized"}));
        }
        match (request.method.as_str(), request.path()) {
            ("POST", "/api/v1/events") => {}
            ("GET", "/api/v1/meters/tollgate_charge_nusd/query") => {
                return state.query(&request.target);
            }
            _ => return Reply::empty(404),
        }
        if request.header("content-type") != Some("application/cloudevents-batch+json") {
            return problem("content type");
        }
        let Ok(Value::Array(events)) = serde_json::from_slice(&request.body) else {
            return problem("not a batch");
        };
        state.largest = state.largest.max(events.len());
        if let Some(detail) = events.iter().find_map(|event| refusal(event, &state.bad)) {
            return problem(&detail);
        }
        for event in events {
            let member = |name: &str| event[name].as_str().expect("checked").to_string();
            let key = (member("source"), member("id"));
            let Some(first) = state.events.get(&key) else {
                state.events.insert(key, event);
                continue;
            };
            // The first counts, whatever comes by its name later.
            let differs = (*first != event).then(|| format!("{first} came again as {event}"));
            state.wrong.extend(differs);
            state.duplicates += 1;
        }
        if let Fault::FailAfter(status) = fault {
            return Reply::empty(status);
        }
        Reply::empty(204)
    }
}

impl State {
    /// Sums of one day by subject and model; also of an event at the very end of the time asked
    /// for, which is in it there.
    fn query(&self, target: &str) -> Reply {
        let query = target.split_once('?').map(|(_, query)| query).unwrap_or_default();
        let pairs: Vec<(String, String)> =
            form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let values = |name: &str| -> Vec<&str> {
            let named = pairs.iter().filter(|(key, _)| key == name);
            named.map(|(_, value)| value.as_str()).collect()
        };
        let (from, to) = (values("from")[0], values("to")[0]);
        if values("windowSize") != ["DAY"] || values("groupBy") != ["subject", "model"] {
            return problem("a day, by subject and model");
        }
        let mut sums: BTreeMap<(&str, &str, &str), i64> = BTreeMap::new();
        for event in self.events.values() {
            let time = event["time"].as_str().unwrap_or_default();
            if (from..=to).contains(&time) {
                let subject = event["subject"].as_str().unwrap_or_default();
                let model = event["data"]["model"].as_str().unwrap_or_default();
                *sums.entry((&time[..10], subject, model)).or_default() +=
                    event["data"]["charge_nusd"].as_i64().expect("a number");
            }
        }
        let data: Vec<Value> = sums
            .into_iter()
            .map(|((day, subject, model), value)| {
                json!({"value": value, "windowStart": format!("{day}T00:00:00Z"),
                    "windowEnd": "2100-01-01T00:00:00Z", "subject": subject,
                    "groupBy": {"model": model}})
            })
            .collect();
        Reply::json(200, &json!({"from": from, "to": to, "windowSize": "DAY", "data": data}))
    }
}

/// Why an event is refused.
fn refusal(event: &Value, bad: &[String]) -> Option<String> {
    const KNOWN: [&str; 9] = [
        "id",
        "source",
        "specversion",
        "type",
        "subject",
        "time",
        "data",
        "datacontenttype",
        "dataschema",
    ];
    let members = event.as_object()?;
    if let Some(unknown) = members.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        return Some(format!("unknown member {unknown}"));
    }
    for name in ["id", "source", "specversion", "type", "subject", "time"] {
        if event[name].as_str().is_none_or(str::is_empty) {
            return Some(format!("{name} is missing"));
        }
    }
    if event["specversion"] != json!("1.0") || event["datacontenttype"] != json!("application/json")
    {
        return Some("specversion or datacontenttype".to_string());
    }
    let Some(data) = event["data"].as_object() else { return Some("no data".to_string()) };
    if data.values().any(Value::is_f64) {
        return Some("a float".to_string());
    }
    let id = event["id"].as_str().unwrap_or_default();
    bad.iter().any(|bad| bad == id).then(|| format!("{id} is refused"))
}
