//! The two servers in front of the upstream, and what the system says of their processes.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::load::Connection;
use crate::upstream;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

pub struct Server {
    pub address: SocketAddr,
    key: String,
    child: Child,
}

pub struct Site {
    pub nginx: Server,
    pub tollgate: Server,
    _folder: TempDir,
}

impl Site {
    pub async fn start() -> Self {
        let upstream = upstream::start().await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let nginx = nginx(folder.path(), upstream);
        let tollgate = tollgate(folder.path(), upstream);
        for server in [&nginx, &tollgate] {
            server.answers().await;
        }
        Self { nginx, tollgate, _folder: folder }
    }

    /// What each of `count` streams takes while it waits for its second event, in KiB.
    pub async fn memory_per_stream(&self, count: usize) -> f64 {
        let request = self.tollgate.request("held", 100);
        let before = self.tollgate.resident_kib();
        let mut open = Vec::new();
        for _ in 0..count {
            let mut connection = Connection::open(&self.tollgate).await;
            connection.begin(&request).await;
            open.push(connection);
        }
        let after = self.tollgate.resident_kib();
        #[expect(clippy::cast_precision_loss, reason = "an average for people")]
        let each = after.saturating_sub(before) as f64 / count as f64;
        each
    }

    pub fn finish(self) {
        for mut server in [self.nginx, self.tollgate] {
            server.child.kill().expect("a child");
            server.child.wait().expect("a child");
        }
    }
}

impl Server {
    pub fn request(&self, model: &str, prompt: usize) -> Vec<u8> {
        let text = "All work and no play. ".repeat(prompt / 22 + 1);
        let is_stream = model != "plain";
        let body = format!(
            "{{\"model\":\"bench/{model}\",\"stream\":{is_stream},\
             \"stream_options\":{{\"include_usage\":true}},\
             \"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}"
        );
        let (key, length) = (&self.key, body.len());
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }

    /// Of all its threads that still run.
    pub fn processor_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let spent = tasks.expect("a Linux").flatten().map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
        });
        Duration::from_nanos(spent.sum())
    }

    pub fn resident_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let text = text.expect("a Linux");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    async fn answers(&self) {
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(self.address).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no server at {}", self.address);
    }
}

/// Found by taking it, and given back.
fn free_address() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    socket.local_addr().expect("bound")
}

/// One process, and what a proxy for streams needs.
fn nginx(folder: &Path, upstream: SocketAddr) -> Server {
    let address = free_address();
    let file = folder.join("nginx.conf");
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {}/{name};\n", folder.display()));
    let configuration = format!(
        "daemon off;\nmaster_process off;\npid {0}/nginx.pid;\nerror_log stderr error;\n\
         events {{ worker_connections 4096; }}\nhttp {{\naccess_log off;\n{1}\
         client_body_buffer_size 256k;\nkeepalive_requests 1000000000;\n\
         upstream mock {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; }}\n\
         server {{ listen {address}; location / {{ proxy_pass http://mock; proxy_buffering off;\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n}}\n",
        folder.display(),
        temporary.concat()
    );
    std::fs::write(&file, configuration).expect("the bench's own folder");
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder).arg("-c").arg(file);
    Server { address, key: "none".to_owned(), child: spawn(&mut command) }
}

fn tollgate(folder: &Path, upstream: SocketAddr) -> Server {
    let address = free_address();
    let file = format!("sqlite://{}", folder.join("bench.db").display());
    let database = std::env::var("BENCH_DATABASE_URL").unwrap_or(file);
    let command = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(arguments).current_dir(folder).env_clear();
        command.env("DATABASE_URL", &database).env("OPENROUTER_API_KEY", "none");
        command.env("UPSTREAM_BASE_URL", format!("http://{upstream}/v1"));
        command.env("TOLLGATE_LISTEN", address.to_string()).env("TOLLGATE_LOG", "warn");
        command
    };
    said(&mut command(&["account", "create", "--name", "bench", "--credit", "1000000"]));
    let key = said(&mut command(&["key", "create", "--account", "bench"]));
    Server { address, key, child: spawn(&mut command(&["serve"])) }
}

fn said(command: &mut Command) -> String {
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn spawn(command: &mut Command) -> Child {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
