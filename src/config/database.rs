//! The store: which, and how long it may take.

use super::ConfigError;
use super::reader::Reader;
use crate::models::money::NanoUsd;
use secrecy::{ExposeSecret, SecretString};
use std::path::PathBuf;
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
    /// `None`: nobody is served while it is away.
    pub outage: Option<OutageConfig>,
    /// Whole months of usage records that `tollgate archive` leaves where they are.
    pub retention_months: Option<u16>,
}

/// How requests are served while PostgreSQL is away.
#[derive(Clone, Debug)]
pub struct OutageConfig {
    /// The most that one process lets in meanwhile, in all.
    pub exposure: NanoUsd,
    /// Where its journal is written.
    pub folder: PathBuf,
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
        if kind == DatabaseKind::Sqlite && is_in_memory(url.expose_secret()) {
            let message = "DATABASE_URL names no file: books in memory are gone with the process";
            return Err(ConfigError(message.into()));
        }
        Ok(Self {
            url,
            kind,
            migrate: env.switch("TOLLGATE_MIGRATE", "on")?,
            wait: env.positive_seconds("TOLLGATE_DATABASE_SECONDS", "5")?,
            lease: env.positive_seconds("TOLLGATE_LEASE_SECONDS", "30")?,
            outage: OutageConfig::read(env, kind)?,
            retention_months: retention(env)?,
        })
    }
}

impl OutageConfig {
    fn read(env: &mut Reader, kind: DatabaseKind) -> Result<Option<Self>, ConfigError> {
        let exposure = env.text("TOLLGATE_OUTAGE_EXPOSURE", "0");
        let exposure = NanoUsd::parse_typed(&exposure).filter(|usd| *usd >= NanoUsd::ZERO);
        let exposure = exposure.ok_or_else(|| {
            ConfigError("TOLLGATE_OUTAGE_EXPOSURE is not an amount of dollars like 5".into())
        })?;
        let folder = PathBuf::from(env.text("TOLLGATE_OUTAGE_JOURNAL", "tollgate-journal"));
        if exposure.is_zero() {
            return Ok(None);
        }
        // What keeps a SQLite file from being written, a disk, keeps a journal beside it as well.
        if kind == DatabaseKind::Sqlite {
            let message = "TOLLGATE_OUTAGE_EXPOSURE is for PostgreSQL: a SQLite file is not away";
            return Err(ConfigError(message.into()));
        }
        Ok(Some(Self { exposure, folder }))
    }
}

/// <https://www.sqlite.org/inmemorydb.html>
fn is_in_memory(url: &str) -> bool {
    url.contains(":memory:") || url.contains("mode=memory")
}

fn retention(env: &mut Reader) -> Result<Option<u16>, ConfigError> {
    const NAME: &str = "TOLLGATE_RETENTION_MONTHS";
    let Some(text) = env.optional(NAME) else { return Ok(None) };
    let months = text.parse().ok().filter(|months| *months > 0);
    let unusable = || ConfigError(format!("{NAME} is not a number of months, 1 or more"));
    months.map(Some).ok_or_else(unusable)
}
