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
        initdb.arg("--no-sync");
        run(initdb.current_dir(folder.path()));
        let port = free_port();
        let postmaster = spawn(&bin, folder.path(), port);
        let cluster = Self { folder, bin, port, postmaster };
        cluster.ready().await;
        cluster
    }

    /// A copy that follows `primary`, and without whose word the primary commits nothing from now
    /// on: what is committed outlives the primary.
    pub async fn standby_of(primary: &Self) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let user = unprivileged();
        hand_over(folder.path(), user.as_deref());
        let data = folder.path().join("data");
        let mut copy = as_user(user.as_deref(), &primary.bin.join("pg_basebackup"));
        let source = format!("{}?application_name=standby", primary.url());
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname", &source]);
        run(copy.arg("--pgdata").arg(&data).current_dir(folder.path()));
        // Once it is promoted it waits for nobody.
        std::fs::write(data.join("postgresql.auto.conf"), recovery(&source))
            .expect("our own folder");
        let (bin, port) = (primary.bin.clone(), free_port());
        let postmaster = spawn(&bin, folder.path(), port);
        let standby = Self { folder, bin, port, postmaster };
        primary.set("synchronous_standby_names", "standby").await;
        eventually("the standby follows", async || {
            let mut primary = PgConnection::connect(&primary.url()).await.ok()?;
            let follows = "SELECT sync_state = 'sync' FROM pg_stat_replication";
            let follows: Vec<bool> =
                sqlx::query_scalar(follows).fetch_all(&mut primary).await.ok()?;
            follows.contains(&true).then_some(())
        })
        .await;
        standby
    }

    /// It becomes a primary; the old one must be dead by then.
    pub async fn promote(&self) {
        eventually("the standby is promoted", async || {
            let mut standby = PgConnection::connect(&self.url()).await.ok()?;
            let is_promoted = sqlx::query_scalar("SELECT pg_promote()");
            let _: Result<bool, _> = is_promoted.fetch_one(&mut standby).await;
            let reads = sqlx::query_scalar("SELECT pg_is_in_recovery()");
            let reads: bool = reads.fetch_one(&mut standby).await.ok()?;
            (!reads).then_some(())
        })
        .await;
    }

    /// Sets a parameter while it runs.
    pub async fn set(&self, parameter: &str, value: &str) {
        // Also where transactions are set to read only, by this very call.
        let url = format!("{}?options=-c%20default_transaction_read_only%3Doff", self.url());
        eventually("a parameter is set", async || {
            let mut connection = PgConnection::connect(&url).await.ok()?;
            for statement in [
                format!("ALTER SYSTEM SET {parameter} = '{value}'"),
                "SELECT pg_reload_conf()".to_owned(),
            ] {
                let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(statement));
                statement.execute(&mut connection).await.ok()?;
            }
            Some(())
        })
        .await;
    }

    /// Its files may not grow beyond so many bytes, as on a disk that is full; `None`: they may.
    pub fn limit_files(&self, bytes: Option<u64>) {
        let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        for pid in self.pids() {
            // One that has ended meanwhile needs no limit. A soft one, to be lifted.
            let _ = Command::new("prlimit")
                .arg(format!("--fsize={limit}:unlimited"))
                .args(["--pid", &pid.to_string()])
                .stderr(Stdio::null())
                .status();
        }
    }

    /// It has ended by itself.
    pub fn is_over(&mut self) -> bool {
        self.postmaster.try_wait().expect("a child of this process").is_some()
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

/// What `pg_basebackup` has written down, without what else the primary was told.
fn recovery(source: &str) -> String {
    format!("primary_conninfo = '{source}'\n")
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
    // It is killed, and no machine crashes under it: what it has written is there, synced or not.
    command.args(["-c", "fsync=off"]);
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
