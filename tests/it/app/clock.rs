//! A clock that can be set, for programs and for servers of the test: a program lives by it through
//! libfaketime, by a file that it reads at every look.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use super::process::Environment;

/// How far clocks are off. Waits are not: those go by a clock that nobody sets. A copy is the same
/// clock, and the last one of a clock must outlive the programs that live by it.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<Hands>);

#[derive(Debug, Default)]
struct Hands {
    seconds: AtomicI64,
    /// Where the file is, once a program needs it.
    folder: OnceLock<TempDir>,
}

impl Clock {
    /// Sets it off by so many seconds.
    pub fn set(&self, seconds: i64) {
        // Servers first: what a program sends them by this clock is never of their future.
        self.0.seconds.store(seconds, Ordering::SeqCst);
        if let Some(folder) = self.0.folder.get() {
            write(folder.path(), seconds);
        }
    }

    /// Sets it on by so many seconds more.
    pub fn advance(&self, seconds: i64) {
        self.set(self.ahead() + seconds);
    }

    /// By how many seconds it is off.
    pub fn ahead(&self) -> i64 {
        self.0.seconds.load(Ordering::SeqCst)
    }

    pub fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + Duration::seconds(self.ahead())
    }

    /// In seconds since 1970.
    pub fn seconds(&self) -> i64 {
        self.now().unix_timestamp()
    }

    /// The same, for a process that is to live by it.
    pub fn of(&self, environment: &Environment) -> Environment {
        let folder = self.0.folder.get_or_init(|| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            write(folder.path(), self.ahead());
            folder
        });
        let mut environment = environment.clone();
        for (name, value) in [
            ("LD_PRELOAD", faketime().display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", file_in(folder.path()).display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ] {
            environment.insert(name.to_owned(), value);
        }
        environment
    }
}

fn file_in(folder: &Path) -> PathBuf {
    folder.join("clock")
}

/// Whole at once: the program reads it at every look at the clock.
fn write(folder: &Path, seconds: i64) {
    let (file, whole) = (file_in(folder), folder.join("clock.new"));
    std::fs::write(&whole, format!("{seconds:+}\n")).expect("the clock's own folder");
    std::fs::rename(&whole, &file).expect("the clock's own folder");
}

/// libfaketime, wherever the system keeps it.
fn faketime() -> PathBuf {
    let listed = Command::new("dpkg").args(["-L", "libfaketime"]).output();
    let listed = listed.expect("Debian's package faketime: tests/run.sh installs it").stdout;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let found = listed.lines().find(|path| path.ends_with("/libfaketimeMT.so.1"));
    PathBuf::from(found.expect("libfaketime: tests/run.sh installs it"))
}
