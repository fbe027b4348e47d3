//! A PostgreSQL of one test's own, to be killed, paused and started again.
//!
//! Invariant: only the server that was started here is signalled, by its id and those of its
//! children.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use super::programs::{as_user, folder_of, free_port, hand_over, run, unprivileged};
use super::wait::eventually;

pub struct Cluster {
    folder: TempDir,
    bin: PathBuf,
    port: u16,
    postmaster: Child,
}

impl Cluster {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bin = programs();
        let user = unprivileged();
        hand_over(folder.path(), user.as_deref());
        let mut initdb = as_user(user.as_deref(), &bin.join("initdb"));
        initdb.arg("--pgdata").arg(folder.path().join("data"));
        initdb.args(["--username=tollgate", "--auth=trust", "--encoding=UTF8", "--no-locale"]);
        run(initdb.current_dir(folder.path()));
        let port = free_port();
        let postmaster = spawn(&bin, folder.path(), port);
        let cluster = Self { folder, bin, port, postmaster };
        cluster.ready().await;
        cluster
    }

    pub fn url(&self) -> String {
        format!("postgres://tollgate@127.0.0.1:{}/postgres", self.port)
    }

    /// SIGKILL for the server and every backend of it.
    pub async fn kill9(&mut self) {
        let pids = self.pids();
        signal("KILL", &pids);
        self.postmaster.wait().expect("a child of this process");
        eventually("the backends are gone", async || {
            pids.iter().all(|pid| parent(*pid).is_none()).then_some(())
        })
        .await;
    }

    /// After `kill9`: on the same files, as an operator would.
    pub async fn start_again(&mut self) {
        self.postmaster = spawn(&self.bin, self.folder.path(), self.port);
        self.ready().await;
    }

    /// Nothing answers any more, and no connection breaks.
    pub fn pause(&self) {
        signal("STOP", &self.pids());
    }

    pub fn resume(&self) {
        signal("CONT", &self.pids());
    }

    async fn ready(&self) {
        eventually("the own PostgreSQL accepts connections", async || {
            let connection = PgConnection::connect(&self.url()).await.ok()?;
            connection.close().await.ok()
        })
        .await;
    }

    /// The server first, then its children.
    fn pids(&self) -> Vec<u32> {
        let server = self.postmaster.id();
        let processes = std::fs::read_dir("/proc").expect("a Linux");
        let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        std::iter::once(server).chain(ids.filter(|id| parent(*id) == Some(server))).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let pids = self.pids();
        signal("KILL", &pids);
        let _ = self.postmaster.wait();
    }
}

/// The parent of a process that still runs.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z").then_some(parent)
}

fn signal(name: &str, pids: &[u32]) {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    // One that has ended meanwhile is not there to be signalled.
    let _ = Command::new("kill").arg(format!("-{name}")).args(pids).stderr(Stdio::null()).status();
}

fn spawn(bin: &Path, folder: &Path, port: u16) -> Child {
    let mut command = as_user(unprivileged().as_deref(), &bin.join("postgres"));
    let sockets = format!("unix_socket_directories={}", folder.display());
    command.arg("-D").arg(folder.join("data")).args(["-p", &port.to_string()]);
    command.args(["-c", "listen_addresses=127.0.0.1", "-c", &sockets, "-c", "max_connections=60"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.current_dir(folder).spawn().expect("PostgreSQL starts")
}

/// Debian keeps the server's programs out of the PATH.
fn programs() -> PathBuf {
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut folders: Vec<PathBuf> =
        debian.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
    folders.sort();
    folder_of(folders, &["initdb", "postgres"])
}
