//! Stripe's meter event stream: sessions that end, up to a hundred events a call, and checks that
//! come after the answer: an event of a meter or a customer that does not exist is dropped later.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Books, Payload, Stripe, Taken};
use crate::sinks::server::{Fault, Reply};
use crate::upstream::http::Request;

pub const SESSION_PATH: &str = "/v2/billing/meter_event_session";
const EVENTS_MAX: usize = 100;

#[derive(Default)]
pub struct Stream {
    /// Tokens, and until when they are good.
    sessions: Vec<(String, OffsetDateTime)>,
    opened: usize,
    pub is_opened_always: bool,
    largest: usize,
    duplicates: usize,
    /// Identifiers that were taken and dropped afterwards.
    dropped: Vec<String>,
    /// Identifiers that make a call refused.
    bad: Vec<String>,
}

impl Stripe {
    /// Every session ends before its time.
    pub fn end_sessions(&self) {
        self.state().stream.sessions.clear();
    }

    /// Whether no session goes wrong, whatever else does.
    pub fn always_opens(&self, always: bool) {
        self.state().stream.is_opened_always = always;
    }

    pub fn sessions_opened(&self) -> usize {
        self.state().stream.opened
    }

    /// The largest call, refused ones included.
    pub fn largest(&self) -> usize {
        self.state().stream.largest
    }

    pub fn duplicates(&self) -> usize {
        self.state().stream.duplicates
    }

    pub fn dropped(&self) -> Vec<String> {
        self.state().stream.dropped.clone()
    }

    pub fn refuse(&self, identifier: &str) {
        self.state().stream.bad.push(identifier.to_string());
    }
}

fn refused(status: u16, kind: &str, message: &str) -> Reply {
    Reply::json(status, &json!({"error": {"type": kind, "code": kind, "message": message}}))
}

impl Books {
    pub fn open_session(&self) -> Reply {
        let mut state = self.state.lock().expect("no panic");
        let stream = &mut state.stream;
        stream.opened += 1;
        let token = format!("session_{}", stream.opened);
        let until = self.clock.now() + time::Duration::minutes(15);
        stream.sessions.push((token.clone(), until));
        let until = until.format(&Rfc3339).expect("a time");
        let session = json!({"id": "mes_test", "object": "v2.billing.meter_event_session",
            "authentication_token": token, "expires_at": until, "livemode": false});
        Reply::json(200, &session)
    }

    pub fn stream(&self, request: &Request, fault: Fault) -> Reply {
        let mut state = self.state.lock().expect("no panic");
        let now = self.clock.now();
        let token = request.header("authorization").and_then(|text| text.strip_prefix("Bearer "));
        let mut sessions = state.stream.sessions.iter().filter(|(_, until)| *until > now);
        if !sessions.any(|(known, _)| token == Some(known)) {
            return refused(401, "temporary_session_expired", "The session has expired");
        }
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let Some(events) = body["events"].as_array() else {
            return refused(400, "invalid_fields", "events");
        };
        if events.is_empty() || events.len() > EVENTS_MAX {
            return refused(400, "invalid_fields", "from 1 to 100 events");
        }
        state.stream.largest = state.stream.largest.max(events.len());
        let read: Result<Vec<Taken>, String> =
            events.iter().map(|event| read(event, &state.payload, now)).collect();
        let read = match read {
            Ok(read) => read,
            Err(message) => return refused(400, "invalid_fields", &message),
        };
        if read.iter().any(|event| state.stream.bad.contains(&event.identifier)) {
            return refused(400, "invalid_fields", "an event is refused");
        }
        state.usage_calls += 1;
        for event in read {
            if fault != Fault::None && state.unlucky.contains(&event.customer) {
                continue;
            }
            let is_there =
                state.meters.contains(&event.meter) && state.customers.contains(&event.customer);
            if state.is_known(&event.identifier, now.unix_timestamp()) {
                state.stream.duplicates += 1;
                continue;
            }
            state.learn(&event.identifier, now.unix_timestamp());
            if is_there {
                state.taken.push(event);
            } else {
                state.stream.dropped.push(event.identifier);
            }
        }
        match fault {
            Fault::FailAfter(status) => refused(status, "api_error", "An unknown error occurred"),
            _ => Reply::json(200, &json!({})),
        }
    }
}

/// An event of exactly the members that there are.
fn read(event: &Value, payload: &Payload, now: OffsetDateTime) -> Result<Taken, String> {
    let members: Vec<&str> = event
        .as_object()
        .map(|members| members.keys().map(String::as_str).collect())
        .unwrap_or_default();
    if members != ["event_name", "identifier", "payload", "timestamp"] {
        return Err(format!("members {members:?}"));
    }
    let text = |path: &str| {
        let value = event.pointer(path).and_then(Value::as_str);
        value.map(str::to_string).ok_or_else(|| format!("{path} is not a text"))
    };
    let value = text(&format!("/payload/{}", payload.value))?;
    let digits = value.strip_prefix('-').unwrap_or(&value);
    if digits.is_empty() || digits.len() > 15 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("value {value}"));
    }
    let at = OffsetDateTime::parse(&text("/timestamp")?, &Rfc3339).map_err(|e| e.to_string())?;
    if at < now - time::Duration::days(35) || at > now + time::Duration::minutes(5) {
        return Err("timestamp must be within the past 35 days".to_string());
    }
    let identifier = text("/identifier")?;
    if identifier.is_empty() || identifier.len() > 100 {
        return Err("identifier".to_string());
    }
    Ok(Taken {
        identifier,
        meter: text("/event_name")?,
        customer: text(&format!("/payload/{}", payload.customer))?,
        value: value.parse().map_err(|_| "value".to_string())?,
        timestamp: at.unix_timestamp(),
    })
}
