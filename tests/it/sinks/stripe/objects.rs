//! Stripe's customers and the sessions of its pages: made once for each idempotency key, found by a
//! search that lags behind.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::{Books, Fault, Form, Request, State, Stripe, invalid, refused};

pub const MADE: [&str; 3] =
    ["/v1/customers", "/v1/checkout/sessions", "/v1/billing_portal/sessions"];

const SESSION: [&str; 14] = [
    "mode",
    "customer",
    "client_reference_id",
    "line_items[0][quantity]",
    "line_items[0][price_data][currency]",
    "line_items[0][price_data][unit_amount]",
    "line_items[0][price_data][product_data][name]",
    "adaptive_pricing[enabled]",
    "success_url",
    "cancel_url",
    "metadata[tollgate_account_id]",
    "metadata[tollgate_credit_nusd]",
    "payment_intent_data[metadata][tollgate_account_id]",
    "payment_intent_data[metadata][tollgate_credit_nusd]",
];

/// What was made.
#[derive(Default)]
pub struct Made {
    /// Forms with the ids of what they made, in their order.
    objects: Vec<(String, Form)>,
    /// Customers that the search knows by now.
    indexed: usize,
    keys_under_way: HashSet<String>,
    reports: BTreeMap<String, Value>,
}

impl Stripe {
    /// The forms of all objects whose ids begin so, with their ids.
    pub fn made(&self, prefix: &str) -> Vec<(String, Form)> {
        let made = self.state().made.objects.clone();
        made.into_iter().filter(|(id, _)| id.starts_with(prefix)).collect()
    }

    /// The search has caught up.
    pub fn index(&self) {
        let mut state = self.state();
        state.made.indexed = state.made.objects.len();
    }

    /// What a thin event's object says when it is asked for.
    pub fn set_report(&self, event: &str, data: &Value) {
        self.state().made.reports.insert(event.to_string(), data.clone());
    }
}

impl Books {
    pub async fn create(&self, path: &str, request: &Request, fault: Fault) -> (u16, Value) {
        if request.header("content-type") != Some("application/x-www-form-urlencoded") {
            return invalid("", "Invalid request: send a form");
        }
        let Some(key) = request.header("idempotency-key").map(str::to_string) else {
            return invalid("", "This test wants an idempotency key");
        };
        if key.len() > 255 {
            return invalid("", "Idempotency key is too long");
        }
        let text = String::from_utf8(request.body.clone()).expect("a form is ASCII");
        let form: Form = form_urlencoded::parse(text.as_bytes()).into_owned().collect();
        if !self.state.lock().expect("no panic").made.keys_under_way.insert(key.clone()) {
            return refused(
                409,
                "idempotency_error",
                "idempotency_key_in_use",
                "There is currently another in-progress request using this Idempotent Key.",
            );
        }
        tokio::time::sleep(self.pace).await;
        let mut state = self.state.lock().expect("no panic");
        state.made.keys_under_way.remove(&key);
        let text = format!("{path}\n{text}");
        state.once(&text, Some(key), (fault, self.clock.seconds()), |state| match path {
            "/v1/customers" => state.customer(form),
            "/v1/checkout/sessions" => state.session(form),
            _ => state.portal(form),
        })
    }

    pub fn search(&self, query: &Form) -> (u16, Value) {
        let wanted = query.get("query").map(String::as_str).unwrap_or_default();
        let account = wanted
            .strip_prefix("metadata['tollgate_account_id']:'")
            .and_then(|rest| rest.strip_suffix('\''));
        let Some(account) = account else { return invalid("", "a query of another form") };
        let state = self.state.lock().expect("no panic");
        let indexed = state.made.objects.iter().take(state.made.indexed);
        let found = indexed.filter(|(id, form)| {
            id.starts_with("cus_") && form["metadata[tollgate_account_id]"] == account
        });
        let found: Vec<Value> = found.map(|(id, _)| json!({"id": id})).collect();
        (200, json!({"object": "search_result", "data": found, "has_more": false}))
    }

    pub fn report(&self, path: &str) -> (u16, Value) {
        let id = path.rsplit('/').next().unwrap_or_default();
        let state = self.state.lock().expect("no panic");
        match state.made.reports.get(id) {
            Some(data) => (200, json!({"id": id, "object": "v2.core.event", "data": data})),
            None => refused(404, "invalid_request_error", "resource_missing", "No such event"),
        }
    }
}

impl State {
    fn customer(&mut self, form: Form) -> Result<Value, (u16, Value)> {
        only(&form, &["name", "metadata[tollgate_account_id]"])?;
        if form["name"].is_empty() || form["name"].chars().count() > 256 {
            return Err(invalid("", "Invalid string: name"));
        }
        let id = self.keep("cus", form);
        self.customers.insert(id.clone());
        Ok(json!({"id": id, "object": "customer", "livemode": false}))
    }

    fn session(&mut self, form: Form) -> Result<Value, (u16, Value)> {
        only(&form, &SESSION)?;
        self.known_customer(&form)?;
        let cents: i64 = form["line_items[0][price_data][unit_amount]"].parse().unwrap_or(0);
        if !(50..=99_999_999).contains(&cents) {
            return Err(invalid("amount_too_small", "The amount is out of range"));
        }
        for url in ["success_url", "cancel_url"] {
            if !form[url].starts_with("http") {
                return Err(invalid("url_invalid", &format!("Not a valid URL: {url}")));
            }
        }
        if form["mode"] != "payment" || form["line_items[0][price_data][currency]"] != "usd" {
            return Err(invalid("", "not what this test wants"));
        }
        let id = self.keep("cs_test", form);
        let url = format!("https://checkout.stripe.com/c/pay/{id}");
        Ok(json!({"id": id, "object": "checkout.session", "url": url, "status": "open"}))
    }

    fn portal(&mut self, form: Form) -> Result<Value, (u16, Value)> {
        only(&form, &["customer", "return_url"])?;
        self.known_customer(&form)?;
        let id = self.keep("bps", form);
        let url = format!("https://billing.stripe.com/p/session/{id}");
        Ok(json!({"id": id, "object": "billing_portal.session", "url": url}))
    }

    fn known_customer(&self, form: &Form) -> Result<(), (u16, Value)> {
        let customer = &form["customer"];
        if self.customers.contains(customer) {
            return Ok(());
        }
        Err(invalid("resource_missing", &format!("No such customer: '{customer}'")))
    }

    fn keep(&mut self, prefix: &str, form: Form) -> String {
        let id = format!("{prefix}_{:04}", self.made.objects.len() + 1);
        self.made.objects.push((id.clone(), form));
        id
    }
}

/// All of these, and no others.
fn only(form: &Form, names: &[&str]) -> Result<(), (u16, Value)> {
    if let Some(unknown) = form.keys().find(|name| !names.contains(&name.as_str())) {
        let message = format!("Received unknown parameter: {unknown}");
        return Err(invalid("parameter_unknown", &message));
    }
    match names.iter().find(|name| !form.contains_key(**name)) {
        Some(missing) => {
            Err(invalid("parameter_missing", &format!("Missing required param: {missing}.")))
        }
        None => Ok(()),
    }
}
