//! What is logged and traced, and in which form.

use super::ConfigError;
use super::reader::Reader;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub filter: String,
    pub json: bool,
    /// Requests that take longer are told of. `None`: none are.
    pub slow: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// Of a collector that speaks OTLP over HTTP, without the path. `None`: nothing is traced.
    pub endpoint: Option<String>,
    /// How this program is called there.
    pub service: String,
}

impl LogConfig {
    pub(super) fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let formats = [("pretty", false), ("json", true)];
        let slow = env.milliseconds("TOLLGATE_SLOW_REQUEST_MS", "60000")?;
        Ok(Self {
            filter: env.text("TOLLGATE_LOG", "tollgate=info,warn"),
            json: env.one_of("TOLLGATE_LOG_FORMAT", "pretty", &formats)?,
            slow: Some(slow).filter(|slow| !slow.is_zero()),
        })
    }
}

impl TraceConfig {
    pub(super) fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let endpoint = env.address("OTEL_EXPORTER_OTLP_ENDPOINT");
        let is_http = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        if endpoint.as_ref().is_some_and(|url| !is_http(url)) {
            let what = "OTEL_EXPORTER_OTLP_ENDPOINT is not an http(s) address";
            return Err(ConfigError(what.to_owned()));
        }
        Ok(Self { endpoint, service: env.text("OTEL_SERVICE_NAME", "tollgate") })
    }
}
