//! A real PgBouncer in front of PostgreSQL, in whichever mode a test wants.
//!
//! Invariant: it runs as an unprivileged user on a loopback port, and does not outlive its owner.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use super::programs::{as_user, folder_of, free_port, hand_over, unprivileged};
use super::store::server_of;
use super::wait::eventually;

pub struct PgBouncer {
    folder: TempDir,
    port: u16,
    child: Child,
}

/// Somebody else may take the port between its choice and its use.
const ATTEMPTS: usize = 5;

impl PgBouncer {
    /// In front of the server of `url`, with these settings, one a line.
    pub async fn start(url: &str, settings: &str) -> Self {
        for _ in 0..ATTEMPTS {
            let mut started = Self::spawn(url, settings, free_port());
            if started.accepts(url).await {
                return started;
            }
        }
        panic!("PgBouncer does not start");
    }

    /// On a port that the test has chosen, not awaited.
    pub fn spawn(url: &str, settings: &str, port: u16) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let user = unprivileged();
        hand_over(folder.path(), user.as_deref());
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, configuration(url, settings, port)).expect("the test's own folder");
        let program = folder_of(vec![PathBuf::from("/usr/sbin")], &["pgbouncer"]).join("pgbouncer");
        let log = std::fs::File::create(folder.path().join("log")).expect("the test's own folder");
        let mut command = as_user(user.as_deref(), &program);
        command.arg(&file).current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("PgBouncer starts");
        Self { folder, port, child }
    }

    /// The same database by way of this pooler.
    pub fn url(&self, url: &str) -> String {
        url.replace(server_of(url), &format!("127.0.0.1:{}", self.port))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether a connection comes about, rather than the end of the process.
    pub async fn accepts(&mut self, url: &str) -> bool {
        let url = self.url(url);
        eventually("PgBouncer accepts connections, or ends", async || {
            if self.child.try_wait().expect("a child of this process").is_some() {
                eprintln!("{}", log(self.folder.path()));
                return Some(false);
            }
            let options: sqlx::postgres::PgConnectOptions = url.parse().expect("an address");
            let options = options.extra_float_digits(None);
            let connection = PgConnection::connect_with(&options).await.ok()?;
            connection.close().await.ok().map(|()| true)
        })
        .await
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- PgBouncer's log ---\n{}", log(self.folder.path()));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default()
}

/// As Debian ships it but for who may enter: everybody, as the user of `url`. In particular no
/// start-up parameter is passed over (`ignore_startup_parameters`).
fn configuration(url: &str, settings: &str, port: u16) -> String {
    let server = server_of(url);
    let (host, server_port) = server.rsplit_once(':').unwrap_or((server, "5432"));
    let user = url.split(['/', '@', ':']).nth(3).expect("postgres://user@host:port/database");
    format!(
        "[databases]\n* = host={host} port={server_port} user={user}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
         auth_type = any\n{settings}\n"
    )
}
