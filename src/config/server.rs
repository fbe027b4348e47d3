//! Where and how Tollgate listens, and how it leaves.

use super::ConfigError;
use super::reader::Reader;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    /// Where metrics are to be had by anybody; `None`: at `listen`, for operators.
    pub metrics_listen: Option<SocketAddr>,
    pub body_bytes_max: usize,
    /// A client that takes nothing for this long has gone.
    pub write: Duration,
    /// How long open streams may run on after SIGTERM.
    pub drain: Duration,
    /// Between readiness going off and the listener closing: load balancers notice in this time.
    pub shutdown_delay: Duration,
    /// Whether the web console is served.
    pub console: bool,
}

impl ServerConfig {
    pub(super) fn read(env: &mut Reader) -> Result<Self, ConfigError> {
        let mut listen: SocketAddr = env.parsed("TOLLGATE_LISTEN", "127.0.0.1:8080")?;
        // A host that gives a port means a container: it must be reachable from outside of it.
        if let Some(port) = env.optional("PORT") {
            let port = port.parse().map_err(|_| ConfigError("PORT is not a port".into()))?;
            listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        }
        let metrics_listen = env.optional("TOLLGATE_METRICS_LISTEN").map(|text| text.parse());
        let not_an_address = |_| ConfigError("TOLLGATE_METRICS_LISTEN is not an address".into());
        Ok(Self {
            listen,
            metrics_listen: metrics_listen.transpose().map_err(not_an_address)?,
            body_bytes_max: env.parsed("TOLLGATE_BODY_BYTES_MAX", "33554432")?,
            write: env.positive_seconds("TOLLGATE_WRITE_SECONDS", "60")?,
            drain: env.seconds("TOLLGATE_DRAIN_SECONDS", "30")?,
            shutdown_delay: env.seconds("TOLLGATE_SHUTDOWN_DELAY_SECONDS", "0")?,
            console: env.switch("TOLLGATE_CONSOLE", "on")?,
        })
    }
}
