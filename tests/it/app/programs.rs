//! Servers of a test's own that refuse to run as root: found, started as another user.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the system gives connections theirs, so that a port stays free until
/// its server is there, and while it is restarted.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// The folder among `folders`, or else in the PATH, that holds all these programs.
pub fn folder_of(folders: Vec<PathBuf>, programs: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = folders
        .into_iter()
        .chain(std::env::split_paths(&path))
        .find(|folder| programs.iter().all(|program| folder.join(program).is_file()));
    found.unwrap_or_else(|| panic!("{programs:?} are missing: tests/run.sh installs them"))
}

/// `setpriv` becomes the program, so the id stays the same.
pub fn as_user(user: Option<&str>, program: &Path) -> Command {
    let Some(user) = user else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={user}"), &format!("--regid={}", group(user))]);
    command.args(["--clear-groups", "--"]).arg(program);
    command
}

/// Whom to run it as; `None` where this process is not root itself.
pub fn unprivileged() -> Option<String> {
    (said("id", &["-u"]) == "0").then(|| {
        let known = Command::new("id").args(["-u", "postgres"]).output();
        let user = if known.is_ok_and(|id| id.status.success()) { "postgres" } else { "nobody" };
        user.to_string()
    })
}

/// Gives that user a folder.
pub fn hand_over(folder: &Path, user: Option<&str>) {
    if let Some(user) = user {
        run(Command::new("chown").arg(user).arg(folder));
    }
}

/// Found by taking it, and given back: a server of another program cannot be handed a socket.
/// Never the same one twice in this process; other runs begin somewhere else.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let size = PORTS.end - PORTS.start;
    let first = u16::try_from(std::process::id() % u32::from(size)).expect("below a port");
    let mut tries = (0..size).map(|_| {
        let number = TAKEN.fetch_add(1, Ordering::Relaxed) % size;
        PORTS.start + (first + number) % size
    });
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    tries.find(is_free).expect("a free port")
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn group(user: &str) -> String {
    said("id", &["-g", user])
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}
