//! What is logged, and in which form.

use super::ConfigError;
use super::reader::Reader;

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub filter: String,
    pub json: bool,
}

impl LogConfig {
    pub(super) fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let formats = [("pretty", false), ("json", true)];
        Ok(Self {
            filter: env.text("TOLLGATE_LOG", "tollgate=info,warn"),
            json: env.one_of("TOLLGATE_LOG_FORMAT", "pretty", &formats)?,
        })
    }
}
