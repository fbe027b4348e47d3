//! Three replicas with a supervisor that starts again what has ended. One of them lives by a clock
//! that can be set.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

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

/// Of the replica whose clock can be set: the file that says by how much it is off.
pub const CLOCK_FILE: &str = "clock";

/// libfaketime, wherever the system keeps it.
fn faketime() -> PathBuf {
    let listed = Command::new("dpkg").args(["-L", "libfaketime"]).output();
    let listed = listed.expect("Debian's package faketime: tests/run.sh installs it").stdout;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let found = listed.lines().find(|path| path.ends_with("/libfaketimeMT.so.1"));
    PathBuf::from(found.expect("libfaketime: tests/run.sh installs it"))
}

impl Replica {
    /// `has_clock`: it lives by a clock of its own.
    pub async fn start(environment: &Environment, folder: &Path, has_clock: bool) -> Self {
        let mut environment = environment.clone();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        environment.insert("TOLLGATE_LISTEN".to_owned(), address.to_string());
        // The supervisor starts them while the database is away, too.
        environment.insert("TOLLGATE_MIGRATE".to_owned(), "off".to_owned());
        if has_clock {
            let file = folder.join(CLOCK_FILE);
            set_clock(&file, 0);
            for (name, value) in [
                ("LD_PRELOAD", faketime().display().to_string()),
                ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
                ("FAKETIME_NO_CACHE", "1".to_owned()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ] {
                environment.insert(name.to_owned(), value);
            }
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

/// Sets the clock off by so many seconds.
pub fn set_clock(file: &Path, seconds: i64) {
    // Whole at once: the program reads it at every look at the clock.
    let whole = file.with_extension("new");
    std::fs::write(&whole, format!("{seconds:+}\n")).expect("the test's own folder");
    std::fs::rename(&whole, file).expect("the test's own folder");
}
