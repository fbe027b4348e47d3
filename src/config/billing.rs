//! The sinks that billing events are written for.

use super::reader::Reader;

/// The sinks that billing events are written for.
#[derive(Clone, Debug)]
pub struct BillingConfig {
    pub stripe: bool,
    pub openmeter: bool,
}

impl BillingConfig {
    pub(super) fn read(env: &mut Reader) -> Self {
        Self {
            stripe: env.secret("STRIPE_SECRET_KEY").is_some(),
            openmeter: env.optional("OPENMETER_URL").is_some(),
        }
    }

    #[must_use]
    pub fn sinks(&self) -> Vec<String> {
        let named = [("stripe", self.stripe), ("openmeter", self.openmeter)];
        named.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()).collect()
    }
}
