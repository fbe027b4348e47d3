//! Markup, prices, and the most an answer is assumed to be.

use super::ConfigError;
use super::reader::Reader;
use crate::models::money::{Markup, Tokens};
use std::num::NonZeroU32;

#[derive(Clone, Debug)]
pub struct MoneyConfig {
    pub markup: Markup,
    /// TOML file of prices.
    pub prices: Option<String>,
    /// Assumed for the hold of a request without a cap of its own.
    pub completion_tokens_max: Tokens,
}

impl MoneyConfig {
    pub(super) fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let markup = env.text("TOLLGATE_MARKUP", "1.20");
        let completion_tokens_max: NonZeroU32 =
            env.parsed("TOLLGATE_COMPLETION_TOKENS_MAX", "16384")?;
        Ok(Self {
            markup: Markup::parse_typed(&markup)
                .ok_or_else(|| ConfigError("TOLLGATE_MARKUP is not a factor like 1.20".into()))?,
            prices: env.optional("TOLLGATE_PRICES"),
            completion_tokens_max: Tokens(completion_tokens_max.get().into()),
        })
    }
}
