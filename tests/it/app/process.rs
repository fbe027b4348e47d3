//! The real binary as a child process.
//!
//! Invariant: a child is only ever signalled by its own id, and does not outlive its owner. Its
//! output is read by threads, so that a program which talks much is never held up by a busy test. A
//! tollgate that panicked fails the test, whatever became of it since.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::wait::{eventually, in_its_time};

pub type Environment = BTreeMap<String, String>;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

/// How a program ended, and all that it said.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the binary to its end, bounded.
pub async fn run(arguments: &[&str], environment: &Environment, folder: &Path) -> Ended {
    Process::ours(BINARY, arguments, environment, folder).end().await
}

/// What a stream of the child has said so far.
struct Said {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Said {
    fn listen(stream: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let said = text.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let mut said = said.lock().expect("no reader panics");
                said.push_str(&line);
                said.push('\n');
            }
        });
        Self { text, reader: Some(reader) }
    }

    fn text(&self) -> String {
        self.text.lock().expect("no reader panics").clone()
    }

    /// All of it, once the child has ended.
    fn whole(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no reader panics");
        }
        self.text()
    }
}

pub struct Process {
    child: Child,
    stdout: Said,
    stderr: Said,
    /// A tollgate, which must not panic.
    is_ours: bool,
}

impl Process {
    /// The server.
    pub fn serve(environment: &Environment, folder: &Path) -> Self {
        Self::ours(BINARY, &["serve"], environment, folder)
    }

    /// The server, whose files may not grow beyond so many blocks of 512 bytes.
    pub fn serve_on_a_small_disk(environment: &Environment, folder: &Path, blocks: u32) -> Self {
        // Ignored, the signal becomes an error of the write; the limit is soft, to be lifted.
        let script = format!("trap '' XFSZ; ulimit -S -f {blocks}; exec {BINARY} serve");
        Self::ours("sh", &["-c", &script], environment, folder)
    }

    fn ours(program: &str, arguments: &[&str], environment: &Environment, folder: &Path) -> Self {
        let mut process = Self::spawn(program, arguments, environment, folder);
        process.is_ours = true;
        process
    }

    /// Its files may grow again.
    pub fn give_room(&self) {
        let lift = format!("prlimit --fsize=unlimited --pid {}", self.child.id());
        let status = Command::new("sh").args(["-c", &lift]).status().expect("a shell");
        assert!(status.success(), "prlimit, of util-linux");
    }

    /// Any program, with nothing of the test's own environment but what finding programs needs.
    pub fn spawn(
        program: &str,
        arguments: &[&str],
        environment: &Environment,
        folder: &Path,
    ) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("RUST_BACKTRACE", "1")
            .envs(environment)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let stdout = Said::listen(child.stdout.take().expect("stdout is piped"));
        let stderr = Said::listen(child.stderr.take().expect("stderr is piped"));
        Self { child, stdout, stderr, is_ours: false }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// The base URL that the server prints when it is ready.
    pub async fn base_url(&mut self) -> String {
        in_its_time("the program listens", async || {
            let said = self.stdout();
            let line = said.lines().find_map(|line| line.strip_prefix("Tollgate listening on "));
            if line.is_none()
                && let Some(status) = self.status()
            {
                panic!("the program ended at start ({status}): {}{said}", self.stderr.whole());
            }
            line.map(str::to_string)
        })
        .await
    }

    /// The exit status, when the child has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of this process")
    }

    /// Waits for the child to end by itself.
    pub async fn wait(&mut self) -> ExitStatus {
        eventually("the program ends", async || self.status()).await
    }

    pub async fn end(mut self) -> Ended {
        let status = in_its_time("the command ends", async || self.status()).await;
        Ended { status, stdout: self.stdout.whole(), stderr: self.stderr.whole() }
    }

    /// Of its memory, what is in the machine's.
    pub fn resident_bytes(&self) -> usize {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("a Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
        kilobytes.expect("a running child") << 10
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it, and gives all that it had to say.
    pub fn last_words(&mut self) -> String {
        self.kill();
        self.stderr.whole()
    }

    pub fn terminate(&self) {
        self.signal("TERM");
    }

    pub fn hang_up(&self) {
        self.signal("HUP");
    }

    /// It does nothing any more, and its connections stay open.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// The standard library has no call for it; the shell's `kill` is everywhere.
    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &kill]).status().expect("a shell");
        assert!(status.success(), "the child takes signals");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if self.is_ours && !std::thread::panicking() {
            let said = self.stderr.whole();
            assert!(!said.contains("panicked at"), "a program panicked:\n{said}");
        }
    }
}
