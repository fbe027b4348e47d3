//! Traces: a span of each request and one of its call, told by OTLP to whoever collects them.
//!
//! Invariants: without a collector there is none of this; a span never holds a prompt, a key, an
//! account or an address; the queue of ended spans is bounded, and a collector that is away costs
//! spans and nothing else. The trace of a client is gone on with, and the upstream is told of it.
//! <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>

mod send;

use crate::config::TraceConfig;
use crate::error::Error;
use crate::models::ids::RequestId;
use crate::models::usage::{Ending, UsageRecord};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer as _, TracerProvider};
use opentelemetry::{Context, KeyValue, StringValue, Value};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use send::Sender;
use std::time::Duration;

/// Where spans go. One per process.
pub struct Tracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// The span of a request. It ends when nobody has it any more.
#[derive(Clone)]
pub struct RequestTrace {
    context: Context,
    tracer: SdkTracer,
}

/// The span of a request's call of an upstream, whatever the number of attempts. Ends likewise.
pub struct CallTrace {
    context: Context,
}

/// A longer `tracestate` is left out: so much everybody has to pass on.
/// <https://www.w3.org/TR/trace-context/#tracestate-limits>
const STATE_BYTES_MAX: usize = 512;
/// For the last spans, when the process ends.
const FLUSH_WAIT: Duration = Duration::from_secs(3);

impl Tracer {
    /// `None`: nobody collects.
    ///
    /// # Errors
    /// [`Error::Internal`] when the collector's address cannot be used in a request.
    pub fn new(config: &TraceConfig) -> Result<Option<Self>, Error> {
        let Some(endpoint) = &config.endpoint else { return Ok(None) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_http_client(Sender::new())
            .build()
            .map_err(|error| Error::Internal(format!("OTEL_EXPORTER_OTLP_ENDPOINT: {error}")))?;
        // Queue, batch and sampling: by the standard variables, and bounded by default.
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder().with_service_name(config.service.clone()).build())
            .build();
        let tracer = provider.tracer("tollgate");
        Ok(Some(Self { provider, tracer }))
    }

    /// A request begins: in its client's trace, or in one of its own.
    #[must_use]
    pub fn begin(
        &self,
        id: RequestId,
        method: &Method,
        route: Option<&str>,
        headers: &HeaderMap,
    ) -> RequestTrace {
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &Said(headers));
        let name = route.map_or_else(|| method.to_string(), |route| format!("{method} {route}"));
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.to_string()),
            KeyValue::new("tollgate.request.id", id.to_string()),
        ];
        attributes.extend(route.map(|route| KeyValue::new("http.route", route.to_owned())));
        let builder = self.tracer.span_builder(name).with_kind(SpanKind::Server);
        let span = builder.with_attributes(attributes).start_with_context(&self.tracer, &parent);
        RequestTrace { context: Context::new().with_span(span), tracer: self.tracer.clone() }
    }

    /// Sends what is left, and no more after that.
    pub async fn flush(&self) {
        let provider = self.provider.clone();
        let flush = move || provider.shutdown_with_timeout(FLUSH_WAIT);
        let flushed = tokio::task::spawn_blocking(flush).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::debug!("the last spans could not be sent");
        }
    }
}

impl RequestTrace {
    /// The answer's head leaves.
    pub fn answered(&self, status: StatusCode, code: Option<&'static str>) {
        let span = self.context.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if status.is_server_error() {
            span.set_attribute(KeyValue::new("error.type", code.unwrap_or("server_error")));
            span.set_status(Status::error(code.unwrap_or_default()));
        }
    }

    /// An upstream is about to be called.
    #[must_use]
    pub fn call(&self, model: &str, upstream: &str, provider: &'static str) -> CallTrace {
        let builder = self.tracer.span_builder(format!("chat {model}"));
        let span = builder
            .with_kind(SpanKind::Client)
            .with_attributes([
                KeyValue::new("gen_ai.operation.name", "chat"),
                KeyValue::new("gen_ai.provider.name", provider),
                KeyValue::new("gen_ai.request.model", model.to_owned()),
                KeyValue::new("tollgate.upstream", upstream.to_owned()),
            ])
            .start_with_context(&self.tracer, &self.context);
        CallTrace { context: Context::new().with_span(span) }
    }
}

impl CallTrace {
    /// By which the upstream goes on with the trace.
    pub fn put_headers(&self, headers: &mut HeaderMap) {
        TraceContextPropagator::new().inject_context(&self.context, &mut Told(headers));
    }

    /// It has ended, as the record says.
    pub fn ended(&self, record: &UsageRecord) {
        let span = self.context.span();
        if !span.is_recording() {
            return;
        }
        let text = |name: &'static str, value: &Option<String>| {
            value.as_ref().map(|value| KeyValue::new(name, value.clone()))
        };
        let named = [
            text("gen_ai.response.model", &record.model_served),
            text("gen_ai.response.id", &record.generation_id),
        ];
        span.set_attributes(named.into_iter().flatten());
        if let Some(reason) = &record.finish_reason {
            let reasons = Value::Array(vec![StringValue::from(reason.clone())].into());
            span.set_attribute(KeyValue::new("gen_ai.response.finish_reasons", reasons));
        }
        span.set_attributes([
            KeyValue::new("gen_ai.usage.input_tokens", record.prompt_tokens.0),
            KeyValue::new("gen_ai.usage.output_tokens", record.completion_tokens.0),
            KeyValue::new("gen_ai.usage.cache_read.input_tokens", record.cached_tokens.0),
            KeyValue::new("tollgate.price_nusd", record.charge_nusd.0),
            KeyValue::new("tollgate.upstream", record.upstream.clone()),
            KeyValue::new("tollgate.attempts", record.attempts),
            KeyValue::new("tollgate.ending", word(record.ending)),
        ]);
        if record.ending == Ending::UpstreamFailed {
            span.set_attribute(KeyValue::new("error.type", word(record.ending)));
            span.set_status(Status::error(word(record.ending)));
        }
    }
}

fn word(ending: Ending) -> &'static str {
    match ending {
        Ending::Completed => "completed",
        Ending::UpstreamFailed => "upstream_failed",
        Ending::ClientGone => "client_gone",
        Ending::CutOff => "cut_off",
        Ending::Killed => "killed",
    }
}

/// What a client says of its trace.
struct Said<'a>(&'a HeaderMap);

impl Extractor for Said<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key)?.to_str().ok()?;
        (value.len() <= STATE_BYTES_MAX).then_some(value)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// What an upstream is told of it.
struct Told<'a>(&'a mut HeaderMap);

impl Injector for Told<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::from_bytes(key.as_bytes());
        // An empty `tracestate` says nothing.
        if let (Ok(name), Ok(value), false) =
            (name, HeaderValue::from_str(&value), value.is_empty())
        {
            self.0.insert(name, value);
        }
    }
}
