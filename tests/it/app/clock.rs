//! A clock that can be set, for one process: libfaketime, by a file that it reads at every look.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::Environment;

/// How far a process's clock is off. Waits are not: those go by a clock that nobody sets.
#[derive(Clone, Debug)]
pub struct Clock {
    file: PathBuf,
}

impl Clock {
    /// Kept in this folder, and right.
    pub fn new(folder: &Path) -> Self {
        let clock = Self { file: folder.join("clock") };
        clock.set(0);
        clock
    }

    /// Sets it off by so many seconds.
    pub fn set(&self, seconds: i64) {
        // Whole at once: the program reads it at every look at the clock.
        let whole = self.file.with_extension("new");
        std::fs::write(&whole, format!("{seconds:+}\n")).expect("the test's own folder");
        std::fs::rename(&whole, &self.file).expect("the test's own folder");
    }

    /// The same, for a process that is to live by it.
    pub fn of(&self, environment: &Environment) -> Environment {
        let mut environment = environment.clone();
        for (name, value) in [
            ("LD_PRELOAD", faketime().display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ] {
            environment.insert(name.to_owned(), value);
        }
        environment
    }
}

/// libfaketime, wherever the system keeps it.
fn faketime() -> PathBuf {
    let listed = Command::new("dpkg").args(["-L", "libfaketime"]).output();
    let listed = listed.expect("Debian's package faketime: tests/run.sh installs it").stdout;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let found = listed.lines().find(|path| path.ends_with("/libfaketimeMT.so.1"));
    PathBuf::from(found.expect("libfaketime: tests/run.sh installs it"))
}
