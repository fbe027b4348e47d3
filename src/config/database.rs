//! The store: which, and how long it may take.

use super::ConfigError;
use super::reader::Reader;
use secrecy::{ExposeSecret, SecretString};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    pub url: SecretString,
    pub kind: DatabaseKind,
    pub migrate: bool,
    /// How long a request waits for the database.
    pub wait: Duration,
    /// A hold whose owner has not renewed it for this long belongs to a dead process.
    pub lease: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    Sqlite,
    Postgres,
}

impl DatabaseConfig {
    pub(super) fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let url = env.secret_or("DATABASE_URL", "sqlite://tollgate.db");
        let scheme = url.expose_secret().split(':').next().unwrap_or_default();
        let kind = match scheme {
            "sqlite" => DatabaseKind::Sqlite,
            "postgres" | "postgresql" => DatabaseKind::Postgres,
            _ => {
                let message = "DATABASE_URL must begin with sqlite:// or postgres://";
                return Err(ConfigError(message.into()));
            }
        };
        Ok(Self {
            url,
            kind,
            migrate: env.switch("TOLLGATE_MIGRATE", "on")?,
            wait: env.positive_seconds("TOLLGATE_DATABASE_SECONDS", "5")?,
            lease: env.positive_seconds("TOLLGATE_LEASE_SECONDS", "30")?,
        })
    }
}
