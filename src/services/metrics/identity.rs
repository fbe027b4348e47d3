//! Where callers' identities come from: remembered, or asked of the store or the auth server.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct From {
    from: &'static str,
}

#[derive(Clone)]
pub struct IdentityMetrics {
    pub remembered: Counter,
    pub asked: Counter,
}

impl IdentityMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let callers = Family::<From, Counter>::default();
        registry.register(
            "identities",
            "Callers, and whether they were remembered or asked for",
            callers.clone(),
        );
        let of = |from| callers.get_or_create_owned(&From { from });
        Self { remembered: of("memory"), asked: of("store") }
    }
}
