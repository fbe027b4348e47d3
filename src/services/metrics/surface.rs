//! Requests as they come and go: which part of the surface, which status, how soon.

use super::times::Times;
use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

/// A part of the surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    Chat,
    Models,
    Usage,
    Payments,
    Admin,
    Health,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    surface: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    surface: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    code: &'static str,
}

pub struct SurfaceMetrics {
    answers: Family<Answered, Counter>,
    heads: Family<Of, Histogram, fn() -> Histogram>,
    refusals: Family<Refused, Counter>,
}

impl Surface {
    /// Of a path in the table of routes; `None`: it is in none.
    #[must_use]
    pub fn of(route: Option<&str>) -> Self {
        let Some(route) = route else { return Self::Other };
        let under = |prefix: &str| route.starts_with(prefix);
        match route {
            "/v1/chat/completions" => Self::Chat,
            _ if under("/v1/models") => Self::Models,
            _ if under("/v1/billing/") || under("/webhooks/") => Self::Payments,
            _ if under("/v1/") => Self::Usage,
            _ if under("/admin/") => Self::Admin,
            "/healthz" | "/readyz" | "/metrics" => Self::Health,
            _ => Self::Other,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Models => "models",
            Self::Usage => "usage",
            Self::Payments => "payments",
            Self::Admin => "admin",
            Self::Health => "health",
            Self::Other => "other",
        }
    }
}

impl SurfaceMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let answers = Family::default();
        registry.register("http_requests", "Requests answered", answers.clone());
        let heads = Family::new_with_constructor(Times::of_answers as fn() -> Histogram);
        registry.register(
            "http_response_seconds",
            "From a request's head to that of its answer",
            heads.clone(),
        );
        let refusals = Family::default();
        registry.register("errors", "Answers that are errors, by their code", refusals.clone());
        Self { answers, heads, refusals }
    }

    /// `code`: of the error that the answer is.
    pub fn answered(
        &self,
        surface: Surface,
        status: StatusCode,
        code: Option<&'static str>,
        took: Duration,
    ) {
        let surface = surface.name();
        self.answers.get_or_create(&Answered { surface, status: status.as_u16() }).inc();
        Times(self.heads.get_or_create_owned(&Of { surface })).observe(took);
        if let Some(code) = code {
            self.refusals.get_or_create(&Refused { code }).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_its_part() {
        assert_eq!(Surface::of(Some("/v1/chat/completions")), Surface::Chat);
        assert_eq!(Surface::of(Some("/v1/models/{*id}")), Surface::Models);
        assert_eq!(Surface::of(Some("/v1/credits")), Surface::Usage);
        assert_eq!(Surface::of(Some("/webhooks/stripe")), Surface::Payments);
        assert_eq!(Surface::of(Some("/admin/v1/keys/{id}")), Surface::Admin);
        assert_eq!(Surface::of(Some("/readyz")), Surface::Health);
        assert_eq!(Surface::of(None), Surface::Other);
    }
}
