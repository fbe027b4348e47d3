//! Three replicas with a supervisor that starts again what has ended. One of them lives by a clock
//! that can be set.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::app::clock::Clock;
use crate::app::process::{Environment, Process};
use crate::app::programs::free_port;
use crate::client::{Ask, Exchange};

pub struct Replica {
    pub address: SocketAddr,
    environment: Environment,
    folder: PathBuf,
    process: Mutex<Process>,
    /// Ended on purpose, and not started again before that is over.
    is_down: AtomicBool,
}

impl Replica {
    /// By a clock of its own, where it has one.
    pub async fn start(environment: &Environment, folder: &Path, clock: Option<&Clock>) -> Self {
        let mut environment = environment.clone();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        environment.insert("TOLLGATE_LISTEN".to_owned(), address.to_string());
        // The supervisor starts them while the database is away, too.
        environment.insert("TOLLGATE_MIGRATE".to_owned(), "off".to_owned());
        if let Some(clock) = clock {
            environment = clock.of(&environment);
        }
        let mut process = Process::serve(&environment, folder);
        process.base_url().await;
        let (process, folder) = (Mutex::new(process), folder.to_owned());
        Self { address, environment, folder, process, is_down: AtomicBool::new(false) }
    }

    /// What a supervisor does: starts it again when it has ended by itself.
    pub async fn supervise(&self) {
        let mut process = self.process.lock().await;
        if !self.is_down.load(Ordering::SeqCst) && process.status().is_some() {
            *process = Process::serve(&self.environment, &self.folder);
        }
    }

    pub async fn kill9(&self) {
        self.is_down.store(true, Ordering::SeqCst);
        self.process.lock().await.kill();
    }

    /// SIGTERM, and its end.
    pub async fn stop(&self) {
        self.is_down.store(true, Ordering::SeqCst);
        self.process.lock().await.terminate();
        let began = Instant::now();
        while self.process.lock().await.status().is_none() {
            assert!(began.elapsed() < Duration::from_secs(60), "it does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn start_again(&self) {
        self.is_down.store(false, Ordering::SeqCst);
    }

    /// Waits, bounded, until it wants requests.
    pub async fn ready(&self) -> bool {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(40) {
            let ask = Ask::get("/readyz").bytes();
            if let Ok(exchange) = Exchange::try_open(self.address, &ask).await
                && exchange.finish().await.status == 200
            {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        false
    }

    pub async fn stderr(&self) -> String {
        self.process.lock().await.stderr()
    }
}
