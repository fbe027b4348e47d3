//! Stripe's meter events, as strict as its documentation: form encoding, the pinned version,
//! idempotency keys that are kept with their answers, identifiers that are unique, one call at a
//! time for a customer and meter, whole numbers of at most 15 digits, times of the last 35 days.
//!
//! What it took is summed by customer, meter and minute, as event summaries are.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::server::{Fault, Faults, Handler, Reply, Server};
use crate::app::clock::Clock;
use crate::upstream::http::Request;
use stream::Stream;

mod stream;

pub mod objects;

pub const KEY: &str = "sk_test_tollgate_0451";
pub const CHARGE_METER: &str = "tollgate_charge_microusd";

/// One meter event that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    pub identifier: String,
    pub meter: String,
    pub customer: String,
    pub value: i64,
    pub timestamp: i64,
}

#[derive(Default)]
struct State {
    meters: BTreeSet<String>,
    customers: BTreeSet<String>,
    gone: BTreeSet<String>,
    made: objects::Made,
    taken: Vec<Taken>,
    /// When identifiers were taken.
    identifiers: HashMap<String, i64>,
    /// What was asked, and answered, with a key, and when.
    idempotent: HashMap<String, (i64, String, u16, Value)>,
    /// Of whom nothing is taken by a call that goes wrong, however it does.
    unlucky: BTreeSet<String>,
    under_way: HashSet<(String, String)>,
    /// What a caller should never have done.
    wrong: Vec<String>,
    calls: usize,
    /// Those that had usage.
    usage_calls: usize,
    summaries: usize,
    stream: Stream,
    payload: Payload,
}

/// What a meter calls the members of its events' payload.
struct Payload {
    customer: String,
    value: String,
}

impl Default for Payload {
    fn default() -> Self {
        Self { customer: "stripe_customer_id".to_string(), value: "value".to_string() }
    }
}

pub struct Books {
    state: Mutex<State>,
    clock: Clock,
    /// How long one call takes.
    pace: Duration,
}

pub struct Stripe {
    pub server: Server,
    books: Arc<Books>,
    pub faults: Arc<Faults>,
}

/// How long identifiers and idempotency keys are known: it says "at least" so long.
const KEPT_SECONDS: i64 = 86_400;

impl Stripe {
    pub async fn start(customers: &[&str]) -> Self {
        Self::start_by(&Clock::default(), customers).await
    }

    pub async fn start_by(clock: &Clock, customers: &[&str]) -> Self {
        let state = State {
            meters: [CHARGE_METER.to_string()].into(),
            customers: customers.iter().map(|name| (*name).to_string()).collect(),
            ..State::default()
        };
        let (state, clock) = (Mutex::new(state), clock.clone());
        let books = Arc::new(Books { state, clock, pace: Duration::from_millis(3) });
        let faults = Arc::new(Faults::default());
        let server = Server::start(books.clone(), faults.clone()).await;
        Self { server, books, faults }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.books.state.lock().expect("no panic")
    }

    pub fn add_customer(&self, name: &str) {
        self.state().customers.insert(name.to_string());
    }

    /// From now on nothing is told of them.
    pub fn remove_customer(&self, name: &str) {
        let mut state = self.state();
        state.customers.remove(name);
        state.gone.insert(name.to_string());
    }

    pub fn add_meter(&self, name: &str) {
        self.state().meters.insert(name.to_string());
    }

    /// Its meters have other names for a payload's members.
    pub fn name_payload(&self, customer: &str, value: &str) {
        let payload = Payload { customer: customer.to_string(), value: value.to_string() };
        self.state().payload = payload;
    }

    /// The window for duplicates has passed.
    pub fn forget(&self) {
        let mut state = self.state();
        state.identifiers.clear();
        state.idempotent.clear();
    }

    /// Calls that go wrong take nothing of this customer's.
    pub fn lose(&self, customer: &str) {
        self.state().unlucky.insert(customer.to_string());
    }

    /// Finds at fault, after it has said yes, what it took first of a customer: it does not count.
    pub fn reject(&self, customer: &str) -> String {
        let mut state = self.state();
        let first = state.taken.iter().position(|taken| taken.customer == customer);
        state.taken.remove(first.expect("something was taken")).identifier
    }

    /// Somebody else's usage, at the time of this export.
    pub fn add_foreign(&self, export: &Value, value: i64) {
        let text = |member: &str| export[member].as_str().expect("a text").to_string();
        let used_at = OffsetDateTime::parse(&text("used_at"), &Rfc3339).expect("a time");
        self.state().taken.push(Taken {
            identifier: "foreign".to_string(),
            meter: text("meter"),
            customer: text("customer"),
            value,
            timestamp: used_at.unix_timestamp(),
        });
    }

    pub fn taken(&self) -> Vec<Taken> {
        self.state().taken.clone()
    }

    /// Makes what was taken something else, behind everybody's back.
    pub fn tamper(&self, change: impl FnOnce(&mut Vec<Taken>)) {
        change(&mut self.state().taken);
    }

    pub fn calls(&self) -> usize {
        self.state().calls
    }

    pub fn usage_calls(&self) -> usize {
        self.state().usage_calls
    }

    pub fn summaries_read(&self) -> usize {
        self.state().summaries
    }

    pub fn wrong(&self) -> Vec<String> {
        self.state().wrong.clone()
    }

    /// What a meter has summed, by customer.
    pub fn sums(&self, meter: &str) -> BTreeMap<String, i64> {
        let mut sums = BTreeMap::new();
        for taken in self.state().taken.iter().filter(|taken| taken.meter == meter) {
            *sums.entry(taken.customer.clone()).or_default() += taken.value;
        }
        sums
    }
}

impl Payload {
    /// In a form.
    fn customer(&self) -> String {
        format!("payload[{}]", self.customer)
    }

    fn value(&self) -> String {
        format!("payload[{}]", self.value)
    }
}

fn refused(status: u16, kind: &str, code: &str, message: &str) -> (u16, Value) {
    let error = json!({"error": {"type": kind, "code": code, "message": message}});
    (status, error)
}

fn invalid(code: &str, message: &str) -> (u16, Value) {
    refused(400, "invalid_request_error", code, message)
}

impl Handler for Books {
    fn trouble(&self, status: u16) -> Value {
        let (_, error) = match status {
            429 => {
                refused(429, "invalid_request_error", "rate_limit", "Request rate limit exceeded")
            }
            _ => refused(status, "api_error", "", "An unknown error occurred"),
        };
        error
    }

    fn is_spared(&self, request: &Request) -> bool {
        let state = self.state.lock().expect("no panic");
        state.stream.is_opened_always && request.path() == stream::SESSION_PATH
    }

    async fn handle(&self, request: &Request, fault: Fault) -> Reply {
        self.state.lock().expect("no panic").calls += 1;
        if request.header("stripe-version") != Some("2026-10-28.endive") {
            return reply(invalid("", "This test wants one version"));
        }
        if request.path() == "/v2/billing/meter_event_stream" {
            return self.stream(request, fault);
        }
        if request.header("authorization") != Some(&format!("Bearer {KEY}")) {
            return reply(refused(401, "invalid_request_error", "", "Invalid API Key provided"));
        }
        match (request.method.as_str(), request.path()) {
            ("POST", "/v1/billing/meter_events") => reply(self.event(request, fault).await),
            ("POST", stream::SESSION_PATH) => self.open_session(),
            ("GET", "/v1/billing/meters") => reply((200, self.list())),
            ("GET", path) if path.ends_with("/event_summaries") => {
                reply(self.summary(path, &pairs(request.target.split_once('?'))))
            }
            ("POST", path) if objects::MADE.contains(&path) => {
                reply(self.create(path, request, fault).await)
            }
            ("GET", "/v1/customers/search") => {
                reply(self.search(&pairs(request.target.split_once('?'))))
            }
            ("GET", path) if path.starts_with("/v2/core/events/") => reply(self.report(path)),
            _ => reply(refused(404, "invalid_request_error", "", "Unrecognized request URL")),
        }
    }
}

fn reply((status, body): (u16, Value)) -> Reply {
    let reply = Reply::json(status, &body).header("request-id", "req_test");
    if status == 400 { reply.header("stripe-should-retry", "false") } else { reply }
}

type Form = BTreeMap<String, String>;

/// A call, until it is over or cut off.
struct UnderWay<'a> {
    books: &'a Books,
    lane: &'a (String, String),
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.books.state.lock().expect("no panic").under_way.remove(self.lane);
    }
}

fn pairs(query: Option<(&str, &str)>) -> Form {
    let query = query.map(|(_, query)| query).unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

impl Books {
    async fn event(&self, request: &Request, fault: Fault) -> (u16, Value) {
        if request.header("content-type") != Some("application/x-www-form-urlencoded") {
            return invalid("", "Invalid request: send a form");
        }
        let text = String::from_utf8(request.body.clone()).expect("a form is ASCII");
        let form: Form = form_urlencoded::parse(text.as_bytes()).into_owned().collect();
        let customer = self.state.lock().expect("no panic").payload.customer();
        let lane = (
            form.get(&customer).cloned().unwrap_or_default(),
            form.get("event_name").cloned().unwrap_or_default(),
        );
        if !self.state.lock().expect("no panic").under_way.insert(lane.clone()) {
            let mut state = self.state.lock().expect("no panic");
            state.wrong.push(format!("two calls at once for {lane:?}"));
            return refused(
                429,
                "invalid_request_error",
                "lock_timeout",
                "This object cannot be accessed right now because another API request is currently accessing it.",
            );
        }
        let _under_way = UnderWay { books: self, lane: &lane };
        // What it knows is what it knew when it was asked.
        let now = self.clock.seconds();
        tokio::time::sleep(self.pace).await;
        let key = request.header("idempotency-key").map(str::to_string);
        let is_lost =
            fault != Fault::None && self.state.lock().expect("no panic").unlucky.contains(&lane.0);
        if is_lost {
            return refused(500, "api_error", "", "An unknown error occurred");
        }
        self.answer(&form, &text, key, (fault, now))
    }

    fn answer(
        &self,
        form: &Form,
        text: &str,
        key: Option<String>,
        (fault, now): (Fault, i64),
    ) -> (u16, Value) {
        let mut state = self.state.lock().expect("no panic");
        state.usage_calls += 1;
        state.once(text, key, (fault, now), |state| {
            let taken = state.check(form, now)?;
            state.learn(&taken.identifier, now);
            let body = json!({"object": "billing.meter_event", "identifier": taken.identifier,
                "event_name": taken.meter, "timestamp": taken.timestamp, "livemode": false});
            state.taken.push(taken);
            Ok(body)
        })
    }

    fn list(&self) -> Value {
        let meters = self.state.lock().expect("no panic").meters.clone();
        let meters: Vec<Value> = meters
            .iter()
            .map(|name| {
                json!({"id": format!("mtr_{name}"), "object": "billing.meter",
                "event_name": name, "status": "active"})
            })
            .collect();
        json!({"object": "list", "data": meters, "has_more": false})
    }

    fn summary(&self, path: &str, query: &Form) -> (u16, Value) {
        let mut state = self.state.lock().expect("no panic");
        state.summaries += 1;
        let customer = &query["customer"];
        if state.gone.contains(customer) {
            return invalid("resource_missing", &format!("No such customer: '{customer}'"));
        }
        let meter = path.split('/').nth(4).and_then(|id| id.strip_prefix("mtr_")).expect("an id");
        let time = |name: &str| query[name].parse::<i64>().expect("seconds");
        let (from, to) = (time("start_time"), time("end_time"));
        let window = match query.get("value_grouping_window").map(String::as_str) {
            Some("day") => 86_400,
            Some("hour") => 3_600,
            Some(other) => panic!("no such window: {other}"),
            None => 60,
        };
        assert!(from % window == 0 && to % window == 0, "times must be whole windows");
        let window = if window == 60 { to - from } else { window };
        let mut sums: BTreeMap<i64, i64> = BTreeMap::new();
        for taken in &state.taken {
            let is_meant = taken.meter == meter && taken.customer == query["customer"];
            if is_meant && (from..to).contains(&taken.timestamp) {
                *sums.entry((taken.timestamp - from) / window).or_default() += taken.value;
            }
        }
        // Newest first; windows without usage are left out.
        let limit = query.get("limit").map_or(10, |text| text.parse().expect("a number"));
        let has_more = sums.len() > limit;
        let summary = |(number, sum): (i64, i64)| {
            let value: Value = serde_json::from_str(&format!("{sum}.0")).expect("a number");
            let start = from + number * window;
            json!({"object": "billing.meter_event_summary", "aggregated_value": value,
                "start_time": start, "end_time": start + window, "meter": meter})
        };
        let data: Vec<Value> = sums.into_iter().rev().take(limit).map(summary).collect();
        (200, json!({"object": "list", "has_more": has_more, "data": data}))
    }
}

impl State {
    /// What was answered to a key is repeated; what was refused at once is not kept.
    fn once(
        &mut self,
        text: &str,
        key: Option<String>,
        (fault, now): (Fault, i64),
        make: impl FnOnce(&mut Self) -> Result<Value, (u16, Value)>,
    ) -> (u16, Value) {
        self.idempotent.retain(|_, (at, ..)| now - *at < KEPT_SECONDS);
        let kept = key.as_ref().and_then(|key| self.idempotent.get(key));
        if let Some((_, asked, status, body)) = kept {
            if asked != text {
                return refused(
                    400,
                    "idempotency_error",
                    "",
                    "Keys for idempotent requests can only be used with the same parameters they were first used with.",
                );
            }
            return (*status, body.clone());
        }
        let (mut status, mut body) = match make(self) {
            Ok(body) => (200, body),
            Err(refusal) => return refusal,
        };
        if let Fault::FailAfter(code) = fault {
            (status, body) = refused(code, "api_error", "", "An unknown error occurred");
        }
        // Also a failure is kept, and repeated.
        if let Some(key) = key {
            self.idempotent.insert(key, (now, text.to_string(), status, body.clone()));
        }
        (status, body)
    }

    fn is_known(&self, identifier: &str, now: i64) -> bool {
        self.identifiers.get(identifier).is_some_and(|at| now - at < KEPT_SECONDS)
    }

    /// What is taken when its identifier is forgotten is counted twice.
    fn learn(&mut self, identifier: &str, now: i64) {
        if let Some(before) = self.identifiers.insert(identifier.to_string(), now) {
            self.wrong.push(format!("{identifier} was sent again after {} s", now - before));
        }
    }

    fn check(&self, form: &Form, now: i64) -> Result<Taken, (u16, Value)> {
        let (customer, value) = (self.payload.customer(), self.payload.value());
        let known = ["event_name", "identifier", "timestamp", &customer, &value];
        if let Some(unknown) = form.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(invalid(
                "parameter_unknown",
                &format!("Received unknown parameter: {unknown}"),
            ));
        }
        let member = |name: &str| {
            form.get(name).cloned().ok_or_else(|| {
                invalid("parameter_missing", &format!("Missing required param: {name}."))
            })
        };
        let meter = member("event_name")?;
        if !self.meters.contains(&meter) {
            return Err(invalid("", &format!("No active meter found for event name {meter}.")));
        }
        let customer = member(&customer)?;
        if !self.customers.contains(&customer) {
            return Err(invalid("resource_missing", &format!("No such customer: '{customer}'")));
        }
        let text = member(&value)?;
        let digits = text.strip_prefix('-').unwrap_or(&text);
        let is_whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_whole || digits.len() > 15 {
            return Err(invalid("", &format!("Invalid value {text}: whole numbers of 15 digits")));
        }
        let identifier = member("identifier")?;
        if identifier.len() > 100 {
            return Err(invalid("", "identifier is too long"));
        }
        if self.is_known(&identifier, now) {
            let message = format!("An event already exists with identifier {identifier}.");
            return Err(invalid("", &message));
        }
        let timestamp: i64 = member("timestamp")?.parse().map_err(|_| invalid("", "timestamp"))?;
        if timestamp < now - 35 * 86_400 || timestamp > now + 300 {
            return Err(invalid("", "timestamp must be within the past 35 calendar days"));
        }
        let value = text.parse().expect("a number");
        Ok(Taken { identifier, meter, customer, value, timestamp })
    }
}
