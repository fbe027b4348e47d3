//! Reads `/metrics` as Prometheus would.

use std::net::SocketAddr;

use crate::app::process::Process;
use crate::app::{Setup, TestApp, eventually};
use crate::client::{Ask, Exchange};

/// What was said at one time.
pub struct Scrape {
    pub text: String,
}

/// With a listener for metrics alone.
pub fn watched(setup: Setup) -> Setup {
    setup.env("TOLLGATE_METRICS_LISTEN", "127.0.0.1:0")
}

/// Where metrics are, as the program says in its log.
pub async fn address(app: &TestApp) -> SocketAddr {
    address_of(&app.process).await
}

async fn address_of(process: &Process) -> SocketAddr {
    eventually("metrics have a port", async || {
        let log = process.stderr();
        let rest = log.split("metrics on http://").nth(1)?;
        rest.split("/metrics").next()?.parse().ok()
    })
    .await
}

pub async fn scrape(app: &TestApp) -> Scrape {
    scrape_of(&app.process).await
}

pub async fn scrape_of(process: &Process) -> Scrape {
    let bytes = Ask::get("/metrics").bytes();
    let got = Exchange::open(address_of(process).await, &bytes).await.finish().await;
    assert_eq!(got.status, 200, "{}", got.text());
    Scrape { text: got.text() }
}

impl Scrape {
    /// The sum of all series of this name with these labels. Whole numbers only.
    #[track_caller]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> i64 {
        let is_wanted = |line: &&str| {
            let own = line.split(['{', ' ']).next() == Some(name);
            own && labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")))
        };
        let value = |line: &str| {
            let value = line.rsplit(' ').next().expect("a value");
            value.parse::<i64>().unwrap_or_else(|_| panic!("not a whole number: {line}"))
        };
        self.samples().filter(is_wanted).map(value).sum()
    }

    pub fn samples(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| !line.starts_with('#'))
    }

    pub fn series(&self) -> usize {
        self.samples().count()
    }
}
