//! Traces: a client's trace goes on to the upstream, a collector gets what was used and nothing
//! that was said, and one that is away changes nothing.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::app::{Setup, Store, TestApp, UPSTREAM_KEY, both_stores, eventually};
use crate::app::{question, streamed};
use crate::sinks::server::{Fault, Faults, Handler, Reply, Server};
use crate::upstream::answer::Answer;
use crate::upstream::catalog::MODEL;
use crate::upstream::http::Request;

both_stores!(
    a_clients_trace_goes_on,
    without_a_collector_nothing_is_told,
    a_bad_trace_is_replaced,
    a_collector_that_is_away_changes_nothing,
    what_is_left_is_sent_at_the_end,
);

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Keeps the spans that it is sent.
struct Collector {
    got: Arc<Got>,
    server: Server,
}

#[derive(Default)]
struct Got {
    spans: Mutex<Vec<Span>>,
    raw: Mutex<Vec<u8>>,
}

impl Handler for Got {
    async fn handle(&self, request: &Request, _: Fault) -> Reply {
        assert_eq!(request.path(), "/v1/traces");
        let told = ExportTraceServiceRequest::decode(&request.body[..]).expect("OTLP");
        let scopes = told.resource_spans.into_iter().flat_map(|of| of.scope_spans);
        self.spans.lock().expect("no panic").extend(scopes.flat_map(|scope| scope.spans));
        self.raw.lock().expect("no panic").extend(&request.body);
        Reply::empty(200)
    }
}

impl Collector {
    async fn start() -> Self {
        let got = Arc::new(Got::default());
        let server = Server::start(got.clone(), Arc::new(Faults::default())).await;
        Self { got, server }
    }

    fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    fn spans(&self) -> Vec<Span> {
        self.got.spans.lock().expect("no panic").clone()
    }

    /// The span of this name, once it was told.
    async fn span(&self, name: &str) -> Span {
        eventually(&format!("the span {name}"), async || {
            self.spans().into_iter().find(|span| span.name == name)
        })
        .await
    }
}

fn traced(setup: Setup, url: &str) -> Setup {
    setup.env("OTEL_EXPORTER_OTLP_ENDPOINT", url).env("OTEL_BSP_SCHEDULE_DELAY", "50")
}

fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn attribute(span: &Span, name: &str) -> Option<Value> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.clone()?.value
}

#[track_caller]
fn assert_says(span: &Span, name: &str, value: &str) {
    let said = match attribute(span, name) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{name}: {other:?} in {span:?}"),
    };
    assert_eq!(said, value, "{name}");
}

/// What the upstream was told of the trace: its id, the caller's span, the flags.
fn told(app: &TestApp) -> [String; 3] {
    let header = app.upstream.last_chat().request.header("traceparent").map(str::to_string);
    let header = header.expect("a traceparent");
    let parts: Vec<_> = header.split('-').collect();
    assert_eq!((parts.len(), parts[0]), (4, "00"), "{header}");
    [parts[1], parts[2], parts[3]].map(str::to_string)
}

async fn a_clients_trace_goes_on(store: Store) {
    let collector = Collector::start().await;
    let app = traced(Setup::new(store), &collector.url()).start().await;
    let answer = Answer::openrouter().parts(4, 2);
    app.upstream.script(answer.stream());
    let ask = app.chat_ask(&streamed(MODEL));
    let ask = ask.header("traceparent", &format!("00-{TRACE}-{PARENT}-01"));
    let got = app.ask(&ask.header("tracestate", "vendor=t61rcWkgMzE")).await;
    got.ok();
    let record = app.record().await;
    let call = collector.span(&format!("chat {MODEL}")).await;
    let request = collector.span("POST /v1/chat/completions").await;
    assert_eq!(hex(&request.trace_id), TRACE);
    assert_eq!(hex(&request.parent_span_id), PARENT);
    assert_eq!(hex(&call.trace_id), TRACE);
    assert_eq!(call.parent_span_id, request.span_id);
    assert_eq!(told(&app), [TRACE.to_string(), hex(&call.span_id), "01".to_string()]);
    let state = app.upstream.last_chat().request.header("tracestate").map(str::to_string);
    assert_eq!(state.as_deref(), Some("vendor=t61rcWkgMzE"));

    assert_says(&request, "http.response.status_code", "200");
    assert_says(&request, "tollgate.request.id", &got.request_id());
    assert_says(&call, "gen_ai.operation.name", "chat");
    assert_says(&call, "gen_ai.provider.name", "openrouter");
    assert_says(&call, "gen_ai.request.model", MODEL);
    assert_says(&call, "gen_ai.response.model", record.model_served.as_deref().expect("a model"));
    let id = record.generation_id.as_deref().expect("an id");
    assert_says(&call, "gen_ai.response.id", id);
    assert_says(&call, "gen_ai.usage.input_tokens", &record.prompt_tokens.to_string());
    assert_says(&call, "gen_ai.usage.output_tokens", &record.completion_tokens.to_string());
    assert_says(&call, "tollgate.price_nusd", &record.charge_nusd.to_string());
    assert_says(&call, "tollgate.ending", "completed");
    assert!(call.end_time_unix_nano >= call.start_time_unix_nano);
    assert!(request.end_time_unix_nano >= call.end_time_unix_nano, "it lasts until the end");
    let raw = collector.got.raw.lock().expect("no panic").clone();
    let raw = String::from_utf8_lossy(&raw);
    let (said, url) = (answer.text(), app.upstream.url());
    for secret in ["Is the tollgate open?", &said, &app.key, UPSTREAM_KEY, &app.account, &url] {
        assert!(!raw.contains(secret), "{secret}");
    }
    app.finish().await;
}

async fn without_a_collector_nothing_is_told(store: Store) {
    let app = Setup::new(store).start().await;
    app.upstream.script(Answer::openrouter().plain());
    let ask = app.chat_ask(&question(MODEL));
    app.ask(&ask.header("traceparent", &format!("00-{TRACE}-{PARENT}-01"))).await.ok();
    let request = app.upstream.last_chat().request;
    assert_eq!(request.header("traceparent"), None);
    app.finish().await;
}

async fn a_bad_trace_is_replaced(store: Store) {
    let collector = Collector::start().await;
    let app = traced(Setup::new(store), &collector.url()).start().await;
    let zeros = "0".repeat(32);
    let long = format!("vendor={}", "x".repeat(600));
    let cases = [
        (format!("00-{zeros}-{PARENT}-01"), "a=b"),
        (format!("zz-{TRACE}-{PARENT}-01"), "a=b"),
        ("nonsense".to_string(), "a=b"),
        (format!("00-{TRACE}-{PARENT}-01"), long.as_str()),
    ];
    for (parent, state) in cases {
        app.upstream.script(Answer::openrouter().plain());
        let ask = app.chat_ask(&question(MODEL)).header("traceparent", &parent);
        app.ask(&ask.header("tracestate", state)).await.ok();
        let [trace, _, _] = told(&app);
        assert_eq!(trace == TRACE, parent.starts_with(&format!("00-{TRACE}")), "{parent}");
        assert_eq!(app.upstream.last_chat().request.header("tracestate"), None, "{parent}");
    }
    // Who does not want to be traced is not, and the upstream hears of that too.
    app.upstream.script(Answer::openrouter().plain());
    let ask = app.chat_ask(&question(MODEL));
    app.ask(&ask.header("traceparent", &format!("00-{TRACE}-{PARENT}-00"))).await.ok();
    let [trace, _, flags] = told(&app);
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "00"));
    app.finish().await;
}

async fn a_collector_that_is_away_changes_nothing(store: Store) {
    let collector = Collector::start().await;
    let url = collector.url();
    drop(collector);
    let mut app = traced(Setup::new(store), &url).start().await;
    for _ in 0..3 {
        app.upstream.script(Answer::openrouter().plain());
        app.chat(&question(MODEL)).await.ok();
    }
    eventually("the loss is in the log", async || {
        app.process.stderr().contains("spans are lost").then_some(())
    })
    .await;
    assert!(!app.process.stderr().contains(&url), "an address is in the log");
    app.sigterm();
    assert!(app.stopped().await.success());
    app.finish().await;
}

async fn what_is_left_is_sent_at_the_end(store: Store) {
    let collector = Collector::start().await;
    let setup = traced(Setup::new(store), &collector.url());
    let mut app = setup.env("OTEL_BSP_SCHEDULE_DELAY", "600000").start().await;
    app.upstream.script(Answer::openrouter().plain());
    app.chat(&question(MODEL)).await.ok();
    app.records(1).await;
    app.sigterm();
    assert!(app.stopped().await.success());
    let names: Vec<String> = collector.spans().into_iter().map(|span| span.name).collect();
    assert!(names.contains(&format!("chat {MODEL}")), "{names:?}");
    assert!(names.contains(&"POST /v1/chat/completions".to_string()), "{names:?}");
    app.finish().await;
}
